/**
 * Runs the model away from the page. Spoken to by `index.js` only:
 * `{id, op, ...}` in; `{id, type: 'progress' | 'step' | 'ids' | 'done' | 'error', ...}` out.
 */
import { candidates, deviceName, inspectBrowser } from './device.js';
import { Stopped } from './dialogue.js';
import { filesOf, loadCandidate, scriptsOf } from './load.js';
import { prefixHash, prefixIds, readPromptCache, writePromptCache } from './prompt_cache.js';
import { SITE_FORMAT, Store } from './store.js';

let site = null;
let store = null;
let engine = null;
let tools = [];
const running = new Map(); // id -> AbortController
const ALONE = ['load', 'generate', 'dispose']; // operations on the model: one at a time, in their order
let before = Promise.resolve();

async function open(base) {
  if (site?.base === base) return;
  let response;
  try {
    response = await fetch(`${base}site.json`, { cache: 'no-cache' });
  } catch {
    throw new Error('site.json cannot be fetched: is the network there?');
  }
  if (!response.ok) throw new Error(`site.json: the server answered ${response.status}`);
  const found = await response.json();
  if (found.format !== SITE_FORMAT) {
    throw new Error(`site.json has format ${found.format}, and this page reads ${SITE_FORMAT}: build the site again`);
  }
  site = { ...found, base };
  store = await new Store(base, site.files).open();
}

const operations = {
  /** What could be loaded, and what of it is here already. */
  async inspect({ base, wish }) {
    await open(base);
    const browser = await inspectBrowser();
    const choices = {};
    for (const device of ['auto', 'webgpu', 'wasm']) {
      try {
        choices[device] = await Promise.all(candidates(browser, site.variants, { ...wish, device }).map(describe));
      } catch (error) {
        choices[device] = { error: error.message };
      }
    }
    const room = await navigator.storage?.estimate?.().catch(() => null);
    return { site: shown(), browser, choices, room: room ? room.quota - room.usage : null, lasting: store.cache !== null };
  },

  async load({ base, wish, usePrefix = true }, id, signal) {
    await open(base);
    await engine?.dispose();
    engine = null;
    const started = performance.now();
    const browser = await inspectBrowser();
    const tries = candidates(browser, site.variants, wish);
    const failures = [];
    for (const candidate of tries) {
      try {
        return await start(candidate, failures, usePrefix, id, signal, started);
      } catch (error) {
        if (signal.aborted || error.name === 'DownloadError' || candidate === tries.at(-1)) throw error;
        failures.push(`${deviceName(candidate)} failed: ${firstLine(error)}`);
        post(id, { type: 'step', step: `${deviceName(candidate)} failed, trying the next way` });
      }
    }
    return null;
  },

  async generate({ messages, withTools = true, prompt = null, maxTokens, constrained = false, drafts = true }, id, signal) {
    if (!engine) throw new Error('no model is loaded');
    const text = prompt ?? engine.render(messages, withTools ? tools : null);
    const grammar = constrained ? engine.constrain(tools, text, { mode: constrained, verbatim: site.verbatim }) : null;
    const answer = await engine.generateIds(engine.encodeNext(text), {
      maxTokens: maxTokens ?? site.max_tokens ?? 256,
      signal,
      grammar,
      drafts,
      onIds: (ids) => post(id, { type: 'ids', text: engine.decode(ids), count: ids.length }),
    });
    if (grammar) answer.stats.grammar = grammar.cost();
    return { ...answer, text: engine.decode(answer.ids), prompt: text };
  },

  async clear({ base }) {
    await open(base);
    return store.clear();
  },

  async dispose() {
    await engine?.dispose();
    engine = null;
  },
};

/** Paths that a candidate needs; with `usePrefix` its stored keys and values too. */
function needs(candidate, usePrefix = true) {
  const { prefix, ...rest } = filesOf(site, candidate);
  return [...Object.values(rest), usePrefix ? prefix : []].flat();
}

/** Bytes of each part of what a candidate needs. */
const partsOf = (candidate, usePrefix = true) => Object.fromEntries(
  Object.entries(filesOf(site, candidate)).map(([part, list]) => [part, usePrefix || part !== 'prefix' ? size(list) : 0]),
);
const size = (paths) => paths.reduce((sum, path) => sum + store.files.get(path).bytes, 0);

async function describe(candidate) {
  const paths = needs(candidate);
  return { ...candidate, bytes: size(paths), parts: partsOf(candidate), have: await store.have(paths), files: paths.length };
}

function shown() {
  const { base, ...rest } = site;
  return rest;
}

async function start(candidate, failures, usePrefix, id, signal, started) {
  const paths = needs(candidate, usePrefix);
  const have = await store.have(paths);
  await store.fetch(paths, (progress) => post(id, { type: 'progress', ...progress, candidate }), signal);
  const downloaded = performance.now();
  engine = await loadCandidate(site, store, candidate, (step) => post(id, { type: 'step', step }));
  if (signal.aborted) throw signal.reason;
  tools = site.tools;
  if (candidate.device === 'webgpu') {
    post(id, { type: 'step', step: 'compiling for the graphics card' });
    await engine.generateIds(engine.encode('<bos>a'), { maxTokens: 2, signal });
    engine.last = null;
  }
  const loaded = performance.now();
  const prefix = usePrefix ? await readyPrefix(candidate, id, signal) : 'off';
  store.release();
  await store.keepScripts(scriptsOf(site, candidate));
  await store.sweep([prefixName(candidate, await hashOf(candidate))]);
  return {
    ...candidate,
    why: [candidate.why, ...failures].filter(Boolean).join('; '),
    prefix,
    prefixTokens: engine.stored?.ids.length ?? 0,
    wasm: filesOf(site, candidate).runtime[0],
    bytes: size(paths),
    parts: partsOf(candidate, usePrefix),
    fromCache: have,
    kept: store.kept,
    seconds: {
      download: (downloaded - started) / 1000,
      start: (loaded - downloaded) / 1000,
      prefix: (performance.now() - loaded) / 1000,
    },
  };
}

const hashOf = ({ variant }) => prefixHash(site, store.files, engine, variant);
const prefixName = ({ variant, device, runtime }, hash) => `own-prompt-cache-${variant}-${device}-${runtime}-${hash.slice(0, 32)}`;

/** The shipped cache when it belongs to this model and these tools, else one from an earlier visit, else a new one. */
async function readyPrefix(candidate, id, signal) {
  const hash = await hashOf(candidate);
  const fits = (buffer) => {
    try {
      const cache = readPromptCache(buffer);
      if (cache.hash === hash) engine.setPrefix(cache);
      return cache.hash === hash;
    } catch {
      return false; // damaged
    }
  };
  const path = site.variants[candidate.variant].prefix;
  if (path && fits(await store.bytes(path))) return 'shipped';
  const name = prefixName(candidate, hash);
  const own = await store.recall(name);
  if (own && fits(own)) return 'kept';
  post(id, { type: 'step', step: 'reading the tools once (kept for the next visit)' });
  const ids = prefixIds(site, engine);
  await engine.prefill(ids, { signal });
  const tensors = Object.fromEntries(Object.entries(engine.stored.tensors).map(([key, { dims, data }]) => [key, { dims, data }]));
  await store.remember(name, writePromptCache({ hash, ids, tensors }));
  return 'computed';
}

const post = (id, message) => self.postMessage({ id, ...message });
const firstLine = (error) => String(error?.message ?? error).split('\n')[0].slice(0, 300);

self.onmessage = async ({ data: { id, op, ...rest } }) => {
  if (op === 'stop') {
    running.get(rest.target)?.abort(new Stopped());
    return;
  }
  const controller = new AbortController();
  running.set(id, controller);
  try {
    const work = () => operations[op](rest, id, controller.signal);
    const value = ALONE.includes(op) ? before.then(work) : work();
    if (ALONE.includes(op)) before = value.catch(() => {});
    post(id, { type: 'done', value: await value });
  } catch (error) {
    const name = controller.signal.aborted ? 'AbortError' : error?.name ?? 'Error';
    post(id, { type: 'error', name, message: firstLine(error), retry: error?.retry });
  } finally {
    running.delete(id);
  }
};
