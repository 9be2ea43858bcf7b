// node grammar_cases.mjs FILE: which whole answers the grammar lets through, so that Python can be held to it.
import { readFileSync } from "node:fs";
import { compileGrammar, userSpans } from "../../web/grammar.js";
import { fits } from "./fits.mjs";

const cases = JSON.parse(readFileSync(process.argv[2], "utf8"));
process.stdout.write(JSON.stringify(cases.map(({ tools, answers, verbatim, prompt }) => {
  const grammar = compileGrammar(tools, { verbatim, context: userSpans(prompt) });
  return answers.map((answer) => fits(grammar, answer));
})));
