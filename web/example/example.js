/** The library in someone's own page. `site/` is the folder that the workbook's last stage deployed. */
import { calculate, loadModel } from '../index.js';

const base = new URLSearchParams(location.search).get('site') ?? '../';
const out = document.getElementById('out');
let model = null;

document.getElementById('load').addEventListener('click', async () => {
  model = await loadModel({ base: new URL(base, location.href), onProgress: ({ loaded, total }) => { out.textContent = `${loaded} of ${total} bytes`; } });
  out.textContent = `ready on ${model.info.device}`;
  document.getElementById('ask').disabled = false;
});

document.getElementById('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const { text, turns } = await model.run(document.getElementById('query').value, { calculate });
  out.textContent = JSON.stringify({ calls: turns.map(({ answer }) => answer.calls), results: turns.map(({ results }) => results), text }, null, 2);
});
