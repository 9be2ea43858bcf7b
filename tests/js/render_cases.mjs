// node render_cases.mjs FILE: renders {"template", "cases"} with the engine that transformers.js uses; prints texts.
import { readFileSync } from "node:fs";
import { Template } from "@huggingface/jinja";

const { template, cases } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const engine = new Template(template);
const texts = cases.map((variables) => {
  try {
    return { text: engine.render({ bos_token: "<bos>", ...variables }) };
  } catch (error) {
    return { error: error.message };
  }
});
process.stdout.write(JSON.stringify(texts));
