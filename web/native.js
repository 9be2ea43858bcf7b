/**
 * The model on our own WebAssembly kernels (`kernels/decoder.js`), with the tokenizer and the chat templates that
 * transformers.js is built on. Their modules are handed in, so that nothing here knows where they came from.
 */
import { CHUNK, Pace, decodeGreedily } from './decoding.js';
import { BaseEngine, STOP_IDS, commonLength, figures } from './dialogue.js';
import { Drafter } from './drafts.js';
import { userSpans } from './grammar.js';
import { Words } from './words.js';

/** Tokens of a dialogue that memory is set aside for, in steps. */
const ROOM = 512;
const SPECIAL = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];

/** A tokenizer with its chat template, to be used as one of transformers.js is. */
export class TemplateTokenizer {
  /**
   * @param {{tokenizers: object, jinja: object}} modules `@huggingface/tokenizers` and `@huggingface/jinja`
   * @param {Uint8Array} json the file `tokenizer.json`, which is read no more afterwards
   * @param {object} config what `tokenizer_config.json` says, with a `chat_template`
   */
  constructor({ tokenizers, jinja }, json, config) {
    const words = new Words(json);
    this.words = words;
    this.tokenizer = new tokenizers.Tokenizer(words.rest, config); // with the added tokens as its only words
    const { model } = this.tokenizer;
    this.added = model.tokens_to_ids;
    const id = (word) => this.added.get(word) ?? words.id(word);
    model.tokens_to_ids = { get: id, has: (word) => id(word) !== undefined };
    model.bpe_ranks = { get: (pair) => words.rank(...JSON.parse(pair)) };
    model.unk_token_id = id(model.unk_token);
    this.template = new jinja.Template(config.chat_template);
    this.special = {};
    for (const name of SPECIAL) {
      const token = config[name]?.content ?? config[name];
      if (token) this.special[name] = token;
    }
  }

  encode(text, options) {
    return this.tokenizer.encode(text, options).ids;
  }

  /** The text of ids, special tokens included. */
  decode(ids) {
    const { model, decoder } = this.tokenizer;
    return decoder(ids.map((id) => model.vocab[id] ?? this.words.word(id) ?? model.unk_token));
  }

  /** All tokens, by id: `[token, id]`. */
  * get_vocab() {
    const { vocab } = this.tokenizer.model; // the added ones
    for (let id = 0; id < Math.max(this.words.size, vocab.length); id += 1) {
      const token = vocab[id] ?? this.words.word(id);
      if (token !== undefined) yield [token, id];
    }
  }

  apply_chat_template(messages, { tools = null, add_generation_prompt = false }) {
    return this.template.render({ messages, tools, documents: null, add_generation_prompt, ...this.special });
  }
}

/** A decoder's keys and values as a prompt cache has them. */
function tensorsOf(decoder) {
  const { heads, dim } = decoder.keyValueShape;
  const { keys, values, length } = decoder.getCache();
  const tensors = {};
  for (const [kind, list] of [['key', keys], ['value', values]]) {
    for (const [layer, data] of list.entries()) {
      tensors[`past_key_values.${layer}.${kind}`] = { type: 'float32', dims: [1, heads, length, dim], data };
    }
  }
  return tensors;
}

/** The other way about; a prompt cache of another model is refused. */
function cacheOf(decoder, tensors, length) {
  const { layers, heads, dim } = decoder.keyValueShape;
  const take = (kind) => Array.from({ length: layers }, (_, layer) => {
    const name = `past_key_values.${layer}.${kind}`;
    const { dims, data } = tensors[name] ?? {};
    if (dims?.join() !== [1, heads, length, dim].join() || data.length !== heads * length * dim) throw new Error(`the prompt cache holds no ${name} of ${length} tokens for this model`);
    return data;
  });
  return { keys: take('key'), values: take('value'), length };
}

/** A loaded model. */
export class NativeEngine extends BaseEngine {
  /**
   * @param {object} parts
   * @param {(capacity: number) => Promise<object>} parts.create a Decoder of so many tokens; asked for again where a dialogue is longer
   * @param {object} parts.tokenizer a `TemplateTokenizer`
   * @param {object|null} [parts.table] an NgramTable
   * @param {number} [parts.positions] tokens that a dialogue may have, at most
   */
  constructor({ create, tokenizer, table = null, positions = Infinity }) {
    super(tokenizer, positions);
    this.create = create;
    this.decoder = null;
    this.table = table;
    this.pace = new Pace();
    this.held = []; // the tokens whose keys and values the decoder holds
    this.shipped = 0; // how many of them came from `stored`
  }

  /** Run `ids` (in pieces, so that a stop does not wait long) and keep their keys and values for all later prompts. */
  async prefill(ids, { signal = null } = {}) {
    await this.reserve(ids.length);
    this.#truncate(0);
    for (let at = 0; at < ids.length; at += CHUNK) {
      await this.pause(signal);
      await this.decoder.run(ids.slice(at, at + CHUNK), { logits: 'none' });
      this.held = ids.slice(0, this.decoder.length);
    }
    this.shipped = ids.length;
    this.stored = { ids: [...ids], tensors: tensorsOf(this.decoder) };
  }

  /** Take keys and values computed elsewhere: `{ids, tensors: {name: {type, dims, data}}}`; those of another model are refused. */
  setPrefix({ ids, tensors }) {
    if (this.decoder) cacheOf(this.decoder, tensors, ids.length);
    this.stored = { ids: [...ids], tensors };
    this.shipped = 0;
  }

  /** Have a decoder that so many tokens fit into, and the stored prefix. */
  async reserve(wanted) {
    const tokens = Math.max(wanted, this.stored?.ids.length ?? 0);
    if (tokens <= (this.decoder?.capacity ?? 0)) return;
    await this.decoder?.dispose();
    this.decoder = null;
    [this.held, this.shipped] = [[], 0];
    this.decoder = await this.create(Math.ceil(tokens / ROOM) * ROOM);
  }

  /** Put the stored keys and values into the decoder. */
  #restore() {
    const { ids, tensors } = this.stored;
    this.decoder.setCache(cacheOf(this.decoder, tensors, ids.length));
    this.held = [...ids];
    this.shipped = ids.length;
  }

  #truncate(length) {
    this.decoder.truncate(length);
    this.held.length = length;
    this.shipped = Math.min(this.shipped, length);
  }

  /** Have the decoder hold what is known of `ids`: the conversation so far, or the stored prefix. Returns how many tokens. */
  #resume(ids) {
    const shared = commonLength(this.held, ids);
    const prefix = commonLength(this.stored?.ids ?? [], ids);
    const goesOn = this.last && shared === this.held.length && shared < ids.length && shared >= prefix;
    this.last = null;
    if (goesOn) return shared;
    const keep = Math.min(prefix, ids.length - 1);
    if (keep > this.shipped) this.#restore();
    this.#truncate(keep);
    return keep;
  }

  /**
   * Decode greedily after `ids`.
   * @param {number[]} ids the prompt
   * @param {object} [options]
   * @param {number} [options.maxTokens] at most so many new tokens
   * @param {(ids: number[]) => void} [options.onIds] called after each pass with all new ids
   * @param {AbortSignal} [options.signal] stops between two passes
   * @param {object} [options.grammar] a GrammarProcessor (`grammar.js`)
   * @param {boolean} [options.drafts] check guesses of several tokens at a time (default true); the tokens are the same
   * @returns {Promise<{ids: number[], finished: boolean, stats: object}>} new ids without the stop id
   */
  async generateIds(ids, { maxTokens = 256, onIds = null, signal = null, grammar = null, drafts = true } = {}) {
    const start = performance.now();
    maxTokens = this.roomFor(ids.length, maxTokens);
    await this.reserve(ids.length + maxTokens);
    const reused = this.#resume(ids);
    const made = [];
    let [first, together, last, stopped, counts] = [0, 1, 0, false, {}];
    try {
      counts = await decodeGreedily(this.decoder, ids.slice(reused), {
        maxTokens, grammar, made, pace: this.pace,
        drafter: drafts ? this.#drafter(ids) : null,
        pause: () => this.pause(signal),
        onIds: (all) => {
          last = performance.now();
          if (!first) [first, together] = [last, all.length];
          onIds?.(STOP_IDS.includes(all.at(-1)) ? all.slice(0, -1) : all);
        },
      });
    } catch (error) {
      if (!signal?.aborted) throw error;
      stopped = true;
    } finally {
      this.held = [...ids, ...made].slice(0, this.decoder.length);
    }
    const finished = STOP_IDS.includes(made.at(-1));
    if (finished) made.pop();
    this.last = stopped ? null : { ids: [...ids, ...made] };
    const stats = figures({ prompt: ids.length, reused, made: made.length, finished, start, first, last, together, ...counts });
    return { ids: made, finished, stopped, stats };
  }

  #drafter(ids) {
    return new Drafter({
      encode: (text) => this.encode(text), decode: (list) => this.decode(list), context: userSpans(this.decode(ids)), table: this.table,
    });
  }

  /** Free what the engine holds. */
  async dispose() {
    this.last = null;
    this.stored = null;
    await this.decoder?.dispose();
    this.decoder = null;
  }
}
