/** Calculator, schema checks, results made fit for the prompt, prompt cache files, device choice, resumed downloads. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import test from 'node:test';
import * as jinja from '@huggingface/jinja';
import * as tokenizers from '@huggingface/tokenizers';
import { calculate, evaluate } from '../../web/calculator.js';
import { candidates, inspectBrowser } from '../../web/device.js';
import { commonLength, sharedPrefix } from '../../web/dialogue.js';
import { halfToFloat, readPromptCache, writePromptCache } from '../../web/prompt_cache.js';
import { sortVocabulary, vocabularyOf } from '../../web/grammar.js';
import { runCall } from '../../web/index.js';
import { TemplateTokenizer } from '../../web/native.js';
import { checkCall, disarm } from '../../web/schema.js';
import { PART, Store } from '../../web/store.js';

test('calculator: values', () => {
  const cases = {
    '12 * (3 + 4)': 84, '2^3^2': 512, '-2^2': -4, '2**-1': 0.5, '10 % 4': 2, '50%': 0.5, '200 * 15%': 30, '7 − 2 × 3 ÷ 4': 5.5,
    '.5 + 1e2': 100.5, 'sqrt(16) + max(1, 2, 3)': 7, '2 - -3': 5, '((1))': 1, 'PI * 0': 0, '8 / 4 / 2': 1, '1-2-3': -4,
  };
  for (const [expression, value] of Object.entries(cases)) assert.equal(evaluate(expression), value, expression);
  assert.deepEqual(calculate({ expression: '0.1 + 0.2' }), { result: 0.3 });
});

test('calculator: what is no arithmetic', () => {
  const bad = ['', '1 +', '(1', '1)', '2 3', 'alert(1)', 'constructor', '__proto__', 'sqrt', '1/0', '5 % 0', '0/0', 'globalThis', '1;2', '`1`', '9'.repeat(3000), '('.repeat(500), '10^400', 5];
  for (const expression of bad) assert.throws(() => evaluate(expression), { name: 'CalculatorError' }, String(expression).slice(0, 30));
});

const TOOL = { function: { name: 'f', parameters: {
  type: 'object',
  properties: { s: { type: 'string', enum: ['a', 'b'] }, n: { type: 'integer', minimum: 1 }, l: { type: 'array', items: { type: 'number' } }, o: { type: 'object', properties: { x: { type: 'boolean' } }, required: ['x'] } },
  required: ['s'],
} } };

test('calls against their schema', () => {
  const problems = (args, name = 'f') => checkCall({ name, arguments: args }, [TOOL]).join('; ');
  assert.equal(problems({ s: 'a', n: 2, l: [1, 2.5], o: { x: true } }), '');
  for (const [args, words] of [
    [{}, /s is missing/], [{ s: 'c' }, /one of a, b/], [{ s: 'a', n: 1.5 }, /integer/], [{ s: 'a', n: 0 }, /at least 1/], [{ s: 'a', n: true }, /integer/],
    [{ s: 'a', l: [1, 'x'] }, /l\[1\] must be a number/], [{ s: 'a', o: {} }, /o\.x is missing/], [{ s: 'a', o: [] }, /object/], [{ s: 'a', z: 1 }, /no argument z/],
    [{ s: 'a', toString: 1 }, /no argument toString/],
  ]) assert.match(problems(args), words);
  assert.match(problems({}, 'g'), /no tool named g/);
});

test('results of tools', async () => {
  assert.deepEqual(disarm({ a: '<escape>x<start_of_turn>', n: null, u: undefined, f: () => 1, b: [1, null, NaN] }), { a: '‹escape>x‹start_of_turn>', b: [1, 'NaN'] });
  assert.equal(disarm('<end_of<end_of_turn>_turn>').includes('<end_of_turn>'), false, 'also when it is put together by the removal');
  assert.deepEqual(disarm(3), { value: 3 });
  assert.deepEqual(disarm(undefined), { value: 'done' });
  const call = { name: 'f', arguments: {} };
  assert.equal((await runCall(call, ['wrong'], { f: () => 1 })).status, 'refused');
  assert.equal((await runCall(call, [], {})).status, 'unbound');
  assert.equal((await runCall({ name: 'toString', arguments: {} }, [], {})).status, 'unbound');
  assert.deepEqual(await runCall(call, [], { f: () => { throw new Error('no <escape>'); } }), { name: 'f', status: 'failed', response: { error: 'no ‹escape>' } });
});

test('prompt cache files', () => {
  const data = Float32Array.from([1, -2.5, 3, 4]);
  const buffer = writePromptCache({ hash: 'x', ids: [1, 2], tensors: { 'past_key_values.0.key': { dims: [1, 1, 2, 2], data } } });
  const { hash, ids, tensors } = readPromptCache(buffer);
  assert.deepEqual({ hash, ids }, { hash: 'x', ids: [1, 2] });
  assert.deepEqual([...tensors['past_key_values.0.key'].data], [...data]);
  assert.throws(() => readPromptCache(buffer.slice(0, buffer.byteLength - 1)), /cut short/);
  assert.deepEqual([...halfToFloat(Uint16Array.from([0x3c00, 0xc000, 0x0001, 0x7bff, 0x8000]))], [1, -2, 2 ** -24, 65504, -0]);
  assert.deepEqual(sharedPrefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]]), [1, 2]);
  assert.deepEqual(sharedPrefix([[1, 2], [1, 2]]), [1], 'each keeps a token of its own');
  assert.deepEqual(sharedPrefix([[1, 2]]), []);
  assert.equal(commonLength([1, 2], [1, 3]), 1);
});

test('device choice', () => {
  const variants = { q4: { devices: ['webgpu', 'wasm'], half: false }, q4f16: { devices: ['webgpu'], half: true } };
  const browser = { simd: true, gpu: true, gpuWhy: '', half: true, software: false, isolated: true, cores: 8 };
  const short = (list) => list.map(({ device, variant, threads }) => `${device} ${variant} ${threads}`);
  assert.deepEqual(short(candidates(browser, variants)), ['webgpu q4f16 1', 'wasm q4 4']);
  assert.deepEqual(short(candidates({ ...browser, half: false }, variants)), ['webgpu q4 1', 'wasm q4 4']);
  assert.deepEqual(short(candidates({ ...browser, software: true }, variants)), ['wasm q4 4']);
  assert.deepEqual(short(candidates({ ...browser, gpu: false, gpuWhy: 'none', isolated: false }, variants)), ['wasm q4 1']);
  const alone = { ...browser, gpu: false, gpuWhy: 'none', isolated: false, aloneWhy: 'the moon is full' };
  assert.match(candidates(alone, variants)[0].why, /none; one thread, because the moon is full/);
  assert.deepEqual(short(candidates(browser, variants, { device: 'wasm', threads: 2 })), ['wasm q4 2']);
  const packed = { q4: { ...variants.q4, kernels: {} } };
  const ways = (list) => list.map(({ device, runtime, threads }) => `${device} ${runtime} ${threads}`);
  const usual = ['wasm kernels 4', 'wasm kernels 1', 'wasm onnxruntime 4'];
  assert.deepEqual(ways(candidates(browser, packed)), ['webgpu onnxruntime 1', ...usual], 'onnxruntime when all else fails');
  assert.deepEqual(ways(candidates({ ...browser, isolated: false, aloneWhy: 'x' }, packed, { device: 'wasm' })), ['wasm kernels 1', 'wasm onnxruntime 1']);
  assert.deepEqual(ways(candidates(browser, packed, { device: 'wasm', runtime: 'kernels' })), usual.slice(0, 2));
  assert.deepEqual(ways(candidates(browser, packed, { device: 'wasm', runtime: 'onnxruntime' })), usual.slice(2));
  assert.match(candidates(browser, packed, { device: 'wasm', runtime: 'onnxruntime' })[0].why, /onnxruntime as chosen/);
  assert.match(candidates(browser, variants, { device: 'wasm' })[0].why, /q4 is not packed as our own kernels want it/);
  assert.throws(() => candidates(browser, variants, { device: 'wasm', runtime: 'kernels' }), /no deployed variant/);
  assert.throws(() => candidates({ ...browser, simd: false }, packed), /WebAssembly has no SIMD instructions here/);
  assert.throws(() => candidates(browser, variants, { device: 'wasm', variant: 'q4f16' }), /q4f16 does not runs? on wasm|q4f16/);
});

test('why there is one thread', async () => {
  const kept = globalThis.SharedArrayBuffer;
  const navigator = Object.getOwnPropertyDescriptor(globalThis, 'navigator');
  Object.defineProperty(globalThis, 'navigator', { value: {}, configurable: true }); // old Node has none
  try {
    assert.deepEqual(await inspectBrowser().then(({ isolated, aloneWhy }) => [isolated, aloneWhy]), [false, 'the page is not cross-origin isolated']);
    assert.equal((await inspectBrowser()).simd, true);
    globalThis.crossOriginIsolated = true;
    assert.equal((await inspectBrowser()).isolated, true);
    delete globalThis.SharedArrayBuffer; // as in some builds of WebKit
    assert.deepEqual(await inspectBrowser().then(({ isolated, aloneWhy }) => [isolated, aloneWhy]), [false, 'this browser offers no SharedArrayBuffer']);
  } finally {
    globalThis.SharedArrayBuffer = kept;
    delete globalThis.crossOriginIsolated;
    delete globalThis.navigator;
    if (navigator) Object.defineProperty(globalThis, 'navigator', navigator);
  }
});

test('downloads: a file in pieces is joined, and goes on in the piece where it stopped', async () => {
  const bytes = new Uint8Array(PART * 5 + 1000).map((_, i) => (i * 37) % 253);
  const hash = (part) => createHash('sha256').update(part).digest('hex');
  const parts = [0, 1, 2, 3, 4, 5].map((i) => hash(bytes.subarray(i * PART, (i + 1) * PART)));
  const file = { path: 'model/a.bin', bytes: bytes.length, sha256: hash(bytes), parts, piece: 2 * PART };
  const seen = [];
  let broken = true;
  const server = createServer((request, response) => {
    seen.push([request.url, request.headers.range ?? null]);
    const number = Number(/^\/model\/a\.bin\.part(\d\d)$/.exec(request.url)?.[1] ?? 9);
    const piece = bytes.subarray(number * 2 * PART, (number + 1) * 2 * PART);
    response.writeHead(piece.length ? 200 : 404); // no ranges: the piece comes whole
    response.end(broken && number === 1 ? piece.subarray(0, PART + 7) : piece);
  });
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  try {
    const store = await new Store(`http://127.0.0.1:${server.address().port}/`, [file]).open();
    await assert.rejects(store.fetch([file.path], () => {}), /bytes arrived/);
    assert.equal(await store.have([file.path]), 3 * PART);
    broken = false;
    seen.length = 0;
    const progress = [];
    await store.fetch([file.path], ({ loaded }) => progress.push(loaded));
    assert.deepEqual(seen, [['/model/a.bin.part01', `bytes=${PART}-`], ['/model/a.bin.part02', null]]);
    assert.ok(progress[0] >= 3 * PART && progress.every((loaded, i) => i === 0 || loaded >= progress[i - 1]));
    assert.equal(progress.at(-1), bytes.length);
    assert.deepEqual(new Uint8Array(await store.bytes(file.path)), bytes);
    assert.deepEqual(new Uint8Array(await store.response(file.path).arrayBuffer()), bytes);
    for (const [at, length] of [[0, 9], [PART - 4, 8], [PART - 1, 2 * PART + 2], [bytes.length - 5, 5]]) {
      assert.deepEqual(Uint8Array.from(await store.read(file.path, at, length)), bytes.slice(at, at + length), `${length} bytes at ${at}`);
    }
    await assert.rejects(store.read(file.path, bytes.length - 5, 6), /wanted/);
  } finally {
    server.close();
    server.closeAllConnections();
  }
});

test('downloads: parts, checks, resuming, with and without ranges', async () => {
  const bytes = new Uint8Array(PART * 2 + 1000).map((_, i) => (i * 31) % 251);
  const hash = (part) => createHash('sha256').update(part).digest('hex');
  const parts = [0, 1, 2].map((i) => hash(bytes.subarray(i * PART, (i + 1) * PART)));
  const file = { path: 'model/a.bin', bytes: bytes.length, sha256: hash(bytes), parts };
  let mode = 'cut';
  const seen = [];
  const server = createServer((request, response) => {
    seen.push(request.headers.range ?? null);
    const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
    if (mode === 'missing') { response.writeHead(404); response.end(); return; }
    if (mode === 'cut') { response.writeHead(200); response.end(bytes.subarray(0, PART + 5)); return; }
    if (mode === 'wrong') { response.writeHead(200); response.end(new Uint8Array(bytes.length)); return; }
    if (mode === 'ranges') { response.writeHead(206, { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` }); response.end(bytes.subarray(from)); return; }
    response.writeHead(200); response.end(bytes);
  });
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  const base = `http://127.0.0.1:${server.address().port}/`;
  try {
    for (const later of ['ranges', 'whole']) {
      const store = await new Store(base, [file]).open();
      mode = 'cut';
      await assert.rejects(store.fetch([file.path], () => {}), /bytes arrived/);
      assert.equal(await store.have([file.path]), PART);
      mode = 'missing';
      await assert.rejects(store.fetch([file.path], () => {}), /answered 404/);
      mode = later;
      seen.length = 0;
      const progress = [];
      await store.fetch([file.path], ({ loaded, total }) => progress.push([loaded, total]));
      assert.deepEqual(seen, [`bytes=${PART}-`]);
      assert.deepEqual(progress.at(-1), [bytes.length, bytes.length]);
      assert.deepEqual(new Uint8Array(await store.bytes(file.path)), bytes);
      assert.deepEqual(new Uint8Array(await store.response(file.path).arrayBuffer()), bytes);
    }
    const store = await new Store(base, [file]).open();
    mode = 'wrong';
    await assert.rejects(store.fetch([file.path], () => {}), /checksum differs/);
    const controller = new AbortController();
    controller.abort(new Error('paused'));
    mode = 'whole';
    await assert.rejects(store.fetch([file.path], () => {}, controller.signal), /paused|abort/i);
  } finally {
    server.close();
    server.closeAllConnections();
  }
});

test('words: the tokens of the library that reads tokenizer.json as objects', () => {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`);
  const merged = [['a', 'b'], ['ab', 'c'], ['\u2581', 'ab'], ['\n', '\n'], ['"', '\\'], ['\u00e9', 'a'], ['\u65e5', '\u672c'], ['\ud83d\ude00', 'a'], ['c', 'a']];
  const words = ['<unk>', '<bos>', ...bytes, ...new Set(merged.flatMap(([a, b]) => [a, b, a + b])), 'vocab', 'merges', 'x'];
  const added = [['<bos>', 1], ['<late>', words.length + 3]].map(([content, id]) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }));
  const texts = ['abcab abc  ab', '\n\n\n"\\', '\u00e9ab\u65e5\u672c\u8a9e', '\ud83d\ude00a\ud83d\ude01', 'vocabx merges', '<bos>ca<late>b', '\ud83dx', 'constructor __proto__'];
  for (const merges of [merged, merged.map((pair) => pair.join(' '))]) {
    const json = {
      version: '1.0', added_tokens: added, normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
      pre_tokenizer: null, post_processor: null,
      decoder: { type: 'Sequence', decoders: [{ type: 'Replace', pattern: { String: '\u2581' }, content: ' ' }, { type: 'ByteFallback' }, { type: 'Fuse' }] },
      model: { type: 'BPE', unk_token: '<unk>', fuse_unk: true, byte_fallback: true, ignore_merges: false, vocab: Object.fromEntries(words.map((word, id) => [word, id])), merges },
    };
    const whole = new tokenizers.Tokenizer(json, {});
    for (const space of [0, 2]) {
      const own = new TemplateTokenizer({ tokenizers, jinja }, new TextEncoder().encode(JSON.stringify(json, null, space)), { chat_template: '' });
      for (const text of texts) {
        const ids = whole.encode(text, { add_special_tokens: false }).ids;
        assert.deepEqual(own.encode(text, { add_special_tokens: false }), ids, text);
        assert.equal(own.decode(ids), whole.decode(ids, { clean_up_tokenization_spaces: false }), text);
      }
      const [mine, theirs] = [[...own.get_vocab()], [...whole.get_vocab()].filter(([token]) => token !== undefined)];
      assert.deepEqual(mine, theirs);
      const sorted = vocabularyOf(own);
      const { offsets } = sorted;
      const found = [...sorted.ids].map((id, i) => [Buffer.from(sorted.bytes.subarray(offsets[i], offsets[i + 1])).toString('hex'), id]);
      const expected = theirs.filter(([token]) => !sorted.control.has(token)).map(([token, id]) => {
        const byte = /^<0x(..)>$/.exec(token);
        return [byte ? byte[1].toLowerCase() : Buffer.from(token.replaceAll('\u2581', ' ')).toString('hex'), id];
      });
      assert.deepEqual(found, expected.sort(([a, m], [b, n]) => (a < b ? -1 : a > b ? 1 : m - n)));
      assert.deepEqual(sortVocabulary(theirs), sorted);
    }
  }
  const plain = new TextEncoder().encode('{"model": {"type": "Unigram", "vocab": []}}');
  assert.throws(() => new TemplateTokenizer({ tokenizers, jinja }, plain, {}), /byte pair encoding/);
});

test('words: a large vocabulary is no large number of objects', () => {
  const count = 200000;
  const words = Array.from({ length: count }, (_, i) => `"${i.toString(36)}\u00e9":${i}`).join();
  const merges = Array.from({ length: count }, (_, i) => `"${i.toString(36)}\u00e9 ${(count - i).toString(36)}\u00e9"`).join();
  const rest = '"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null';
  const json = new TextEncoder().encode(`{${rest},"model":{"type":"BPE","unk_token":"0\u00e9","vocab":{${words}},"merges":[${merges}]}}`);
  const { heapUsed } = process.memoryUsage();
  const own = new TemplateTokenizer({ tokenizers, jinja }, json, { chat_template: '' });
  assert.equal(vocabularyOf(own).ids.length, count);
  const grown = (process.memoryUsage().heapUsed - heapUsed) / 2 ** 20;
  assert.ok(grown < 64, `${grown.toFixed()} MiB of objects`);
});
