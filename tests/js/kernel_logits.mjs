/** Logits of web/kernels over a variant of this machine's disk: a job on stdin, float32 [tokens, vocab] on stdout. */
import { openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { createDecoder } from '../../web/kernels/decoder.js';

const { layout, folder, chunks, threads } = JSON.parse(readFileSync(0, 'utf8'));
const file = (name) => async () => readFileSync(new URL(`../../web/kernels/${name}.wasm`, import.meta.url));
const both = (kind) => ({ relaxed: file(`${kind}.relaxed`), simd: file(`${kind}.simd`) });
const read = async (path, offset, length) => {
  const bytes = new Uint8Array(length);
  return bytes.subarray(0, readSync(openSync(join(folder, path)), bytes, 0, length, offset));
};
const wasm = { single: both('single'), threads: both('threads') };
const decoder = await createDecoder({ wasm, layout, read, threads, capacity: 600 });
for (const ids of chunks) {
  const logits = decoder.run(ids, { logits: ids.length <= 8 ? 'all' : 'last' });
  process.stdout.write(Buffer.from(Float32Array.from(logits).buffer));
}
decoder.dispose();
