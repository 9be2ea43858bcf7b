/** The WebAssembly kernels under Node for benchmarks/kernels.py: one JSON line asks, one answers. */
import { openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setFlagsFromString } from 'node:v8';
import { createDecoder, features } from '../web/kernels/decoder.js';

// Node 20 has relaxed SIMD behind a flag, with a baseline compiler that adds wrongly.
if (Number(process.versions.node.split('.')[0]) < 22)
  for (const flag of ['--experimental-wasm-relaxed-simd', '--no-liftoff']) setFlagsFromString(flag);

const now = () => performance.now() / 1000;
const file = (name) => async () => readFileSync(new URL(`../web/kernels/${name}.wasm`, import.meta.url));
let decoder;

async function load({ layout, folder, threads, build, capacity }) {
  const files = {};
  const read = async (path, offset, length, room) => {
    files[path] ??= openSync(join(folder, path));
    return room.subarray(0, readSync(files[path], room, 0, length, offset));
  };
  const kind = (name) => ({ relaxed: file(`${name}.${build}`), simd: file(`${name}.simd`) });
  const begin = now();
  decoder = await createDecoder({ wasm: { single: kind('single'), threads: kind('threads') }, layout, read, threads, capacity });
  return { seconds: now() - begin, ...features(), rss: process.memoryUsage().rss };
}

function largest(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

/** Read a prompt, then an answer token by token; `chosen` are the likeliest tokens after each. */
function answer({ prompt, answer: tokens }) {
  decoder.truncate(0);
  const cpu = process.cpuUsage();
  const begin = now();
  const chosen = [largest(decoder.run(prompt))];
  const middle = now();
  const read = process.cpuUsage(cpu).user / 1e6;
  for (const token of tokens) chosen.push(largest(decoder.run([token])));
  const decode = now() - middle;
  return { prefill: middle - begin, decode, chosen, prefill_cpu: read, decode_cpu: process.cpuUsage(cpu).user / 1e6 - read,
    rss: process.memoryUsage().rss }; // prettier-ignore
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  try {
    console.log(JSON.stringify(request.op === 'load' ? await load(request) : answer(request)));
  } catch (error) {
    console.log(JSON.stringify({ failure: String(error.message) }));
  }
}
decoder?.dispose();
