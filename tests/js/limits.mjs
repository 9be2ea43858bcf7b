// node limits.mjs FILE: what the JavaScript of the page lets through, so that Python can be held to it.
import { readFileSync } from "node:fs";
import { findControlToken, formatCall, parseCalls } from "../../web/calls.js";
import { STOP_IDS } from "../../web/dialogue.js";
import { compileGrammar } from "../../web/grammar.js";

const { texts, characters, depths, integers, digits } = JSON.parse(readFileSync(process.argv[2], "utf8"));

function passes(attempt) {
  try {
    attempt();
    return true;
  } catch {
    return false;
  }
}

/** Whether a grammar lets a text through, byte by byte, from the state after its first control token (if one is named). */
function follows(grammar, text, first) {
  let state = grammar.start;
  if (first) state = new Map(grammar.controls(state)).get(first);
  for (const byte of new TextEncoder().encode(text)) if (state >= 0) state = grammar.step(state, byte);
  return state >= 0;
}

const call = (a) => ({ name: "f", arguments: { a } });
const lists = (depth) => JSON.parse("[".repeat(depth) + "]".repeat(depth));
const listSchema = (depth) => (depth ? { type: "array", items: listSchema(depth - 1) } : { type: "string" });
const tool = (a) => ({ name: "f", parameters: { type: "object", properties: { a } } });
const written = (value) => `<start_function_call>call:f{a:${value}}<end_function_call>`;
const plainText = compileGrammar([], { calls: false });
const number = compileGrammar([tool({ type: "integer" })], { text: false });

process.stdout.write(JSON.stringify({
  stops: STOP_IDS,
  controls: texts.map((text) => findControlToken(text)),
  grammarTexts: texts.map((text) => follows(plainText, `x${text}`)),
  names: characters.map((char) => passes(() => formatCall({ name: `a${char}b`, arguments: {} }))),
  namesRead: characters.map((char) => passes(() => parseCalls(`<start_function_call>call:a${char}b{a:1}<end_function_call>`))),
  keys: characters.map((char) => passes(() => formatCall({ name: "f", arguments: { [`a${char}b`]: 1 } }))),
  depths: depths.map((depth) => passes(() => formatCall(call(lists(depth))))),
  depthsRead: depths.map((depth) => passes(() => parseCalls(written(JSON.stringify(lists(depth)))))),
  grammarDepths: depths.map((depth) => passes(() => compileGrammar([tool(listSchema(depth))]))),
  integers: integers.map((text) => passes(() => formatCall(call(Number(text))))),
  integersRead: integers.map((text) => passes(() => parseCalls(written(text)))),
  grammarDigits: digits.map((count) => follows(number, `call:f{a:${"9".repeat(count)}}`, "<start_function_call>")),
}));
