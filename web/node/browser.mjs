/**
 * Drives the page in headless Chromium. One JSON object on stdin names a scenario; answers are JSON lines on stdout,
 * the last one with `done`. `open`, `start` and `ask` are exported for the browser tests.
 */
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const QUIET = ['--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-quic'];
const SOFTWARE_GPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan', '--ignore-gpu-blocklist'];

/** A browser and one page: `{browser, context, page, problems}`; `problems` collects what the page complains about. */
export async function open(job) {
  const { chromium } = await import('playwright-core');
  const args = [...QUIET, ...(job.args ?? [])];
  if (job.device === 'webgpu' && job.softwareGpu !== false) args.push(...SOFTWARE_GPU);
  else if (job.device !== 'webgpu') args.push('--disable-gpu');
  const browser = await chromium.launch({ executablePath: job.executable, args: [...args, ...(job.moreArgs ?? [])], headless: true });
  const context = await browser.newContext({
    viewport: job.viewport ?? { width: 1280, height: 900 },
    colorScheme: job.colorScheme ?? 'light',
    serviceWorkers: job.serviceWorkers ?? 'allow',
    reducedMotion: 'reduce',
  });
  const page = await context.newPage();
  page.setDefaultTimeout(job.timeout ?? 60000);
  const problems = [];
  page.on('pageerror', (error) => problems.push(`page: ${error.message}`));
  page.on('console', (entry) => {
    if (entry.type() === 'error') problems.push(`console: ${entry.text()}`);
  });
  page.on('request', (request) => {
    const { protocol, hostname } = new URL(request.url());
    if (/^https?:$/.test(protocol) && hostname !== '127.0.0.1') problems.push(`request to ${hostname}`);
  });
  return { browser, context, page, problems };
}

/** Open the page and wait until it knows what it would load. */
export async function visit(page, job) {
  const url = new URL(job.url);
  for (const key of ['device', 'variant']) if (job[key] && job[key] !== 'auto') url.searchParams.set(key, job[key]);
  if (job.threads) url.searchParams.set('threads', job.threads);
  if (job.runtime) url.searchParams.set('runtime', job.runtime);
  if (job.drafts === false) url.searchParams.set('drafts', 'off');
  if (job.usePrefix === false) url.searchParams.set('prefix', 'off');
  if (job.serviceWorkers === 'block') url.searchParams.set('sw', 'off');
  await page.goto(url.href);
  await page.locator('#load:enabled').waitFor();
}

/** Press the button and wait for the model; throws with the page's own message when it does not start. */
export async function start(page) {
  await page.locator('#load:enabled').click();
  await page.locator('#setup[data-state="loaded"], #setup[data-state="paused"]').waitFor();
  if ((await page.locator('#setup').getAttribute('data-state')) === 'paused') {
    await page.locator('#setup-message').waitFor();
    throw new Error(await page.locator('#setup-message').innerText());
  }
}

/** Type a question, press Enter, wait for the end; returns what the page keeps of it. */
export async function ask(page, query) {
  await page.evaluate(() => { globalThis.fgtune.last = null; });
  await page.locator('#query').fill(query);
  await page.locator('#query').press('Enter');
  await page.waitForFunction(() => globalThis.fgtune.last !== null && globalThis.fgtune.asking === null);
  const last = await page.evaluate(() => globalThis.fgtune.last);
  const failed = page.locator('#turns > li').first();
  if ((await failed.getAttribute('data-state')) === 'failed') throw new Error(await failed.innerText());
  return last;
}

/** Set a checkbox. */
export const tick = (page, id, on) => page.locator(`#${id}`).setChecked(on);

/** Memory of the browser's page processes in bytes, as the system counts it; null where `ps` does not tell. */
export async function memory(browser) {
  const session = await browser.newBrowserCDPSession();
  const { processInfo } = await session.send('SystemInfo.getProcessInfo');
  await session.detach();
  const pids = processInfo.filter(({ type }) => type === 'renderer').map(({ id }) => id);
  const { execFileSync } = await import('node:child_process');
  try {
    const lines = execFileSync('ps', ['-o', 'rss=', '-p', pids.join(',')], { encoding: 'utf8' }).trim().split('\n');
    return lines.reduce((sum, line) => sum + Number(line) * 1024, 0);
  } catch {
    return null;
  }
}

/** Ask all queries; pictures of the page before, with an answer, in the dark and on a phone. */
export async function askAll(job, write) {
  const { browser, page, problems } = await open(job);
  const screenshots = [];
  const picture = async (name) => {
    if (!job.screenshots) return;
    const path = `${job.screenshots}/${name}.png`;
    await page.screenshot({ path, fullPage: true });
    screenshots.push(path);
  };
  try {
    await visit(page, job);
    await picture('before');
    await start(page);
    await tick(page, 'tools-on', Boolean(job.runTools));
    const held = { true: 'any', false: 'off', call: 'call' }[job.constrained]; // null: as the page has it
    if (held) await page.locator('#grammar').selectOption(held);
    for (const [index, query] of job.queries.entries()) {
      const { turns } = await ask(page, query);
      const { answer, results } = turns[0];
      write({
        query,
        text: answer.text,
        ids: answer.ids,
        calls: answer.calls,
        error: answer.error,
        problems: answer.problems,
        finished: answer.finished,
        prompt: answer.prompt,
        results,
        answer: turns.length > 1 ? turns.at(-1).answer.text : null,
        seconds: answer.stats.seconds,
        ttft: answer.stats.ttft,
        tokens_per_second: answer.stats.tokensPerSecond,
        new_tokens: answer.stats.newTokens,
        prompt_tokens: answer.stats.promptTokens,
        reused_tokens: answer.stats.reusedTokens,
        passes: answer.stats.passes ?? null,
        grammar_ms: answer.stats.grammar?.msPerToken ?? null,
      });
      if (index === 0) await picture('answer');
    }
    if (job.screenshots) {
      await page.emulateMedia({ colorScheme: 'dark' });
      await picture('dark');
      await page.emulateMedia({ colorScheme: 'light' });
      await page.setViewportSize({ width: 390, height: 844 });
      await picture('phone');
    }
    const info = await page.evaluate(() => ({ ...globalThis.fgtune.model.info, isolated: crossOriginIsolated, agent: navigator.userAgent }));
    const used = await memory(browser);
    write({ done: true, page: { ...info, memory: used, complaints: problems }, screenshots });
  } catch (error) {
    error.message = [error.message, ...problems].join(' | ');
    throw error;
  } finally {
    await browser.close();
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const write = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
  const [line] = await new Promise((resolve) => {
    const input = readline.createInterface({ input: process.stdin });
    input.once('line', (text) => { input.close(); resolve([text]); });
  });
  try {
    await askAll(JSON.parse(line), write);
    process.exit(0);
  } catch (error) {
    write({ failure: String(error?.message ?? error).replace(/\s+/g, ' ').slice(0, 900) });
    process.exit(1);
  }
}
