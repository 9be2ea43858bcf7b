/** The model on transformers.js and onnxruntime: WebGPU, and WebAssembly where our own kernels do not run. */
import { BaseEngine, STOP_IDS, commonLength, figures } from './dialogue.js';
import { toType } from './prompt_cache.js';

/** Prompt tokens run at once. A graph without `num_logits_to_keep` returns logits for all of them, 1 MB each. */
export const CHUNK = 64;
const CHUNK_KEEPING = 256;

/**
 * A loaded model. Build one with `loadEngine`. It is handed the transformers.js module, so that nothing here knows where
 * it came from.
 */
export class Engine extends BaseEngine {
  /** @param {object} parts `transformers` (the module), `model`, `tokenizer` */
  constructor({ transformers, model, tokenizer }) {
    super(tokenizer, model.config.max_position_embeddings);
    this.transformers = transformers;
    this.model = model;
    this.session = model.sessions.model ?? model.sessions.decoder_model_merged;
    this.keeps = this.session.inputNames.includes('num_logits_to_keep');
    this.chunk = this.keeps ? CHUNK_KEEPING : CHUNK;
    const forward = model.forward.bind(model);
    model.forward = async (inputs) => {
      await this.pause(this.signal);
      return forward(inputs);
    };
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
    maxTokens = this.roomFor(ids.length, maxTokens);
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
    const stats = figures({ prompt: ids.length, reused, made: made.length, finished, start, first, last: lastTime });
    return { ids: made, finished, stopped, stats };
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
