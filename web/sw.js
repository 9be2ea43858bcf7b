/**
 * Lets the page open without a network, and adds the two headers that threads need on hosts that cannot send them.
 * Model and runtime files are not its business: the page keeps those itself.
 */
const SHELL = 'fgtune-shell-1';
const SCOPE = new URL('./', self.location.href).href;

self.addEventListener('install', (event) => {
  event.waitUntil((async () => {
    const site = await (await fetch('site.json', { cache: 'no-cache' })).json();
    const cache = await caches.open(SHELL);
    await cache.addAll(['./', 'site.json', ...site.shell].map((path) => new Request(new URL(path, SCOPE), { cache: 'no-cache' })));
    await self.skipWaiting();
  })());
});

self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== 'GET' || !url.href.startsWith(SCOPE) || request.headers.has('range')) return;
  const path = url.href.slice(SCOPE.length).split(/[?#]/)[0];
  if (path.startsWith('model/') || path.startsWith('prefix/') || /\.wasm(\.part\d+)?$/.test(path)) return;
  event.respondWith(answer(request, path));
});

async function answer(request, path) {
  const cache = await caches.open(SHELL);
  const key = new URL(path || './', SCOPE).href;
  let response;
  try {
    response = await fetch(request);
    if (response.ok && response.type === 'basic') await cache.put(key, response.clone());
  } catch (error) {
    response = await cache.match(key);
    if (!response) throw error;
  }
  if (response.type === 'opaque' || response.headers.get('cross-origin-embedder-policy')) return response;
  const headers = new Headers(response.headers);
  headers.set('Cross-Origin-Opener-Policy', 'same-origin');
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
  headers.set('Cross-Origin-Resource-Policy', 'same-origin');
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
