/**
 * Greedy decoding with few passes of the model: what the grammar leaves no choice about is taken as it is, and drafts
 * (`drafts.js`) are checked several tokens at a time. The tokens are those of plain greedy decoding.
 */
import { STOP_IDS } from './dialogue.js';

/** Tokens that one pass gives logits for, at most. */
export const MOST = 8;
/** Where a pass's tokens allow no more tokens than this, only their rows of the head are computed. */
const FEW = 1024;
/** Prompt tokens run at once, so that a stop does not wait long. */
export const CHUNK = 64;

/** Where an answer stands: the state of its grammar and the tokens to go; without a grammar everything is allowed. */
export class Place {
  constructor(grammar, state, left) {
    this.grammar = grammar;
    this.state = state;
    this.left = left;
    this.ids = null;
  }

  /** The place at which an answer under a GrammarProcessor (or null) begins. */
  static first(grammar, maxTokens) {
    grammar?.start(0, maxTokens);
    return new Place(grammar, grammar?.state, grammar?.left);
  }

  /** The tokens that may follow, in no order; null where all may. @returns {Int32Array|null} */
  allowed() {
    if (this.grammar) this.ids ??= this.grammar.allowed(this.state, this.left);
    return this.ids;
  }

  /** Whether few tokens may follow. */
  few() {
    return this.allowed()?.length <= FEW;
  }

  allows(id) {
    return !this.grammar || this.grammar.after(this.state, id) >= 0;
  }

  /** `{id, chance}` of the only token that may follow, or null. */
  only() {
    const ids = this.allowed();
    return ids?.length === 1 ? { id: ids[0], chance: 1 } : null;
  }

  /** The bytes that must follow. @returns {number[]} */
  forced() {
    return this.grammar ? this.grammar.grammar.forced(this.state) : [];
  }

  /** The place after a token that is allowed. */
  after(id) {
    return this.grammar ? new Place(this.grammar, this.grammar.after(this.state, id), this.left - 1) : this;
  }
}

/** The likeliest of `ids` (null: all); `rows` are the ids that `logits` are of, ascending (null: all). The lower id wins a tie. */
export function likeliest(logits, ids, rows = null) {
  let best = -1;
  let score = -Infinity;
  const see = (id, value) => {
    if (value > score || (value === score && id < best)) [best, score] = [id, value];
  };
  if (!ids) for (let id = 0; id < logits.length; id += 1) { if (logits[id] > score) [best, score] = [id, logits[id]]; }
  else if (!rows) for (const id of ids) { if (id < logits.length) see(id, logits[id]); }
  else {
    const wanted = new Set(ids);
    for (let i = 0; i < rows.length; i += 1) if (wanted.has(rows[i])) see(rows[i], logits[i]);
  }
  if (best < 0) throw new Error('the model gives no number for any token that is allowed');
  return best;
}

/** The ids that are allowed at any of `places`, ascending; null where they are many. */
function rowsOf(places, size) {
  const all = new Set();
  for (const place of places) {
    if (!place.few()) return null;
    for (const id of place.allowed()) if (id < size) all.add(id);
    if (all.size > FEW) return null;
  }
  return Int32Array.from(all).sort();
}

/**
 * How long passes take on this machine where nothing holds them up, learned from those that ran: one token, and each
 * further one, where few ids or all get logits. It decides only how long a draft pays.
 */
export class Pace {
  constructor() {
    this.one = [20, 12]; // ms: all ids, few of them; a guess until passes have run
    this.more = [8, 5]; // hopeful, so that drafts are tried
    this.trust = 0.8; // tokens of drafts that held, of those that were expected to
  }

  /** The ms that a pass of so many tokens is expected to take. */
  cost(tokens, few) {
    return this.one[Number(few)] + (tokens - 1) * this.more[Number(few)];
  }

  /** A pass took so many ms. The least that was seen counts, and slowly loses its weight: whatever holds a pass up adds to it. */
  note(tokens, few, ms) {
    const at = Number(few);
    if (tokens === 1) {
      this.one[at] = Math.min(ms, this.one[at] * 1.03);
      this.more[at] *= 0.997; // so that drafts are tried again
    } else {
      const seen = Math.max((ms - this.one[at]) / (tokens - 1), this.one[at] / 50); // it is never free
      this.more[at] = Math.min(seen, this.more[at] * 1.1);
    }
  }

  /** Of a draft that was checked, so many tokens held, and so many were expected to. */
  check(held, expected) {
    this.trust += 0.05 * (Math.min(held / expected, 1) - this.trust);
  }
}

/**
 * How much of a draft is worth checking: where the passes that it is likely to save take the longest, less what they
 * add to this one.
 * @param {{chance: number}[]} draft
 * @param {Place[]} places the place before each of its tokens, and the last
 * @param {number} waiting tokens that the pass reads in any case
 * @param {Pace} pace
 */
export function worthChecking(draft, places, waiting, pace) {
  let few = places[0].few();
  const alone = pace.cost(waiting, few);
  let [best, most, saved] = [0, 0, 0];
  draft.forEach(({ chance }, i) => {
    const next = places[i + 1].few();
    few &&= next;
    saved += pace.trust * chance * pace.cost(1, next);
    const gain = saved + alone - pace.cost(waiting + i + 1, few);
    if (gain > most) [best, most] = [i + 1, gain];
  });
  return best;
}

/**
 * Decode greedily.
 * @param {object} decoder `run(ids, {logits, rows})`, `length`, `truncate(n)`, `vocabSize`
 * @param {number[]} prompt what the decoder has not read of the prompt, at least one token
 * @param {object} options
 * @param {number} options.maxTokens
 * @param {object|null} [options.grammar] a GrammarProcessor
 * @param {object|null} [options.drafter] makes drafts; without one each pass gives one token
 * @param {Pace} [options.pace] says which drafts are worth a check
 * @param {() => Promise<void>} [options.pause] awaited before each pass; it may throw
 * @param {(ids: number[]) => void} [options.onIds] called after each pass with all ids so far
 * @param {number[]} [options.made] takes the ids, the stop id with them
 * @returns {Promise<{passes: number, promptPasses: number, forced: number, drafted: number, accepted: number}>} `passes` gave
 *   logits, `forced` tokens needed none, `accepted` of `drafted` ones held
 */
export async function decodeGreedily(decoder, prompt, { maxTokens, grammar = null, drafter = null, pace = new Pace(), pause = async () => {}, onIds = () => {}, made = [] }) {
  const counts = { passes: 0, promptPasses: 0, forced: 0, drafted: 0, accepted: 0 };
  let waiting = [...prompt]; // chosen or given, not yet read by the decoder
  let place = Place.first(grammar, maxTokens);
  const take = (id) => {
    made.push(id);
    waiting.push(id);
    if (STOP_IDS.includes(id) || made.length >= maxTokens) return false;
    place = place.after(id);
    return true;
  };
  const read = async (count) => {
    while (count > 0) {
      const ids = waiting.slice(0, Math.min(count, CHUNK));
      await pause();
      await decoder.run(ids, { logits: 'none' });
      counts.promptPasses += 1;
      waiting = waiting.slice(ids.length);
      count -= ids.length;
    }
  };
  const force = () => {
    for (let only = drafter && place.only(); only; only = place.only()) {
      counts.forced += 1;
      if (!take(only.id)) return false;
    }
    return true;
  };
  while (maxTokens > 0) {
    if (!force()) break;
    await read(waiting.length - CHUNK);
    const guesses = drafter ? drafter.propose(made, place, Math.min(MOST - waiting.length, maxTokens - made.length - 1)) : [];
    const unknown = guesses.findIndex(({ id }) => id >= decoder.vocabSize); // of another model's table
    if (unknown >= 0) guesses.length = unknown;
    const places = [place];
    for (const { id } of guesses) places.push(places.at(-1).after(id));
    const worth = worthChecking(guesses, places, waiting.length, pace);
    const draft = guesses.slice(0, worth).map(({ id }) => id);
    places.length = worth + 1;
    const rows = rowsOf(places, decoder.vocabSize);
    await pause();
    const began = performance.now();
    const scores = await decoder.run([...waiting, ...draft], { logits: draft.length ? 'all' : 'last', rows });
    if (waiting.length + draft.length <= MOST) pace.note(waiting.length + draft.length, Boolean(rows), performance.now() - began);
    counts.passes += 1;
    counts.drafted += draft.length;
    const width = rows?.length ?? decoder.vocabSize;
    const skip = draft.length ? waiting.length - 1 : 0;
    const end = decoder.length;
    waiting = [];
    let held = 0;
    let going = true;
    for (let i = 0; i <= draft.length && going; i += 1) {
      const id = likeliest(scores.subarray((skip + i) * width, (skip + i + 1) * width), places[i].allowed(), rows);
      going = take(id);
      if (id !== draft[i]) break;
      held += 1;
      waiting = []; // the decoder has read it with the draft
    }
    counts.accepted += held;
    if (draft.length) pace.check(held, guesses.slice(0, worth).reduce((sum, { chance }) => sum + chance, 0));
    if (held < draft.length) decoder.truncate(end - draft.length + held);
    onIds(made);
    if (!going) break;
  }
  if (made.length && !counts.passes) onIds(made);
  return counts;
}
