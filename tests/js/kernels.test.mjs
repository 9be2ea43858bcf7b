/** Every kernel of web/kernels/decoder.c against plain loops, and all builds and numbers of threads bit for bit. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { Worker } from 'node:worker_threads';
import { createDecoder, features } from '../../web/kernels/decoder.js';
import * as reference from '../../web/kernels/reference.js';

// Node 20 has relaxed SIMD behind a flag, with a baseline compiler that adds wrongly; later versions have it as it is.
if (Number(process.versions.node.split('.')[0]) < 22)
  for (const flag of ['--experimental-wasm-relaxed-simd', '--no-liftoff']) setFlagsFromString(flag);

const file = (name) => readFileSync(new URL(`../../web/kernels/${name}.wasm`, import.meta.url));
const STACK = 32768;

/** Random numbers that are the same every time (mulberry32). */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
const random = generator(7);
const numbers = (n, scale = 1) => Float32Array.from({ length: n }, () => (random() + random() + random() - 1.5) * scale);
const integers = (n, top) => Uint8Array.from({ length: n }, () => Math.floor(random() * (top + 1)));
const ascending = (n) => Array.from({ length: n }, (_, i) => i);

/** A random matrix as the reference takes it, with scales that float16 holds and some zero codes and zero points. */
function randomMatrix(rows, width, bits, block) {
  const blocks = rows * (width / block);
  const halves = Uint16Array.from({ length: blocks }, () => 0x1c00 + Math.floor(random() * 0x800));
  return { rows, width, bits, block, halves, codes: integers((rows * width * bits) / 8, 255),
    scales: Array.from(halves, reference.halfToNumber), zeros: integers(blocks, 2 ** bits - 1) }; // prettier-ignore
}

/** Zero points as MatMulNBits stores them. */
function packZeros({ rows, width, bits, block, zeros }) {
  if (bits === 8) return zeros;
  const blocks = width / block;
  const bytes = (blocks + 1) >> 1;
  const packed = new Uint8Array(rows * bytes);
  zeros.forEach((zero, i) => (packed[Math.floor(i / blocks) * bytes + ((i % blocks) >> 1)] |= zero << (i % blocks & 1 ? 4 : 0)));
  return packed;
}

/** A build's exports over a memory of 64 MB, with `put` (an array's address) and `get` (floats at an address). */
async function open(name) {
  const shared = name.startsWith('threads');
  const memory = new WebAssembly.Memory({ initial: 1024, ...(shared ? { maximum: 1024, shared } : {}) });
  const { instance } = await WebAssembly.instantiate(file(name), { env: { memory } });
  instance.exports.__stack_pointer.value = STACK;
  let top = STACK;
  const room = (bytes) => (top = Math.ceil(top / 64) * 64 + bytes) - bytes;
  const put = (array) => {
    const at = room(array.byteLength);
    new array.constructor(memory.buffer, at, array.length).set(array);
    return at;
  };
  const get = (at, n) => new Float32Array(memory.buffer, at, n).slice();
  const putMatrix = (m) => {
    const panels = Math.ceil(m.rows / 4) * (m.width / m.block);
    const struct = put(Int32Array.of(put(m.codes), room(panels * 16), room(panels * 4), m.rows, m.width, m.bits, m.block));
    instance.exports.arrange(struct, put(m.halves), 1, put(packZeros(m)));
    return struct;
  };
  return { name, kernels: instance.exports, room, put, get, putMatrix };
}

const can = features();
const builds = ['single.simd', 'threads.simd', 'single.relaxed', 'threads.relaxed'];
const opened = await Promise.all(builds.map(open));

function near(found, wanted, tolerance, name) {
  const size = Math.max(...wanted.map(Math.abs), 1e-30);
  found.forEach((value, i) => assert.ok(Math.abs(value - wanted[i]) <= tolerance * size, `${name}[${i}]: ${value}, not ${wanted[i]}`));
}

test('this engine runs every build', () => assert.deepEqual(can, { relaxed: true, threads: true }));

for (const bits of [4, 8])
  for (const block of [32, 64, 128, 256])
    test(`product: ${bits} bits in blocks of ${block}, exactly`, () => {
      for (const [rows, blocks, count] of [[1, 1, 1], [7, 3, 2], [64, 2, 5], [13, 5, 3]]) {
        const width = blocks * block;
        const m = randomMatrix(rows, width, bits, block);
        const x = numbers(count * width, 3);
        x.fill(0, 0, block); // a block of zeros has no scale
        const wanted = Array.from({ length: count }, (_, r) => reference.product(m, x.subarray(r * width, (r + 1) * width)));
        const picked = Int32Array.from({ length: 5 }, () => Math.floor(random() * rows));
        const columns = Int32Array.from([4, 2, 0, 1, 3]);
        for (const { name, kernels, room, put, get, putMatrix } of opened) {
          const [struct, codes, sums] = [putMatrix(m), room(count * width * 2), room(count * blocks * 16)];
          const at = put(x);
          for (let r = 0; r < count; r++)
            kernels.quantize(at + r * width * 4, width, bits, block, codes + r * width * 2, sums + r * blocks * 16);
          const out = room(count * (rows + 3) * 4);
          kernels.product(struct, codes, sums, count, out, rows + 3, 0, 0, rows);
          const some = room(count * 20);
          kernels.product(struct, codes, sums, count, some, 5, put(picked), put(columns), 5);
          wanted.forEach((row, r) => {
            assert.deepEqual(get(out + r * (rows + 3) * 4, rows), row, name);
            assert.deepEqual(get(some + r * 20, 5), Float32Array.from(columns, (_, c) => row[picked[columns.indexOf(c)]]), name);
          });
        }
      }
    });

test('product: extreme codes', () => {
  for (const bits of [4, 8]) {
    const m = { ...randomMatrix(4, 128, bits, 128), zeros: Uint8Array.of(0, 2 ** bits - 1, 0, 2 ** bits - 1) };
    m.codes.fill(255, 0, m.codes.length / 2).fill(0, m.codes.length / 2);
    for (const sign of [1, -1]) {
      const x = new Float32Array(128).fill(sign * 0.7);
      for (const { kernels, room, put, get, putMatrix } of opened) {
        const [codes, sums, out] = [room(256), room(16), room(16)];
        kernels.quantize(put(x), 128, bits, 128, codes, sums);
        kernels.product(putMatrix(m), codes, sums, 1, out, 4, 0, 0, 4);
        assert.deepEqual(get(out, 4), reference.product(m, x));
      }
    }
  }
});

test('scales without zero points, of 32 bits; rows of a table', () => {
  for (const bits of [4, 8]) {
    const m = randomMatrix(5, 96, bits, 32);
    m.zeros.fill(2 ** (bits - 1));
    for (const { kernels, room, put, get, putMatrix } of opened) {
      const struct = putMatrix({ ...m, halves: new Uint16Array(15) });
      kernels.arrange(struct, put(Float32Array.from(m.scales)), 0, 0);
      const out = room(96 * 4);
      for (let row = 0; row < 5; row++) {
        kernels.dequantize(struct, row, out, 2);
        near(get(out, 96), reference.dequantize(m, row).map((w) => 2 * w), 1e-7, 'row');
      }
    }
  }
});

test('norm, gelu, rotary positions, softmax, float16', () => {
  for (const n of [16, 64, 640]) {
    const [x, y] = [numbers(n, 9), numbers(n)];
    const softmaxed = reference.softmax([...x].slice(0, n - 3));
    const angles = [...numbers(n / 2, 1000)];
    const rope = Float32Array.from([...angles.map(Math.cos), ...angles.map(Math.sin)]);
    for (const { kernels, room, put, get } of opened) {
      const out = room(n * 4);
      kernels.norm(put(x), put(y), out, n, 1e-6);
      near(get(out, n), reference.norm([...x], [...y], 1e-6), 1e-6, 'norm');
      const gate = put(x);
      kernels.gated_gelu(gate, put(y), n);
      near(get(gate, n), reference.gatedGelu([...x], [...y]), 1e-6, 'gelu');
      kernels.rotate(put(x), put(rope), out, n, 0.5);
      near(get(out, n), reference.rotate([...x], angles, 0.5), 1e-6, 'rotate');
      const scores = put(x);
      kernels.softmax(scores, n - 3);
      near(get(scores, n - 3), softmaxed, 1e-6, 'softmax');
    }
  }
  const every = Uint16Array.from(ascending(65536)).filter((h) => (h & 0x7c00) !== 0x7c00 || !(h & 1023));
  for (const { kernels, room, put, get } of opened) {
    const out = room(every.length * 4);
    kernels.widen(put(every), out, every.length);
    get(out, every.length).forEach((value, i) => assert.ok(Object.is(value, reference.halfToNumber(every[i])), `${every[i]}`));
  }
});

test('attention: windows, tails, one head and two', () => {
  for (const [dim, first, rows, window] of [[16, 0, 1, 0], [32, 37, 5, 0], [64, 70, 8, 40], [32, 3, 6, 5]]) {
    const held = first + rows;
    const [keys, values, q] = [numbers(held * dim), numbers(held * dim), numbers(rows * 2 * dim, 2)];
    const row = (array, t) => [...array.subarray(t * dim, (t + 1) * dim)];
    const list = (array, n) => ascending(n).map((t) => row(array, t));
    for (const { kernels, room, put, get } of opened)
      for (const heads of [1, 2]) {
        const out = room(rows * 2 * dim * 4);
        const stride = held + 4;
        kernels.attend(put(q), 2 * dim, rows, first, put(keys), put(values), dim, window, room(rows * 2 * stride * 4), stride, out, 2 * dim, heads);
        for (let r = 0; r < rows; r++)
          for (let h = 0; h < heads; h++) {
            const wanted = reference.attend(row(q, 2 * r + h), list(keys, first + r + 1), list(values, first + r + 1), window);
            near(get(out + (2 * r + h) * dim * 4, dim), wanted, 1e-5, 'attend');
          }
      }
  }
});

/** A random model: the layout, its file, and the same for the reference. */
function randomModel({ vocab, hidden, inner, heads, kv_heads, head_dim, bits, block, table, precise }) {
  const parts = [];
  let size = 0;
  const store = (array) => {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    size = Math.ceil(size / 64) * 64;
    parts.push({ at: size, bytes });
    size += bytes.length;
    return { file: 'weights', offset: size - bytes.length, length: bytes.length };
  };
  const describe = (m) => ({ rows: m.rows, width: m.width, bits: m.bits, block: m.block, qweight: store(m.codes),
    scales: store(m.halves), scale_bits: 16, zero_points: store(packZeros(m)) }); // prettier-ignore
  const factors = (n) => Float32Array.from(numbers(n, 0.2), (w) => 1 + w);
  const q = heads * head_dim;
  const kv = kv_heads * head_dim;
  const [low, high] = bits;
  const layers = ascending(3).map((i) => ({
    qkv: i === 1 ? [randomMatrix(q + 2 * kv, hidden, high, block)] : [randomMatrix(q, hidden, low, block), randomMatrix(2 * kv, hidden, high, block)],
    out: [randomMatrix(hidden, q, low, block)], gate_up: [randomMatrix(2 * inner, hidden, low, block)], down: [randomMatrix(hidden, inner, high, block)],
    norms: { input_norm: factors(hidden), query_norm: factors(head_dim), key_norm: factors(head_dim), post_attention_norm: factors(hidden),
      pre_feedforward_norm: factors(hidden), post_feedforward_norm: factors(hidden) },
    window: i === 2 ? 0 : 20, rope: i === 2 ? 'global' : 'local',
  })); // prettier-ignore
  const ids = precise ? ascending(precise).map((i) => i * 3 + 1) : [];
  const model = { table: randomMatrix(vocab, hidden, ...table), precise: precise ? randomMatrix(precise, hidden, 8, 32) : null,
    token_ids: ids, layers, final_norm: factors(hidden) }; // prettier-ignore
  const ropes = Object.fromEntries([['local', 100], ['global', 10000]].map(([kind, base]) =>
    [kind, ascending(head_dim / 2).map((i) => Math.fround(base ** ((-2 * i) / head_dim)))])); // prettier-ignore
  const layout = { format: 1, vocab, hidden, inner, heads, kv_heads, head_dim, positions: 512, eps: 1e-6, attention_scale: 0.25,
    embedding_scale: 8, ropes, inline: '', final_norm: store(model.final_norm),
    embedding: { table: describe(model.table), precise: precise ? describe(model.precise) : null,
      token_ids: precise ? store(BigInt64Array.from(ids, BigInt)) : null },
    layers: layers.map((l) => ({ window: l.window, rope: l.rope,
      ...Object.fromEntries(['qkv', 'out', 'gate_up', 'down'].map((name) => [name, l[name].map(describe)])),
      norms: Object.fromEntries(Object.entries(l.norms).map(([name, f]) => [name, store(f)])) })) }; // prettier-ignore
  const weights = new Uint8Array(size);
  for (const { at, bytes } of parts) weights.set(bytes, at);
  return { layout, model, read: async (_, offset, length) => weights.slice(offset, offset + length) };
}

const MODELS = {
  'two precisions, pairs of heads': { vocab: 101, hidden: 64, inner: 96, heads: 4, kv_heads: 1, head_dim: 32, bits: [4, 8], block: 32, table: [4, 64], precise: 9 },
  'odd groups of heads, one precision': { vocab: 50, hidden: 128, inner: 64, heads: 6, kv_heads: 2, head_dim: 32, bits: [8, 4], block: 64, table: [8, 128], precise: 0 },
};
const loaders = (build) => Object.fromEntries(['single', 'threads'].map((kind) =>
  [kind, { relaxed: async () => file(`${kind}.${build}`), simd: async () => file(`${kind}.simd`) }])); // prettier-ignore

for (const [name, sizes] of Object.entries(MODELS))
  test(`a whole model: ${name}`, async () => {
    const { layout, model, read } = randomModel(sizes);
    const ids = ascending(90).map((i) => (i * 31 + 4) % sizes.vocab);
    const wanted = reference.decode(layout, model, ids);
    const rows = Int32Array.of(4, 1, 2, 0, 13);
    let first;
    for (const build of ['simd', 'relaxed'])
      for (const threads of [1, 2, 3]) {
        const decoder = await createDecoder({ wasm: loaders(build), layout, read, threads, capacity: 128 });
        const found = [];
        found.push(decoder.run(ids.slice(0, 80)).slice()); // a pass of 64 and one of 16
        found.push(decoder.run(ids.slice(80, 86), { logits: 'all' }).slice());
        for (const id of ids.slice(86, 89)) found.push(decoder.run([id]).slice());
        found.push(decoder.run(ids.slice(89), { rows }).slice());
        const whole = Float32Array.from(found.flatMap((part) => [...part]));
        if (!first) {
          first = whole;
          const joined = [79, ...ascending(9).map((i) => 80 + i)].flatMap((i) => [...wanted[i]]);
          near(first, [...joined, ...Array.from(rows, (row) => wanted[89][row])], 0.02, 'logits'); // a code may round the other way
        }
        assert.deepEqual(whole, first, `${build}, ${threads} threads`);
        // the same tokens, cut otherwise, from a cache that was taken out and put back
        const cache = decoder.getCache();
        assert.deepEqual([cache.length, cache.keys.length, cache.values[0].length], [90, 3, sizes.kv_heads * 90 * sizes.head_dim]);
        decoder.truncate(0);
        assert.equal(decoder.run(ids.slice(0, 7), { logits: 'none' }), null);
        decoder.setCache(cache);
        decoder.truncate(81);
        assert.deepEqual(decoder.run(ids.slice(81, 86)), first.slice(6 * sizes.vocab, 7 * sizes.vocab));
        assert.equal(decoder.length, 86);
        decoder.dispose();
        assert.throws(() => decoder.run([1]), { name: 'Error', message: /disposed/ });
      }
  });

test('a cache of float16; what is refused', async () => {
  const { layout, read } = randomModel(MODELS['two precisions, pairs of heads']);
  const decoder = await createDecoder({ wasm: loaders('simd'), layout, read, capacity: 16 });
  const shape = decoder.keyValueShape;
  const halves = ascending(shape.layers).map((i) => new Uint16Array(3 * shape.dim).fill(0x3c00 + i));
  decoder.setCache({ keys: halves, values: halves, length: 3 });
  assert.equal(decoder.getCache().values[2][5], 1 + 2 / 1024);
  assert.throws(() => decoder.run(ascending(14)), /capacity is 16/);
  assert.throws(() => decoder.run([101]), /no token/);
  assert.throws(() => decoder.run([]), /at least one/);
  assert.throws(() => decoder.run(ascending(9), { logits: 'all' }), /at most 8/);
  assert.throws(() => decoder.truncate(4), /3 tokens/);
  assert.throws(() => decoder.setCache({ keys: halves, values: halves, length: 4 }), /not of this model/);
  await assert.rejects(createDecoder({ wasm: loaders('simd'), layout, read, capacity: 513 }), /1 to 512/);
  await assert.rejects(createDecoder({ wasm: loaders('simd'), layout: { ...layout, format: 0 }, read, capacity: 9 }), /format 0/);
  await assert.rejects(createDecoder({ wasm: loaders('simd'), layout, read: async (p, o, n) => new Uint8Array(n - 1), capacity: 9 }), /shorter/);
});

test('a thread that stops is not awaited for ever: the pass fails, and the decoder is closed', async () => {
  const { layout, read } = randomModel(MODELS['two precisions, pairs of heads']);
  const open = async (spawn, patience) => createDecoder({ wasm: loaders('simd'), layout, read, threads: 2, capacity: 16, spawn, patience });
  let helper;
  const gone = await open((url) => (helper = new Worker(url)), 1);
  gone.run([1, 2]);
  await helper.terminate();
  assert.throws(() => gone.run([3]), /a thread of the model stopped/);
  assert.deepEqual([gone.capacity, gone.length], [0, 0]);
  assert.throws(() => gone.run([3]), /disposed/);
  gone.dispose();
  // one that traps, in memory that is not there, says so
  const began = performance.now();
  const broken = await open((url) => {
    const worker = new Worker(url);
    const post = worker.postMessage.bind(worker);
    worker.postMessage = (job) => post({ ...job, thread: 1 << 16 });
    return worker;
  }, 20);
  assert.throws(() => {
    for (let i = 0; i < 500; i++) { // until it gets something to do
      broken.run(ascending(16));
      broken.truncate(0);
    }
  }, /a thread of the model stopped/);
  assert.ok(performance.now() - began < 15000);
});

test('a layout whose sizes do not belong together is refused', async () => {
  const { layout, read } = randomModel(MODELS['two precisions, pairs of heads']);
  const load = (change) => {
    const damaged = structuredClone(layout);
    change(damaged);
    return createDecoder({ wasm: loaders('simd'), layout: damaged, read, capacity: 16 });
  };
  (await load(() => {})).dispose();
  for (const change of [
    (l) => { l.hidden = 80; }, (l) => { l.inner += 32; }, (l) => { l.vocab += 1; }, (l) => { l.heads = 3; }, (l) => { l.layers[1].norms = {}; },
    (l) => { l.layers[0].down[0].block = 16; }, (l) => { l.layers[0].down[0].bits = 4; }, (l) => { l.layers[2].qkv.pop(); },
    (l) => { l.layers[0].out[0].scales.length -= 2; }, (l) => { l.layers[0].out[0].zero_points.length += 1; }, (l) => { delete l.embedding; },
    (l) => { l.embedding.table.qweight.length -= 16; }, (l) => { l.embedding.token_ids.length -= 8; }, (l) => { l.ropes.local.pop(); },
    (l) => { l.final_norm.length = 4; }, (l) => { l.layers[0].rope = 'none'; }, (l) => { l.layers = []; },
  ]) await assert.rejects(load(change), { name: 'Error', message: /the layout is damaged/ }, String(change)); // prettier-ignore
  await assert.rejects(load((l) => { delete l.final_norm.file; }), /the layout is shorter/);
  const far = async (path, offset, length) => {
    const bytes = await read(path, offset, length);
    const { offset: at } = layout.embedding.token_ids;
    if (offset <= at && at < offset + length) bytes[at - offset + 1] = 1; // token 256 and more
    return bytes;
  };
  await assert.rejects(createDecoder({ wasm: loaders('simd'), layout, read: far, capacity: 16 }), /the token \d+, which is none/);
});
