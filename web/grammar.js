/**
 * Constrained decoding: a grammar made from tool definitions and from the user's words, and a logits processor that lets
 * only its tokens through. `fgtune/format/grammar.py` does the same in Python.
 *
 * The grammar is a finite automaton over UTF-8 bytes and control tokens (which are one symbol each). It is made
 * deterministic while it is used; for each state the allowed tokens are found by one walk over the sorted vocabulary
 * and kept. Every state knows the fewest symbols to a proper end, so that an answer can close before the token limit.
 */
import { CONTROL_TOKEN } from './calls.js';

/** A whole control token; texts must not contain one, not even spelled out in ordinary characters. */
const CONTROL = new RegExp(`^${CONTROL_TOKEN.source}$`);
const CONTROL_WORDS = [
  'pad', 'eos', 'bos', 'unk', 'mask', 'escape', 'image_soft_token',
  ...['function_declaration', 'function_call', 'function_response', 'of_turn', 'of_image'].flatMap((word) => [`start_${word}`, `end_${word}`]),
];
const MAX_DEPTH = 16;
// Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
const UNSPACED = '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{3ffff}]';
// A word, or one other character; one character of a script without spaces. A verbatim argument is whole pieces.
const PIECE = new RegExp(`${UNSPACED}|(?:(?!${UNSPACED})[\\p{L}\\p{N}_])+|[^\\p{L}\\p{N}_]`, 'gu');
const FREE_DEPTH = 4; // lists and objects, one in the other, where a schema says nothing of what they hold
const DIGITS = 15; // integers of so many digits are all exact in JavaScript and in Python; of one digit more, some
const LARGEST = String(Number.MAX_SAFE_INTEGER);
const NOT_IN_KEY = '{}[]:,';
const encoder = new TextEncoder();

/** A tool that no grammar can be made for. */
export class GrammarError extends Error {
  name = 'GrammarError';
}

/** The texts of a rendered prompt after its first turn, the developer's, without control tokens and roles. */
export function userSpans(prompt) {
  const at = prompt.indexOf('<end_of_turn>');
  const rest = at < 0 ? '' : prompt.slice(at + '<end_of_turn>'.length).replaceAll(/<start_of_turn>\w+\n/g, '<bos>');
  const tokens = new RegExp(CONTROL_TOKEN.source, 'g');
  return rest.split(tokens).filter((part) => part.trim());
}

// ---------------------------------------------------------------- the automaton, not yet deterministic

class Automaton {
  constructor(verbatim = [], context = []) {
    this.verbatim = new Set(verbatim);
    this.context = context.map((text) => text.match(PIECE));
    this.bytes = []; // per state: [low, high, target] …
    this.tokens = []; // per state: [name of the control token, target] …
    this.empty = []; // per state: targets reached without reading
    this.detours = []; // per state: what makes further edges when the state is reached
    this.label = []; // states with the same label allow the same tokens
  }

  state(label = null) {
    this.bytes.push([]);
    this.tokens.push([]);
    this.empty.push([]);
    this.detours.push([]);
    this.label.push(label);
    return this.bytes.length - 1;
  }

  range(from, low, high, to) {
    this.bytes[from].push([low, high, to]);
    return to;
  }

  literal(from, text) {
    let at = from;
    for (const byte of encoder.encode(text)) at = this.range(at, byte, byte, this.state());
    return at;
  }

  token(from, name, to = this.state()) {
    this.tokens[from].push([name, to]);
    return to;
  }

  skip(from, to) {
    this.empty[from].push(to);
    return to;
  }

  /** Have `build` make what may also follow `from`, once that is reached: nothing that is on the shortest way to the end. */
  detour(from, build) {
    this.detours[from].push(build);
  }

  /**
   * Any text without a control token in it, spelled or not. Returns [entry, ends]: the text may end at each of `ends`.
   * The states follow how much of a control token's spelling has been read; multi-byte characters must be whole.
   * States are labelled where a control token is all that can follow: give a `kind` there. `without`: characters it lacks.
   */
  content(kind, without = '') {
    const labelled = (name) => this.state(kind && `${kind}:${name}`);
    const root = labelled('root');
    const ends = [root];
    const nodes = new Map([['', root]]);
    const node = (spelled) => {
      if (!nodes.has(spelled)) {
        nodes.set(spelled, labelled(spelled));
        ends.push(nodes.get(spelled));
      }
      return nodes.get(spelled);
    };
    const spellings = CONTROL_WORDS.map((word) => `<${word}`);
    for (const spelled of spellings) for (let i = 1; i <= spelled.length; i += 1) node(spelled.slice(0, i));
    for (let i = 1; i <= '<unused'.length; i += 1) node('<unused'.slice(0, i));
    node('<unused0');
    const tails = [1, 2, 3].map((n) => labelled(`tail${n}`));
    const tail = (n) => tails[n - 1];
    this.range(tail(1), 0x80, 0xbf, root);
    this.range(tail(2), 0x80, 0xbf, tail(1));
    this.range(tail(3), 0x80, 0xbf, tail(2));
    const special = [[0xa0, 0xbf, 1], [0x80, 0x9f, 1], [0x90, 0xbf, 2], [0x80, 0x8f, 2]].map(([low, high, n], i) => {
      const state = labelled(`first${i}`);
      this.range(state, low, high, tail(n));
      return state;
    });
    const closing = new Set(spellings);
    const follow = (spelled, char) => {
      if (without.includes(char)) return undefined;
      if (char === '<') return nodes.get('<');
      if (!spelled) return root;
      if (char === '>' && (closing.has(spelled) || spelled === '<unused0')) return undefined; // it would complete one
      if (char >= '0' && char <= '9' && spelled.startsWith('<unused')) return nodes.get('<unused0');
      return nodes.get(spelled + char) ?? root;
    };
    for (const [spelled, from] of nodes) {
      let low = 0; // runs of bytes that lead to the same state become one range
      let before;
      for (let byte = 0; byte <= 0x80; byte += 1) {
        const to = byte < 0x80 ? follow(spelled, String.fromCharCode(byte)) : undefined;
        if (to === before) continue;
        if (before !== undefined) this.range(from, low, byte - 1, before);
        [low, before] = [byte, to];
      }
      this.range(from, 0xc2, 0xdf, tail(1));
      this.range(from, 0xe0, 0xe0, special[0]);
      this.range(from, 0xe1, 0xec, tail(2));
      this.range(from, 0xed, 0xed, special[1]);
      this.range(from, 0xee, 0xef, tail(2));
      this.range(from, 0xf0, 0xf0, special[2]);
      this.range(from, 0xf1, 0xf3, tail(3));
      this.range(from, 0xf4, 0xf4, special[3]);
    }
    return [root, ends];
  }

  /** `count` digits at most; returns the states where a number may end. */
  digits(from, count, firstLow = 0x30) {
    const ends = [];
    let at = from;
    for (let i = 0; i < count; i += 1) {
      at = this.range(at, i ? 0x30 : firstLow, 0x39, this.state());
      ends.push(at);
    }
    return ends;
  }

  /** Numbers as both languages print them: integers up to 2^53 - 1, decimals, and an exponent for what is very small. */
  number(from, integer) {
    const end = this.state();
    const signed = this.range(from, 0x2d, 0x2d, this.state());
    const decimal = this.state(); // a point may follow
    const first = this.state(); // a point or an exponent may follow the first digit
    const zero = 0x30;
    for (const start of [from, signed]) {
      this.range(start, zero, zero, decimal);
      for (const state of this.digits(start, DIGITS, zero + 1)) this.skip(state, decimal);
      let tight = start; // as the largest one so far
      for (let i = 0; i <= DIGITS; i += 1) {
        const digit = Number(LARGEST[i]);
        if (digit > Number(i === 0)) {
          let at = this.range(tight, zero + Number(i === 0), zero + digit - 1, this.state());
          for (let k = i + 1; k <= DIGITS; k += 1) at = this.range(at, zero, zero + 9, this.state());
          this.skip(at, i === 0 ? decimal : end);
        }
        tight = this.range(tight, zero + digit, zero + digit, this.state());
      }
      this.skip(tight, end);
      if (!integer) this.range(start, zero + 1, zero + 9, first);
    }
    this.skip(decimal, end);
    if (!integer) {
      const point = this.range(decimal, 0x2e, 0x2e, this.state());
      for (const state of this.digits(point, 22)) this.skip(state, end);
      const small = this.range(first, 0x2e, 0x2e, this.state());
      const exponent = this.state();
      for (const state of [first, ...this.digits(small, 16)]) this.skip(state, exponent);
      for (const state of this.digits(this.literal(exponent, 'e-'), 3, zero + 1)) this.skip(state, end);
    }
    return end;
  }

  string(from) {
    const [entry, ends] = this.content('string');
    this.token(from, '<escape>', entry);
    const end = this.state();
    for (const state of ends) this.token(state, '<escape>', end);
    return end;
  }

  /** A text that is whole pieces of one of the texts of the context, with no space at its ends. */
  substring(open) {
    const entry = this.token(open, '<escape>');
    const end = this.state();
    for (const pieces of this.context) {
      let at = this.state();
      for (const piece of pieces) {
        const from = at;
        at = this.literal(from, piece);
        if (!piece.trim()) continue;
        this.bytes[entry].push(...this.bytes[from]);
        this.token(at, '<escape>', end);
      }
    }
    return end;
  }

  /** A value that no schema describes, with at most `depth` lists and objects one in the other. */
  any(from, depth) {
    const end = this.state();
    this.skip(this.string(from), end);
    this.skip(this.number(from, false), end);
    for (const word of ['true', 'false']) this.skip(this.literal(from, word), end);
    if (depth > 0) {
      this.detour(from, () => {
        this.skip(this.list(from, 0, (at) => this.any(at, depth - 1)), end);
        this.skip(this.members(from, [], new Set(), (at) => this.any(at, depth - 1)), end);
      });
    }
    return end;
  }

  /** A list of what `item` reads; it gives the state after it. */
  list(from, minItems, item) {
    const end = this.state();
    const open = this.literal(from, '[');
    const next = this.state();
    const done = item(next);
    this.skip(open, next);
    this.skip(this.literal(done, ','), next);
    for (const state of minItems > 0 ? [done] : [open, done]) this.skip(this.literal(state, ']'), end);
    return end;
  }

  /** A free key, which is none of `declared`: at least one character, and never a whole key of theirs. Returns [entry, end]. */
  key(declared) {
    const [root, ends] = this.content(null, NOT_IN_KEY);
    const end = this.state();
    for (const state of ends) this.skip(state, end);
    // beside the states that are passed by what may become a declared key stand others, which do not end where one does
    const beside = (state, rests) => {
      const twin = this.state();
      const next = new Map();
      for (const [byte, ...rest] of rests) if (byte !== undefined) next.set(byte, [...(next.get(byte) ?? []), rest]);
      if (rests.every((rest) => rest.length) && ends.includes(state)) this.skip(twin, end);
      for (const [low, high, to] of this.bytes[state]) {
        let from = low;
        for (const byte of [...next.keys()].sort((a, b) => a - b)) {
          if (byte < low || byte > high) continue;
          if (byte > from) this.range(twin, from, byte - 1, to);
          this.range(twin, byte, byte, beside(to, next.get(byte)));
          from = byte + 1;
        }
        if (from <= high) this.range(twin, from, high, to);
      }
      return twin;
    };
    return [beside(root, [[], ...declared.map((key) => [...encoder.encode(key)])]), end];
  }

  /**
   * An object of `properties` (`[key, read]`, in the order of the format; only those `required` must come). With `free`
   * keys that are none of these may come before, between and after them, in any order; `free` reads what they hold. That
   * no free key comes twice is left to the parser. What reads a value gives the state after it.
   */
  members(from, properties, required, free) {
    const end = this.state();
    let first = this.literal(from, '{'); // nothing written yet
    const freely = (before) => { // one free key or more; gives the state after them
      const [key, colon] = this.key(properties.map(([name]) => name));
      const done = free(this.literal(colon, ':'));
      this.skip(before, key);
      this.skip(this.literal(done, ','), key);
      return done;
    };
    let later = free ? freely(first) : null; // something written: a comma comes before the next
    for (const [key, read] of properties) {
      const entry = this.state();
      if (first !== null) this.skip(first, entry);
      if (later !== null) this.skip(this.literal(later, ','), entry);
      const done = read(this.literal(entry, `${key}:`));
      const after = this.state();
      this.skip(done, after);
      if (free) this.detour(done, () => this.skip(freely(this.literal(done, ',')), after));
      if (required.has(key)) first = null;
      else if (later !== null) this.skip(later, after);
      later = after;
    }
    for (const state of [first, later]) if (state !== null) this.skip(this.literal(state, '}'), end);
    return end;
  }

  /** `path` is the tool and the names that lead to the value. */
  value(from, schema, depth, path) {
    if (depth > MAX_DEPTH) throw new GrammarError(`a schema nests deeper than ${MAX_DEPTH} levels`);
    const end = this.state();
    if (schema.enum?.length) {
      for (const item of schema.enum) {
        if (typeof item === 'string') this.skip(this.token(this.literal(this.token(from, '<escape>'), item), '<escape>'), end);
        else if (typeof item === 'number' || typeof item === 'boolean') this.skip(this.literal(from, String(item)), end);
      }
      if (!this.tokens[from].length && !this.bytes[from].length) throw new GrammarError('an enum holds nothing that the format can carry');
      return end;
    }
    const type = String(schema.type ?? (schema.properties ? 'object' : 'any')).toLowerCase();
    const known = ['string', 'integer', 'number', 'boolean', 'array', 'object', 'any'];
    if (!known.includes(type)) throw new GrammarError(`the type ${type} is not known`);
    const verbatim = type === 'string' && this.context.length && this.verbatim.has(path);
    if (verbatim) this.skip(this.substring(from), end);
    else if (type === 'string') this.skip(this.string(from), end);
    if (type === 'integer' || type === 'number') this.skip(this.number(from, type === 'integer'), end);
    if (type === 'boolean') for (const word of ['true', 'false']) this.skip(this.literal(from, word), end);
    if (type === 'any') this.skip(this.any(from, FREE_DEPTH), end);
    if (type === 'array') {
      const item = (at) => this.value(at, schema.items ?? {}, depth + 1, path);
      this.skip(this.list(from, schema.minItems ?? 0, item), end);
    }
    if (type === 'object') this.skip(this.object(from, schema, depth, path), end);
    return end;
  }

  /** Arguments in the order of the format: sorted without regard to case; optional ones may be left out. */
  object(from, schema, depth, path) {
    const properties = Object.entries(schema.properties ?? {}).map(([key, part]) => [key.toLowerCase(), key, part]);
    properties.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    const read = properties.map(([, key, part]) => [key, (at) => this.value(at, part, depth + 1, `${path}.${key}`)]);
    // only an object in the arguments that names no keys has free ones without saying so
    const values = schema.additionalProperties ?? (depth > 0 && !properties.length);
    const described = typeof values === 'object' && Object.keys(values).length > 0;
    const free = (at) => (described ? this.value(at, values, depth + 1, `${path}.*`) : this.any(at, FREE_DEPTH - 1));
    return this.members(from, read, new Set(schema.required ?? []), values === false ? null : free);
  }
}

/**
 * The grammar of answers about `tools`.
 * @param {object[]} tools definitions, with or without the `function` wrapper
 * @param {{text?: boolean, calls?: boolean, parallel?: boolean, verbatim?: string[], context?: string[]}} [options] free text
 *   allowed, calls allowed, several calls; the arguments `verbatim` (`tool.argument`) are words of one of the texts `context`
 * @returns {Grammar}
 */
export function compileGrammar(tools, { text = true, calls = true, parallel = true, verbatim = [], context = [] } = {}) {
  const made = new Automaton(verbatim, context);
  const start = made.state(text ? `start:${calls}` : null);
  const accept = made.state();
  if (calls) {
    if (!tools.length) throw new GrammarError('no tool to call');
    const next = made.state();
    for (const entry of tools) {
      const { name, parameters } = entry.function ?? entry;
      const open = made.literal(made.token(start, '<start_function_call>'), `call:${name}`);
      const close = made.object(open, parameters ?? {}, 0, name);
      made.token(close, '<end_function_call>', next);
    }
    made.token(next, '<start_function_response>', accept);
    if (parallel) {
      // the same calls again: from `next`, a control token leads where it leads from `start`
      for (const [name, to] of made.tokens[start]) made.token(next, name, to);
    }
  }
  if (text) {
    const [entry, ends] = made.content('text');
    made.bytes[start].push(...made.bytes[entry]); // at least one character
    for (const state of ends) for (const name of ['<end_of_turn>', '<eos>']) made.token(state, name, accept);
  }
  return new Grammar(made, start, accept);
}

/** A grammar, made deterministic state by state as it is used. */
export class Grammar {
  constructor(automaton, start, accept) {
    this.automaton = automaton;
    this.accept = accept;
    this.distance = [];
    this.#measure(0, accept);
    this.states = [];
    this.byKey = new Map();
    this.start = this.#intern([start]);
  }

  #intern(seeds) {
    const { empty } = this.automaton;
    const set = new Set(seeds);
    for (const state of set) {
      this.#build(state);
      for (const to of empty[state]) set.add(to);
    }
    const list = [...set].filter((state) => this.distance[state] < Infinity).sort((a, b) => a - b);
    if (!list.length) return -1;
    const key = list.join();
    if (!this.byKey.has(key)) {
      const labels = list.map((state) => this.automaton.label[state]);
      this.byKey.set(key, this.states.length);
      this.states.push({
        list,
        next: new Int32Array(256).fill(-2),
        distance: Math.min(...list.map((state) => this.distance[state])),
        label: list.length === 1 ? labels[0] : null,
      });
    }
    return this.byKey.get(key);
  }

  /** Make the detours of a state. */
  #build(state) {
    const { detours, bytes } = this.automaton;
    if (!detours[state].length) return;
    const since = bytes.length;
    for (const build of detours[state].splice(0)) build();
    this.#measure(since);
  }

  /** For each state from `since` the fewest symbols to the end, by those of the states before. */
  #measure(since, accept = null) {
    const { bytes, tokens, empty } = this.automaton;
    const { distance } = this;
    const back = Array.from({ length: bytes.length - since }, () => []);
    const waiting = []; // by their distance
    const reach = (state, far) => {
      if (far >= distance[state]) return;
      distance[state] = far;
      (waiting[far] ??= []).push(state);
    };
    for (let from = since; from < bytes.length; from += 1) distance[from] = Infinity;
    const edge = (from, to, cost) => (to < since ? reach(from, distance[to] + cost) : back[to - since].push([from, cost]));
    for (let from = since; from < bytes.length; from += 1) {
      for (const [, , to] of bytes[from]) edge(from, to, 1);
      for (const [, to] of tokens[from]) edge(from, to, 1);
      for (const to of empty[from]) edge(from, to, 0);
    }
    if (accept !== null) reach(accept, 0);
    for (let far = 0; far < waiting.length; far += 1) {
      for (const state of waiting[far] ?? []) {
        if (distance[state] === far) for (const [from, cost] of back[state - since]) reach(from, far + cost);
      }
    }
  }

  /** The state after one byte; -1 when it does not fit. */
  step(state, byte) {
    const { next, list } = this.states[state];
    if (next[byte] !== -2) return next[byte];
    const targets = [];
    for (const from of list) for (const [low, high, to] of this.automaton.bytes[from]) if (byte >= low && byte <= high) targets.push(to);
    next[byte] = targets.length ? this.#intern(targets) : -1;
    return next[byte];
  }

  /** The bytes that must follow a state, one after the other, as long as nothing else fits; at most `most`. @returns {number[]} */
  forced(state, most = 64) {
    const found = [];
    while (found.length < most && state >= 0) {
      const entry = this.states[state];
      if (entry.only === undefined) {
        const ranges = entry.list.flatMap((from) => this.automaton.bytes[from]);
        const [byte] = ranges[0] ?? [-1];
        const alone = !this.controls(state).length && ranges.every(([low, high]) => low === byte && high === byte);
        entry.only = alone ? byte : -1;
      }
      if (entry.only < 0) break;
      found.push(entry.only);
      state = this.step(state, entry.only);
    }
    return found;
  }

  /** Control tokens that fit, with the state after each: `[[name, state], …]`. */
  controls(state) {
    const entry = this.states[state];
    if (!entry.controls) {
      const targets = new Map();
      for (const from of entry.list) for (const [name, to] of this.automaton.tokens[from]) targets.set(name, [...(targets.get(name) ?? []), to]);
      entry.controls = [...targets].map(([name, to]) => [name, this.#intern(to)]);
    }
    return entry.controls;
  }
}

// ---------------------------------------------------------------- the vocabulary

/**
 * A vocabulary, sorted by bytes: `{ids, bytes, offsets, shared, first, control, size}`; `shared[i]` is how many leading
 * bytes entry i has in common with the one before it, `first[b]` the first entry that begins with byte b or a higher one,
 * `control` maps names of control tokens to ids.
 */
export function sortVocabulary(entries) {
  const control = new Map();
  const [ids, starts] = [[], [0]]; // of each token, in the order they come
  let bytes = new Uint8Array(1 << 16); // all tokens, one behind the other
  let [size, longest] = [0, 0];
  for (const [token, id] of entries) {
    size = Math.max(size, id + 1);
    if (token.length === 0) continue;
    if (token[0] === '<' && CONTROL.test(token)) {
      control.set(token, id);
      continue;
    }
    const at = starts.at(-1);
    while (at + 3 * token.length > bytes.length) bytes = grown(bytes);
    const byte = token.length === 6 && /^<0x([0-9A-F]{2})>$/.exec(token);
    if (byte) bytes[at] = parseInt(byte[1], 16);
    const end = byte ? at + 1 : put(token, bytes, at);
    longest = Math.max(longest, end - at);
    starts.push(end);
    ids.push(id);
  }
  return arranged(ids, Int32Array.from(starts), bytes, { control, size, longest });
}

/** Write a token as UTF-8, with spaces for what stands for them; returns where it ends. A TextEncoder leaves more to collect. */
function put(token, bytes, at) {
  for (let i = 0; i < token.length; i += 1) {
    let code = token.codePointAt(i);
    if (code > 0xffff) i += 1;
    if (code === 0x2581) code = 0x20;
    const more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    bytes[at++] = more ? ((0xff00 >> (more + 1)) & 0xff) | (code >> (6 * more)) : code;
    for (let k = more - 1; k >= 0; k -= 1) bytes[at++] = 0x80 | ((code >> (6 * k)) & 0x3f);
  }
  return at;
}

/** An array of twice the length, with what is in `bytes`. */
function grown(bytes) {
  const more = new Uint8Array(2 * bytes.length);
  more.set(bytes);
  return more;
}

/** A sorted vocabulary of tokens whose bytes lie one behind the other in any order. */
function arranged(ids, starts, bytes, { control, size, longest }) {
  const count = ids.length;
  // the first four bytes of each token as a number, by which most of them can be told apart
  const heads = Float64Array.from(ids, (_, i) => {
    let head = 0;
    for (let k = 0; k < 4; k += 1) head = head * 256 + (starts[i] + k < starts[i + 1] ? bytes[starts[i] + k] : 0);
    return head;
  });
  const same = (a, b) => { // how many leading bytes they have in common
    const most = Math.min(starts[a + 1] - starts[a], starts[b + 1] - starts[b]);
    let k = 0;
    while (k < most && bytes[starts[a] + k] === bytes[starts[b] + k]) k += 1;
    return k;
  };
  const next = (a, k) => (starts[a] + k < starts[a + 1] ? bytes[starts[a] + k] : -1);
  const order = Int32Array.from(ids, (_, i) => i).sort((a, b) => {
    if (heads[a] !== heads[b]) return heads[a] - heads[b];
    const k = same(a, b);
    return next(a, k) - next(b, k) || a - b;
  });
  const made = {
    ids: order.map((i) => ids[i]), bytes: new Uint8Array(starts[count]), offsets: new Int32Array(count + 1),
    shared: new Uint16Array(count), first: new Int32Array(257), control, size, longest, position: new Int32Array(size).fill(-1),
  };
  order.forEach((from, i) => {
    made.bytes.set(bytes.subarray(starts[from], starts[from + 1]), made.offsets[i]);
    made.offsets[i + 1] = made.offsets[i] + starts[from + 1] - starts[from];
    made.position[ids[from]] = i;
    if (i) made.shared[i] = same(order[i - 1], from);
  });
  for (let k = count - 1, byte = 256; byte >= 0; byte -= 1) {
    while (k >= 0 && made.bytes[made.offsets[k]] >= byte) k -= 1;
    made.first[byte] = k + 1;
  }
  return made;
}

/** The sorted vocabulary of a tokenizer, ours or transformers.js's. */
export function vocabularyOf(tokenizer) {
  const vocabulary = tokenizer.get_vocab();
  return sortVocabulary(vocabulary[Symbol.iterator] ? vocabulary : Object.entries(vocabulary));
}

// ---------------------------------------------------------------- the logits processor

/**
 * Lets through only tokens that the grammar allows. One for each answer, or `start` again. With `close` an answer comes to
 * a proper end within the token limit; without, it is the one that Python gives, and the limit may cut it.
 */
export class GrammarProcessor {
  constructor(grammar, vocabulary, { close = false } = {}) {
    this.close = close;
    this.grammar = grammar;
    this.vocabulary = vocabulary;
    this.masks = grammar.masks ??= new Map(); // of its states
    this.labelled = vocabulary.labelled ??= new Map(); // of states with a label: the same in every grammar
    this.names = new Map([...vocabulary.control].map(([name, id]) => [id, name]));
    this.start(0);
  }

  /** Begin an answer of at most `maxTokens` after `promptLength` tokens. */
  start(promptLength, maxTokens = Infinity) {
    this.state = this.grammar.start;
    this.seen = promptLength;
    this.left = this.close ? maxTokens : Infinity;
    this.spent = 0;
    this.steps = 0;
    this.slowest = 0;
  }

  /** The state after a token; -1 when it does not fit. */
  after(state, id) {
    const { position, offsets, bytes } = this.vocabulary;
    const name = this.names.get(id);
    if (name !== undefined) return this.grammar.controls(state).find(([token]) => token === name)?.[1] ?? -1;
    const i = position[id] ?? -1;
    if (i < 0) return -1;
    let at = state;
    for (let k = offsets[i]; k < offsets[i + 1] && at >= 0; k += 1) at = this.grammar.step(at, bytes[k]);
    return at;
  }

  /** Allowed tokens of a state: `{ids, longer, blocked, most}`; `longer[i]` is how much further from the end token i leads. */
  mask(state) {
    const { label } = this.grammar.states[state];
    const [masks, key] = label === null ? [this.masks, state] : [this.labelled, label];
    const kept = masks.get(key);
    if (kept) return kept;
    const { grammar, vocabulary: { ids, bytes, offsets, shared, first, longest, control, size } } = this;
    const own = grammar.states[state].distance;
    const found = [];
    const longer = [];
    const stack = new Int32Array(longest + 1);
    stack[0] = state;
    let good = 0; // stack[0…good] belong to bytes of the token before
    for (let i = 0; i < ids.length; i += 1) {
      if (shared[i] === 0 && grammar.step(state, bytes[offsets[i]]) < 0) { // nothing with this first byte fits
        i = first[bytes[offsets[i]] + 1] - 1;
        continue;
      }
      if (shared[i] > good) continue; // it begins with something that did not fit
      const length = offsets[i + 1] - offsets[i];
      let k = shared[i];
      let at = stack[k];
      for (; k < length; k += 1) {
        at = grammar.step(at, bytes[offsets[i] + k]);
        if (at < 0) break;
        stack[k + 1] = at;
      }
      good = k;
      if (k === length) {
        found.push(ids[i]);
        longer.push(grammar.states[at].distance - own);
      }
    }
    for (const [name, to] of grammar.controls(state)) {
      if (!control.has(name)) continue;
      found.push(control.get(name));
      longer.push((to < 0 ? 0 : grammar.states[to].distance) - own);
    }
    const mask = { ids: Int32Array.from(found), longer: Int16Array.from(longer), most: longer.reduce((a, b) => Math.max(a, b), -Infinity), blocked: null };
    if (found.length > size / 2) {
      const allowed = new Uint8Array(size);
      for (const id of found) allowed[id] = 1;
      mask.blocked = new Int32Array(size - found.length);
      for (let id = 0, n = 0; id < size; id += 1) if (!allowed[id]) mask.blocked[n++] = id;
    }
    masks.set(key, mask);
    return mask;
  }

  /** Follow the tokens that came since the last call, then block what does not fit. Called by transformers.js. */
  apply(inputIds, logits) {
    const begin = performance.now();
    const row = inputIds[0];
    for (; this.seen < row.length; this.seen += 1) {
      const id = Number(row[this.seen]);
      const next = this.after(this.state, id);
      if (next < 0) throw new GrammarError(`token ${id} does not fit the grammar`);
      this.state = next;
      this.left -= 1;
    }
    this.filter(logits.data);
    this.#count(begin);
    return logits;
  }

  #count(begin) {
    const took = performance.now() - begin;
    this.spent += took;
    this.slowest = Math.max(this.slowest, took);
    this.steps += 1;
  }

  /** The tokens that may follow `state` with `left` tokens to go, in no order. @returns {Int32Array} */
  allowed(state, left) {
    const begin = performance.now();
    const { ids, longer, most } = this.mask(state);
    const limit = this.#limit(state, left, most, longer);
    const found = limit === Infinity ? ids : ids.filter((_, i) => longer[i] <= limit);
    this.#count(begin);
    return found;
  }

  /** How much further from the end a token may lead: after it, `left - 1` remain, and the end must be reachable with them. */
  #limit(state, left, most, longer) {
    const room = left - 1 - this.grammar.states[state].distance;
    return most > room ? Math.max(room, longer.reduce((a, b) => Math.min(a, b), Infinity)) : Infinity;
  }

  /** Set all scores that do not fit to -Infinity. */
  filter(scores) {
    const { ids, longer, most, blocked } = this.mask(this.state);
    const limit = this.#limit(this.state, this.left, most, longer);
    const tight = limit < Infinity;
    if (blocked) {
      for (let i = 0; i < blocked.length; i += 1) scores[blocked[i]] = -Infinity;
      for (let id = this.vocabulary.size; id < scores.length; id += 1) scores[id] = -Infinity;
      if (tight) for (let i = 0; i < ids.length; i += 1) if (longer[i] > limit) scores[ids[i]] = -Infinity;
      return;
    }
    const kept = new Float32Array(ids.length);
    for (let i = 0; i < ids.length; i += 1) kept[i] = scores[ids[i]];
    scores.fill(-Infinity);
    for (let i = 0; i < ids.length; i += 1) if (longer[i] <= limit && ids[i] < scores.length) scores[ids[i]] = kept[i];
  }

  /** What it cost: `{msPerToken, slowestMs, tokens, states}`. */
  cost() {
    return { msPerToken: this.spent / Math.max(this.steps, 1), slowestMs: this.slowest, tokens: this.steps, states: this.grammar.states.length };
  }
}
