// node parse_cases.mjs FILE: reads a list of texts with web/calls.js; prints the calls, their text again, or the fault.
import { readFileSync } from "node:fs";
import { CallSyntaxError, formatCall, parseCalls } from "../../web/calls.js";

const results = JSON.parse(readFileSync(process.argv[2], "utf8")).map((text) => {
  try {
    const calls = parseCalls(text);
    return { kind: calls.length ? "call" : "text", calls, texts: calls.map(formatCall) };
  } catch (error) {
    if (!(error instanceof CallSyntaxError)) throw error;
    return { kind: "malformed", offset: error.offset, message: error.message };
  }
});
process.stdout.write(JSON.stringify(results));
