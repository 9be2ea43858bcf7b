/** Which device runs the model, in which order to try, and why. */

/**
 * `runtime`: our own WebAssembly kernels, or onnxruntime through transformers.js.
 * @typedef {{device: 'webgpu'|'wasm', runtime: 'kernels'|'onnxruntime', threads: number, variant: string, why: string}} Candidate
 */

/** Variants in the order to prefer, by device. */
export const GPU_ORDER = ['q4f16', 'q4', 'fp16', 'q4s', 'fp32'];
export const CPU_ORDER = ['q4', 'int8', 'q4s', 'fp32'];

/** A module with one instruction of SIMD, which both runtimes need, WebGPU or not. */
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11);

/** Look at the browser (page or worker): `{simd, gpu, gpuWhy, half, software, isolated, aloneWhy, cores}`. */
export async function inspectBrowser() {
  const found = {
    simd: WebAssembly.validate(SIMD), gpu: false, gpuWhy: '', half: false, software: false,
    isolated: Boolean(globalThis.crossOriginIsolated && typeof SharedArrayBuffer !== 'undefined'),
    aloneWhy: globalThis.crossOriginIsolated ? 'this browser offers no SharedArrayBuffer' : 'the page is not cross-origin isolated',
    cores: navigator.hardwareConcurrency || 1,
  };
  if (!navigator.gpu) {
    found.gpuWhy = globalThis.isSecureContext === false ? 'WebGPU needs a secure page (https)' : 'this browser has no WebGPU';
    return found;
  }
  try {
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) {
      found.gpuWhy = 'WebGPU found no graphics adapter';
      return found;
    }
    found.gpu = true;
    found.half = adapter.features.has('shader-f16');
    const info = adapter.info ?? {};
    found.software = Boolean(adapter.isFallbackAdapter ?? info.isFallbackAdapter) || /swiftshader|llvmpipe/i.test(
      `${info.architecture} ${info.description} ${info.device} ${info.vendor}`,
    );
  } catch (error) {
    found.gpuWhy = `WebGPU failed (${error.message})`;
  }
  return found;
}

/**
 * Candidates in the order to try.
 * @param {object} browser what `inspectBrowser` found
 * @param {Record<string, {devices: string[], half: boolean, kernels: object|null}>} variants of `site.json`
 * @param {{device?: string, variant?: string, threads?: number, runtime?: 'auto'|'kernels'|'onnxruntime'}} wish 'auto' leaves the choice
 * @returns {Candidate[]}
 */
export function candidates(browser, variants, { device = 'auto', variant = 'auto', threads = 0, runtime = 'auto' } = {}) {
  if (!browser.simd) throw new Error('WebAssembly has no SIMD instructions here, and nothing runs the model without: another browser or a newer device has them');
  const pick = (kind, order) => {
    const fits = (name) => variants[name]?.devices.includes(kind) && (kind !== 'webgpu' || browser.half || !variants[name].half);
    if (variant !== 'auto') return fits(variant) ? variant : null;
    return order.find(fits) ?? Object.keys(variants).find(fits) ?? null;
  };
  const list = [];
  const wantsGpu = runtime !== 'kernels' && (device === 'webgpu' || (device === 'auto' && !browser.software));
  let gpuWhy = browser.gpuWhy;
  if (browser.gpu && browser.software && device === 'auto') gpuWhy = 'the graphics adapter is emulated in software';
  if (browser.gpu && wantsGpu) {
    const name = pick('webgpu', GPU_ORDER);
    if (name) {
      const why = device === 'auto' ? 'the fastest: this browser has WebGPU' : 'as chosen';
      list.push({ device: 'webgpu', runtime: 'onnxruntime', threads: 1, variant: name, why });
    } else gpuWhy = browser.half ? 'no variant for WebGPU is deployed' : 'the graphics adapter has no 16-bit floats';
  }
  if (device !== 'webgpu') {
    const name = pick('wasm', CPU_ORDER);
    // Half of the logical cores are usually real ones; more than 8 threads gain nothing at this size.
    const count = threads || Math.max(1, Math.min(8, browser.cores > 4 ? Math.ceil(browser.cores / 2) : browser.cores));
    const used = browser.isolated ? count : 1;
    const reason = device === 'wasm' ? 'as chosen' : gpuWhy;
    const alone = browser.isolated ? '' : `one thread, because ${browser.aloneWhy}`;
    const add = (kind, count, ...reasons) => list.push({
      device: 'wasm', runtime: kind, threads: count, variant: name, why: [reason, ...reasons].filter(Boolean).join('; '),
    });
    if (name && variants[name].kernels && runtime !== 'onnxruntime') {
      add('kernels', used, alone);
      if (used > 1) add('kernels', 1); // where helper threads do not start
    }
    if (name && runtime !== 'kernels') {
      const none = variants[name].kernels ? '' : `${name} is not packed as our own kernels want it`;
      add('onnxruntime', used, alone, runtime === 'onnxruntime' ? 'onnxruntime as chosen' : none);
    }
  }
  if (!list.length) {
    const which = variant === 'auto' ? 'no deployed variant' : `the variant ${variant} does not`;
    throw new Error(`${which} runs on ${device === 'auto' ? 'this browser' : device}${gpuWhy ? `: ${gpuWhy}` : ''}`);
  }
  return list;
}

/** A short name of a candidate, for people. */
export function deviceName({ device, runtime, threads }) {
  if (device === 'webgpu') return 'WebGPU';
  const where = runtime === 'onnxruntime' ? 'WASM by onnxruntime' : 'WASM';
  return threads > 1 ? `${where}, ${threads} threads` : `${where}, one thread`;
}
