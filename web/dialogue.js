/** What the engines share, in Node and in the browser: prompts, tokens, and the dialogue so far. */

import { GrammarProcessor, compileGrammar, userSpans, vocabularyOf } from './grammar.js';

/** Ids that end an answer: end of text, start of a tool response, end of turn. */
export const STOP_IDS = [1, 50, 106];
/** The sentence that switches FunctionGemma to function calling. */
export const TRIGGER = 'You are a model that can do function calling with the following functions';

/** How many leading entries two arrays share. */
export function commonLength(a, b) {
  const n = Math.min(a.length, b.length);
  let i = 0;
  while (i < n && a[i] === b[i]) i += 1;
  return i;
}

/** The longest prefix that all token lists share, short of the shortest list by at least one token. */
export function sharedPrefix(lists) {
  if (lists.length < 2) return [];
  let n = Math.min(...lists.map((ids) => ids.length - 1));
  for (const ids of lists) n = Math.min(n, commonLength(lists[0], ids));
  return lists[0].slice(0, Math.max(n, 0));
}

/** The messages of a single question. */
export function question(query, trigger = TRIGGER) {
  return [{ role: 'developer', content: trigger }, { role: 'user', content: query }];
}

/** Give waiting messages (Stop, for one) a turn; a microtask would not. */
export const breathe = typeof MessageChannel === 'undefined'
  ? () => new Promise((resolve) => setTimeout(resolve))
  : (() => {
    const waiting = [];
    let channel = null;
    return () => new Promise((resolve) => {
      if (!channel) {
        channel = new MessageChannel();
        channel.port1.onmessage = () => { waiting.shift()(); if (!waiting.length) channel.port1.unref?.(); };
      }
      channel.port1.ref?.();
      waiting.push(resolve);
      channel.port2.postMessage(0);
    });
  })();

/** Thrown when the reader pressed Stop. */
export class Stopped extends Error {
  constructor() {
    super('stopped');
    this.name = 'AbortError';
  }
}

/** What an answer took; `start`, `first` and `last` are when it began, and when its first token (`together` of them) and its last came. */
export function figures({ prompt, reused, made, finished, start, first, last, together = 1, ...more }) {
  const count = made + (finished ? 1 : 0);
  const decoding = (last - first) / 1000;
  return {
    promptTokens: prompt,
    reusedTokens: reused,
    newTokens: made,
    ttft: first ? (first - start) / 1000 : null,
    seconds: (performance.now() - start) / 1000,
    tokensPerSecond: count > together && decoding > 0 ? (count - together) / decoding : null,
    ...more,
  };
}

/**
 * A loaded model. `tokenizer` has `encode`, `decode`, `get_vocab` and `apply_chat_template` as in transformers.js. What
 * makes tokens is up to the engine: `prefill`, `setPrefix`, `generateIds` and `dispose`.
 */
export class BaseEngine {
  /** @param {number} [positions] tokens that the model has positions for */
  constructor(tokenizer, positions = Infinity) {
    this.tokenizer = tokenizer;
    this.positions = positions;
    this.stored = null; // {ids, tensors: {name: {type, dims, data}}}: keys and values of the prefix, in ordinary memory
    this.last = null; // {ids}: the conversation so far
  }

  /** Token ids of a rendered prompt (it brings its own `<bos>`). @returns {number[]} */
  encode(text) {
    return this.tokenizer.encode(text, { add_special_tokens: false });
  }

  /**
   * Token ids of a prompt; when it goes on from the dialogue so far, the ids of that dialogue are kept as they were
   * made, so that its keys and values can be used again.
   */
  encodeNext(text) {
    const known = this.last ? this.decode(this.last.ids) : null;
    const rest = known && text.startsWith(known) ? text.slice(known.length) : null;
    return rest?.startsWith('<start_function_response>') ? [...this.last.ids, ...this.encode(rest)] : this.encode(text);
  }

  /** Text of token ids, control tokens included. */
  decode(ids) {
    return ids.length ? this.tokenizer.decode(ids, { skip_special_tokens: false, clean_up_tokenization_spaces: false }) : '';
  }

  /** The prompt for `messages`, rendered from the template that travels with the model. */
  render(messages, tools = null, addGenerationPrompt = true) {
    const options = { tokenize: false, add_generation_prompt: addGenerationPrompt };
    if (tools?.length) options.tools = tools.map((tool) => (tool.function ? tool : { type: 'function', function: tool }));
    return this.tokenizer.apply_chat_template(messages, options);
  }

  /** Tokens that every question about these tools begins with; `later` is the trigger at another time. @returns {number[]} */
  prefixIds(tools, trigger = TRIGGER, later = trigger) {
    const asked = [question('a', trigger), question('7', later)];
    const [a, b] = asked.map((messages) => this.encode(this.render(messages, tools)));
    return a.slice(0, commonLength(a, b));
  }

  /**
   * A logits processor for the answer to a prompt about `tools`; `mode` 'call' wants a whole call, anything else calls or
   * text. The arguments `verbatim` hold words of the dialogue.
   */
  constrain(tools, prompt, { mode = true, verbatim = [] } = {}) {
    this.vocabulary ??= vocabularyOf(this.tokenizer);
    const close = mode === 'call';
    const grammar = compileGrammar(tools, { text: !close, verbatim, context: userSpans(prompt) });
    return new GrammarProcessor(grammar, this.vocabulary, { close });
  }

  /** How many tokens an answer may have, of `maxTokens`, after a prompt of so many. Throws where the prompt leaves no room. */
  roomFor(prompt, maxTokens) {
    if (prompt >= this.positions) throw new Error(`The dialogue has ${prompt} tokens with the tools, and the model takes fewer than ${this.positions}.`);
    return Math.min(maxTokens, this.positions - prompt);
  }

  /** Throw when `signal` says stop, after waiting messages had their turn. */
  async pause(signal) {
    await breathe();
    signal?.throwIfAborted?.();
    if (signal?.aborted) throw new Stopped();
  }
}
