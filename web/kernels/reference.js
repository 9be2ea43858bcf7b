/**
 * What decoder.c computes, in plain loops: for its tests, and for readers.
 *
 * Numbers are float64 here; where a kernel promises its bits (quantised rows and products), every step is rounded to
 * float32 as there.
 */

const round32 = Math.fround;

/** Half to even, as the processor rounds. */
function nearest(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 ? low + 1 : low;
}

/** float16 bits -> number */
export function halfToNumber(h) {
  const sign = h & 0x8000 ? -1 : 1;
  const exponent = (h >> 10) & 31;
  const fraction = h & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
}

/** Row x in blocks: `{codes, scales}`, x ~ codes * scale, codes in -127..127. */
export function quantize(x, block) {
  const codes = new Int8Array(x.length);
  const scales = [];
  for (let at = 0; at < x.length; at += block) {
    const part = x.subarray(at, at + block);
    const top = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const inverse = top > 0 ? round32(127 / top) : 0;
    part.forEach((value, i) => (codes[at + i] = nearest(round32(value * inverse))));
    scales.push(round32(top / 127));
  }
  return { codes, scales };
}

/** Code i of a row of a matrix {codes, rows, width, bits}. */
function code({ codes, width, bits }, row, i) {
  if (bits === 8) return codes[row * width + i];
  return (codes[(row * width + i) >> 1] >> (i % 2 ? 4 : 0)) & 15;
}

/** Weight i of row `row` of a matrix that has `scales` and `zeros` [rows * blocks], one a block. */
function weight(m, row, i) {
  const b = row * (m.width / m.block) + Math.floor(i / m.block);
  return (code(m, row, i) - m.zeros[b]) * m.scales[b];
}

/** A row of a table as numbers. */
export const dequantize = (m, row) => Array.from({ length: m.width }, (_, i) => weight(m, row, i));

/** x times each row of a matrix, x quantised first: float32 [rows]. */
export function product(m, x) {
  const { codes, scales } = quantize(x, m.block);
  const blocks = m.width / m.block;
  return Float32Array.from({ length: m.rows }, (_, row) => {
    let sum = 0;
    for (let b = 0; b < blocks; b++) {
      let exact = 0;
      for (let i = b * m.block; i < (b + 1) * m.block; i++)
        exact += (code(m, row, i) - m.zeros[row * blocks + b]) * codes[i];
      sum = round32(sum + round32(exact * round32(m.scales[row * blocks + b] * scales[b])));
    }
    return sum;
  });
}

/** x / sqrt(mean(x^2) + eps) * factors */
export function norm(x, factors, eps) {
  const squares = x.reduce((sum, value) => sum + value * value, 0);
  return x.map((value, i) => (value / Math.sqrt(squares / x.length + eps)) * factors[i]);
}

/** gelu(gate) * up, by tanh */
export const gatedGelu = (gate, up) => gate.map((x, i) => {
  const u = Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);
  return 0.5 * x * (1 + Math.tanh(u)) * up[i];
}); // prettier-ignore

/** Element i of the first half turns with element i of the second by angles[i]; then times scale. */
export function rotate(x, angles, scale) {
  const half = x.length / 2;
  return x.map((value, i) => {
    const [cosine, sine] = [Math.cos(angles[i % half]), Math.sin(angles[i % half])];
    return scale * (i < half ? value * cosine - x[i + half] * sine : value * cosine + x[i - half] * sine);
  });
}

export function softmax(scores) {
  const top = Math.max(...scores);
  const powers = Array.from(scores, (s) => Math.exp(s - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / sum);
}

/** Attention of one query (scaled) at the last of the positions of `keys` and `values`, lists of rows. */
export function attend(q, keys, values, window) {
  const begin = window ? Math.max(0, keys.length - window) : 0;
  const dot = (key) => key.reduce((sum, k, i) => sum + k * q[i], 0);
  const weights = softmax(keys.slice(begin).map(dot));
  return q.map((_, i) => weights.reduce((sum, w, t) => sum + w * values[begin + t][i], 0));
}

/**
 * The whole decoder, token by token, without any cache of its own making but keys and values.
 * @param config the layout's sizes and `ropes`
 * @param model `{table, precise, token_ids, layers, final_norm}`, a layer `{qkv, out, gate_up, down, norms, window,
 *   rope}`: each product is a list of matrices as above, norms are arrays
 * @returns logits after each token, a list of Float32Array
 */
export function decode(config, model, ids) {
  const { heads, kv_heads, head_dim: dim, inner, eps } = config;
  const pasts = model.layers.map(() => Array.from({ length: kv_heads }, () => ({ keys: [], values: [] })));
  const multiply = (list, x) => list.flatMap((m) => [...product(m, Float32Array.from(x))]);
  const cut = (x, from, count) => x.slice(from, from + count);
  return Array.from(ids, (id, position) => {
    const place = model.precise ? model.token_ids.indexOf(id) : -1;
    let x = place < 0 ? dequantize(model.table, id) : dequantize(model.precise, place);
    x = x.map((value) => value * config.embedding_scale);
    const plus = (branch) => x.map((value, i) => value + branch[i]);
    model.layers.forEach((l, index) => {
      const angles = config.ropes[l.rope].map((frequency) => round32(position * frequency));
      const qkv = multiply(l.qkv, norm(x, l.norms.input_norm, eps));
      const head = (h) => cut(qkv, h * dim, dim);
      for (let h = 0; h < kv_heads; h++) {
        pasts[index][h].keys.push(rotate(norm(head(heads + h), l.norms.key_norm, eps), angles, 1));
        pasts[index][h].values.push(head(heads + kv_heads + h));
      }
      const mixed = Array.from({ length: heads }, (_, h) => {
        const { keys, values } = pasts[index][Math.floor(h / (heads / kv_heads))];
        const q = rotate(norm(head(h), l.norms.query_norm, eps), angles, config.attention_scale);
        return attend(q, keys, values, l.window);
      }).flat();
      x = plus(norm(multiply(l.out, mixed), l.norms.post_attention_norm, eps));
      const both = multiply(l.gate_up, norm(x, l.norms.pre_feedforward_norm, eps));
      const gated = gatedGelu(cut(both, 0, inner), cut(both, inner, inner));
      x = plus(norm(multiply(l.down, gated), l.norms.post_feedforward_norm, eps));
    });
    const last = Float32Array.from(norm(x, model.final_norm, eps));
    const logits = product(model.table, last);
    if (model.precise) product(model.precise, last).forEach((value, i) => (logits[model.token_ids[i]] = value));
    return logits;
  });
}
