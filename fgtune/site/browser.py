"""The page in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import DeployError, ToolMissing
from ..core.project import project_root
from ..runtimes.node import NodeProcess, find_package
from .build import query_text
from .server import serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "brave-browser")
MAC_BROWSERS = tuple(
    f"{home}/Applications/{name}.app/Contents/MacOS/{name}"
    for name in ("Google Chrome", "Chromium", "Microsoft Edge", "Brave Browser")
    for home in ("", str(Path.home()))
)


def find_chromium() -> str:
    """Path of a Chromium-based browser: FGTUNE_CHROMIUM, then PATH, then macOS's applications. Raises ToolMissing."""
    how = "install Chromium or Chrome, or set FGTUNE_CHROMIUM to its program"
    if wanted := os.environ.get("FGTUNE_CHROMIUM"):
        program = shutil.which(wanted)
        if not program:
            raise ToolMissing(f"FGTUNE_CHROMIUM is {wanted!r}, which is no program here: {how}")
        return program
    found = next((shutil.which(name) for name in (*BROWSERS, *MAC_BROWSERS) if shutil.which(name)), None)
    if not found:
        raise ToolMissing(f"no Chromium-based browser on this machine: {how}")
    return found


def browser_job(scenario: str = "ask", **options) -> dict:
    """What web/node/browser.mjs needs to know to run one scenario."""
    find_package("playwright-core")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    args = ["--no-sandbox"] if root or os.environ.get("FGTUNE_NO_SANDBOX") else []
    return {"scenario": scenario, "executable": find_chromium(), "args": args, **options}


def run_browser(job: dict, script: Path | None = None) -> list[dict]:
    """Run a scenario; returns its answers, one dict a line. Raises NodeError with the browser's words."""
    with NodeProcess(script or project_root() / "web" / "node" / "browser.mjs") as process:
        return list(process.ask(job, last=lambda answer: answer.get("done", False)))


def try_in_browser(
    site_dir,
    cases: Sequence,
    device: str = "wasm",
    isolated: bool = True,
    variant: str = "auto",
    threads: int = 0,
    use_prefix: bool = True,
    drafts: bool = True,
    runtime: str = "auto",
    run_tools: bool = False,
    constrained: bool | str | None = None,
    screenshots=None,
    timeout: float = 600,
) -> list[dict]:
    """Serve the site on loopback, ask the cases in headless Chromium through the page itself, as a person would.

    `cases` are texts or rows with `userQuery`. Returns per case `{query, text, ids, calls, error, problems, seconds,
    ttft, tokens_per_second, new_tokens, prompt_tokens, reused_tokens, grammar_ms (per token, where constrained),
    answer}`; the first also carries `page` (device, variant, why, load seconds, memory) and `screenshots` (paths, when
    a folder is given). Without `isolated` the headers are left out and the service worker is blocked: one thread. With
    `runtime` "onnxruntime" the page does without its own kernels, without `drafts` each pass gives one token.
    `constrained` (True, False, "call") chooses in place of the site. `timeout` is seconds for each step.
    """
    queries = [query_text(case) for case in cases]
    if not queries or not all(queries):
        raise DeployError("no case to ask, or one without a text")
    folder = Path(screenshots).resolve() if screenshots else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with serving(site_dir, isolated=isolated) as url:
        job = browser_job(
            "ask", url=url, queries=queries, device=device, variant=variant, threads=threads, usePrefix=use_prefix,
            drafts=drafts, runtime=runtime, runTools=run_tools, constrained=constrained,
            screenshots=str(folder) if folder else None, serviceWorkers="allow" if isolated else "block",
            timeout=timeout * 1000,
        )  # fmt: skip
        answers = run_browser(job)
    results = [answer for answer in answers if "query" in answer]
    final = answers[-1]
    if len(results) != len(queries):
        raise DeployError(f"{len(results)} of {len(queries)} cases were answered")
    results[0] |= {"page": final["page"], "screenshots": final["screenshots"]}
    return results
