/**
 * The library: a function-calling model in a worker.
 *
 *   import { loadModel } from './index.js';
 *   const model = await loadModel({ onProgress: ({ loaded, total }) => console.log(loaded, total) });
 *   const { calls, text } = await model.call('What is 12 * 7?');
 */
import { CallSyntaxError, findControlToken, parseCalls } from './calls.js';
import { checkCall, disarm } from './schema.js';
import { fillTurn } from './turn.js';

export { CallSyntaxError, checkCall, parseCalls };
export { formatCall } from './calls.js';
export { calculate } from './calculator.js';
export { deviceName } from './device.js';

/**
 * @typedef {import('./calls.js').Call} Call
 * @typedef {{loaded: number, total: number, file: string, step?: string}} Progress bytes so far and in all; `step` once they are here
 * @typedef {{promptTokens: number, reusedTokens: number, newTokens: number, ttft: number|null, seconds: number, tokensPerSecond: number|null, passes?: number, grammar?: object}} Stats times in seconds; `passes` of the model where it is on our own kernels
 * @typedef {{calls: Call[], text: string, error: string|null, problems: string[][], ids: number[], finished: boolean, stopped: boolean, stats: Stats, prompt: string}} Answer
 *   `calls` are the parsed calls; `error` says why the text is no call when it is malformed; `problems[i]` is what the schema has against call i
 * @typedef {object} LoadOptions
 * @property {string|URL} [base] the deployed folder (default: where the page is)
 * @property {'auto'|'webgpu'|'wasm'} [device]
 * @property {string} [variant] 'auto' or a deployed variant, such as 'q4'
 * @property {number} [threads] for WASM; 0 leaves the choice
 * @property {'auto'|'kernels'|'onnxruntime'} [runtime] for WASM: our own kernels, or onnxruntime, which is slower
 * @property {boolean} [usePrefix] take the shipped keys and values of the tool declarations (default true)
 * @property {(progress: Progress) => void} [onProgress]
 * @property {AbortSignal} [signal] pauses the download; what arrived is kept
 */

/** One worker and the questions it has not answered. */
class Link {
  constructor() {
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.waiting = new Map();
    this.next = 1;
    this.worker.onmessage = ({ data }) => {
      const entry = this.waiting.get(data.id);
      if (!entry) return;
      if (data.type === 'done') this.#settle(data.id, () => entry.resolve(data.value));
      else if (data.type === 'error') {
        const error = new Error(data.message);
        this.#settle(data.id, () => entry.reject(Object.assign(error, { name: data.name, retry: data.retry })));
      } else entry.onMessage?.(data);
    };
    this.worker.onerror = (event) => {
      event.preventDefault?.();
      const reason = event.message || 'the worker could not be started (blocked, or a file of the page is missing)';
      for (const [id, entry] of [...this.waiting]) this.#settle(id, () => entry.reject(new Error(reason)));
    };
  }

  #settle(id, act) {
    const { signal, stop } = this.waiting.get(id);
    signal?.removeEventListener('abort', stop);
    this.waiting.delete(id);
    act();
  }

  ask(op, rest = {}, { onMessage = null, signal = null } = {}) {
    signal?.throwIfAborted();
    return new Promise((resolve, reject) => {
      const id = this.next;
      this.next += 1;
      const stop = () => this.worker.postMessage({ op: 'stop', target: id });
      signal?.addEventListener('abort', stop);
      this.waiting.set(id, { resolve, reject, onMessage, signal, stop });
      this.worker.postMessage({ id, op, ...rest });
    });
  }

  end() {
    this.worker.terminate();
    for (const [id, entry] of [...this.waiting]) this.#settle(id, () => entry.reject(new Error('the model was closed')));
  }
}

let idle = null; // a worker that has looked at the site, ready to load
const take = () => idle ?? (idle = new Link());
const folder = (base) => new URL(base ?? './', globalThis.document?.baseURI ?? globalThis.location.href).href.replace(/[^/]*$/, '');
const wishOf = ({ device = 'auto', variant = 'auto', threads = 0, runtime = 'auto' }) => ({ device, variant, threads, runtime });

/** What would be loaded, before anything is: size, variant, device and why, and how much of it is cached. */
export function inspect(options = {}) {
  return take().ask('inspect', { base: folder(options.base), wish: wishOf(options) });
}

/** Remove the cached files of this site; resolves to the number of entries removed. */
export function deleteCache(options = {}) {
  return take().ask('clear', { base: folder(options.base) });
}

/**
 * Download what is missing and start the model.
 * Rejects with `name` 'DownloadError' (call again to go on where it stopped) or 'AbortError'.
 * @param {LoadOptions} [options]
 * @returns {Promise<Model>}
 */
export async function loadModel(options = {}) {
  const link = take();
  idle = null; // another model gets a worker of its own
  const base = folder(options.base);
  let last = { loaded: 0, total: 0, file: '' };
  const onMessage = (message) => {
    if (message.type === 'progress') last = { loaded: message.loaded, total: message.total, file: message.file };
    options.onProgress?.({ ...last, step: message.step, candidate: message.candidate });
  };
  const request = { base, wish: wishOf(options), usePrefix: options.usePrefix ?? true };
  try {
    const { site } = await link.ask('inspect', { base, wish: request.wish });
    const info = await link.ask('load', request, { onMessage, signal: options.signal });
    return new Model(link, info, site);
  } catch (error) {
    if (idle) link.end();
    else idle = link;
    throw error;
  }
}

/** A loaded model. */
export class Model {
  #link;

  constructor(link, info, site) {
    this.#link = link;
    /** Device, variant, why, bytes, seconds. */
    this.info = info;
    /** The deployed site's description (`site.json`). */
    this.site = site;
    /** The tools that the model knows, as declared. */
    this.tools = site.tools.map((tool) => tool.function ?? tool);
  }

  /** The text of the developer turn as it was trained, with the date and time of now. */
  get trigger() {
    return fillTurn(this.site.developer_turn);
  }

  /**
   * Ask one question.
   * @param {string} query
   * @param {{onText?: (text: string, count: number) => void, signal?: AbortSignal, maxTokens?: number, constrained?: boolean|'call', drafts?: boolean}} [options] `constrained` as the site has it by default; without
   *   `drafts` each pass of the model gives one token: the same ones, later
   * @returns {Promise<Answer>}
   */
  call(query, options = {}) {
    return this.chat([{ role: 'user', content: query }], options);
  }

  /**
   * Continue a dialogue (`user`, `assistant` with `tool_calls`, `tool` messages; the developer turn is added).
   * @param {object[]} messages
   * @param {{developer?: string}} [options] and those of `call`; `developer` is the text of the developer turn
   * @returns {Promise<Answer>}
   */
  async chat(messages, { onText = null, signal = null, maxTokens, constrained = this.site.constrained, drafts = true, developer = this.trigger } = {}) {
    for (const { role, content } of messages) {
      const token = role !== 'tool' && typeof content === 'string' ? findControlToken(content) : null;
      if (token) throw new Error(`The text holds the control token ${token}, which only the format itself may use.`);
    }
    const turns = messages[0]?.role === 'developer' ? messages : [{ role: 'developer', content: developer }, ...messages];
    const answer = await this.#link.ask('generate', { messages: turns, maxTokens, constrained, drafts }, {
      onMessage: (message) => onText?.(message.text, message.count), signal,
    });
    return { ...answer, ...this.read(answer.text) };
  }

  /** Calls in a text, and what is wrong with them. */
  read(text) {
    try {
      const calls = parseCalls(text);
      return { calls, error: null, problems: calls.map((call) => checkCall(call, this.tools)) };
    } catch (error) {
      if (!(error instanceof CallSyntaxError)) throw error;
      return { calls: [], error: error.message, problems: [] };
    }
  }

  /**
   * Ask, run the functions that the model calls, hand back their results, and go on until it answers in words.
   * A call that its schema refuses is not run; an error of a function goes back to the model as text.
   * @param {string} query
   * @param {Record<string, (args: object) => unknown>} functions
   * @param {{onTurn?: (answer: Answer, results: object[]) => void, maxTurns?: number}} [options] and those of `call`
   * @returns {Promise<{text: string|null, turns: {answer: Answer, results: object[]}[]}>} `text` null when it never came to words
   */
  async run(query, functions, { onTurn = null, maxTurns = 4, ...options } = {}) {
    const messages = [{ role: 'user', content: query }];
    const developer = this.trigger; // its time is that of the question
    const turns = [];
    for (let turn = 0; turn < maxTurns; turn += 1) {
      // "always a call" is meant for the question; after a result the model may speak
      const constrained = turn && options.constrained === 'call' ? true : options.constrained;
      const answer = await this.chat(messages, { developer, ...options, constrained });
      const results = [];
      for (const [i, call] of answer.calls.entries()) results.push(await runCall(call, answer.problems[i], functions));
      turns.push({ answer, results });
      onTurn?.(answer, results);
      if (!answer.calls.length) return { text: answer.error || answer.stopped ? null : answer.text.trim(), turns };
      // An answer that was cut short, or a tool with no function behind it, ends the dialogue here.
      if (!answer.finished || results.some((result) => result.status === 'unbound')) break;
      messages.push({ role: 'assistant', tool_calls: answer.calls.map((call) => ({ type: 'function', function: call })) });
      messages.push({ role: 'tool', content: results.map(({ name, response }) => ({ name, response })) });
    }
    return { text: null, turns };
  }

  /** Free the model's memory. */
  async close() {
    this.#link.end();
  }
}

/** Run one call: `{name, status: 'ok'|'failed'|'refused'|'unbound', response}`; `response` is what the model reads. */
export async function runCall(call, problems, functions) {
  const { name } = call;
  if (problems.length) return { name, status: 'refused', response: { error: disarm(problems.join('; ')) } };
  if (!Object.hasOwn(functions, name)) return { name, status: 'unbound', response: null };
  try {
    return { name, status: 'ok', response: disarm(await functions[name](call.arguments)) };
  } catch (error) {
    return { name, status: 'failed', response: { error: disarm(String(error?.message ?? error)) } };
  }
}
