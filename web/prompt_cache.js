/** Prompt caches: keys and values of the tokens that every question begins with, as safetensors. */
import { sha256 } from './store.js';
import { atTwoTimes } from './turn.js';

/** The ids of the tokens that every question to a site begins with. */
export const prefixIds = (site, engine) => engine.prefixIds(site.tools, ...atTwoTimes(site.developer_turn));

/**
 * What a prompt cache depends on: the model's files and the tokens. `fgtune/site/prompt_cache.py` makes the same.
 * @param {Map<string, {sha256: string}>} files by path
 */
export async function prefixHash(site, files, engine, variant) {
  const { weights } = site.variants[variant];
  const text = [...weights.map((path) => files.get(path).sha256), prefixIds(site, engine).join(',')].join('\n');
  return (await sha256(new TextEncoder().encode(text))) ?? text;
}

/** Turn stored numbers into what the graph takes: float16 bits or float32. */
export function toType(data, from, to) {
  if (from === to) {
    const wantsHalf = to === 'float16' && typeof Float16Array !== 'undefined';
    return wantsHalf && data instanceof Uint16Array ? new Float16Array(data.buffer, data.byteOffset, data.length) : data;
  }
  if (from === 'float16' && to === 'float32') return halfToFloat(data);
  throw new Error(`the prompt cache is ${from}, the model takes ${to}`);
}

/** IEEE half precision bits to float32. @param {Uint16Array} bits */
export function halfToFloat(bits) {
  const table = new Float32Array(65536);
  for (let i = 0; i < 65536; i += 1) {
    const exponent = (i >> 10) & 31;
    const fraction = i & 1023;
    const sign = i & 0x8000 ? -1 : 1;
    if (exponent === 0) table[i] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[i] = fraction ? NaN : sign * Infinity;
    else table[i] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  const out = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i += 1) out[i] = table[bits[i]];
  return out;
}

/** Read a prompt cache (safetensors): `{hash, ids, tensors: {name: {type, dims, data}}}`. */
export function readPromptCache(buffer) {
  const view = new DataView(buffer);
  const length = Number(view.getBigUint64(0, true));
  if (length > buffer.byteLength - 8) throw new Error('the prompt cache is cut short');
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(entries)) {
    if (8 + length + to > buffer.byteLength) throw new Error('the prompt cache is cut short');
    const kind = { F32: ['float32', Float32Array], F16: ['float16', Uint16Array] }[dtype];
    if (!kind) throw new Error(`the prompt cache holds ${dtype}: F16 or F32 expected`);
    const count = (to - from) / kind[1].BYTES_PER_ELEMENT;
    tensors[name] = { type: kind[0], dims: shape, data: new kind[1](buffer, 8 + length + from, count) };
  }
  if (!metadata.prompt_cache) throw new Error('the prompt cache does not say what it is of');
  return { ...JSON.parse(metadata.prompt_cache), tensors };
}

/** Write what `readPromptCache` reads: the cache that a page computed for itself. */
export function writePromptCache({ hash, ids, tensors }) {
  const header = { __metadata__: { prompt_cache: JSON.stringify({ hash, ids }) } };
  let offset = 0;
  for (const [name, { dims, data }] of Object.entries(tensors)) {
    const half = data instanceof Float32Array ? 'F32' : 'F16';
    header[name] = { dtype: half, shape: dims, data_offsets: [offset, offset + data.byteLength] };
    offset += data.byteLength;
  }
  let text = JSON.stringify(header);
  text += ' '.repeat((8 - (new TextEncoder().encode(text).length % 8)) % 8);
  const head = new TextEncoder().encode(text);
  const out = new Uint8Array(8 + head.length + offset);
  new DataView(out.buffer).setBigUint64(0, BigInt(head.length), true);
  out.set(head, 8);
  let at = 8 + head.length;
  for (const { data } of Object.values(tensors)) {
    out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += data.byteLength;
  }
  return out.buffer;
}
