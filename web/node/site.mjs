/**
 * A deployed folder in Node, on our own kernels as on the page. Answers requests on stdin, one JSON object a line:
 *   {"op": "load", "folder": "...", "variant": "q4", "threads": 2}       -> {"loaded": true, "seconds": 1.2, "prefixTokens": 541}
 *   {"op": "generate", "prompts": ["<bos>..."] or [[2, ...]], "constrained": true, "drafts": true, "maxTokens": 96}
 *                                                                      -> {"index": 0, "ids": [...], "text": "...", "stats": {...}} each, then {"done": true}
 * A request that fails answers {"failure": "one line"}; the process goes on. `openSite` is exported for scripts.
 */
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';
import { loadCandidate } from '../load.js';
import { prefixHash, readPromptCache } from '../prompt_cache.js';
import { SITE_FORMAT } from '../store.js';

/** The files of a folder, read as `Store` reads those of an address. */
class Folder {
  constructor(folder, files) {
    this.folder = folder;
    this.files = new Map(files.map((file) => [file.path, file]));
  }

  async read(name, offset, length) {
    const { piece = Infinity } = this.files.get(name);
    const out = new Uint8Array(length);
    for (let at = offset; at < offset + length;) {
      const number = piece < Infinity ? Math.floor(at / piece) : 0;
      const begin = number ? number * piece : 0;
      const end = Math.min(offset + length, begin + piece);
      const file = openSync(path.join(this.folder, piece < Infinity ? `${name}.part${String(number).padStart(2, '0')}` : name));
      const got = readSync(file, out, at - offset, end - at, at - begin);
      closeSync(file);
      if (got !== end - at) throw new Error(`${name} is shorter than site.json says`);
      at = end;
    }
    return out;
  }

  async bytes(name) {
    return (await this.read(name, 0, this.files.get(name).bytes)).buffer;
  }

  response(name) {
    return { json: async () => JSON.parse(new TextDecoder().decode(await this.bytes(name))) };
  }
}

/** Load the model of a deployed folder: `{site, engine}`; the shipped prompt cache is in use where it is of this model and these tools. */
export async function openSite(folder, { variant = null, threads = 1 } = {}) {
  const site = JSON.parse(readFileSync(path.join(folder, 'site.json'), 'utf8'));
  if (site.format !== SITE_FORMAT) throw new Error(`site.json has format ${site.format}, not ${SITE_FORMAT}: build the site again`);
  site.base = `${pathToFileURL(path.resolve(folder)).href}/`;
  const name = variant ?? Object.keys(site.variants).find((each) => site.variants[each].kernels);
  if (!site.variants[name]?.kernels) throw new Error(`our own kernels do not run ${name ?? 'any variant of this site'}`);
  const store = new Folder(folder, site.files);
  const engine = await loadCandidate(site, store, { runtime: 'kernels', device: 'wasm', variant: name, threads }, () => {});
  const { prefix } = site.variants[name];
  const cache = prefix ? readPromptCache(await store.bytes(prefix)) : null;
  if (cache?.hash === (await prefixHash(site, store.files, engine, name))) engine.setPrefix(cache);
  return { site, engine };
}

const write = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

async function serve() {
  let opened = null;
  const operations = {
    async load({ folder, ...options }) {
      const start = performance.now();
      await opened?.engine.dispose();
      opened = await openSite(folder, options);
      write({ loaded: true, seconds: (performance.now() - start) / 1000, prefixTokens: opened.engine.stored?.ids.length ?? 0 });
    },

    async generate({ prompts, constrained = false, drafts = true, maxTokens }) {
      const { site, engine } = opened;
      for (const [index, prompt] of prompts.entries()) {
        const ids = typeof prompt === 'string' ? engine.encodeNext(prompt) : prompt;
        const text = engine.decode(ids);
        const grammar = constrained ? engine.constrain(site.tools, text, { mode: constrained, verbatim: site.verbatim }) : null;
        const answer = await engine.generateIds(ids, { maxTokens: maxTokens ?? site.max_tokens, grammar, drafts });
        write({ index, ids: answer.ids, text: engine.decode(answer.ids), finished: answer.finished, stats: answer.stats });
      }
      write({ done: true });
    },
  };
  for await (const line of readline.createInterface({ input: process.stdin, crlfDelay: Infinity })) {
    if (!line.trim()) continue;
    try {
      const { op, ...rest } = JSON.parse(line);
      if (!Object.hasOwn(operations, op)) throw new Error(`unknown op ${op}`);
      if (op !== 'load' && !opened) throw new Error('load a site first');
      await operations[op](rest);
    } catch (error) {
      write({ failure: String(error?.message ?? error).split('\n')[0].slice(0, 500) });
    }
  }
  process.exit(0);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) await serve();
