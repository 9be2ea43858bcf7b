/**
 * Gemma 3's decoder on WebAssembly kernels of our own (decoder.c), the same in a browser's worker and in Node.
 *
 * Everything lies in one WebAssembly memory: stacks, weights as their file has them, keys and values, scratch. This
 * module lays it out, fills it, and starts helper threads; a pass itself is one call of `run`.
 */

const STACK = 32768; // bytes a thread, as the build says
const ROWS = 64; // tokens in a pass
const KEPT = 8; // most rows of logits of a pass
const TILE = 8; // positions whose scores a thread holds
const PIECE = 4 << 20; // bytes read at a time
const GAP = 1 << 16; // bytes between two tensors that are read over
const PATIENCE = 60; // seconds that a thread waits for another one; its work is one of milliseconds
export const FORMAT = 1; // of the layout

export class DecoderError extends Error {}

/**
 * A module whose `dot(a, b)` is i32x4.relaxed_dot_i8x16_i7x16_add_s of bytes a and bytes b, plus 1, in its first lane.
 * Engines without relaxed SIMD reject it. An engine that computes it wrongly is caught: V8 11.3 (Node 20, behind a
 * flag) adds the product twice in its baseline compiler.
 */
const RELAXED = new Uint8Array([
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 7, 1, 0x60, 2, 0x7f, 0x7f, 1, 0x7f, 3, 2, 1, 0,
  7, 7, 1, 3, 0x64, 0x6f, 0x74, 0, 0, 10, 22, 1, 20, 0, 0x20, 0, 0xfd, 15, 0x20, 1, 0xfd, 15, 0x41, 1, 0xfd, 17, 0xfd, 0x93, 2, 0xfd, 0x1b, 0, 11,
]); // prettier-ignore

function relaxedIsExact() {
  if (!WebAssembly.validate(RELAXED)) return false;
  const { dot } = new WebAssembly.Instance(new WebAssembly.Module(RELAXED)).exports;
  return [[-128, 127], [127, 127], [-3, 5], [100, 0]].every(([a, b]) => dot(a, b) === 4 * a * b + 1); // prettier-ignore
}

let relaxed = null; // found out once

/** What this engine can do: `{relaxed, threads}`. */
export function features() {
  relaxed ??= relaxedIsExact();
  const shared = typeof SharedArrayBuffer !== 'undefined' && globalThis.crossOriginIsolated !== false;
  return { relaxed, threads: shared };
}

/** The words of the structs in decoder.c, in order; a Matrix is seven words, Quantized two. */
const MATRIX = ['codes', 'scales', 'zeros', 'rows', 'width', 'bits', 'block'];
const words = (name, count, fields) =>
  Array.from({ length: count }, (_, i) => fields.map((f) => `${name}.${i}.${f}`)).flat();
const LAYER = [
  ...words('qkv', 3, MATRIX), ...words('out', 1, MATRIX), ...words('gate_up', 2, MATRIX), ...words('down', 1, MATRIX),
  'input_norm', 'query_norm', 'key_norm', 'post_attention_norm', 'pre_feedforward_norm', 'post_feedforward_norm',
  'rope', 'keys', 'values', 'window',
]; // prettier-ignore
const MODEL = [
  'layers', 'vocab', 'hidden', 'inner', 'heads', 'kv_heads', 'dim', 'capacity',
  'eps', 'attention_scale', 'embedding_scale', 'final_norm',
  ...words('table', 1, MATRIX), ...words('precise', 1, MATRIX), 'places', 'layer',
  'x', 'normed', 'qkv', 'mixed', 'branch', 'gate_up', 'scores', 'logits', ...words('quantized', 2, ['codes', 'sums']),
  'ids', 'first', 'count', 'keep', 'picked', 'precise_picked', 'precise_columns', 'picks', 'precise_picks',
  'threads', 'quit', 'generation', 'arrived', 'phase', 'sleepers', 'task', 'patience',
]; // prettier-ignore
const AT = Object.fromEntries(MODEL.map((name, i) => [name, i]));

/** Of `{threads: {relaxed, simd}, single: {relaxed, simd}}` the one that this machine runs on so many threads. */
export const buildFor = (builds, threads) => builds[threads > 1 ? 'threads' : 'single'][features().relaxed ? 'relaxed' : 'simd'];

/**
 * Load a model.
 * @param {object} options
 * @param wasm `{threads: {relaxed, simd}, single: {relaxed, simd}}`, each an async function that gives the file's bytes
 * @param layout what fgtune/site/kernel_layout.py wrote for the variant
 * @param read `async (path, offset, length, room) => Uint8Array`, called with rising offsets and at most 4 MiB, one at a
 *   time; a reader may fill `room`, the same 4 MiB every time, and return a part of it: so nothing is left to collect
 * @param threads 1 needs no SharedArrayBuffer
 * @param capacity most tokens of a conversation
 * @param spawn `(url) => Worker` for helper threads, where the default does not suit
 * @param patience seconds after which a helper thread that does nothing is given up
 * @returns {Promise<Decoder>}
 */
export async function createDecoder({ wasm, layout, read, threads = 1, capacity = 4096, spawn = null, patience = PATIENCE }) {
  if (layout.format !== FORMAT) throw new DecoderError(`a layout of format ${layout.format}, not ${FORMAT}`);
  if (!isWhole(layout)) throw new DecoderError('the layout is damaged: its sizes do not belong together');
  if (!(capacity > 0 && capacity <= layout.positions))
    throw new DecoderError(`capacity ${capacity}: the model has positions for 1 to ${layout.positions} tokens`);
  const can = features();
  if (threads > 1 && !can.threads) throw new DecoderError('threads need SharedArrayBuffer: the page is not isolated');
  if (!(threads >= 1 && threads <= 16)) throw new DecoderError(`threads must be 1 to 16, not ${threads}`);
  const bytes = await buildFor(wasm, threads)();
  const module = await WebAssembly.compile(bytes);
  const plan = planMemory(layout, threads, capacity);
  const pages = Math.ceil(plan.bytes / 65536);
  if (pages > 65535) throw new DecoderError(`${plan.bytes} bytes are too many for one WebAssembly memory`);
  const memory = new WebAssembly.Memory(
    threads > 1 ? { initial: pages, maximum: pages, shared: true } : { initial: pages });
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  exports.__stack_pointer.value = STACK;
  await fillMemory(plan, layout, memory.buffer, exports, read);
  new Int32Array(memory.buffer)[plan.model / 4 + AT.patience] = patience;
  const helpers = [];
  try {
    for (let i = 1; i < threads; i++) helpers.push(await startHelper(spawn, { module, memory, model: plan.model, i }));
  } catch (error) {
    for (const helper of helpers) helper.terminate();
    throw error;
  }
  return new Decoder(layout, plan, memory, exports, helpers, capacity);
}

/** A helper thread that waits for jobs. */
async function startHelper(spawn, { module, memory, model, i }) {
  const url = new URL('./helper.js', import.meta.url);
  let worker;
  if (spawn) worker = await spawn(url);
  else if (typeof Worker !== 'undefined') worker = new Worker(url, { type: 'module' });
  else worker = new (await import('node:worker_threads')).Worker(url);
  await new Promise((resolve, reject) => {
    const failed = (event) => reject(new DecoderError(`a helper thread does not start: ${event.message ?? event}`));
    if (worker.on) worker.on('message', resolve).on('error', failed);
    else Object.assign(worker, { onmessage: resolve, onerror: failed });
    worker.postMessage({ module, memory, model, stack: STACK * (i + 1), thread: i });
  });
  worker.unref?.();
  return worker;
}

/** Whether a layout's sizes belong together; past the end of a tensor the kernels would read another one. */
function isWhole({ vocab, hidden, inner, heads, kv_heads, head_dim: dim, ropes, embedding, layers, final_norm }) {
  const matrix = (m, width) => {
    const blocks = m.rows * (width / m.block);
    const zeros = m.bits === 8 ? blocks : m.rows * Math.ceil(width / m.block / 2);
    return m.width === width && width % m.block === 0 && width / m.block <= 512 && [32, 64, 128, 256].includes(m.block) &&
      [4, 8].includes(m.bits) && [16, 32].includes(m.scale_bits) && m.qweight.length === (m.rows * width * m.bits) / 8 &&
      m.scales.length === (blocks * m.scale_bits) / 8 && (!m.zero_points || m.zero_points.length === zeros); // prettier-ignore
  };
  const product = (list, rows, width) =>
    list.every((m) => matrix(m, width) && m.block === list[0].block) && list.reduce((sum, m) => sum + m.rows, 0) === rows;
  const norms = (l) => Object.entries({ input_norm: hidden, query_norm: dim, key_norm: dim, post_attention_norm: hidden,
    pre_feedforward_norm: hidden, post_feedforward_norm: hidden }).every(([name, n]) => l.norms[name].length === 4 * n); // prettier-ignore
  try {
    return hidden % 16 === 0 && dim % 16 === 0 && heads % kv_heads === 0 && layers.length > 0 && layers.every((l) =>
      product(l.qkv, (heads + 2 * kv_heads) * dim, hidden) && product(l.out, hidden, heads * dim) && l.window >= 0 &&
      product(l.gate_up, 2 * inner, hidden) && product(l.down, hidden, inner) && norms(l) && ropes[l.rope].length === dim / 2) &&
      product([embedding.table], vocab, hidden) && final_norm.length === 4 * hidden && (!embedding.precise ||
      (matrix(embedding.precise, hidden) && embedding.token_ids.length === 8 * embedding.precise.rows)); // prettier-ignore
  } catch {
    return false; // a part is missing
  }
}

/** Where everything lies: addresses, and the total of bytes. Nothing is read yet. */
function planMemory(layout, threads, capacity) {
  let top = STACK * (threads + 1);
  const take = (bytes) => {
    const at = top;
    top += Math.ceil(bytes / 64) * 64;
    return at;
  };
  const { hidden, inner, heads, kv_heads, head_dim: dim, vocab } = layout;
  const loads = []; // {ref, at} to copy, or {ref, matrix, part} to arrange
  const tensor = (ref) => {
    const at = take(ref.length);
    loads.push({ ref, at });
    return at;
  };
  const matrices = [];
  const matrix = (m) => {
    const panels = Math.ceil(m.rows / 4) * (m.width / m.block);
    const places = { codes: tensor(m.qweight), scales: take(panels * 16), zeros: take(panels * 4), struct: take(28) };
    const found = { ...m, ...places, raw: m };
    matrices.push(found);
    return found;
  };
  const model = take(MODEL.length * 4);
  const layer = take(layout.layers.length * LAYER.length * 4);
  const ropes = Object.fromEntries(Object.keys(layout.ropes).map((kind) => [kind, take(capacity * dim * 4)]));
  const table = matrix(layout.embedding.table);
  const { precise, token_ids } = layout.embedding;
  const rows = precise ? { precise: matrix(precise), ids: take(precise.rows * 4), places: take(vocab * 4) } : null;
  const layers = layout.layers.map((l) => ({
    matrices: Object.fromEntries(['qkv', 'out', 'gate_up', 'down'].map((name) => [name, l[name].map(matrix)])),
    norms: Object.fromEntries(Object.entries(l.norms).map(([name, ref]) => [name, tensor(ref)])),
    keys: take(kv_heads * capacity * dim * 4),
    values: take(kv_heads * capacity * dim * 4),
    rope: ropes[l.rope],
    window: l.window,
  }));
  const widest = Math.max(hidden, inner, heads * dim);
  const scratch = {
    x: take(ROWS * hidden * 4), normed: take(ROWS * hidden * 4), branch: take(ROWS * hidden * 4),
    qkv: take(ROWS * (heads + 2 * kv_heads) * dim * 4), mixed: take(ROWS * heads * dim * 4),
    gate_up: take(ROWS * inner * 8), scores: take(threads * TILE * 2 * (capacity + 4) * 4),
    'quantized.0.codes': take(ROWS * widest * 2), 'quantized.0.sums': take((ROWS * widest * 16) / 32),
    'quantized.1.codes': take(ROWS * widest * 2), 'quantized.1.sums': take((ROWS * widest * 16) / 32),
    ids: take(ROWS * 4), logits: take(KEPT * vocab * 4),
  }; // prettier-ignore
  const lists = { picked: take(vocab * 4), precise_picked: take(vocab * 4), precise_columns: take(vocab * 4) };
  const final_norm = tensor(layout.final_norm);
  return { model, layer, ropes, table, rows, token_ids, layers, scratch, lists, final_norm, loads, matrices, threads,
    capacity, bytes: top }; // prettier-ignore
}

/** Write the structs, read the weights into their places, arrange scales and zero points. */
async function fillMemory(plan, layout, buffer, exports, read) {
  const ints = new Int32Array(buffer);
  const floats = new Float32Array(buffer);
  const put = (at, fields, values) => {
    for (const [name, value] of Object.entries(values)) ints[at / 4 + fields.indexOf(name)] = value;
  };
  const pick = (prefix, list) => Object.fromEntries(
    list.flatMap((m, i) => MATRIX.map((field) => [`${prefix}.${i}.${field}`, m[field]])));
  put(plan.model, MODEL, {
    layers: layout.layers.length, vocab: layout.vocab, hidden: layout.hidden, inner: layout.inner, heads: layout.heads,
    kv_heads: layout.kv_heads, dim: layout.head_dim, capacity: plan.capacity, final_norm: plan.final_norm,
    ...pick('table', [plan.table]), ...(plan.rows ? pick('precise', [plan.rows.precise]) : {}),
    places: plan.rows?.places ?? 0, layer: plan.layer, ...plan.scratch, threads: plan.threads,
  }); // prettier-ignore
  for (const name of ['eps', 'attention_scale', 'embedding_scale']) floats[plan.model / 4 + AT[name]] = layout[name];
  plan.layers.forEach((l, i) => {
    const found = Object.entries(l.matrices).map(([name, list]) => pick(name, list));
    const { keys, values, rope, window } = l;
    put(plan.layer + i * LAYER.length * 4, LAYER, Object.assign({}, ...found, l.norms, { keys, values, rope, window }));
  });
  const raw = new Map(); // scales, zero points and token ids as stored, until they are arranged
  for (const ref of plan.matrices.flatMap((m) => [m.raw.scales, m.raw.zero_points]).concat(plan.token_ids))
    if (ref) raw.set(ref, new Uint8Array(ref.length));
  const jobs = plan.loads.map(({ ref, at }) => ({ ref, target: new Uint8Array(buffer, at, ref.length) }));
  for (const [ref, target] of raw) jobs.push({ ref, target });
  await readTensors(jobs, layout, read);
  const staging = plan.scratch.logits;
  const room = KEPT * layout.vocab * 4 + 3 * layout.vocab * 4;
  for (const m of plan.matrices) {
    const scales = raw.get(m.raw.scales);
    const zeros = m.raw.zero_points ? raw.get(m.raw.zero_points) : null;
    const second = staging + Math.ceil(scales.length / 64) * 64;
    if (second - staging + (zeros?.length ?? 0) > room) throw new DecoderError('a matrix has more scales than fit');
    new Uint8Array(buffer, staging).set(scales);
    if (zeros) new Uint8Array(buffer, second).set(zeros);
    put(m.struct, MATRIX, Object.fromEntries(MATRIX.map((field) => [field, m[field]])));
    exports.arrange(m.struct, staging, m.scale_bits === 16 ? 1 : 0, zeros ? second : 0);
  }
  if (plan.rows) {
    const places = new Int32Array(buffer, plan.rows.places, layout.vocab).fill(-1);
    const ids = new Int32Array(buffer, plan.rows.ids, layout.embedding.precise.rows);
    new BigInt64Array(raw.get(plan.token_ids).buffer).forEach((id, i) => {
      if (!(id >= 0 && id < layout.vocab)) throw new DecoderError(`a row of more bits is of the token ${id}, which is none`);
      ids[i] = Number(id);
      places[ids[i]] = i;
    });
  }
}

/** Copy tensors ({ref, target}) from the files and from the layout itself; neighbours are read together. */
async function readTensors(jobs, layout, read) {
  const inline = Uint8Array.from(atob(layout.inline), (c) => c.charCodeAt(0));
  for (const { ref, target } of jobs.filter((job) => job.ref.file === undefined)) {
    if (!(ref.offset + ref.length <= inline.length)) throw new DecoderError('the layout is shorter than it says');
    target.set(inline.subarray(ref.offset, ref.offset + ref.length));
  }
  const room = new Uint8Array(PIECE);
  const outside = jobs.filter((job) => job.ref.file !== undefined && job.ref.length);
  outside.sort((a, b) => (a.ref.file < b.ref.file ? -1 : a.ref.file > b.ref.file ? 1 : a.ref.offset - b.ref.offset));
  for (let i = 0; i < outside.length;) {
    const { file, offset } = outside[i].ref;
    let end = offset;
    const span = [];
    for (; i < outside.length; i++) {
      const { ref } = outside[i];
      if (ref.file !== file || ref.offset > end + GAP) break;
      span.push(outside[i]);
      end = Math.max(end, ref.offset + ref.length);
    }
    for (let at = offset; at < end; at += PIECE) {
      const piece = await read(file, at, Math.min(PIECE, end - at), room);
      if (piece.length !== Math.min(PIECE, end - at)) throw new DecoderError(`${file} is shorter than its layout says`);
      for (const { ref, target } of span) {
        const from = Math.max(at, ref.offset);
        const to = Math.min(at + piece.length, ref.offset + ref.length);
        if (from < to) target.set(piece.subarray(from - at, to - at), from - ref.offset);
      }
    }
  }
}

/** A loaded model with one conversation's keys and values. */
export class Decoder {
  #layout;
  #plan;
  #buffer;
  #exports;
  #helpers;
  #ints;
  #roped = 0; // positions that have cosines and sines

  constructor(layout, plan, memory, exports, helpers, capacity) {
    this.#layout = layout;
    this.#plan = plan;
    this.#buffer = memory.buffer;
    this.#exports = exports;
    this.#helpers = helpers;
    this.#ints = new Int32Array(memory.buffer);
    this.capacity = capacity;
    /** Tokens whose keys and values are held. */
    this.length = 0;
    this.vocabSize = layout.vocab;
    this.keyValueShape = { layers: layout.layers.length, heads: layout.kv_heads, dim: layout.head_dim };
    this.threads = plan.threads;
    /** Bytes of the WebAssembly memory. */
    this.bytes = memory.buffer.byteLength;
  }

  /** Forget the tokens at positions >= n. */
  truncate(n) {
    if (!(n >= 0 && n <= this.length)) throw new DecoderError(`truncate(${n}): ${this.length} tokens are held`);
    this.length = n;
  }

  /**
   * Append tokens.
   * @param ids token ids
   * @param logits 'last': after the last token; 'all': after each of at most 8; 'none'
   * @param rows token ids whose logits are wanted (default: all)
   * @returns {Float32Array|null} [vocab] or [rows], n of them one behind the other for 'all'; a view that is valid
   *   until the next call
   */
  run(ids, { logits = 'last', rows = null } = {}) {
    const count = ids.length;
    if (!this.#exports) throw new DecoderError('the decoder is disposed');
    if (!count) throw new DecoderError('run() needs at least one token');
    if (this.length + count > this.capacity)
      throw new DecoderError(`${this.length + count} tokens do not fit: the capacity is ${this.capacity}`);
    if (logits === 'all' && count > KEPT) throw new DecoderError(`logits of at most ${KEPT} tokens at a time`);
    for (const id of ids) this.#checkId(id);
    const keep = logits === 'none' ? 0 : logits === 'all' ? count : 1;
    const picks = keep ? this.#pick(rows) : 0;
    this.#extendRope(this.length + count);
    for (let from = 0; from < count; from += ROWS) {
      const size = Math.min(ROWS, count - from);
      this.#ints.set(from || size < count ? ids.slice(from, from + size) : ids, this.#plan.scratch.ids / 4);
      this.#set('first', this.length);
      this.#set('count', size);
      this.#set('keep', from + size === count ? keep : 0);
      try {
        this.#exports.run(this.#plan.model);
      } catch {
        for (const helper of this.#helpers.splice(0)) helper.terminate();
        this.dispose();
        throw new DecoderError('a thread of the model stopped: ask again, and the model starts anew');
      }
      this.length += size;
    }
    return keep ? new Float32Array(this.#buffer, this.#plan.scratch.logits, keep * picks) : null;
  }

  /** Keys and values as copies: per layer a Float32Array [heads, length, dim]. */
  getCache() {
    const { heads, dim } = this.keyValueShape;
    const copy = (at) => {
      const found = new Float32Array(heads * this.length * dim);
      for (let h = 0; h < heads; h++)
        found.set(this.#head(at, h, this.length), h * this.length * dim);
      return found;
    };
    return {
      keys: this.#plan.layers.map((l) => copy(l.keys)), values: this.#plan.layers.map((l) => copy(l.values)),
      length: this.length,
    }; // prettier-ignore
  }

  /** Take over keys and values as `getCache` gives them; a Uint16Array holds float16. */
  setCache({ keys, values, length }) {
    const { layers, heads, dim } = this.keyValueShape;
    if (!(length >= 0 && length <= this.capacity)) throw new DecoderError(`a cache of ${length} tokens does not fit`);
    for (const part of [keys, values])
      if (part.length !== layers || part.some((array) => array.length !== heads * length * dim))
        throw new DecoderError('the cache is not of this model');
    const put = (at, array) => {
      for (let h = 0; h < heads; h++) {
        const target = this.#head(at, h, length);
        const source = array.subarray(h * length * dim, (h + 1) * length * dim);
        if (array instanceof Float32Array) target.set(source);
        else this.#widen(source, target);
      }
    };
    this.#plan.layers.forEach((l, i) => (put(l.keys, keys[i]), put(l.values, values[i])));
    this.length = length;
  }

  /** End the helper threads and let go of the memory; nothing fits any more. */
  dispose() {
    if (this.#helpers.length) this.#exports?.stop(this.#plan.model);
    this.#helpers = [];
    this.#exports = this.#buffer = this.#ints = null;
    this.length = this.capacity = 0;
  }

  #set(name, value) {
    this.#ints[this.#plan.model / 4 + AT[name]] = value;
  }

  #checkId(id) {
    if (!(id >= 0 && id < this.vocabSize)) throw new DecoderError(`no token has the id ${id}`);
  }

  #head(at, head, length) {
    const { dim } = this.keyValueShape;
    return new Float32Array(this.#buffer, at + head * this.capacity * dim * 4, length * dim);
  }

  #widen(source, target) {
    const staging = this.#plan.scratch.logits;
    const room = KEPT * this.vocabSize * 2;
    for (let at = 0; at < source.length; at += room) {
      const part = source.subarray(at, at + room);
      new Uint16Array(this.#buffer, staging, part.length).set(part);
      this.#exports.widen(staging, target.byteOffset + at * 4, part.length);
    }
  }

  /** Say whose logits are wanted; returns how many. */
  #pick(rows) {
    const { lists, rows: stored } = this.#plan;
    const list = (name, values) => {
      this.#ints.set(values, lists[name] / 4);
      this.#set(name, lists[name]);
    };
    if (!rows) {
      for (const name of ['picked', 'precise_picked']) this.#set(name, 0);
      this.#set('precise_columns', stored?.ids ?? 0);
      this.#set('precise_picks', this.#layout.embedding.precise?.rows ?? 0);
    } else {
      if (!rows.length || rows.length > this.vocabSize) throw new DecoderError(`logits of ${rows.length} rows`);
      for (const id of rows) this.#checkId(id);
      list('picked', rows);
      const columns = stored ? [...rows.keys()].filter((i) => this.#ints[stored.places / 4 + rows[i]] >= 0) : [];
      list('precise_columns', columns);
      list('precise_picked', columns.map((i) => this.#ints[stored.places / 4 + rows[i]])); // prettier-ignore
      this.#set('precise_picks', columns.length);
    }
    const picks = rows ? rows.length : this.vocabSize;
    this.#set('picks', picks);
    return picks;
  }

  /** Cosines and sines of positions below `length`, rounded to float32 as the graph has them. */
  #extendRope(length) {
    const { head_dim: dim, ropes } = this.#layout;
    for (const [kind, at] of Object.entries(this.#plan.ropes)) {
      const table = new Float32Array(this.#buffer, at, this.capacity * dim);
      for (let p = this.#roped; p < length; p++)
        for (let i = 0; i < dim / 2; i++) {
          const angle = Math.fround(p * ropes[kind][i]);
          table[p * dim + i] = Math.cos(angle);
          table[p * dim + dim / 2 + i] = Math.sin(angle);
        }
    }
    this.#roped = Math.max(this.#roped, length);
  }
}
