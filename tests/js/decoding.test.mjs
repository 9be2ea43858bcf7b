/** Decoding with drafts gives the tokens of plain decoding, in fewer passes. `node --test` */
import assert from 'node:assert/strict';
import test from 'node:test';
import { MOST, Pace, Place, decodeGreedily, likeliest, worthChecking } from '../../web/decoding.js';
import { STOP_IDS } from '../../web/dialogue.js';
import { Drafter, NgramTable, contextHash } from '../../web/drafts.js';
import { GrammarProcessor, compileGrammar } from '../../web/grammar.js';
import { decode, random, smallVocabulary } from './small_vocabulary.mjs';

const TOOLS = [
  { name: 'weather.now', parameters: { type: 'object', properties: { city: { type: 'string' }, days: { type: 'integer' }, unit: { type: 'string', enum: ['celsius', 'degrees F'] } }, required: ['city', 'unit'] } },
  { name: 'weather.then', parameters: { type: 'object', properties: { city: { type: 'string' }, loud: { type: 'boolean' } }, required: ['city', 'loud'] } },
];
const REQUEST = 'city weather: true, call 10 of callous';

const VOCABULARY = smallVocabulary();
const EVEN = { cost: (tokens) => 10 + tokens, note() {}, check() {}, trust: 1 }; // the same pace on every machine

/** The usual tokens of a text: the longest that fits, from left to right. */
function encode(text) {
  const { ids, control, offsets, bytes } = VOCABULARY;
  const all = [...new TextEncoder().encode(text)];
  const words = [...ids].map((id, i) => [id, [...bytes.slice(offsets[i], offsets[i + 1])]]);
  for (const [name, id] of control) words.push([id, [...new TextEncoder().encode(name)]]);
  const found = [];
  for (let at = 0; at < all.length;) {
    const [id, word] = words.filter(([, each]) => each.every((byte, i) => all[at + i] === byte)).sort((a, b) => b[1].length - a[1].length || a[0] - b[0])[0];
    found.push(id);
    at += word.length;
  }
  return found;
}

const spell = (ids) => {
  try {
    return decode(VOCABULARY, ids);
  } catch {
    return '\ufffd'; // a part of a character
  }
};

/** A model whose scores are numbers from the last three tokens, drawn to what it is told to like. */
class Toy {
  constructor(seed, likes = new Map()) {
    this.seed = seed;
    this.likes = likes;
    this.vocabSize = VOCABULARY.size;
    this.held = [];
    this.most = 0;
  }

  get length() { return this.held.length; }

  truncate(n) {
    assert.ok(n <= this.held.length, 'it holds no more than it has read');
    this.held.length = n;
  }

  scores(upto) {
    const before = this.held.slice(Math.max(0, upto - 3), upto);
    const next = random(contextHash([this.seed, ...before]));
    const scores = Float32Array.from({ length: this.vocabSize }, next);
    const liked = this.likes.get(before.join());
    if (liked !== undefined) scores[liked] += 1;
    return scores;
  }

  run(ids, { logits, rows = null }) {
    this.held.push(...ids);
    if (logits === 'none') return null;
    assert.ok(logits === 'last' || ids.length <= MOST);
    this.most = Math.max(this.most, ids.length);
    const count = logits === 'all' ? ids.length : 1;
    const found = [];
    for (let i = count - 1; i >= 0; i -= 1) {
      const scores = this.scores(this.held.length - i);
      found.push(...(rows ? Array.from(rows, (id) => scores[id]) : scores));
    }
    return Float32Array.from(found);
  }
}

/** What the logits processor of transformers.js gives, token by token: the reference. */
function plainly(toy, prompt, { grammar, maxTokens }) {
  const ids = [...prompt];
  toy.held = [...prompt];
  grammar?.start(ids.length, maxTokens);
  while (ids.length < prompt.length + maxTokens) {
    const data = toy.scores(toy.held.length);
    grammar?.apply([ids], { data });
    const best = data.reduce((a, value, i) => (value > data[a] ? i : a), 0);
    ids.push(best);
    toy.held.push(best);
    if (STOP_IDS.includes(best)) break;
  }
  return ids.slice(prompt.length);
}

/** A table's file, as fgtune/site/drafts.py writes it, of whole answers. */
function tableOf(answers, order = 3) {
  const entries = new Map();
  for (const answer of answers) {
    const ids = [0, ...answer];
    for (let end = 1; end < ids.length; end += 1) {
      for (let n = 1; n <= Math.min(order, end); n += 1) entries.set(contextHash(ids.slice(end - n, end)), ids[end] + 240 * 2 ** 24);
    }
  }
  const hashes = [...entries.keys()].sort((a, b) => a - b);
  return new NgramTable(Uint32Array.from([0x314e4746, order, hashes.length, ...hashes, ...hashes.map((hash) => entries.get(hash))]).buffer);
}

/** A model that likes an answer which the grammar allows, here and there. */
function toyFor(seed, text) {
  const likes = new Map();
  const ids = encode(text);
  ids.forEach((id, i) => { if (i && (i * 7 + seed) % 41) likes.set([7, 8, 9, ...ids.slice(0, i)].slice(-3).join(), id); });
  return new Toy(seed, likes);
}

const ANSWERS = [
  '<start_function_call>call:weather.now{city:<escape>city weather<escape>,unit:<escape>celsius<escape>}<end_function_call><start_function_response>',
  '<start_function_call>call:weather.then{city:<escape>call 10<escape>,loud:true}<end_function_call><start_function_call>call:weather.now{city:<escape>callous<escape>,days:10,unit:<escape>degrees F<escape>}<end_function_call><start_function_response>',
];

test('drafts and forced tokens change no token, and save passes', async () => {
  const prompt = [7, 8, 9];
  const saved = { passes: 0, tokens: 0, accepted: 0, refused: 0, forced: 0 };
  for (let seed = 0; seed < 120; seed += 1) {
    const text = ANSWERS[seed % 2];
    const close = seed % 3 === 0;
    const verbatim = seed % 5 ? ['weather.now.city', 'weather.then.city'] : [];
    const grammar = seed % 10 === 9 ? null : new GrammarProcessor(compileGrammar(TOOLS, { text: !close, verbatim, context: [REQUEST] }), VOCABULARY, { close });
    const options = { grammar, maxTokens: [60, 25, 90, 1][seed % 4] };
    const expected = plainly(toyFor(seed, text), prompt, options);
    const table = [null, tableOf([encode(ANSWERS[0])]), tableOf(ANSWERS.map(encode))][seed % 3];
    for (const drafter of [null, new Drafter({ encode, decode: spell, context: [REQUEST], table })]) {
      const [toy, made] = [toyFor(seed, text), []];
      const counts = await decodeGreedily(toy, prompt, { ...options, drafter, made, pace: seed % 2 ? EVEN : undefined });
      assert.deepEqual(made, expected, `seed ${seed}${drafter ? ', with drafts' : ''}`);
      assert.deepEqual(toy.held, [...prompt, ...made].slice(0, toy.length), 'it holds what was chosen, and nothing else');
      if (drafter) {
        assert.ok(counts.passes <= made.length);
        saved.passes += counts.passes;
        saved.tokens += made.length;
        saved.accepted += counts.accepted;
        saved.refused += counts.drafted - counts.accepted;
        saved.forced += counts.forced;
      } else assert.deepEqual([counts.passes, counts.drafted, counts.forced], [made.length, 0, 0]);
    }
  }
  assert.ok(saved.passes < 0.9 * saved.tokens && saved.accepted > 100 && saved.refused > 100 && saved.forced > 20, JSON.stringify(saved));
});

test('the usual tokens of forced bytes are a draft, and another spelling that the model likes better is kept', async () => {
  const grammar = new GrammarProcessor(compileGrammar([{ name: 'ping', parameters: {} }], { text: false }), VOCABULARY);
  const id = (text) => encode(text)[0];
  const start = VOCABULARY.control.get('<start_function_call>');
  const usual = encode('call:ping{}');
  for (const spelled of [usual, [...'call:ping{}'].map(id)]) {
    const likes = new Map(spelled.map((token, i) => [[7, 8, 9, start, ...spelled.slice(0, i)].slice(-3).join(), token]));
    const [toy, made] = [new Toy(1, likes), []];
    const drafter = new Drafter({ encode, decode: spell });
    const counts = await decodeGreedily(toy, [7, 8, 9], { grammar, maxTokens: spelled.length + 1, drafter, made, pace: EVEN });
    assert.deepEqual(made, [start, ...spelled]);
    if (spelled === usual) assert.ok(counts.passes <= 2, `${counts.passes} passes`);
  }
});

test('the likeliest token: the lower id wins a tie, whichever way it is asked', () => {
  const logits = Float32Array.from([0, 3, 1, 3, 2]);
  assert.equal(likeliest(logits, null), 1);
  assert.equal(likeliest(logits, Int32Array.from([3, 1, 0])), 1);
  assert.equal(likeliest(logits, Int32Array.from([4, 3, 9])), 3, 'an id that the model lacks is passed over');
  assert.equal(likeliest(Float32Array.from([3, 2]), Int32Array.from([3, 4]), Int32Array.from([3, 4])), 3);
  assert.equal(likeliest(Float32Array.from([9, 3, 3]), Int32Array.from([4, 3]), Int32Array.from([2, 3, 4])), 3);
  assert.throws(() => likeliest(Float32Array.from([NaN, 1]), Int32Array.from([0])), /no number/);
});

test('a table of drafts: the longest context that is known, and no damaged file', () => {
  const table = tableOf([[5, 6, 7], [8, 6, 9]]);
  assert.deepEqual([table.next([5, 6]).id, table.next([8, 6]).id, table.next([4, 6]).id], [7, 9, 9]);
  assert.equal(table.next([]).id, 8, 'the beginning of an answer');
  assert.ok(Math.abs(table.next([5]).chance - 240 / 255) < 1e-9);
  assert.equal(table.next([4]), null);
  for (const damaged of [Uint32Array.from([1, 2, 3]), Uint32Array.from([0x314e4746, 4, 9]), new Uint8Array(5), new Uint8Array(14)]) assert.equal(NgramTable.open(damaged.buffer), null);
  assert.throws(() => new NgramTable(Uint32Array.from([1, 2, 3]).buffer), /damaged/);
});

test('a table of another model, whose tokens this one lacks, changes no token', async () => {
  const table = tableOf([[VOCABULARY.size + 5, 6], [VOCABULARY.size + 5, 6]]);
  assert.ok(table.next([]).id > VOCABULARY.size);
  const [toy, made] = [new Toy(3), []];
  const run = toy.run.bind(toy);
  toy.run = (ids, how) => (assert.ok(ids.every((id) => id < VOCABULARY.size)), run(ids, how));
  await decodeGreedily(toy, [7, 8, 9], { maxTokens: 4, made, pace: EVEN, drafter: new Drafter({ encode, decode: () => '', table }) });
  assert.deepEqual(made, plainly(new Toy(3), [7, 8, 9], { maxTokens: 4 }));
});

test('a draft is as long as it pays', () => {
  const places = Array.from({ length: 5 }, () => new Place(null));
  const draft = [0.9, 0.8, 0.3, 0.25].map((chance, id) => ({ id, chance }));
  const worth = (more, waiting = 1, trust = 1) => worthChecking(draft, places, waiting, { cost: (tokens) => 10 + more * (tokens - 1), trust });
  assert.deepEqual([worth(0.1), worth(4), worth(8.5), worth(11)], [4, 2, 1, 0]);
  assert.equal(worth(4, 3), 2, 'what is read in any case counts for nothing');
  assert.equal(worth(4, 1, 0.5), 1, 'and less where drafts seldom held');
  const pace = new Pace();
  for (let i = 0; i < 90; i += 1) { pace.note(1, false, 40); pace.note(8, false, 40 + 7 * 30); }
  assert.ok(Math.abs(pace.cost(1, false) - 40) < 2 && Math.abs(pace.cost(8, false) - 250) < 15, `${pace.cost(8, false)} ms`);
  pace.note(1, false, 4000);
  assert.ok(pace.cost(1, false) < 42, 'a pass that was held up counts little');
  for (let i = 0; i < 200; i += 1) pace.note(1, false, 40);
  assert.ok(pace.cost(8, false) < 200, 'drafts are tried again');
});

test('a long prompt is read in pieces, and a stop takes effect between two passes', async () => {
  const prompt = Array.from({ length: 150 }, (_, i) => 20 + (i % 20));
  const [toy, made] = [new Toy(5), []];
  const counts = await decodeGreedily(toy, prompt, { maxTokens: 3, made, drafter: new Drafter({ encode, decode: spell }) });
  assert.deepEqual(toy.held.slice(0, 150), prompt);
  assert.equal(counts.promptPasses, 2);
  let pauses = 0;
  const stop = async () => { pauses += 1; if (pauses === 3) throw new Error('stopped'); };
  await assert.rejects(decodeGreedily(new Toy(5), [1], { maxTokens: 9, pause: stop, made: [] }), /stopped/);
  assert.equal(pauses, 3);
});
