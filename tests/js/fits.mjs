/** Whether a whole answer fits a compiled grammar, control tokens as such. */
export function fits(grammar, text) {
  let state = grammar.start;
  for (const part of text.split(/(<(?:start|end)_[a-z_]+>|<escape>)/)) {
    if (/^<(?:(?:start|end)_[a-z_]+|escape)>$/.test(part)) state = grammar.controls(state).find(([token]) => token === part)?.[1] ?? -1;
    else for (const byte of new TextEncoder().encode(part)) if (state >= 0) state = grammar.step(state, byte);
    if (state < 0) return false;
  }
  return grammar.states[state].distance === 0;
}
