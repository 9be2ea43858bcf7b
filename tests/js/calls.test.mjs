// node --test tests/js: web/calls.js on the same cases as tests/test_calls.py.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Template } from "@huggingface/jinja";
import {
  CallSyntaxError, FormatError, Scanner, findControlToken, formatCall, parseCalls,
} from "../../web/calls.js";

const read = (path) => readFileSync(new URL(path, import.meta.url), "utf8");
const kept = JSON.parse(read("../data/format-cases.json"));
const malformed = JSON.parse(read("../data/malformed-calls.json"));
const turns = kept.flatMap((one) =>
  one.messages
    .filter((message) => message.tool_calls)
    .map((message) => ({ calls: message.tool_calls.map((call) => call.function), text: message.content ?? "", whole: one.text })),
);
const call = (values, name = "f") => ({ name, arguments: values });

test("the kept cases render as in Python", () => {
  const template = new Template(read("../../fgtune/format/chat_template.jinja"));
  assert.ok(kept.length >= 300);
  for (const { text, ...variables } of kept) assert.equal(template.render({ bos_token: "<bos>", ...variables }), text);
});

test("what is written is the template's text and is read back", () => {
  assert.ok(turns.length >= 300);
  for (const { calls, text, whole } of turns) {
    const written = text + calls.map(formatCall).join("");
    assert.ok(whole.includes(written));
    for (const ending of ["", "<start_function_response>", "<end_of_turn>\n", "<eos>"]) {
      const found = parseCalls(written + ending);
      assert.equal(found.length, calls.length);
      assert.deepEqual(found, calls);
      assert.equal(found.map(formatCall).join(""), calls.map(formatCall).join(""));
    }
  }
});

test("malformed texts are refused at the same place", () => {
  for (const { text, offset } of malformed) {
    assert.throws(() => parseCalls(text), (error) => {
      assert.ok(error instanceof CallSyntaxError);
      assert.equal(error.offset, offset, text);
      assert.equal([...text.slice(0, error.index)].length, offset);
      return true;
    });
  }
});

test("clean answers have no calls", () => {
  for (const text of ["", "Hello.", "call:f{a:1}", "a < b {x} <escape", "It is 15°C 🌍\nin Paris.", "Hi.<end_of_turn>\n"]) {
    assert.deepEqual(parseCalls(text), []);
  }
});

test("names of arguments that objects have already", () => {
  for (const key of ["__proto__", "constructor", "toString", "hasOwnProperty"]) {
    const one = call(JSON.parse(`{"${key}": {"a": 1}}`));
    const [found] = parseCalls(formatCall(one));
    assert.deepEqual(Object.keys(found.arguments), [key]);
    assert.deepEqual(Object.getOwnPropertyDescriptor(found.arguments, key)?.value, { a: 1 });
    assert.equal({}.a, undefined);
  }
});

test("numbers", () => {
  const [{ arguments: values }] = parseCalls("<start_function_call>call:f{a:2.0,b:-0,c:1e3,d:1E-7}<end_function_call>");
  assert.ok(Object.is(values.b, 0));
  assert.deepEqual({ ...values }, { a: 2, b: 0, c: 1000, d: 1e-7 });
});

test("what the format cannot carry is refused", () => {
  for (const value of [null, undefined, NaN, Infinity, 2 ** 53, 10n, () => 1, "<escape>", "a<end_of_turn>", "a\u2581b", "\ud800", { "a:b": 1 }, { "": 1 },
    [null], { "\uff5e": 1, "\u{1f600}": 2 }])
    assert.throws(() => formatCall(call({ a: value })), FormatError);
  assert.throws(() => formatCall(call({}, "a  b")), FormatError);
  assert.throws(() => formatCall(call([1])), FormatError);
  let deep = 1;
  for (let i = 0; i < 31; i++) deep = [deep];
  assert.deepEqual(parseCalls(formatCall(call({ a: deep }))), [call({ a: deep })]);
  assert.throws(() => formatCall(call({ a: [deep] })), FormatError);
  assert.equal(findControlToken("a <unused12> b"), "<unused12>");
  assert.equal(findControlToken("a <b> c"), null);
});

test("the cost is linear", () => {
  const steps = (size) => {
    const scanner = new Scanner(`<start_function_call>call:f{a:[${Array(size / 10).fill("{b:{c:1}}").join()}]}<end_function_call>`);
    scanner.calls();
    return scanner.steps;
  };
  assert.ok(steps(1_000_000) <= 130 * steps(10_000));
  const start = "<start_function_call>call:f{";
  for (const text of [`${start}a:<escape>${"x".repeat(1e6)}`, `${start}a:${"9".repeat(1e6)}`, start + "a:1,".repeat(250_000), "<start_function_call>".repeat(50_000),
    `${start}a:${"[".repeat(1e6)}`])
    assert.throws(() => parseCalls(text), CallSyntaxError);
});
