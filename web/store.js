/**
 * Files of a site: downloaded in parts that are checked one by one, kept in the browser's cache, read back as streams.
 * A download that broke off goes on at the part where it stopped, also on the next visit.
 */

/** The format of `site.json` that this page reads. */
export const SITE_FORMAT = 4;
/** Bytes per part; `site.json` has one SHA-256 for each part of this size. */
export const PART = 4 * 1024 * 1024;
/** Bytes that are read at once, at most. */
const ROOM = 256 * 1024;
const CACHE = 'fgtune-parts-1';
/** The cache of the service worker (`sw.js`). */
const SHELL_CACHE = 'fgtune-shell-1';
/** Waits before each automatic retry of a broken connection, in milliseconds. */
const PATIENCE = [500, 2000];

/** A download that broke off; what arrived is kept. */
export class DownloadError extends Error {
  /** @param {string} message @param {boolean} retry whether trying again can help without a change on the server */
  constructor(message, retry) {
    super(message);
    this.name = 'DownloadError';
    this.retry = retry;
  }
}

const hex = (buffer) => Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, '0')).join('');

/**
 * The bytes of a body, piece by piece, each valid until the next. All are read into the same memory where the browser can
 * do that: a new buffer each time is as much garbage as the file is long, and collected late.
 */
async function* piecesOf(body) {
  let [reader, room] = [null, new Uint8Array(ROOM)];
  try {
    reader = body.getReader({ mode: 'byob' });
  } catch {
    [reader, room] = [body.getReader(), null];
  }
  try {
    while (true) {
      const { done, value } = await (room ? reader.read(room) : reader.read());
      if (done) return;
      yield value;
      if (room) room = new Uint8Array(value.buffer);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** SHA-256 in hex; null where the browser offers none (a page that is not served securely). */
export async function sha256(bytes) {
  return globalThis.crypto?.subtle ? hex(await crypto.subtle.digest('SHA-256', bytes)) : null;
}

/**
 * The files of one site.
 * `piece`: the file stands on the host as `path.part00`, `path.part01`, … of so many bytes each (a multiple of PART).
 * @typedef {{path: string, bytes: number, sha256: string, parts: string[], piece?: number}} FileEntry
 */
export class Store {
  /**
   * @param {string} base address of the site's folder, ending in '/'
   * @param {FileEntry[]} files all files that may be asked for
   */
  constructor(base, files) {
    this.base = base;
    this.files = new Map(files.map((file) => [file.path, file]));
    this.memory = new Map(); // parts, where there is no cache or no room
    this.cache = null;
    this.kept = true; // false once a part could not be stored
  }

  async open() {
    try {
      this.cache = globalThis.caches ? await caches.open(CACHE) : null;
    } catch {
      this.cache = null; // a private window may refuse
    }
    this.kept = this.cache !== null;
    return this;
  }

  #key(file, index) {
    return `${this.base}${file.path}?sha256=${file.sha256.slice(0, 16)}&part=${index}`;
  }

  async #keys() {
    if (!this.cache) return new Set(this.memory.keys());
    const requests = await this.cache.keys();
    return new Set([...requests.map((request) => request.url), ...this.memory.keys()]);
  }

  #present(file, keys) {
    let n = 0;
    while (n < file.parts.length && keys.has(this.#key(file, n))) n += 1;
    return n;
  }

  /** Bytes of `paths` that are here already. */
  async have(paths) {
    const keys = await this.#keys();
    return paths.reduce((sum, path) => {
      const file = this.files.get(path);
      return sum + Math.min(this.#present(file, keys) * PART, file.bytes);
    }, 0);
  }

  /**
   * Bring `paths` here, one after the other.
   * @param {string[]} paths
   * @param {(progress: {loaded: number, total: number, file: string}) => void} onProgress
   * @param {AbortSignal} [signal] pauses
   */
  async fetch(paths, onProgress, signal = null) {
    const keys = await this.#keys();
    const total = paths.reduce((sum, path) => sum + this.files.get(path).bytes, 0);
    let before = 0;
    for (const path of paths) {
      const file = this.files.get(path);
      let present = this.#present(file, keys);
      for (let attempt = 0; present < file.parts.length; attempt += 1) {
        try {
          await this.#download(file, present, (loaded) => onProgress({ loaded: before + loaded, total, file: path }), signal);
          break;
        } catch (error) {
          if (signal?.aborted) throw signal.reason ?? error;
          const now = this.#present(file, await this.#keys());
          if (now > present) attempt = 0; // it moves: be patient
          present = now;
          if (!(error instanceof DownloadError) || !error.retry || attempt >= PATIENCE.length) throw error;
          await new Promise((resolve) => setTimeout(resolve, PATIENCE[attempt]));
        }
      }
      before += file.bytes;
      onProgress({ loaded: before, total, file: path });
    }
  }

  /** Bring the rest of a file, from part `first` on, out of its pieces. */
  async #download(file, first, onLoaded, signal) {
    const perPiece = file.piece ? file.piece / PART : file.parts.length;
    for (let start = first; start < file.parts.length; start = (Math.floor(start / perPiece) + 1) * perPiece) {
      const number = Math.floor(start / perPiece);
      const begin = number * perPiece;
      const piece = {
        path: file.piece ? `${file.path}.part${String(number).padStart(2, '0')}` : file.path,
        bytes: Math.min(perPiece * PART, file.bytes - begin * PART),
        parts: file.parts.slice(begin, begin + perPiece),
        key: (index) => this.#key(file, begin + index),
      };
      await this.#downloadPiece(piece, start - begin, (loaded) => onLoaded(begin * PART + loaded), signal);
    }
  }

  async #downloadPiece(file, firstPart, onLoaded, signal) {
    let offset = firstPart * PART;
    const headers = offset ? { Range: `bytes=${offset}-` } : {};
    let response;
    try {
      response = await fetch(this.base + file.path, { headers, signal, cache: 'no-store' });
    } catch (error) {
      throw signal?.aborted ? error : new DownloadError(`${file.path}: the connection failed`, true);
    }
    if (response.status !== 200 && response.status !== 206) {
      const passing = response.status >= 500 || response.status === 429;
      throw new DownloadError(`${file.path}: the server answered ${response.status} ${response.statusText}`.trim(), passing);
    }
    let skip = response.status === 200 ? offset : 0; // a server without ranges starts over
    let index = firstPart;
    const room = new Uint8Array(Math.min(PART, file.bytes)); // for one part after the other
    const sizeOf = () => Math.min(PART, file.bytes - index * PART);
    let filled = 0;
    const pieces = piecesOf(response.body);
    try {
      while (true) {
        let piece;
        try {
          piece = await pieces.next();
        } catch (error) {
          throw signal?.aborted ? error : new DownloadError(`${file.path}: the connection broke off`, true);
        }
        if (piece.done) break;
        let bytes = piece.value;
        if (skip) {
          const cut = Math.min(skip, bytes.length);
          skip -= cut;
          bytes = bytes.subarray(cut);
        }
        while (bytes.length) {
          if (index >= file.parts.length) throw new DownloadError(`${file.path}: the server sent more than ${file.bytes} bytes`, false);
          const take = Math.min(bytes.length, sizeOf() - filled);
          room.set(bytes.subarray(0, take), filled);
          filled += take;
          offset += take;
          bytes = bytes.subarray(take);
          if (filled === sizeOf()) {
            const part = room.subarray(0, filled);
            const digest = await sha256(part);
            if (digest !== null && digest !== file.parts[index]) {
              throw new DownloadError(`${file.path}: part ${index + 1} is not what was deployed (its checksum differs)`, false);
            }
            await this.#put(file.key(index), part);
            index += 1;
            filled = 0;
          }
        }
        onLoaded(offset);
      }
    } finally {
      await pieces.return();
    }
    if (index < file.parts.length) throw new DownloadError(`${file.path}: only ${offset} of ${file.bytes} bytes arrived`, true);
  }

  async #put(key, bytes) {
    if (this.cache && this.kept) {
      try {
        await this.cache.put(key, new Response(bytes, { headers: { 'content-length': String(bytes.length) } }));
        return;
      } catch {
        this.kept = false; // no room: the rest stays in memory for this visit
      }
    }
    this.memory.set(key, bytes.slice());
  }

  /** A part: as it is in memory, or read into `room`. */
  async #part(file, index, room = new Uint8Array(Math.min(PART, file.bytes - index * PART))) {
    const key = this.#key(file, index);
    const bytes = this.memory.get(key);
    if (bytes) return bytes;
    const response = await this.cache?.match(key);
    if (!response) throw new DownloadError(`${file.path}: a part is missing from the browser's cache`, true);
    let filled = 0;
    for await (const piece of piecesOf(response.body)) {
      room.set(piece, filled);
      filled += piece.length;
    }
    return room.subarray(0, filled);
  }

  /** The file as a Response that reads part after part. */
  response(path) {
    const file = this.files.get(path);
    let index = 0;
    const stream = new ReadableStream({
      pull: async (controller) => {
        if (index >= file.parts.length) controller.close();
        else controller.enqueue(await this.#part(file, index++));
      },
    }, { highWaterMark: 0 });
    return new Response(stream, { headers: { 'content-length': String(file.bytes) } });
  }

  /** The file's bytes. @returns {Promise<ArrayBuffer>} */
  async bytes(path) {
    const file = this.files.get(path);
    const out = new Uint8Array(file.bytes);
    for (let i = 0; i < file.parts.length; i += 1) {
      const room = out.subarray(i * PART, (i + 1) * PART);
      const part = await this.#part(file, i, room);
      if (part.buffer !== out.buffer) room.set(part);
    }
    return out.buffer;
  }

  /**
   * `length` bytes of the file from `offset` on, valid until the next call. A model is read so, piece by piece: one part
   * is at hand, in the place of the one before it.
   * @returns {Promise<Uint8Array>}
   */
  async read(path, offset, length) {
    const file = this.files.get(path);
    if (!(this.scratch?.length >= length)) this.scratch = new Uint8Array(Math.max(length, PART));
    const out = this.scratch.subarray(0, length);
    for (let at = offset; at < offset + length;) {
      const index = Math.floor(at / PART);
      const key = this.#key(file, index);
      if (this.recent?.key !== key) {
        this.recent = null;
        this.room ??= new Uint8Array(PART);
        this.recent = { key, bytes: await this.#part(file, index, this.room) };
      }
      const piece = this.recent.bytes.subarray(at - index * PART, Math.min(offset + length - index * PART, PART));
      if (!piece.length) throw new DownloadError(`${path}: only ${file.bytes} bytes, ${offset + length} wanted`, false);
      out.set(piece, at - offset);
      at += piece.length;
    }
    return out;
  }

  /** Have the service worker's cache hold scripts that were imported, so that the page starts without a network. */
  async keepScripts(paths) {
    if (!this.cache) return;
    const cache = await caches.open(SHELL_CACHE);
    for (const path of paths) {
      const url = this.base + path;
      if (!(await cache.match(url))) await cache.add(url).catch(() => {}); // no room, no network: fetched again next time
    }
  }

  /** Keep bytes of our own making under a name; read them back with `recall`. */
  async remember(name, buffer) {
    try {
      await this.cache?.put(`${this.base}${name}`, new Response(buffer));
    } catch { /* no room: made again next time */ }
  }

  async recall(name) {
    const response = await this.cache?.match(`${this.base}${name}`);
    return response ? response.arrayBuffer() : null;
  }

  /** Forget parts in memory: the model has been built from them. */
  release() {
    this.recent = this.room = this.scratch = null;
    if (this.cache && this.kept) this.memory.clear();
  }

  /** Remove what an earlier deployment of this site left behind. */
  async sweep(keepNames = []) {
    if (!this.cache) return;
    const wanted = new Set(keepNames.map((name) => `${this.base}${name}`));
    for (const file of this.files.values()) for (let i = 0; i < file.parts.length; i += 1) wanted.add(this.#key(file, i));
    for (const { url } of await this.cache.keys()) {
      if (url.startsWith(this.base) && !wanted.has(url)) await this.cache.delete(url);
    }
  }

  /** Remove everything of this site; returns the number of entries removed. */
  async clear() {
    this.memory.clear();
    let removed = 0;
    for (const { url } of (await this.cache?.keys()) ?? []) {
      if (url.startsWith(this.base) && (await this.cache.delete(url))) removed += 1;
    }
    return removed;
  }
}
