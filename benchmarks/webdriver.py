"""Firefox over WebDriver BiDi and WebKit over WebDriver: open an address, evaluate an expression in its page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from tornado.websocket import WebSocketClientConnection, websocket_connect

START = 60  # seconds for a browser to start
ANSWER = 120  # seconds for one command


class BrowserError(RuntimeError):
    """A browser that does not start, or a page that does not do what was asked."""


class Firefox:
    """A headless Firefox with a profile of its own; `complaints` collects the errors of its console."""

    def __init__(self, program: str):
        self.complaints: list[str] = []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [program, "--headless", "--no-remote", "--profile", self._folder.name, "--remote-debugging-port", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._loop, self._id = asyncio.new_event_loop(), 0
        try:
            self._socket: WebSocketClientConnection = self._wait(_connect(self._address()))
            self._call("session.new", capabilities={})
            self._call("session.subscribe", events=["log.entryAdded"])
            self._page = self._call("browsingContext.getTree")["contexts"][0]["context"]
        except BaseException:
            self.close()
            raise

    def _address(self) -> str:
        """Where it listens, which it says on stderr; the rest of that is read and thrown away."""
        found: list[str] = []
        told = threading.Event()

        def read() -> None:
            for line in self._process.stderr:
                if there := re.search(r"BiDi listening on (ws://\S+)", line):
                    found.append(there[1])
                    told.set()
            told.set()

        threading.Thread(target=read, daemon=True).start()
        if not told.wait(START) or not found:
            raise BrowserError("Firefox did not say where it listens")
        return found[0] + "/session"

    def _wait(self, awaitable):
        return self._loop.run_until_complete(asyncio.wait_for(awaitable, ANSWER))

    def _call(self, method: str, **params) -> dict:
        return self._wait(self._exchange(method, params))

    async def _exchange(self, method: str, params: dict) -> dict:
        self._id += 1
        await self._socket.write_message(json.dumps({"id": self._id, "method": method, "params": params}))
        while (text := await self._socket.read_message()) is not None:
            message = json.loads(text)
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.complaints.append(message["params"]["text"])
            if message.get("id") == self._id:
                if message["type"] == "error":
                    raise BrowserError(f"{method}: {message['message']}")
                return message["result"]
        raise BrowserError("Firefox closed the connection")

    def go(self, url: str) -> None:
        self._call("browsingContext.navigate", context=self._page, url=url, wait="complete")

    def evaluate(self, expression: str):
        """What a JavaScript expression (not a promise) is on the page, through JSON."""
        answer = self._call(
            "script.evaluate", expression=f"JSON.stringify({expression}) ?? 'null'", target={"context": self._page},
            awaitPromise=False,
        )  # fmt: skip
        if answer["type"] == "exception":
            raise BrowserError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])

    def close(self) -> None:
        end(self._process)
        self._loop.close()
        self._folder.cleanup()


async def _connect(address: str) -> WebSocketClientConnection:
    return await websocket_connect(address, max_message_size=1 << 28)


class WebKit:
    """WebKitGTK's MiniBrowser on a screen of its own (Xvfb) where there is none."""

    complaints: tuple = ()  # WebDriver does not tell

    def __init__(self, driver: str, browser: str):
        self._started = contextlib.ExitStack()
        try:
            self._folder = self._started.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            environment = {**os.environ, "HOME": self._folder, "DISPLAY": os.environ.get("DISPLAY") or self._screen()}
            environment.update({f"XDG_{kind}_HOME": f"{self._folder}/{kind}" for kind in ("DATA", "CACHE", "CONFIG")})
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            self._run([driver, f"--port={port}"], env=environment, stderr=subprocess.DEVNULL)
            self._base = f"http://127.0.0.1:{port}/session"
            options = {"binary": browser, "args": ["--automation"]}
            made = self._start({"capabilities": {"alwaysMatch": {"webkitgtk:browserOptions": options}}})
            self._base += "/" + made["sessionId"]
            self._started.callback(lambda: self._call("DELETE", ""))
        except BaseException:
            self.close()
            raise

    def _run(self, command: list[str], **options) -> subprocess.Popen:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **options)
        self._started.callback(end, process)
        return process

    def _screen(self) -> str:
        command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x900x24", "-nolisten", "tcp"]
        return ":" + self._run(command, stderr=subprocess.DEVNULL).stdout.readline().decode().strip()

    def _start(self, body: dict) -> dict:
        deadline = time.monotonic() + START
        while True:
            try:
                return self._call("POST", "", body)
            except urllib.error.URLError as error:
                if time.monotonic() > deadline:
                    raise BrowserError(f"WebKitWebDriver does not answer: {error}") from error
                time.sleep(0.2)

    def _call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise BrowserError(json.load(error)["value"]["message"]) from error

    def go(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def evaluate(self, expression: str):
        """What a JavaScript expression (not a promise) is on the page, through JSON."""
        script = f"return JSON.stringify({expression}) ?? 'null'"
        return json.loads(self._call("POST", "/execute/sync", {"script": script, "args": []}))

    def close(self) -> None:
        self._started.close()


def end(process: subprocess.Popen) -> None:
    """End a process that was started as the first of its group, with all of the group."""
    for number in (15, 9):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(10)
            return
        except subprocess.TimeoutExpired:
            continue


def find_firefox() -> tuple[str, ...] | str:
    """What `Firefox` takes, or why it cannot be started."""
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    return (program,) if program else "no program firefox (Debian: firefox-esr)"


def find_webkit() -> tuple[str, ...] | str:
    """What `WebKit` takes, or why it cannot be started."""
    driver = shutil.which("WebKitWebDriver")
    browsers = sorted(Path("/usr").glob("lib*/**/webkit2gtk-4*/MiniBrowser")) if driver else []
    if not browsers:
        return "no program WebKitWebDriver with its MiniBrowser (Debian: webkit2gtk-driver)"
    if not os.environ.get("DISPLAY") and not shutil.which("Xvfb"):
        return "no screen, and no program Xvfb (Debian: xvfb)"
    return driver, str(browsers[0])
