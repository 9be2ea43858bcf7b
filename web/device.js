/** Which device runs the model, in which order to try, and why. */

/**
 * `dequantized`: the graph whose weights are unpacked to floats when the model starts; WASM decodes several times as fast.
 * @typedef {{device: 'webgpu'|'wasm', threads: number, variant: string, dequantized: boolean, why: string}} Candidate
 */

/** Variants in the order to prefer, by device. */
export const GPU_ORDER = ['q4f16', 'q4', 'fp16', 'q4s', 'fp32'];
export const CPU_ORDER = ['q4', 'int8', 'q4s', 'fp32'];
/** Gigabytes of memory from which on weights are unpacked; browsers tell at most 8, or nothing at all. */
const ROOMY = 8;

/** Look at the browser (page or worker): `{gpu, gpuWhy, half, software, isolated, aloneWhy, cores, roomy}`. */
export async function inspectBrowser() {
  const found = {
    gpu: false, gpuWhy: '', half: false, software: false,
    isolated: Boolean(globalThis.crossOriginIsolated && typeof SharedArrayBuffer !== 'undefined'),
    aloneWhy: globalThis.crossOriginIsolated ? 'this browser offers no SharedArrayBuffer' : 'the page is not cross-origin isolated',
    cores: navigator.hardwareConcurrency || 1,
    roomy: (navigator.deviceMemory ?? ROOMY) >= ROOMY && !/Mobi|Android|iPhone|iPad/.test(navigator.userAgent ?? ''),
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
 * @param {Record<string, {devices: string[], half: boolean, dequantized: object|null}>} variants of `site.json`
 * @param {{device?: string, variant?: string, threads?: number, memory?: 'auto'|'small'}} wish 'auto' leaves the choice
 * @returns {Candidate[]}
 */
export function candidates(browser, variants, { device = 'auto', variant = 'auto', threads = 0, memory = 'auto' } = {}) {
  const pick = (kind, order) => {
    const fits = (name) => variants[name]?.devices.includes(kind) && (kind !== 'webgpu' || browser.half || !variants[name].half);
    if (variant !== 'auto') return fits(variant) ? variant : null;
    return order.find(fits) ?? Object.keys(variants).find(fits) ?? null;
  };
  const list = [];
  const wantsGpu = device === 'webgpu' || (device === 'auto' && !browser.software);
  let gpuWhy = browser.gpuWhy;
  if (browser.gpu && browser.software && device === 'auto') gpuWhy = 'the graphics adapter is emulated in software';
  if (browser.gpu && wantsGpu) {
    const name = pick('webgpu', GPU_ORDER);
    if (name) {
      const why = device === 'auto' ? 'the fastest: this browser has WebGPU' : 'as chosen';
      list.push({ device: 'webgpu', threads: 1, variant: name, dequantized: false, why });
    } else gpuWhy = browser.half ? 'no variant for WebGPU is deployed' : 'the graphics adapter has no 16-bit floats';
  }
  if (device !== 'webgpu') {
    const name = pick('wasm', CPU_ORDER);
    // Half of the logical cores are usually real ones; more than 8 threads gain nothing at this size.
    const count = threads || Math.max(1, Math.min(8, browser.cores > 4 ? Math.ceil(browser.cores / 2) : browser.cores));
    const used = browser.isolated ? count : 1;
    const reason = device === 'wasm' ? 'as chosen' : gpuWhy;
    const alone = browser.isolated ? '' : `one thread, because ${browser.aloneWhy}`;
    const add = (dequantized, slow = '') => list.push({
      device: 'wasm', threads: used, variant: name, dequantized, why: [reason, alone, slow].filter(Boolean).join('; '),
    });
    const both = name && variants[name].dequantized;
    if (both && memory !== 'small' && browser.roomy) add(true);
    if (name) add(false, both ? 'weights stay packed, which needs little memory and more time' : '');
  }
  if (!list.length) {
    const which = variant === 'auto' ? 'no deployed variant' : `the variant ${variant} does not`;
    throw new Error(`${which} runs on ${device === 'auto' ? 'this browser' : device}${gpuWhy ? `: ${gpuWhy}` : ''}`);
  }
  return list;
}

/** A short name of a candidate, for people. */
export function deviceName({ device, threads }) {
  if (device === 'webgpu') return 'WebGPU';
  return threads > 1 ? `WASM, ${threads} threads` : 'WASM, one thread';
}
