"""The deployed page in Chromium, Firefox and WebKit: which build of the kernels, token ids, speed, memory.

    python benchmarks/engines.py --site runs/quickstart/10_deploy_browser/site --json engines.json

`--site` is a deployed folder. The questions are those of the scorecard beside it, or `--question` (as often as wanted).
Each browser that is installed answers them twice: with the headers that threads need, and without. One that is not is
named with the reason. The command fails where a browser gives other token ids than the first one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package

from benchmarks.webdriver import BrowserError, Firefox, WebKit, find_firefox, find_webkit  # noqa: E402

#: What keeps a browser's answers from `web/app.js`.
STATS = {"seconds": "seconds", "ttft": "ttft", "tokens_per_second": "tokensPerSecond", "new_tokens": "newTokens",
         "prompt_tokens": "promptTokens", "reused_tokens": "reusedTokens", "passes": "passes"}  # fmt: skip


def find_chromium() -> tuple | str:
    from fgtune.core.errors import ToolMissing
    from fgtune.site.browser import browser_job

    try:
        browser_job()
    except ToolMissing as error:
        return str(error)
    return ()


def in_chromium(site: Path, questions: list[str], isolated: bool, runtime: str) -> tuple[dict, list[dict]]:
    from fgtune.site.browser import try_in_browser

    answers = try_in_browser(site, questions, isolated=isolated, runtime=runtime)
    return answers[0]["page"], answers


def in_browser(kind: type) -> Callable:
    """A function that asks the questions in a browser of this kind, through the page itself."""

    def ask_all(site: Path, questions: list[str], isolated: bool, runtime: str, *parts: str) -> tuple[dict, list[dict]]:
        from fgtune.site.server import serving

        wish = {"device": "wasm", "runtime": runtime} | ({} if isolated else {"sw": "off"})
        with serving(site, isolated=isolated) as url, contextlib.closing(kind(*parts)) as browser:
            browser.go(f"{url.rstrip('/')}/?{urlencode(wish)}")
            page = start(browser)
            answers = [ask(browser, question) for question in questions]
            return {**page, "complaints": list(browser.complaints)}, answers

    return ask_all


def start(browser) -> dict:
    """Press the button and wait for the model; returns what the page says of it."""
    until(browser, "document.querySelector('#load')?.disabled === false")
    browser.evaluate("document.querySelector('#load').click()")
    state = "document.querySelector('#setup').dataset.state"
    until(browser, f"['loaded', 'paused', 'failed'].includes({state})")
    if browser.evaluate(state) != "loaded":
        raise BrowserError(browser.evaluate("document.querySelector('#setup-message').innerText"))
    return browser.evaluate("{...fgtune.model.info, isolated: crossOriginIsolated, agent: navigator.userAgent}")


def ask(browser, question: str) -> dict:
    """Type a question and send it; returns what `try_in_browser` does of an answer, as far as it is compared here."""
    value = json.dumps(question)
    browser.evaluate(
        f"(fgtune.last = null, document.querySelector('#tools-on').checked = false, "
        f"document.querySelector('#query').value = {value}, document.querySelector('#form').requestSubmit(), 0)"
    )
    until(browser, "fgtune.last !== null && fgtune.asking === null")
    if not browser.evaluate("fgtune.last.turns.length"):
        raise BrowserError(browser.evaluate("document.querySelector('#turns > li').innerText"))
    answer = browser.evaluate("fgtune.last.turns[0].answer")
    stats = {name: answer["stats"].get(key) for name, key in STATS.items()}
    return {"query": question, **{key: answer[key] for key in ("text", "ids", "prompt", "finished")}, **stats}


def until(browser, expression: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not browser.evaluate(f"Boolean({expression})"):
        if time.monotonic() > deadline:
            raise BrowserError(f"not within {seconds:g} seconds: {expression}")
        time.sleep(0.1)


#: How each engine is found (what it is started with, or why it cannot be) and asked.
ENGINES = {
    "Chromium": (find_chromium, in_chromium),
    "Firefox": (find_firefox, in_browser(Firefox)),
    "WebKit": (find_webkit, in_browser(WebKit)),
}


def try_in_engine(
    name: str, site: Path, questions: list[str], isolated: bool = True, runtime: str = "auto"
) -> tuple[dict, list[dict]]:
    """`(page, answers)` as `fgtune.site.browser.try_in_browser` gives them, with `page["peak_mb"]`.

    `isolated`: with the headers that threads need. Raises BrowserError where the engine is not installed.
    """
    find, run = ENGINES[name]
    found = find()
    if isinstance(found, str):
        raise BrowserError(found)
    with peak_memory() as peak:
        page, answers = run(Path(site), questions, isolated, runtime, *found)
    return {**page, "peak_mb": peak[0] / 1e6 if peak[0] else None}, answers


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most bytes that one process below this one held meanwhile, as Linux counts it; 0 elsewhere."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak[0] = max([peak[0], *map(_peak_of, _below(os.getpid()))])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _below(process: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def _peak_of(process: int) -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 0


def row_of(name: str, isolated: bool, page: dict, answers: list[dict]) -> dict:
    """One row of the table."""
    later = answers[1:] or answers
    return {
        "engine": name, "headers": isolated, "agent": page["agent"], "runtime": page["runtime"],
        "build": Path(page["wasm"]).name, "threads": page["threads"], "why": page["why"], "prefix": page["prefix"],
        "load_seconds": sum(page["seconds"].values()), "first_ttft": answers[0]["ttft"],
        "ttft": statistics.median(answer["ttft"] for answer in later),
        "seconds": statistics.median(answer["seconds"] for answer in answers),
        "tokens_per_second": statistics.median(answer["tokens_per_second"] or 0 for answer in answers),
        "peak_mb": page["peak_mb"], "complaints": page["complaints"], "texts": [answer["text"] for answer in answers],
        "ids": [answer["ids"] for answer in answers],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=ROOT / "runs" / "quickstart" / "10_deploy_browser" / "site")
    parser.add_argument("--question", action="append", help="in place of those of the scorecard beside the site")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the browsers are closed
    questions = options.question
    if not questions:
        scorecard = json.loads((options.site.parent / "scorecard.json").read_text(encoding="utf-8"))
        questions = [result["query"] for result in scorecard["results"]]
    rows, failed = [], False
    print("engine, headers: build, threads; load, first token of the first question and of later ones, a call (s), "
          "tokens/s, MB at peak; answers as the first row's")  # fmt: skip
    for name in options.engines.split(","):
        if isinstance(why := ENGINES[name][0](), str):
            print(f"{name:<9} left out: {why}")
            continue
        for isolated in (True, False):
            row = row_of(name, isolated, *try_in_engine(name, options.site, questions, isolated))
            rows.append(row)
            row["same"] = sum(a == b for a, b in zip(row["ids"], rows[0]["ids"], strict=True))
            failed |= row["same"] < len(questions)
            figures = ("load_seconds", "first_ttft", "ttft", "seconds", "tokens_per_second", "peak_mb")
            shown = "  ".join("-" if row[key] is None else f"{row[key]:.3g}" for key in figures)
            begin = f"{name:<9}{'yes' if isolated else 'no':<4}{row['build']:<22}{row['threads']}"
            print(f"{begin}  {shown}  {row['same']}/{len(questions)}  {row['why']}", *row["complaints"], sep="\n    ")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
