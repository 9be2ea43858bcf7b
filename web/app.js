/** The page: looks, loads, asks, shows. Everything from the model or a tool is put in as text, never as markup. */
import { deleteCache, deviceName, inspect, loadModel } from './index.js';
import { functions } from './functions.js';
import { otherScripts } from './scripts.js';

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const state = { model: null, loading: null, asking: null, last: null, site: null, found: null };
/** For the console and for tests. */
globalThis.fgtune = state;

// ---------------------------------------------------------------- small things

/** An element with text and children: `el('p', 'hint', 'text', child)`. */
function el(tag, className = '', ...content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...content); // strings become text nodes
  return node;
}

const MB = 1e6;
const megabytes = (bytes) => (bytes >= 10 * MB || bytes === 0 ? `${Math.round(bytes / MB)} MB` : `${(bytes / MB).toFixed(1)} MB`);
const PARTS = { runtime: 'program', model: 'model', prefix: 'tool declarations', drafts: 'usual answers' };
const partsText = (parts) => Object.entries(parts).filter(([, bytes]) => bytes).map(([name, bytes]) => `${PARTS[name]} ${bytes < MB / 10 ? `${Math.ceil(bytes / 1000)} kB` : megabytes(bytes)}`).join(', ');
const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 1 : 0)} s`);

function span(value) {
  if (value < 60) return `${Math.max(1, Math.round(value))} s`;
  return value < 3600 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

function message(text, bad = false) {
  $('setup-message').hidden = !text;
  $('setup-message').textContent = text;
  $('setup-message').classList.toggle('bad', bad);
}

const wish = () => ({ device: $('device').value, variant: $('variant').value, threads: Number($('threads').value), runtime: $('runtime').value });

// ---------------------------------------------------------------- before the download

async function look() {
  let found;
  try {
    found = await inspect(wish());
  } catch (error) {
    $('setup').dataset.state = 'failed';
    $('load').textContent = 'Try again';
    $('load').disabled = false;
    message(`The page could not be set up: ${error.message}`, true);
    return;
  }
  state.found = found;
  const first = state.site === null;
  state.site = found.site;
  if (first) {
    introduce(found.site);
    if (found.site.constrained && !query.get('grammar')) $('grammar').value = 'any';
  }
  const choice = found.choices[$('device').value];
  const best = choice[0];
  if (!best) {
    $('load').disabled = true;
    $('load').textContent = 'Not possible here';
    message(choice.error, true);
    return;
  }
  if ($('setup-message').classList.contains('bad') && $('setup').dataset.state !== 'paused') message('');
  const missing = best.bytes - best.have;
  $('fact-size').textContent = megabytes(missing);
  $('fact-variant').textContent = best.variant;
  $('fact-device').textContent = deviceName(best);
  $('fact-cached').textContent = best.have === 0 ? 'nothing yet' : missing ? `${megabytes(best.have)} of ${megabytes(best.bytes)}` : `all ${megabytes(best.bytes)}`;
  $('why').textContent = `${best.why ? `Why ${deviceName(best)}: ${best.why}. ` : ''}In parts: ${partsText(best.parts)}.`;
  if (!found.lasting) $('why').textContent += ' This browser keeps no files for this page: they are downloaded at each visit.';
  if (found.room !== null && missing > found.room) message(`The browser offers ${megabytes(found.room)} of storage: the rest is downloaded again next time.`, true);
  $('delete').hidden = best.have === 0;
  $('load').textContent = missing === 0 ? 'Start' : best.have ? `Go on: ${megabytes(missing)} left` : `Download ${megabytes(missing)} and start`;
  $('load').disabled = false;
  if ($('setup').dataset.state !== 'paused') $('setup').dataset.state = 'ready-to-load';
}

/** Once: title, variants, samples, tools. */
function introduce(site) {
  if (site.title) {
    $('title').textContent = site.title;
    document.title = site.title;
  }
  for (const [name, { bytes }] of Object.entries(site.variants)) {
    const option = el('option', '', `${name} (${megabytes(bytes)})`);
    option.value = name;
    $('variant').append(option);
  }
  if (query.get('variant')) $('variant').value = query.get('variant');
  for (const sample of site.samples.slice(0, 6)) {
    const chip = el('button', '', sample);
    chip.type = 'button';
    chip.addEventListener('click', () => {
      $('query').value = sample;
      $('query').focus();
      if (state.model && !state.asking) ask(sample);
    });
    $('samples').append(chip);
  }
  for (const entry of site.tools) {
    const tool = entry.function ?? entry;
    const bound = Object.hasOwn(functions, tool.name);
    const schema = el('pre', '', JSON.stringify(tool.parameters ?? {}, null, 2));
    schema.tabIndex = 0;
    const summary = el('summary', '', el('code', '', tool.name), el('span', bound ? 'badge good' : 'badge', bound ? 'runs here' : 'shows the call'));
    const details = el('details', '', summary, el('p', '', tool.description ?? ''), schema);
    details.dataset.tool = tool.name;
    $('tool-list').append(details);
  }
  $('about').textContent = `${site.tools.length} tools · model and tools ${site.hash.slice(0, 12)}`;
}

// ---------------------------------------------------------------- download and start

function showProgress() {
  const marks = []; // [time, bytes] of the last seconds
  return ({ loaded, total, step }) => {
    if (step) {
      $('progress').removeAttribute('value');
      $('progress-text').textContent = `${step[0].toUpperCase()}${step.slice(1)} …`;
      $('pause').hidden = true;
      return;
    }
    const now = performance.now() / 1000;
    marks.push([now, loaded]);
    while (marks.length > 2 && now - marks[0][0] > 5) marks.shift();
    const speed = (loaded - marks[0][1]) / Math.max(now - marks[0][0], 0.001);
    $('progress').value = total ? loaded / total : 1;
    const left = loaded < total && speed > 0 && now - marks[0][0] > 0.5 ? ` · ${span((total - loaded) / speed)} left` : '';
    const pace = left ? ` · ${(speed / MB).toFixed(1)} MB/s` : '';
    $('progress-text').textContent = `${megabytes(loaded)} of ${megabytes(total)}${pace}${left}`;
  };
}

async function load() {
  if (state.loading) return;
  if (!state.found || state.found.choices[$('device').value].error) {
    await look();
    return;
  }
  const controller = new AbortController();
  state.loading = controller;
  $('setup').dataset.state = 'loading';
  $('load').disabled = true;
  $('load').hidden = true;
  $('delete').hidden = true;
  $('choices').hidden = true;
  $('progress-box').hidden = false;
  $('pause').hidden = false;
  message('');
  navigator.storage?.persist?.().catch(() => {});
  try {
    const usePrefix = query.get('prefix') !== 'off';
    state.model = await loadModel({ ...wish(), usePrefix, onProgress: showProgress(), signal: controller.signal });
    loaded();
  } catch (error) {
    $('setup').dataset.state = 'paused';
    const paused = error.name === 'AbortError';
    if (paused) message('Paused. What has arrived is kept.');
    else if (error.name === 'DownloadError') message(`The download stopped: ${error.message}. What has arrived is kept.`, true);
    else message(`The model did not start: ${error.message}`, true);
    $('load').hidden = false;
    $('choices').hidden = false;
    await look();
    $('load').focus();
  } finally {
    state.loading = null;
    $('pause').hidden = true;
    $('progress-box').hidden = true;
  }
}

function loaded() {
  const { info } = state.model;
  const prefix = {
    shipped: `${info.prefixTokens} tokens of tool declarations came ready`,
    kept: `${info.prefixTokens} tokens of tool declarations kept from an earlier visit`,
    computed: `${info.prefixTokens} tokens of tool declarations read once, kept for the next visit`,
    off: 'tool declarations are read with each question',
  }[info.prefix];
  $('fact-size').textContent = info.fromCache >= info.bytes ? 'nothing: cached' : `${megabytes(info.bytes - info.fromCache)}, done`;
  $('fact-variant').textContent = info.variant;
  $('fact-device').textContent = deviceName(info);
  $('fact-cached').textContent = info.kept ? `all ${megabytes(info.bytes)}` : 'no room: downloaded again next time';
  const took = info.seconds.download + info.seconds.start + info.seconds.prefix;
  $('why').textContent = [`Ready in ${seconds(took)}; ${prefix}.`, info.why ? `Why ${deviceName(info)}: ${info.why}.` : '', `In parts: ${partsText(info.parts)}.`].filter(Boolean).join(' ');
  $('setup').dataset.state = 'loaded';
  $('delete').hidden = !info.kept;
  $('run').disabled = false;
  if (!$('query').value && state.site.samples[0]) $('query').value = state.site.samples[0];
  $('query').focus({ preventScroll: true });
  $('live').textContent = 'The model is ready.';
}

// ---------------------------------------------------------------- ask and show

function showStats({ stats, stopped, finished }) {
  const parts = [
    stats.ttft === null ? null : `first token after ${seconds(stats.ttft)}`,
    stats.tokensPerSecond === null ? null : `${stats.tokensPerSecond.toFixed(stats.tokensPerSecond < 10 ? 1 : 0)} tokens/s`,
    stats.passes ? `${stats.newTokens} tokens in ${stats.passes} passes` : `${stats.newTokens} tokens`,
    `${stats.promptTokens - stats.reusedTokens} of ${stats.promptTokens} prompt tokens run`,
    stats.grammar ? `grammar ${stats.grammar.msPerToken.toFixed(2)} ms/token` : null,
    stopped ? 'stopped' : finished ? null : 'cut at the token limit',
  ];
  return el('div', 'stats', ...parts.filter(Boolean).map((part) => el('span', '', part)));
}

function showCall(call, problems) {
  const box = el('div', problems.length ? 'call wrong' : 'call');
  const badge = problems.length ? el('span', 'badge bad', 'refused') : el('span', 'badge good', 'fits the schema');
  box.append(el('div', 'row', el('h3', '', 'Call'), badge));
  const json = el('pre', 'json', JSON.stringify({ name: call.name, arguments: call.arguments }, null, 2));
  box.append(json);
  for (const problem of problems) box.append(el('p', 'notice bad', problem));
  const tool = state.model.tools.find(({ name }) => name === call.name);
  if (tool) box.append(el('details', 'hint', el('summary', '', `Schema of ${tool.name}`), el('pre', '', JSON.stringify(tool.parameters ?? {}, null, 2))));
  return box;
}

function showResult({ name, status, response }) {
  const words = { ok: ['good', `${name} returned`], failed: ['bad', `${name} failed`], refused: ['warm', 'not run'], unbound: ['', 'no function is bound here: your app would run it'] };
  const [kind, text] = words[status];
  const box = el('div', 'block', el('div', 'row', el('span', `badge ${kind}`, text)));
  if (response !== null) box.append(el('pre', 'result', typeof response === 'string' ? response : JSON.stringify(response, null, 2)));
  return box;
}

function markTools(calls) {
  for (const node of $('tool-list').children) node.classList.toggle('called', calls.some(({ name }) => name === node.dataset.tool));
}

async function ask(text) {
  if (!state.model || state.asking || !text.trim()) return;
  const controller = new AbortController();
  state.asking = controller;
  $('run').disabled = true;
  $('stop').hidden = false;
  $('empty').hidden = true;
  $('live').textContent = 'Working.';
  const item = el('li', 'busy', el('p', 'asked', text));
  item.dataset.state = 'busy';
  if (otherScripts(text, state.site.scripts).length) item.append(el('p', 'notice', `This model was trained for the scripts ${state.site.scripts.join(', ')} only and may get others wrong.`));
  $('turns').prepend(item);
  while ($('turns').children.length > 30) $('turns').lastChild.remove();
  let raw = null;
  const open = () => {
    raw = el('pre', 'raw');
    raw.tabIndex = 0;
    raw.setAttribute('aria-label', 'Text from the model');
    item.append(el('div', 'block', el('h3', '', 'Text from the model'), raw));
  };
  const turns = [];
  const onTurn = (answer, results) => {
    if (!raw) open();
    raw.textContent = answer.text || '(nothing)';
    if (answer.error) item.append(el('p', 'notice bad', `This is no well-formed call: ${answer.error}`));
    answer.calls.forEach((call, i) => {
      item.append(showCall(call, answer.problems[i]));
      if (results[i]) item.append(showResult(results[i]));
    });
    item.append(showStats(answer));
    if (!turns.length) markTools(answer.calls);
    turns.push({ answer, results });
    raw = null;
  };
  const onText = (part) => {
    if (!raw) open();
    raw.textContent = part;
  };
  const options = { signal: controller.signal, constrained: { off: false, any: true, call: 'call' }[$('grammar').value], drafts: query.get('drafts') !== 'off', onText };
  open();
  try {
    if ($('tools-on').checked) {
      const { text: words } = await state.model.run(text, functions, { ...options, onTurn });
      if (words) item.append(el('div', 'answer', words));
      $('live').textContent = words || spoken(turns);
    } else {
      onTurn(await state.model.call(text, options), []);
      $('live').textContent = spoken(turns);
    }
    item.dataset.state = 'done';
  } catch (error) {
    item.append(el('p', 'notice bad', error.message));
    item.dataset.state = 'failed';
    $('live').textContent = error.message;
  } finally {
    item.classList.remove('busy');
    state.last = { query: text, turns };
    state.asking = null;
    $('run').disabled = false;
    $('stop').hidden = true;
  }
}

function spoken(turns) {
  const calls = turns.flatMap(({ answer }) => answer.calls);
  return calls.length ? `The model calls ${calls.map(({ name }) => name).join(', ')}.` : 'The model made no call.';
}

// ---------------------------------------------------------------- wiring

function setTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $('theme').textContent = `Colours: ${theme}`;
  $('theme').value = theme;
  try {
    localStorage.setItem('fgtune-theme', theme);
  } catch { /* a private window */ }
}

function stored(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

setTheme(['auto', 'light', 'dark'].includes(stored('fgtune-theme')) ? stored('fgtune-theme') : 'auto');
$('theme').addEventListener('click', () => setTheme({ auto: 'light', light: 'dark', dark: 'auto' }[$('theme').value]));
$('load').addEventListener('click', load);
$('pause').addEventListener('click', () => state.loading?.abort());
$('stop').addEventListener('click', () => state.asking?.abort());
$('delete').addEventListener('click', async () => {
  await deleteCache();
  message('The cached files are gone. A model that is running goes on until the page is closed.');
  if (!state.model) await look();
  else $('delete').hidden = true;
});
for (const id of ['device', 'variant', 'threads', 'runtime']) $(id).addEventListener('change', look);
$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  ask($('query').value);
});
$('query').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask($('query').value);
  }
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') state.asking?.abort();
});

/** Offline start and, on hosts without the headers, threads: one reload the first time. */
async function serviceWorker() {
  if (!('serviceWorker' in navigator) || !isSecureContext || query.get('sw') === 'off') return;
  try {
    await navigator.serviceWorker.register('sw.js');
    await navigator.serviceWorker.ready;
    const once = 'fgtune-reloaded';
    if (!crossOriginIsolated && !state.model && !state.loading && !sessionStorage.getItem(once)) {
      sessionStorage.setItem(once, 'yes');
      location.reload();
    }
  } catch { /* the page works without it */ }
}

for (const id of ['device', 'threads', 'runtime', 'grammar']) if (query.get(id)) $(id).value = query.get(id);
await Promise.all([look(), serviceWorker()]);
if (query.has('start')) load();
