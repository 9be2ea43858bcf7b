/** The grammar: random tokens under it always give calls that parse and fit their schema. `node --test` */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { parseCalls } from '../../web/calls.js';
import { GrammarProcessor, compileGrammar, userSpans } from '../../web/grammar.js';
import { fits } from './fits.mjs';
import { checkCall } from '../../web/schema.js';
import { CONTROL, STOPS, decode, random, smallVocabulary } from './small_vocabulary.mjs';

const TOOLS = [
  { name: 'calculate', parameters: { type: 'object', properties: { expression: { type: 'string' } }, required: ['expression'] } },
  { name: 'ping', parameters: { type: 'object', properties: {} } },
  { name: 'weather.now', parameters: {
    type: 'object',
    properties: {
      city: { type: 'STRING' }, Unit: { type: 'string', enum: ['celsius', 'degrees F'] }, days: { type: 'integer' },
      at: { type: 'object', properties: { lat: { type: 'number' }, lon: { type: 'number' }, tags: { type: 'array', items: { type: 'string', enum: ['x', 'yz'] } } }, required: ['lat', 'lon'] },
      loud: { type: 'boolean' }, grid: { type: 'array', items: { type: 'array', items: { type: 'integer' } } },
    },
    required: ['city', 'at'],
  } },
  { function: { name: 'Weather', parameters: { type: 'object', properties: { b: { type: 'boolean' }, A: { type: 'number' } } } } },
];

/** Greedy over random scores; `drift` pulls towards long answers by making stops unlikely. */
function answer(processor, vocabulary, next, maxTokens, drift) {
  const ids = [0];
  processor.start(1, maxTokens);
  const stops = STOPS.map((name) => vocabulary.control.get(name));
  while (ids.length <= maxTokens) {
    const scores = Float32Array.from({ length: vocabulary.size }, next);
    if (drift) for (const name of [...STOPS, '<escape>', '<end_function_call>']) scores[vocabulary.control.get(name)] -= 0.7;
    if (drift && ids.length === 1) scores[vocabulary.control.get('<start_function_call>')] += 1;
    processor.apply([ids], { data: scores });
    const best = scores.reduce((a, value, i) => (value > scores[a] ? i : a), 0);
    assert.ok(scores[best] > -Infinity, 'some token is always allowed');
    ids.push(best);
    if (stops.includes(best)) return { ids: ids.slice(1, -1), stop: best };
  }
  return { ids: ids.slice(1), stop: null };
}

for (const mode of ['any', 'call']) {
  test(`random tokens, ${mode}`, () => {
    const vocabulary = smallVocabulary();
    const grammar = compileGrammar(TOOLS, { text: mode === 'any' });
    const processor = new GrammarProcessor(grammar, vocabulary, { close: true });
    const next = random(7);
    const seen = new Set();
    for (let i = 0; i < 300; i += 1) {
      const { ids, stop } = answer(processor, vocabulary, next, 120, i % 3 === 0);
      assert.notEqual(stop, null, 'it ends within the limit');
      const text = decode(vocabulary, ids);
      const calls = parseCalls(text); // throws when malformed
      assert.ok(mode !== 'call' || calls.length);
      assert.equal(stop === vocabulary.control.get('<start_function_response>'), calls.length > 0);
      for (const call of calls) {
        seen.add(call.name);
        assert.deepEqual(checkCall(call, TOOLS), [], text);
        const keys = Object.keys(call.arguments).map((key) => key.toLowerCase());
        assert.deepEqual(keys, [...keys].sort(), 'arguments in the order of the format');
      }
    }
    assert.deepEqual([...seen].sort(), ['Weather', 'calculate', 'ping', 'weather.now']);
  });
}

test('random tokens, free keys beside declared ones', () => {
  const vocabulary = smallVocabulary();
  const open = (additionalProperties, more) => ({
    type: 'object', properties: { city: { type: 'string' }, n: { type: 'integer' }, z: { type: 'boolean' }, ...more }, required: ['n'], additionalProperties,
  });
  const tools = [{ name: 'f', parameters: open(true, { at: open({ type: 'integer' }) }) }];
  const processor = new GrammarProcessor(compileGrammar(tools, { text: false }), vocabulary, { close: true });
  const next = random(11);
  let [free, deep, twice] = [0, 0, 0];
  for (let i = 0; i < 400; i += 1) {
    const { ids, stop } = answer(processor, vocabulary, next, 60, i % 2 === 0);
    assert.notEqual(stop, null, 'it ends within the limit');
    const text = decode(vocabulary, ids);
    try {
      for (const call of parseCalls(text)) {
        assert.deepEqual(checkCall(call, tools), [], text);
        const values = Object.entries(call.arguments).filter(([key]) => !['at', 'city', 'n', 'z'].includes(key)).map(([, value]) => value);
        free += values.length;
        deep += values.filter((value) => typeof value === 'object').length;
      }
    } catch (error) {
      assert.match(error.message, /given twice/, text);
      twice += 1;
    }
  }
  assert.ok(free > 100 && deep > 10 && twice < 40, `${free} free keys, ${deep} with lists and objects, ${twice} twice`);
});

test('control tokens cannot be spelled inside a string', () => {
  const vocabulary = smallVocabulary();
  const grammar = compileGrammar(TOOLS, { text: false });
  const walk = (text) => {
    let state = grammar.start;
    const step = (name) => { state = grammar.controls(state).find(([token]) => token === name)?.[1] ?? -1; };
    step('<start_function_call>');
    for (const byte of new TextEncoder().encode('call:calculate{expression:')) state = grammar.step(state, byte);
    step('<escape>');
    for (const byte of new TextEncoder().encode(text)) if (state >= 0) state = grammar.step(state, byte);
    return state >= 0;
  };
  for (const word of [...CONTROL, '<unused12>', '<start_of_image>', '<<escape>']) assert.equal(walk(`a ${word}`), false, word);
  for (const word of ['<b>bold</b>', '<escape', '<unused>', '<unusedx>', 'a < b > c', '<start_of>', 'é日🙂', '{"}']) assert.equal(walk(word), true, word);
  void vocabulary;
});

test('free text comes without control tokens, and only where it is allowed', () => {
  const calls = compileGrammar(TOOLS, { text: false });
  assert.equal(calls.step(calls.start, 0x61), -1);
  const texts = compileGrammar([], { calls: false });
  assert.ok(texts.step(texts.start, 0x61) >= 0);
  assert.deepEqual(texts.controls(texts.start), []);
  assert.deepEqual(texts.controls(texts.step(texts.start, 0x61)).map(([name]) => name).sort(), ['<end_of_turn>', '<eos>']);
});

test('the mask agrees with trying each token', () => {
  const vocabulary = smallVocabulary();
  const processor = new GrammarProcessor(compileGrammar(TOOLS), vocabulary);
  const next = random(3);
  let state = processor.grammar.start;
  for (let i = 0; i < 60; i += 1) {
    const allowed = new Set(processor.mask(state).ids);
    for (let id = 0; id < vocabulary.size; id += 1) assert.equal(allowed.has(id), processor.after(state, id) >= 0, `state ${state}, token ${id}`);
    const choices = [...allowed].filter((id) => processor.grammar.states[processor.after(state, id)].distance > 0);
    state = choices.length ? processor.after(state, choices[Math.floor(next() * choices.length)]) : processor.grammar.start;
  }
});

test('what grammars of one vocabulary keep for each other is right for each', () => {
  const vocabulary = smallVocabulary();
  for (const [tools, options] of [[TOOLS, {}], [TOOLS, { text: false }], [[], { calls: false }], [TOOLS.slice(0, 1), {}], [TOOLS, {}]]) {
    const [kept, alone] = [vocabulary, smallVocabulary()].map((one) => new GrammarProcessor(compileGrammar(tools, options), one));
    const next = random(5);
    let states = [kept.grammar.start, alone.grammar.start];
    for (let i = 0; i < 40; i += 1) {
      const [allowed, expected] = [kept, alone].map((one, k) => [...one.mask(states[k]).ids].sort((a, b) => a - b));
      assert.deepEqual(allowed, expected);
      const token = allowed[Math.floor(next() * allowed.length)];
      states = [kept, alone].map((one, k) => one.after(states[k], token));
      if (!kept.grammar.states[states[0]].distance) states = [kept.grammar.start, alone.grammar.start]; // the end
    }
  }
});

test('a verbatim argument holds words of the request', () => {
  const text = { type: 'string' };
  const tools = [{ name: 'note', parameters: { properties: { free: text, tags: { type: 'array', items: text }, text } } }];
  const prompt = '<bos><start_of_turn>developer\nBuy milk<end_of_turn>\n<start_of_turn>user\nBuy crème, then go<end_of_turn>\n<start_of_turn>model\n';
  assert.deepEqual(userSpans(prompt), ['Buy crème, then go']);
  const grammar = compileGrammar(tools, { verbatim: ['note.text', 'note.tags'], context: userSpans(prompt) });
  const spell = (inner) => fits(grammar, `<start_function_call>call:note{${inner}}<end_function_call><start_function_response>`);
  for (const words of ['crème', 'Buy crème, then', 'crème,', 'go', 'Buy crème, then go']) assert.ok(spell(`text:<escape>${words}<escape>`), words);
  for (const words of ['creme', 'crè', 'hen go', ' crème', 'crème, ', '', 'Buy go', 'milk', 'go go']) assert.ok(!spell(`text:<escape>${words}<escape>`), words);
  assert.ok(spell('tags:[<escape>Buy<escape>,<escape>go<escape>]') && !spell('tags:[<escape>Buy<escape>,<escape>sell<escape>]'));
  assert.ok(spell('free:<escape>anything<escape>'));
  assert.ok(fits(compileGrammar(tools, { verbatim: ['note.text'] }), '<start_function_call>call:note{text:<escape>x<escape>}<end_function_call><start_function_response>'));
});

test('the shipped tools compile, and what they should say is allowed', () => {
  const file = (name) => JSON.parse(readFileSync(new URL(`../../examples/${name}`, import.meta.url)));
  const grammar = compileGrammar(['everyday', 'office'].flatMap((set) => file(`tools/${set}.json`)));
  const spell = (text) => fits(grammar, text);
  assert.ok(spell('<start_function_call>call:calculate{expression:<escape>12 * (3 + 4)<escape>}<end_function_call><start_function_response>'));
  assert.ok(!spell('<start_function_call>call:calculator{expression:<escape>1<escape>}<end_function_call><start_function_response>'));
  assert.ok(!spell('<start_function_call>call:calculate{}<end_function_call><start_function_response>'));
});
