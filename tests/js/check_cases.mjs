// node check_cases.mjs FILE: which calls the page would run, so that Python can be held to it.
import { readFileSync } from "node:fs";
import { checkCall } from "../../web/schema.js";

const cases = JSON.parse(readFileSync(process.argv[2], "utf8"));
process.stdout.write(JSON.stringify(cases.map(({ tools, calls }) => calls.map((call) => checkCall(call, tools).length === 0))));
