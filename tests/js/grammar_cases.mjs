// node grammar_cases.mjs FILE: which whole answers the grammar lets through, so that Python can be held to it.
import { readFileSync } from "node:fs";
import { compileGrammar, userSpans } from "../../web/grammar.js";

/** Whether a whole answer fits, control tokens as such. */
function fits(grammar, text) {
  let state = grammar.start;
  for (const part of text.split(/(<(?:start|end)_[a-z_]+>|<escape>)/)) {
    if (/^<(?:(?:start|end)_[a-z_]+|escape)>$/.test(part)) state = grammar.controls(state).find(([token]) => token === part)?.[1] ?? -1;
    else for (const byte of new TextEncoder().encode(part)) if (state >= 0) state = grammar.step(state, byte);
    if (state < 0) return false;
  }
  return grammar.states[state].distance === 0;
}

const cases = JSON.parse(readFileSync(process.argv[2], "utf8"));
process.stdout.write(JSON.stringify(cases.map(({ tools, answers, verbatim, prompt }) => {
  const grammar = compileGrammar(tools, { verbatim, context: userSpans(prompt) });
  return answers.map((answer) => fits(grammar, answer));
})));
