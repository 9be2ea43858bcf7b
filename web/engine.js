/**
 * The part that Node and the browser share: prompt, tokens, cached keys and values, greedy decoding.
 * It is handed the transformers.js module, so that nothing here knows where it came from.
 */

/** Ids that end an answer: end of text, start of a tool response, end of turn. */
export const STOP_IDS = [1, 50, 106];
/** The sentence that switches FunctionGemma to function calling. */
export const TRIGGER = 'You are a model that can do function calling with the following functions';
/** Prompt tokens run at once. A graph without `num_logits_to_keep` returns logits for all of them, 1 MB each. */
export const CHUNK = 64;
const CHUNK_KEEPING = 256;

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
const breathe = typeof MessageChannel === 'undefined'
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

/**
 * A loaded model. Build one with `loadEngine`.
 */
export class Engine {
  /** @param {object} parts `transformers` (the module), `model`, `tokenizer` */
  constructor({ transformers, model, tokenizer }) {
    this.transformers = transformers;
    this.model = model;
    this.tokenizer = tokenizer;
    this.session = model.sessions.model ?? model.sessions.decoder_model_merged;
    this.keeps = this.session.inputNames.includes('num_logits_to_keep');
    this.chunk = this.keeps ? CHUNK_KEEPING : CHUNK;
    this.stored = null; // {ids, tensors}: keys and values of the prefix, in ordinary memory
    this.last = null; // {ids, cache}: those of the conversation so far
    const forward = model.forward.bind(model);
    model.forward = async (inputs) => {
      await breathe();
      this.signal?.throwIfAborted?.();
      if (this.signal?.aborted) throw new Stopped();
      return forward(inputs);
    };
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

  /** The prompt for `messages`, rendered by transformers.js from the template that travels with the model. */
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

  /** What the graph calls its cache inputs: `[{name, type, heads, dim}]`. */
  cacheInputs() {
    return this.session.inputMetadata
      .filter((meta) => meta.name.startsWith('past_key_values.'))
      .map((meta) => ({ name: meta.name, type: meta.type, heads: meta.shape[1], dim: meta.shape[3] }));
  }

  /** Run `ids` (in pieces, so that memory stays small) and keep their keys and values for all later prompts. */
  async prefill(ids, { signal = null } = {}) {
    const cache = await this.#advance(null, ids, ids.length, signal);
    const tensors = {};
    for (const [name, tensor] of Object.entries(cache)) {
      if (tensor.location === 'gpu-buffer') {
        const data = await tensor.ort_tensor.getData(true);
        tensors[name] = new this.transformers.Tensor(tensor.type, data, tensor.dims);
      } else tensors[name] = tensor;
    }
    this.stored = { ids: [...ids], tensors };
  }

  /** Take keys and values computed elsewhere: `{ids, tensors: {name: {type, dims, data}}}`. */
  setPrefix({ ids, tensors }) {
    const { Tensor } = this.transformers;
    const made = {};
    for (const { name, type, heads, dim } of this.cacheInputs()) {
      const { dims, data } = tensors[name] ?? {};
      const right = dims && dims.length === 4 && dims[2] === ids.length && dims[3] === dim && dims[1] === heads;
      if (!right) throw new Error(`the prompt cache holds no ${name} of ${ids.length} tokens for this model`);
      made[name] = new Tensor(type, toType(data, tensors[name].type, type), dims);
    }
    this.stored = { ids: [...ids], tensors: made };
  }

  /** Run `ids.slice(0, upTo)` on top of `cache` in pieces; returns the cache. */
  async #advance(cache, ids, upTo, signal) {
    const { DynamicCache } = this.transformers;
    let done = cache ? cache.get_seq_length() : 0;
    this.signal = signal;
    try {
      while (done < upTo) {
        const end = Math.min(done + this.chunk, upTo);
        const inputs = { input_ids: this.#ints(ids.slice(done, end)), attention_mask: this.#ints(new Array(end).fill(1)) };
        if (this.keeps) inputs.num_logits_to_keep = new this.transformers.Tensor('int64', [1n], []);
        if (cache) inputs.past_key_values = cache;
        const outputs = await this.model.forward(inputs);
        const entries = {};
        for (const [name, tensor] of Object.entries(outputs)) {
          if (name.startsWith('present')) entries[name.replace('present', 'past_key_values')] = tensor;
          else tensor.dispose?.();
        }
        if (cache) cache.update(entries);
        else cache = new DynamicCache(entries);
        done = end;
      }
    } finally {
      this.signal = null;
    }
    return cache;
  }

  #ints(values) {
    return new this.transformers.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
  }

  /** The cache that covers most of `ids`: the conversation so far, or the stored prefix (cut where they part). */
  #resume(ids) {
    const { DynamicCache, Tensor } = this.transformers;
    const last = this.last;
    this.last = null;
    if (last) {
      const length = last.cache.get_seq_length();
      const fits = length < ids.length && commonLength(last.ids, ids) >= length;
      if (fits && length >= commonLength(this.stored?.ids ?? [], ids)) return { cache: last.cache, reused: length };
      last.cache.dispose();
    }
    if (!this.stored) return { cache: null, reused: 0 };
    const keep = Math.min(commonLength(this.stored.ids, ids), ids.length - 1);
    if (keep < 1) return { cache: null, reused: 0 };
    const entries = {};
    for (const [name, tensor] of Object.entries(this.stored.tensors)) {
      entries[name] = keep === this.stored.ids.length ? tensor : cutLength(Tensor, tensor, keep);
    }
    return { cache: new DynamicCache(entries), reused: keep };
  }

  /**
   * Decode greedily after `ids`.
   * @param {number[]} ids the prompt
   * @param {object} [options]
   * @param {number} [options.maxTokens] at most so many new tokens
   * @param {(ids: number[]) => void} [options.onIds] called after each token with all new ids
   * @param {AbortSignal} [options.signal] stops between two tokens
   * @param {object} [options.grammar] a GrammarProcessor (`grammar.js`)
   * @returns {Promise<{ids: number[], finished: boolean, stats: object}>} new ids without the stop id
   */
  async generateIds(ids, { maxTokens = 256, onIds = null, signal = null, grammar = null } = {}) {
    const { DynamicCache, LogitsProcessorList } = this.transformers;
    const start = performance.now();
    let { cache, reused } = this.#resume(ids);
    // Long prompts run in pieces; the last piece is left to generate().
    const ahead = ids.length - 1 - ((ids.length - 1 - reused) % this.chunk);
    if (ahead > reused) cache = await this.#advance(cache, ids, ahead, signal);
    cache ??= new DynamicCache();
    const made = [];
    let first = 0;
    let lastTime = 0;
    const streamer = {
      prompt: true,
      put(values) {
        if (this.prompt) { this.prompt = false; return; }
        lastTime = performance.now();
        first ||= lastTime;
        made.push(Number(values[0][0]));
        onIds?.(made);
      },
      end() {},
    };
    const options = {
      input_ids: this.#ints(ids),
      attention_mask: this.#ints(new Array(ids.length).fill(1)),
      past_key_values: cache,
      max_new_tokens: maxTokens,
      do_sample: false,
      eos_token_id: STOP_IDS,
      streamer,
    };
    if (grammar) {
      grammar.start(ids.length, maxTokens);
      options.logits_processor = new LogitsProcessorList();
      options.logits_processor.push((rows, logits) => grammar.apply(rows, logits));
    }
    let stopped = false;
    this.signal = signal;
    try {
      await this.model.generate(options);
    } catch (error) {
      if (!signal?.aborted) throw error;
      stopped = true;
    } finally {
      this.signal = null;
    }
    const known = [...ids, ...made];
    if (stopped) await cache.dispose();
    else this.last = { ids: known.slice(0, cache.get_seq_length()), cache };
    const finished = STOP_IDS.includes(made.at(-1));
    if (finished) made.pop();
    const count = made.length + (finished ? 1 : 0);
    const decoding = (lastTime - first) / 1000;
    return {
      ids: made,
      finished,
      stopped,
      stats: {
        promptTokens: ids.length,
        reusedTokens: reused,
        newTokens: made.length,
        ttft: first ? (first - start) / 1000 : null,
        seconds: (performance.now() - start) / 1000,
        tokensPerSecond: count > 1 && decoding > 0 ? (count - 1) / decoding : null,
      },
    };
  }

  /** Free what the engine holds. */
  async dispose() {
    await this.last?.cache.dispose();
    this.last = null;
    this.stored = null;
    await this.model.dispose();
  }
}

/** The first `keep` positions of a `[1, heads, length, dim]` tensor. */
function cutLength(Tensor, tensor, keep) {
  const [batch, heads, length, dim] = tensor.dims;
  const data = new tensor.data.constructor(batch * heads * keep * dim);
  for (let h = 0; h < batch * heads; h += 1) {
    data.set(tensor.data.subarray(h * length * dim, (h * length + keep) * dim), h * keep * dim);
  }
  return new Tensor(tensor.type, data, [batch, heads, keep, dim]);
}

/** Turn stored numbers into what the graph takes: float16 bits or float32. */
export function toType(data, from, to) {
  if (from === to) {
    const wantsHalf = to === 'float16' && typeof Float16Array !== 'undefined';
    return wantsHalf && data instanceof Uint16Array ? new Float16Array(data.buffer, data.byteOffset, data.length) : data;
  }
  if (from === 'float16' && to === 'float32') return halfToFloat(data);
  throw new Error(`the prompt cache is ${from}, the model takes ${to}`);
}

/** IEEE half precision bits to float32. @param {Uint16Array} bits */
export function halfToFloat(bits) {
  const table = new Float32Array(65536);
  for (let i = 0; i < 65536; i += 1) {
    const exponent = (i >> 10) & 31;
    const fraction = i & 1023;
    const sign = i & 0x8000 ? -1 : 1;
    if (exponent === 0) table[i] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[i] = fraction ? NaN : sign * Infinity;
    else table[i] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  const out = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i += 1) out[i] = table[bits[i]];
  return out;
}

/**
 * Load model and tokenizer.
 * @param {object} transformers the transformers.js module, its `env` already set
 * @param {object} options `name` (folder below `env.localModelPath`), `load` (`{model_file_name, dtype}`), `device`, `sessionOptions`, `onStep`
 */
export async function loadEngine(transformers, { name, load, device, sessionOptions = {}, onStep = null }) {
  const { AutoModelForCausalLM, AutoTokenizer } = transformers;
  onStep?.('reading the tokenizer');
  const progress_callback = () => {};
  const tokenizer = await AutoTokenizer.from_pretrained(name, { progress_callback });
  onStep?.('starting the model');
  const model = await AutoModelForCausalLM.from_pretrained(name, {
    ...load, device, session_options: sessionOptions, progress_callback,
  });
  return new Engine({ transformers, model, tokenizer });
}

/** Read a prompt cache (safetensors): `{hash, ids, tensors: {name: {type, dims, data}}}`. */
export function readPromptCache(buffer) {
  const view = new DataView(buffer);
  const length = Number(view.getBigUint64(0, true));
  if (length > buffer.byteLength - 8) throw new Error('the prompt cache is cut short');
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(entries)) {
    if (8 + length + to > buffer.byteLength) throw new Error('the prompt cache is cut short');
    const kind = { F32: ['float32', Float32Array], F16: ['float16', Uint16Array] }[dtype];
    if (!kind) throw new Error(`the prompt cache holds ${dtype}: F16 or F32 expected`);
    const count = (to - from) / kind[1].BYTES_PER_ELEMENT;
    tensors[name] = { type: kind[0], dims: shape, data: new kind[1](buffer, 8 + length + from, count) };
  }
  if (!metadata.prompt_cache) throw new Error('the prompt cache does not say what it is of');
  return { ...JSON.parse(metadata.prompt_cache), tensors };
}

/** Write what `readPromptCache` reads: the cache that a page computed for itself. */
export function writePromptCache({ hash, ids, tensors }) {
  const header = { __metadata__: { prompt_cache: JSON.stringify({ hash, ids }) } };
  let offset = 0;
  for (const [name, { dims, data }] of Object.entries(tensors)) {
    const half = data instanceof Float32Array ? 'F32' : 'F16';
    header[name] = { dtype: half, shape: dims, data_offsets: [offset, offset + data.byteLength] };
    offset += data.byteLength;
  }
  let text = JSON.stringify(header);
  text += ' '.repeat((8 - (new TextEncoder().encode(text).length % 8)) % 8);
  const head = new TextEncoder().encode(text);
  const out = new Uint8Array(8 + head.length + offset);
  new DataView(out.buffer).setBigUint64(0, BigInt(head.length), true);
  out.set(head, 8);
  let at = 8 + head.length;
  for (const { data } of Object.values(tensors)) {
    out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += data.byteLength;
  }
  return out.buffer;
}
