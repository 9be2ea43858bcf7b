/** Starts the model of a candidate (`device.js`) from a site's stored files: on our own kernels, or on transformers.js. */
import { NgramTable } from './drafts.js';
import { loadEngine } from './engine.js';
import { buildFor, createDecoder } from './kernels/decoder.js';
import { NativeEngine, TemplateTokenizer } from './native.js';

/** Room for a question, its answer and what tools say to it, in tokens, beside the declarations of the tools. */
const DIALOGUE = 768;

/** The file of the kernels that this browser runs on so many threads. */
function kernelsFile(site, threads) {
  return buildFor(site.runtime.kernels.wasm, threads);
}

/** The checked files that a candidate needs, by part: `{runtime, model, prefix, drafts}`. */
export function filesOf(site, { variant, device, runtime, threads }) {
  const { files, prefix, kernels } = site.variants[variant];
  const own = runtime === 'kernels';
  return {
    runtime: [own ? kernelsFile(site, threads) : site.runtime.transformers[device].wasm],
    model: own ? kernels.files : files,
    prefix: prefix ? [prefix] : [],
    drafts: own && site.drafts ? [site.drafts] : [],
  };
}

/** The scripts that a candidate imports. */
export function scriptsOf(site, { runtime, device }) {
  if (runtime === 'kernels') return [site.runtime.kernels.tokenizers, site.runtime.kernels.jinja];
  return [site.runtime.transformers.module, site.runtime.transformers[device].mjs];
}

const importFrom = (site, path) => import(new URL(path, site.base).href);
const json = async (store, path) => store.response(path).json();

/** @returns {Promise<import('./dialogue.js').BaseEngine>} */
export function loadCandidate(site, store, candidate, onStep) {
  return (candidate.runtime === 'kernels' ? loadKernels : loadTransformers)(site, store, candidate, onStep);
}

async function loadKernels(site, store, { variant, threads }, onStep) {
  const { kernels, prefix_tokens: prefix } = site.variants[variant];
  onStep('reading the tokenizer');
  const [tokenizers, jinja] = await Promise.all(scriptsOf(site, { runtime: 'kernels' }).map((path) => importFrom(site, path)));
  const config = await json(store, `${site.model}/tokenizer_config.json`);
  const words = new Uint8Array(await store.bytes(`${site.model}/tokenizer.json`));
  const tokenizer = new TemplateTokenizer({ tokenizers, jinja }, words, config);
  words.buffer.transfer?.(0); // its memory is free now, not when a garbage collector finds the time
  const layout = await json(store, kernels.layout);
  const table = site.drafts ? NgramTable.open(await store.bytes(site.drafts)) : null;
  const wasm = () => store.bytes(kernelsFile(site, threads));
  const create = (capacity) => createDecoder({
    wasm: { threads: { relaxed: wasm, simd: wasm }, single: { relaxed: wasm, simd: wasm } },
    layout,
    read: (path, offset, length) => store.read(`${site.model}/onnx/${path}`, offset, length),
    threads,
    capacity: Math.min(capacity, layout.positions),
  });
  onStep('starting the model');
  const engine = new NativeEngine({ create, tokenizer, table, positions: layout.positions });
  await engine.reserve(prefix + site.max_tokens + DIALOGUE);
  return engine;
}

let transformers = null;

/** transformers.js from the site itself, set up to read from the store and nowhere else. */
async function loadTransformers(site, store, { variant, device, threads }, onStep) {
  transformers ??= await importFrom(site, site.runtime.transformers.module);
  const { env } = transformers;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = site.base;
  env.useBrowserCache = false;
  env.useWasmCache = false;
  env.useCustomCache = true;
  env.customCache = {
    async match(request) {
      const url = new URL(typeof request === 'string' ? request : request.url, site.base).href;
      const path = url.startsWith(site.base) ? url.slice(site.base.length) : null;
      return path !== null && store.files.has(path) ? store.response(path) : undefined;
    },
    async put() {},
  };
  const { mjs, wasm } = site.runtime.transformers[device];
  const options = env.backends.onnx.wasm;
  options.wasmPaths = { mjs: new URL(mjs, site.base).href, wasm: new URL(wasm, site.base).href };
  options.wasmBinary = await store.bytes(wasm);
  options.numThreads = threads;
  options.proxy = false;
  return loadEngine(transformers, { name: site.model, load: site.variants[variant].load, device, onStep });
}
