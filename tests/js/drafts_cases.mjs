// node drafts_cases.mjs FILE: what JavaScript reads out of a table of drafts, so that Python can be held to it.
import { readFileSync } from "node:fs";
import { NgramTable, contextHash } from "../../web/drafts.js";

const { file, contexts, hashes } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const bytes = readFileSync(file);
const table = new NgramTable(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
process.stdout.write(JSON.stringify({ next: contexts.map((ids) => table.next(ids)), hashes: hashes.map(contextHash) }));
