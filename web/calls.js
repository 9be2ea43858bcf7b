/**
 * Calls as text: write them, read them back exactly. The twin of fgtune/format/calls.py.
 *
 * @typedef {null | boolean | number | string | Json[] | {[key: string]: Json}} Json
 * @typedef {{name: string, arguments: {[key: string]: Json}}} Call
 */

const CALL_START = "<start_function_call>";
const CALL_END = "<end_function_call>";
const ESCAPE = "<escape>";
const ENDINGS = ["<start_function_response>", "<end_of_turn>", "<eos>"];
const SPACE = " \t\r\n";
const MAX_DEPTH = 32;
/** A control token; `fgtune/format/tokens.py` has the same pattern. */
export const CONTROL_TOKEN =
  /<(?:pad|unk|mask|image_soft_token|eos|bos|start_of_turn|end_of_turn|start_function_declaration|end_function_declaration|start_function_call|end_function_call|start_function_response|end_function_response|escape|start_of_image|end_of_image|unused[0-9]+)>/;
const NAME = /[^\x00-\x20{}[\],<>]+(?: [^\x00-\x20{}[\],<>]+)*/y;
const KEY = /[^{}[\]:,]+/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;

/** Text that is neither a clean answer nor well-formed calls. */
export class CallSyntaxError extends Error {
  /**
   * @param {string} message
   * @param {string} text the whole text
   * @param {number} index where in it, in UTF-16 units
   */
  constructor(message, text, index) {
    let offset = 0;
    for (const _ of text.slice(0, index)) offset++;
    super(`${message} (at character ${offset})`);
    this.name = "CallSyntaxError";
    /** Where, in characters (code points), as Python counts. */
    this.offset = offset;
    /** Where, in UTF-16 units, as `text.slice` counts. */
    this.index = index;
  }
}

/** A value that the format cannot carry. */
export class FormatError extends Error {
  name = "FormatError";
}

/**
 * The first control token in a text, or null. Text from a user or a tool must have none.
 * @param {string} text
 * @returns {string | null}
 */
export function findControlToken(text) {
  return CONTROL_TOKEN.exec(text)?.[0] ?? null;
}

/**
 * The call as the model writes it. Throws FormatError for what the format cannot carry.
 * @param {Call} call
 * @returns {string}
 */
export function formatCall(call) {
  if (typeof call.name !== "string" || !matchesWhole(NAME, call.name)) throw new FormatError(`A call needs a name, not ${call.name}`);
  const values = call.arguments ?? {};
  if (!isMapping(values)) throw new FormatError("The arguments must be an object");
  return `${CALL_START}call:${checkText(call.name)}${formatValue(values, 0)}${CALL_END}`;
}

/**
 * All calls in a generated text; a clean text answer has none. Throws CallSyntaxError, in linear time.
 * Text may stand before the first call; one of the three ending tokens may end it all.
 * @param {string} text
 * @returns {Call[]}
 */
export function parseCalls(text) {
  return new Scanner(text).calls();
}

function isMapping(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function matchesWhole(pattern, text) {
  pattern.lastIndex = 0;
  return pattern.exec(text)?.[0] === text;
}

function checkText(text) {
  const token = findControlToken(text);
  if (token) throw new FormatError(`The text holds the control token ${token}`);
  if (text.includes("\u2581")) throw new FormatError("The text holds U+2581, which the tokenizer reads as a space");
  if (/\p{Cs}/u.test(text)) throw new FormatError("The text holds half of a character (a lone surrogate)");
  return text;
}

function formatValue(value, depth) {
  if (typeof value === "string") return ESCAPE + checkText(value) + ESCAPE;
  if (typeof value === "boolean") return String(value);
  if (typeof value === "number") {
    if (!Number.isFinite(value) || (Number.isInteger(value) && !Number.isSafeInteger(value)))
      throw new FormatError(`${value} is no number the format can carry`);
    return String(value);
  }
  if (depth >= MAX_DEPTH) throw new FormatError(`Values nest deeper than ${MAX_DEPTH} levels`);
  if (Array.isArray(value)) return `[${value.map((item) => formatValue(item, depth + 1)).join(",")}]`;
  if (!isMapping(value)) throw new FormatError(`The format has no ${value}: leave the key out`);
  const parts = sortKeys(Object.keys(value)).map((key) => `${key}:${formatValue(value[key], depth + 1)}`);
  return `{${parts.join(",")}}`;
}

/** The keys as the template sorts them, without regard to case. Refuses keys that Python would sort differently. */
function sortKeys(keys) {
  for (const key of keys) if (!matchesWhole(KEY, checkText(key))) throw new FormatError(`The key "${key}" cannot be carried`);
  const lowered = keys.map((key) => [key.toLowerCase(), key]);
  lowered.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  for (let i = 1; i < lowered.length; i++)
    if (compareCodePoints(lowered[i - 1][0], lowered[i][0]) > 0) throw new FormatError("Python sorts these keys differently");
  return lowered.map(([, key]) => key);
}

function compareCodePoints(a, b) {
  const x = Array.from(a, (char) => char.codePointAt(0));
  const y = Array.from(b, (char) => char.codePointAt(0));
  for (let i = 0; i < Math.min(x.length, y.length); i++) if (x[i] !== y[i]) return x[i] - y[i];
  return x.length - y.length;
}

/** Reads a generated text once, from left to right; every step moves on (`steps` counts them). */
export class Scanner {
  /** @param {string} text */
  constructor(text) {
    this.whole = text;
    let end = text.length;
    while (end && SPACE.includes(text[end - 1])) end--;
    const ending = ENDINGS.find((token) => text.endsWith(token, end)) ?? "";
    this.text = text.slice(0, end - ending.length);
    this.at = 0;
    this.steps = 0;
  }

  fail(message, index = this.at) {
    throw new CallSyntaxError(message, this.whole, index);
  }

  /** @returns {Call[]} */
  calls() {
    const { text } = this;
    const first = text.indexOf(CALL_START);
    const stray = CONTROL_TOKEN.exec(first < 0 ? text : text.slice(0, first));
    if (stray) this.fail(`The control token ${stray[0]} stands in plain text`, stray.index);
    if (first < 0) return [];
    this.at = first;
    const calls = [];
    while (this.at < text.length) {
      calls.push(this.call());
      while (this.at < text.length && SPACE.includes(text[this.at])) {
        this.at++;
        this.steps++;
      }
    }
    return calls;
  }

  take(token, message) {
    this.steps++;
    if (!this.text.startsWith(token, this.at)) this.fail(message);
    this.at += token.length;
  }

  call() {
    this.take(`${CALL_START}call:`, "A call begins with <start_function_call>call:");
    const name = this.word(NAME, "A call needs the name of a tool");
    this.take("{", "The arguments begin with {");
    const values = this.mapping(1);
    this.take(CALL_END, "A call ends with <end_function_call>");
    return { name, arguments: values };
  }

  word(pattern, message) {
    pattern.lastIndex = this.at;
    const word = pattern.exec(this.text)?.[0];
    if (!word) this.fail(message);
    const stray = CONTROL_TOKEN.exec(word);
    if (stray) this.fail(`The control token ${stray[0]} stands in a name`, this.at + stray.index);
    this.at += word.length;
    this.steps++;
    return word;
  }

  /** The rest of a mapping whose { has been read. */
  mapping(depth) {
    const found = {};
    if (this.skip("}")) return found;
    for (;;) {
      const start = this.at;
      const key = this.word(KEY, "An argument needs a name");
      if (Object.hasOwn(found, key)) this.fail("This argument is given twice", start);
      this.take(":", "A colon follows the name of an argument");
      // defined, not assigned: a key may be called __proto__
      Object.defineProperty(found, key, { value: this.value(depth), writable: true, enumerable: true, configurable: true });
      if (this.skip("}")) return found;
      this.take(",", "After a value comes , or }");
    }
  }

  /** The rest of a list whose [ has been read. */
  sequence(depth) {
    const found = [];
    if (this.skip("]")) return found;
    for (;;) {
      found.push(this.value(depth));
      if (this.skip("]")) return found;
      this.take(",", "After a value comes , or ]");
    }
  }

  skip(char) {
    const there = this.text[this.at] === char;
    this.at += Number(there);
    return there;
  }

  value(depth) {
    this.steps++;
    const { text } = this;
    if (text.startsWith(ESCAPE, this.at)) return this.string();
    const opening = text[this.at];
    if (opening === "{" || opening === "[") {
      if (depth >= MAX_DEPTH) this.fail(`Values nest deeper than ${MAX_DEPTH} levels`);
      this.at++;
      return opening === "{" ? this.mapping(depth + 1) : this.sequence(depth + 1);
    }
    for (const [word, value] of [["true", true], ["false", false]])
      if (text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    return this.number();
  }

  string() {
    const start = this.at + ESCAPE.length;
    const stop = this.text.indexOf(ESCAPE, start);
    if (stop < 0) this.fail("This text is not closed by <escape>");
    const inside = this.text.slice(start, stop);
    const stray = CONTROL_TOKEN.exec(inside);
    if (stray) this.fail(`The control token ${stray[0]} stands in a text`, start + stray.index);
    this.at = stop + ESCAPE.length;
    return inside;
  }

  number() {
    NUMBER.lastIndex = this.at;
    const digits = NUMBER.exec(this.text)?.[0];
    if (!digits) this.fail("A value is <escape>text<escape>, a number, true, false, a list or an object");
    // more digits than any number needs: decided by length, as in Python
    const value = digits.length <= 400 ? Number(digits) : Infinity;
    if (Math.abs(value) > Number.MAX_SAFE_INTEGER) this.fail("This number is too large to be read exactly");
    this.at += digits.length;
    return value + 0; // -0 becomes 0
  }
}
