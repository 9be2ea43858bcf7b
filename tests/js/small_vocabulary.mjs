/** A small vocabulary, its texts, and numbers from a seed: for tests of the grammar and of decoding under it. */
import { STOP_IDS } from '../../web/dialogue.js';
import { sortVocabulary } from '../../web/grammar.js';

export const STOPS = ['<start_function_response>', '<end_of_turn>', '<eos>'];
export const CONTROL = ['<pad>', '<eos>', '<bos>', '<unk>', '<unused7>', '<start_function_declaration>', '<end_function_declaration>', '<start_function_call>',
  '<end_function_call>', '<start_function_response>', '<end_function_response>', '<escape>', '<start_of_turn>', '<end_of_turn>'];

/** A small vocabulary: control tokens, bytes, and pieces that cross the grammar's joints or spell control tokens; what ends an answer has the model's ids. */
export function smallVocabulary() {
  const tokens = [...CONTROL, ...Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`)];
  for (let i = 32; i < 127; i += 1) tokens.push(i === 32 ? '\u2581' : String.fromCharCode(i));
  tokens.push('call', 'call:', 'all:ca', ':weather', '.now{', 'city', ',city:', '{at:{', 'lat:', ',lon:-', '10', '}}', '},', 'é', 'ü\u2581b', '日', '本語', '🙂');
  tokens.push('<start', 'start_of', '_turn>', '_turn', 'esc', 'ape>', '<escape', 'of_turn>x', 'celsius', 'true', 'false,', '<unused', '[[', ']]', '],[');
  const places = new Map([[STOP_IDS[0], '<eos>'], [STOP_IDS[1], '<start_function_response>'], [STOP_IDS[2], '<end_of_turn>']]);
  const others = [...new Set(tokens)].filter((token) => !STOPS.includes(token));
  return sortVocabulary(Array.from({ length: others.length + places.size }, (_, id) => [places.get(id) ?? others.shift(), id]));
}

export const decode = (vocabulary, ids) => {
  const names = new Map([...vocabulary.control].map(([name, id]) => [id, name]));
  const bytes = [];
  for (const id of ids) {
    if (names.has(id)) bytes.push(...new TextEncoder().encode(names.get(id)));
    else {
      const i = vocabulary.position[id];
      bytes.push(...vocabulary.bytes.slice(vocabulary.offsets[i], vocabulary.offsets[i + 1]));
    }
  }
  return new TextDecoder('utf-8', { fatal: true }).decode(Uint8Array.from(bytes));
};

/** Numbers from a seed (mulberry32), so that a failure can be repeated. */
export function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
