/**
 * Answers requests on stdin, one JSON object a line, with one JSON object a line on stdout:
 *   {"op": "load", "folder": "...", "load": {"model_file_name": "model", "dtype": "q4"}} -> {"loaded": true, "seconds": 1.2, ...}
 *   {"op": "generate", "prompts": ["<bos>..."], "maxTokens": 256, "grammars": [{"tools": [...], "verbatim": ["f.a"]}] or null}
 *                                                                    -> {"index": 0, "ids": [...], "text": "...", ...} each, then {"done": true}
 *   {"op": "render", "messages": [...], "tools": [...]}              -> {"text": "<bos>..."}
 *   {"op": "encode", "texts": [...]}                                 -> {"ids": [[...], ...]}
 * A request that fails answers {"failure": "one line"}; the process goes on. Nothing else is written to stdout.
 */
import path from 'node:path';
import readline from 'node:readline';

const write = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
for (const level of ['log', 'info', 'debug']) console[level] = (...parts) => console.error(...parts);

let transformers;
try {
  transformers = await import('@huggingface/transformers');
} catch (error) {
  write({ failure: `transformers.js is not installed: run npm ci in the project's root (${error.message.split('\n')[0]})` });
  process.exit(1);
}
const { loadEngine } = await import('../engine.js');
const { sharedPrefix } = await import('../dialogue.js');
const { readPromptCache } = await import('../prompt_cache.js');
const { compileGrammar, GrammarProcessor, userSpans, vocabularyOf } = await import('../grammar.js');

let engine = null;
let vocabulary = null;
const need = () => {
  if (!engine) throw new Error('load a model first');
  return engine;
};

/** Tokens worth sharing: below this, running them again costs less than keeping them. */
const WORTH = 16;

const operations = {
  async load({ folder, load, threads = 0 }) {
    const { env } = transformers;
    env.allowRemoteModels = false;
    env.allowLocalModels = true;
    env.useFSCache = false;
    env.useBrowserCache = false;
    env.localModelPath = path.dirname(path.resolve(folder));
    const start = performance.now();
    const sessionOptions = threads ? { intraOpNumThreads: threads } : {};
    vocabulary = null;
    engine = await loadEngine(transformers, { name: path.basename(path.resolve(folder)), load, device: 'cpu', sessionOptions });
    write({ loaded: true, seconds: (performance.now() - start) / 1000, transformers: env.version, node: process.versions.node });
  },

  async generate({ prompts, grammars = null, maxTokens = 256, share = true }) {
    const model = need();
    if (grammars) vocabulary ??= vocabularyOf(model.tokenizer);
    const encoded = prompts.map((text) => model.encode(text));
    const prefix = share ? sharedPrefix(encoded) : [];
    if (prefix.length >= WORTH && prefix.join() !== model.stored?.ids.join()) await model.prefill(prefix);
    if (!share) model.stored = null;
    for (const [index, ids] of encoded.entries()) {
      if (!share) model.last = null;
      const { tools, ...rest } = grammars?.[index] ?? {};
      const grammar = tools && new GrammarProcessor(compileGrammar(tools, { ...rest, context: userSpans(prompts[index]) }), vocabulary);
      const answer = await model.generateIds(ids, { maxTokens, grammar });
      write({ index, ids: answer.ids, text: model.decode(answer.ids), finished: answer.finished, stats: answer.stats });
    }
    write({ done: true, prefixTokens: prefix.length });
  },

  async render({ messages, tools = null, addGenerationPrompt = true }) {
    write({ text: need().render(messages, tools, addGenerationPrompt) });
  },

  async encode({ texts }) {
    write({ ids: texts.map((text) => need().encode(text)) });
  },

  /** Continue after keys and values from a file: the deployed prefix, checked without a browser. */
  async prefix({ file }) {
    const { readFile } = await import('node:fs/promises');
    const bytes = await readFile(file);
    need().setPrefix(readPromptCache(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)));
    write({ prefixTokens: need().stored.ids.length });
  },
};

const oneLine = (error) => String(error?.message ?? error).split('\n')[0].slice(0, 500);
for await (const line of readline.createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  if (!line.trim()) continue;
  try {
    const { op, ...rest } = JSON.parse(line);
    if (!Object.hasOwn(operations, op)) throw new Error(`unknown op ${op}`);
    await operations[op](rest);
  } catch (error) {
    write({ failure: oneLine(error) });
  }
}
process.exit(0);
