/** Opens the page from its folder and tells what it says: one JSON object on stdin, one line on stdout. */
import readline from 'node:readline';
import { open } from '../../web/node/browser.mjs';

const line = await new Promise((resolve) => { readline.createInterface({ input: process.stdin }).once('line', resolve); });
const job = JSON.parse(line);
const { browser, page } = await open(job);
await page.goto(job.url);
const text = (id) => page.locator(id).innerText();
await page.locator('#setup-message').waitFor();
const answer = { state: await page.locator('#setup').getAttribute('data-state'), button: await text('#load'), message: await text('#setup-message') };
process.stdout.write(`${JSON.stringify({ ...answer, done: true })}\n`);
await browser.close();
process.exit(0);
