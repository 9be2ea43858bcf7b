"""A preview server for this machine only."""

from __future__ import annotations

import contextlib
import http.server
import re
import socketserver
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..core.errors import DeployError

MIME = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}


POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class SiteHandler(http.server.BaseHTTPRequestHandler):
    """Files below one folder, read only: no listing, nothing outside it, ranges, and the headers threads need."""

    root: Path
    isolated = True
    quiet = True
    protocol_version = "HTTP/1.1"
    server_version = "fgtune"
    sys_version = ""

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost", "[::1]"):
            return self._refuse(403)  # another name that points here: not ours to answer
        file = self.locate()
        if file is None:
            return self._refuse(404)
        size = file.stat().st_size
        try:
            start, stop = byte_range(self.headers.get("Range"), size)
        except ValueError:
            return self._refuse(416, {"Content-Range": f"bytes */{size}"})
        partial = (start, stop) != (0, size) or bool(self.headers.get("Range"))
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", MIME.get(file.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Cache-Control", "no-cache")
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if body:
            self.send_file(file, start, stop)

    def send_file(self, file: Path, start: int, stop: int) -> None:
        """Send the bytes `start` to `stop` (exclusive) of a file."""
        try:
            with open(file, "rb") as stream:
                stream.seek(start)
                left = stop - start
                while left and (block := stream.read(min(left, 1 << 18))):
                    self.wfile.write(block)
                    left -= len(block)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page paused or was closed

    def locate(self) -> Path | None:
        """The file that a request means, or None."""
        path = unquote(urlsplit(self.path).path)
        if "\0" in path or "\\" in path:
            return None
        parts = [part for part in path.split("/") if part]
        if any(part.startswith(".") for part in parts):
            return None  # '..' and hidden files alike
        root = self.root.resolve()
        file = root.joinpath(*parts).resolve()
        if file.is_dir():
            file = file / "index.html"
        return file if file.is_file() and file.is_relative_to(root) else None

    def _refuse(self, status: int, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        super().end_headers()

    def log_message(self, format, *args):
        if not self.quiet:
            sys.stderr.write(f"{self.address_string()} {format % args}\n")


def byte_range(header: str | None, size: int) -> tuple[int, int]:
    """`(start, stop)` of a Range header with one range; the whole file without one. Raises ValueError when outside."""
    if not header:
        return 0, size
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not found or found[0] == "bytes=-":
        return 0, size  # several ranges, or another unit: the whole file is a valid answer
    first, last = found.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    if start >= size or start >= stop:
        raise ValueError(header)
    return start, stop


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # without the name look-up of HTTPServer
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]


def make_server(site_dir, port: int = 0, isolated: bool = True, quiet: bool = True, handler=SiteHandler):
    """A server of `site_dir` on 127.0.0.1 (port 0: any free one). Raises DeployError."""
    root = Path(site_dir)
    if not (root / "index.html").exists():
        raise DeployError(f"{root} holds no index.html: build a site there first")
    bound = type("BoundHandler", (handler,), {"root": root, "isolated": isolated, "quiet": quiet})
    try:
        return _Server(("127.0.0.1", port), bound)
    except OSError as error:
        raise DeployError(f"port {port} cannot be used: {error.strerror or error}") from None


@contextlib.contextmanager
def serving(site_dir, isolated: bool = True, handler=SiteHandler):
    """`with serving(folder) as url:` serves in a thread, on loopback, until the block ends."""
    server = make_server(site_dir, isolated=isolated, handler=handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def serve(site_dir, port: int = 8000, isolated: bool = True) -> None:
    """Preview a site until Ctrl-C, on this machine only."""
    server = make_server(site_dir, port, isolated, quiet=False)
    print(f"http://127.0.0.1:{server.server_port}/  (this machine only; Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
