"""A preview server for this machine only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler

from ..core.errors import DeployError

HOSTS = ("127.0.0.1", "localhost", "[::1]")
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


class SiteHandler(StaticFileHandler):
    """Files below one folder, read only: no listing, nothing outside it, ranges, and the headers threads need."""

    def prepare(self) -> None:
        if self.request.host.rsplit(":", 1)[0] not in HOSTS:
            raise HTTPError(403)  # another name that points here: not ours to answer

    def set_default_headers(self) -> None:
        self.set_header("Server", "fgtune")
        if self.settings["isolated"]:
            self.set_header("Cross-Origin-Opener-Policy", "same-origin")
            self.set_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")

    def get_content_type(self) -> str:
        return MIME.get(Path(self.absolute_path).suffix, "application/octet-stream")

    def parse_url_path(self, url_path: str) -> str:
        return url_path  # with '/' on every system

    @classmethod
    def get_absolute_path(cls, root: str, path: str) -> str:
        """The file that a request means, links resolved."""
        parts = [part for part in path.split("/") if part]
        if "\0" in path or "\\" in path or any(part.startswith(".") for part in parts):
            raise HTTPError(404)  # '..' and hidden files alike
        return str(Path(root).resolve().joinpath(*parts).resolve())

    def validate_absolute_path(self, root: str, absolute_path: str) -> str:
        """The file itself, or the index of a folder, if it lies below the root."""
        file = Path(absolute_path)
        if file.is_dir():
            file = (file / "index.html").resolve()
        if not file.is_file() or not file.is_relative_to(Path(root).resolve()):
            raise HTTPError(404)
        return str(file)

    def compute_etag(self) -> None:
        """None: it would be a hash of the file, kept for as long as the process lives."""

    def should_return_304(self) -> bool:
        return False  # a site that was built again must arrive

    def write_error(self, status_code: int, **details) -> None:
        self.finish()


@contextlib.contextmanager
def serving(site_dir, isolated: bool = True):
    """`with serving(folder) as url:` serves in a thread, on loopback, until the block ends. Raises DeployError."""
    application = site_application(site_dir, isolated)
    bound = bind()
    loop, done = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(_answer(application, bound, done),), daemon=True)
    thread.start()
    try:
        yield address(bound)
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(timeout=5)
        loop.close()


def serve(site_dir, port: int = 8000, isolated: bool = True) -> None:
    """Preview a site until Ctrl-C, on this machine only. Raises DeployError."""
    application = site_application(site_dir, isolated, log=_log)
    bound = bind(port)
    print(f"{address(bound)}  (this machine only; Ctrl-C ends)", flush=True)
    try:
        asyncio.run(_answer(application, bound, asyncio.Event()))
    except KeyboardInterrupt:
        print()


def site_application(site_dir, isolated: bool = True, log=lambda handler: None) -> Application:
    """What answers requests for a site; `log` is told of each. Raises DeployError for a folder without a page."""
    root = Path(site_dir).resolve()
    if not (root / "index.html").exists():
        raise DeployError(f"{root} holds no index.html: build a site there first")
    return Application([(r"/(.*)", SiteHandler, {"path": str(root)})], isolated=isolated, log_function=log)


def bind(port: int = 0) -> socket.socket:
    """A listening socket on 127.0.0.1 (port 0: any free one). Raises DeployError."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    except (OSError, OverflowError) as error:
        raise DeployError(f"port {port} cannot be used: {getattr(error, 'strerror', None) or error}") from None


def address(bound: socket.socket) -> str:
    """The URL of a listening socket."""
    return f"http://127.0.0.1:{bound.getsockname()[1]}/"


async def _answer(application: Application, bound: socket.socket, done: asyncio.Event) -> None:
    """Answer requests until `done`; everything is closed afterwards."""
    bound.setblocking(False)
    server = HTTPServer(application)
    server.add_socket(bound)
    try:
        await done.wait()
    finally:
        server.stop()
        await server.close_all_connections()


def _log(handler: RequestHandler) -> None:
    request = handler.request
    print(f'{request.remote_ip} "{request.method} {request.uri}" {handler.get_status()}', file=sys.stderr, flush=True)
