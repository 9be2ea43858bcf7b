/**
 * Guesses of the next tokens of an answer, which a pass of the model then checks: what the grammar leaves no choice
 * about, words copied from the request, and what the training answers went on with. A wrong guess costs a little time,
 * never a token.
 */
import { STOP_IDS } from './dialogue.js';
import { CONTROL_TOKEN } from './calls.js';

/** A draft goes on as long as its last token is at least this likely to be the one that is chosen. */
const LEAST = 0.2;
/** How likely guesses hold, as counted on answers: the bytes are forced, and the text around them may join them. */
const FORCED = 0.95;
const FORCED_AT_END = 0.5;
/** The same of words that are copied from the request, after so many characters of them. */
const COPIED = [0, 0.45, 0.6, 0.7, 0.8];
/** Characters of the request that are looked at after a match. */
const AHEAD = 48;
/** Tokens of the answer that are looked for in the request, at most. */
const TAIL = 16;
const MAGIC = 0x314e4746; // "FGN1"
const decoder = new TextDecoder();

/** The hash of a context of token ids, 32 bits; `fgtune/site/drafts.py` makes the same. */
export function contextHash(ids) {
  let hash = 2166136261 ^ ids.length;
  for (const id of ids) {
    hash = Math.imul(hash ^ id, 16777619);
    hash ^= hash >>> 15;
  }
  return hash >>> 0;
}

/**
 * Which token came after the last few ones in the training answers. The file (`fgtune/site/drafts.py`), little-endian
 * 32-bit words: magic, longest context, number of entries, the contexts' hashes in order, and for each the likeliest
 * next id (24 bits) with its share of the cases (8 bits, of 255).
 */
export class NgramTable {
  /** The table of a file; null for a damaged one, without which answers are the same, later. */
  static open(buffer) {
    try {
      return new NgramTable(buffer);
    } catch {
      return null;
    }
  }

  /** @param {ArrayBuffer} buffer */
  constructor(buffer) {
    const [magic, order, count] = new Uint32Array(buffer, 0, 3);
    if (magic !== MAGIC || buffer.byteLength !== 4 * (3 + 2 * count)) throw new Error('the table of drafts is damaged');
    this.order = order;
    this.hashes = new Uint32Array(buffer, 12, count);
    this.values = new Uint32Array(buffer, 12 + 4 * count, count);
  }

  /** The likeliest token after `ids`, by the longest context that is known: `{id, chance}`, or null. An answer begins after id 0. */
  next(ids) {
    for (let n = Math.min(this.order, ids.length + 1); n > 0; n -= 1) {
      const context = n > ids.length ? [0, ...ids] : ids.slice(ids.length - n);
      const value = this.#find(contextHash(context));
      if (value !== null) return { id: value & 0xffffff, chance: (value >>> 24) / 255 };
    }
    return null;
  }

  #find(hash) {
    let [low, high] = [0, this.hashes.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.hashes[middle] < hash) low = middle + 1;
      else high = middle;
    }
    return this.hashes[low] === hash ? this.values[low] : null;
  }
}

/** Makes drafts for one answer. */
export class Drafter {
  /**
   * @param {object} parts
   * @param {(text: string) => number[]} parts.encode
   * @param {(ids: number[]) => string} parts.decode
   * @param {string[]} [parts.context] texts that words may be copied from: what the user said
   * @param {NgramTable|null} [parts.table]
   */
  constructor({ encode, decode, context = [], table = null }) {
    this.encode = encode;
    this.decode = decode;
    this.context = context;
    this.table = table;
    this.control = new Map(); // id -> is it a control token
  }

  /**
   * At most `most` tokens that may come after `made`, none of which ends the answer: `[{id, chance}]`, where `chance` is
   * that this token and all before it are chosen.
   * @param {number[]} made the tokens of the answer so far
   * @param {object} place where the answer stands in its grammar (`Place` of `decoding.js`)
   */
  propose(made, place, most) {
    const draft = [];
    let chance = 1;
    for (let at = place; draft.length < most && at; at = at.after(draft.at(-1).id)) {
      const guess = at.only() ?? this.#guess([...made, ...draft.map(({ id }) => id)], at);
      if (guess === null || !at.allows(guess.id) || STOP_IDS.includes(guess.id)) break;
      chance *= guess.chance;
      if (chance < LEAST) break;
      draft.push({ id: guess.id, chance });
    }
    return draft;
  }

  /** The likeliest of all guesses that are allowed: `{id, chance}`, or null. */
  #guess(ids, place) {
    let best = null;
    const consider = (guess) => {
      if (guess && guess.chance > (best?.chance ?? 0) && place.allows(guess.id)) best = guess;
    };
    consider(this.table?.next(ids));
    if (best?.chance > FORCED) return best;
    const tail = this.#tail(ids);
    consider(this.#forced(tail, place));
    consider(this.#copied(tail));
    return best;
  }

  /** The last tokens of the answer, back to a control token: `{ids, text}`. */
  #tail(ids) {
    let from = ids.length;
    while (from > 0 && ids.length - from < TAIL && !this.#isControl(ids[from - 1])) from -= 1;
    const tail = ids.slice(from);
    return { ids: tail, text: this.decode(tail) };
  }

  #isControl(id) {
    if (!this.control.has(id)) this.control.set(id, CONTROL_TOKEN.test(this.decode([id])));
    return this.control.get(id);
  }

  /** The next token where the grammar forces bytes: that of the usual tokens of the text. */
  #forced(tail, place) {
    const bytes = place.forced();
    if (!bytes.length) return null;
    const more = decoder.decode(Uint8Array.from(bytes));
    if (more.includes('\ufffd')) return null;
    const next = this.#next(tail, more);
    return next && { id: next.id, chance: next.last ? FORCED_AT_END : FORCED };
  }

  /** The next token where the last words are found in the request: what follows them there. */
  #copied({ ids, text }) {
    for (let words = text.slice(-AHEAD); words.trim(); words = words.replace(/^.[\p{L}\p{N}]*/su, '')) {
      for (const source of this.context) {
        const at = source.indexOf(words);
        if (at < 0) continue;
        const next = this.#next({ ids, text }, source.slice(at + words.length, at + words.length + AHEAD));
        if (next) return { id: next.id, chance: COPIED[Math.min(words.length, COPIED.length - 1)] };
      }
    }
    return null;
  }

  /** The token after `tail` when its text goes on with `more`: `{id, last}`; null when the tokens of the whole are others. */
  #next({ ids, text }, more) {
    if (!more) return null;
    const whole = this.encode(text + more);
    return whole.length > ids.length && ids.every((id, i) => id === whole[i]) ? { id: whole[ids.length], last: whole.length === ids.length + 1 } : null;
  }
}
