/**
 * The vocabulary and the merges of a `tokenizer.json`, read from the file's bytes into a few arrays of numbers. As
 * JavaScript objects, a quarter of a million of each, they and what it takes to make them are hundreds of megabytes.
 */

const [QUOTE, BACKSLASH, COLON, SPACE, OPEN_LIST, OPEN_OBJECT] = [...'"\\: [{'].map((char) => char.charCodeAt(0));
const CLOSE = { [OPEN_LIST]: 0x5d, [OPEN_OBJECT]: 0x7d };
const LONE = /[\ud800-\udfff]/u; // half of a character, which UTF-8 has no bytes for
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** The position after the string that opens at `at`. */
function pastString(json, at) {
  for (at += 1; json[at] !== QUOTE; at += 1) {
    if (json[at] === BACKSLASH) at += 1;
    if (at >= json.length) throw new Error('tokenizer.json is cut short');
  }
  return at + 1;
}

function pastSpace(json, at) {
  while (json[at] <= SPACE) at += 1;
  return at;
}

/** Where the first value of `key` stands that opens with `bracket`: `[from, to]`, brackets included. */
function spanOf(json, key, bracket) {
  const wanted = encoder.encode(JSON.stringify(key));
  let [from, depth] = [-1, 0];
  for (let at = 0; at < json.length;) {
    if (json[at] === QUOTE) {
      const end = pastString(json, at);
      if (from < 0 && end - at === wanted.length && wanted.every((byte, i) => json[at + i] === byte)) {
        const colon = pastSpace(json, end);
        const value = pastSpace(json, colon + 1);
        if (json[colon] === COLON && json[value] === bracket) from = value;
      }
      at = end;
      continue;
    }
    if (from >= 0 && at >= from) {
      if (json[at] === bracket) depth += 1;
      else if (json[at] === CLOSE[bracket] && (depth -= 1) === 0) return [from, at + 1];
    }
    at += 1;
  }
  throw new Error(`tokenizer.json has no ${key}: it is not one of byte pair encoding`);
}

/** Calls `see(bytes, from, to, end)` for each string in a span; its bytes are `bytes[from…to)`, and `end` is where it ends. */
function eachString(json, [from, to], see) {
  for (let at = from; at < to;) {
    if (json[at] !== QUOTE) {
      at += 1;
      continue;
    }
    const end = pastString(json, at);
    if (json.subarray(at, end).includes(BACKSLASH)) {
      const bytes = encoder.encode(JSON.parse(decoder.decode(json.subarray(at, end))));
      see(bytes, 0, bytes.length, end);
    } else see(json, at + 1, end - 1, end);
    at = end;
  }
}

/** Places of a hash table for `count` entries, at least half of them free. */
const table = (count) => new Int32Array(2 ** Math.ceil(Math.log2(2 * count + 2))).fill(-1);

/** The words of a vocabulary by id, and the ranks of its merges. */
export class Words {
  #bytes;
  #offsets; // by the order in the file
  #ids; // likewise
  #order; // the other way about
  #slots; // places in the order, by the hash of the bytes
  #pairs; // two ids for each merge
  #ranks; // merges, by the hash of their ids
  #scratch = new Uint8Array(256);

  /** @param {Uint8Array} json the bytes of `tokenizer.json` */
  constructor(json) {
    const spans = { vocab: spanOf(json, 'vocab', OPEN_OBJECT), merges: spanOf(json, 'merges', OPEN_LIST) };
    this.#readVocabulary(json, spans.vocab);
    this.#readMerges(json, spans.merges);
    const [first, second] = Object.values(spans).sort(([a], [b]) => a - b);
    const text = (from, to) => decoder.decode(json.subarray(from, to));
    const empty = ([from]) => (json[from] === OPEN_LIST ? '[]' : '{}');
    /** All else that the file says. */
    this.rest = JSON.parse(text(0, first[0]) + empty(first) + text(first[1], second[0]) + empty(second) + text(second[1]));
  }

  #readVocabulary(json, span) {
    let [count, total, most] = [0, 0, -1];
    eachString(json, span, (_, from, to) => { count += 1; total += to - from; });
    [this.#bytes, this.#offsets, this.#ids] = [new Uint8Array(total), new Int32Array(count + 1), new Int32Array(count)];
    this.#slots = table(count);
    let [i, top] = [0, 0];
    eachString(json, span, (bytes, from, to, end) => {
      let id = 0;
      for (let at = pastSpace(json, pastSpace(json, end) + 1); json[at] >= 0x30 && json[at] <= 0x39; at += 1) id = 10 * id + json[at] - 0x30;
      this.#bytes.set(bytes.subarray(from, to), top);
      top += to - from;
      this.#offsets[i + 1] = top;
      this.#ids[i] = id;
      most = Math.max(most, id);
      this.#slots[this.#slot(bytes, from, to)] = i;
      i += 1;
    });
    this.#order = new Int32Array(most + 1).fill(-1);
    this.#ids.forEach((id, at) => { this.#order[id] = at; });
  }

  #readMerges(json, span) {
    const paired = json[pastSpace(json, span[0] + 1)] === OPEN_LIST; // ["a", "b"] in place of "a b"
    let count = 0;
    eachString(json, span, () => { count += 1; });
    if (paired) count /= 2;
    this.#pairs = new Int32Array(2 * count);
    this.#ranks = table(count);
    let at = 0;
    eachString(json, span, (bytes, from, to) => {
      const middle = paired ? to : bytes.indexOf(SPACE, from);
      this.#pairs[at++] = this.#find(bytes, from, middle);
      if (!paired) this.#pairs[at++] = this.#find(bytes, middle + 1, to);
    });
    for (let rank = 0; rank < count; rank += 1) this.#ranks[this.#pairSlot(this.#pairs[2 * rank], this.#pairs[2 * rank + 1])] = rank;
  }

  /** The slot that holds these bytes, or the free one where they belong. */
  #slot(bytes, from, to) {
    const mask = this.#slots.length - 1;
    let hash = 2166136261;
    for (let k = from; k < to; k += 1) hash = Math.imul(hash ^ bytes[k], 16777619);
    for (let slot = (hash ^ (hash >>> 15)) & mask; ; slot = (slot + 1) & mask) {
      const i = this.#slots[slot];
      if (i < 0) return slot;
      const start = this.#offsets[i];
      if (this.#offsets[i + 1] - start !== to - from) continue;
      let k = 0;
      while (k < to - from && this.#bytes[start + k] === bytes[from + k]) k += 1;
      if (k === to - from) return slot;
    }
  }

  #pairSlot(left, right) {
    const mask = this.#ranks.length - 1;
    const hash = Math.imul(Math.imul(left, 0x9e3779b1) ^ right, 0x85ebca6b);
    for (let slot = (hash ^ (hash >>> 15)) & mask; ; slot = (slot + 1) & mask) {
      const rank = this.#ranks[slot];
      if (rank < 0 || (this.#pairs[2 * rank] === left && this.#pairs[2 * rank + 1] === right)) return slot;
    }
  }

  #find(bytes, from, to) {
    const i = this.#slots[this.#slot(bytes, from, to)];
    return i < 0 ? -1 : this.#ids[i];
  }

  /** The id of a word, or undefined. */
  id(word) {
    if (LONE.test(word)) return undefined;
    if (this.#scratch.length < 3 * word.length) this.#scratch = new Uint8Array(6 * word.length);
    const id = this.#find(this.#scratch, 0, encoder.encodeInto(word, this.#scratch).written);
    return id < 0 ? undefined : id;
  }

  /** The word of an id, or undefined. (A browser's TextDecoder leaves objects to collect for every array it is given.) */
  word(id) {
    const i = this.#order[id] ?? -1;
    if (i < 0) return undefined;
    const bytes = this.#bytes;
    let word = '';
    for (let k = this.#offsets[i]; k < this.#offsets[i + 1]; k += 1) {
      let more = bytes[k] < 0xc0 ? 0 : bytes[k] < 0xe0 ? 1 : bytes[k] < 0xf0 ? 2 : 3;
      let code = more ? bytes[k] & (0x3f >> more) : bytes[k];
      for (; more > 0; more -= 1) code = (code << 6) | (bytes[k += 1] & 0x3f);
      word += String.fromCodePoint(code);
    }
    return word;
  }

  /** The rank of merging two words, or undefined. */
  rank(left, right) {
    const [a, b] = [this.id(left), this.id(right)];
    if (a === undefined || b === undefined) return undefined;
    const rank = this.#ranks[this.#pairSlot(a, b)];
    return rank < 0 ? undefined : rank;
  }

  /** One more than the highest id. */
  get size() {
    return this.#order.length;
  }
}
