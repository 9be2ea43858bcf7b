/**
 * The characters of a text that belong to none of the scripts (Unicode's names of them) that a model kept entries of.
 * Without names it kept all. Digits, punctuation, emoji and accents belong to every script.
 */
export function otherScripts(text, scripts = []) {
  if (!scripts.length) return [];
  const known = ['Common', 'Inherited', ...scripts].map((script) => `\\p{Script=${script}}`).join('');
  return text.match(new RegExp(`[^${known}]`, 'gu')) ?? [];
}
