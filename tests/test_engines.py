"""The page in every browser engine that is installed: the token ids of Python, and the right reason for one thread.

Only where `FGTUNE_ENGINES` is set, as `make verify` does: a Firefox that started once did not answer for minutes.
"""

import contextlib
import os

import pytest
from test_deploy import MAX_TOKENS, QUERIES, kernel_site, node_site, same_but_for_ties  # noqa: F401

from benchmarks.engines import ENGINES, find_firefox, find_webkit, start, try_in_engine, until
from benchmarks.webdriver import BrowserError, Firefox, WebKit
from fgtune.runtimes.onnxruntime import OrtGenerator
from fgtune.site.manifest import read_manifest
from fgtune.site.prompt_cache import stored_prompt_cache
from fgtune.site.server import serving

pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(not os.environ.get("FGTUNE_ENGINES"), reason="set FGTUNE_ENGINES=1")]  # fmt: skip
ALONE = {True: "one thread, because this browser offers no SharedArrayBuffer",
         False: "one thread, because the page is not cross-origin isolated"}  # fmt: skip


def installed(find):
    """What a browser is started with; the test is skipped where there is none."""
    if isinstance(found := find(), str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="module")
def in_python(kernel_site):  # noqa: F811
    """Python from the keys and values that the page starts from."""
    generator = OrtGenerator(kernel_site / "model", "q4", max_tokens=MAX_TOKENS)
    generator.use_prompt_cache(*stored_prompt_cache(kernel_site, "q4"))
    return generator


@pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "plain"])
@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_gives_the_tokens_of_python(kernel_site, node_site, in_python, name, isolated):  # noqa: F811
    installed(ENGINES[name][0])
    page, answers = try_in_engine(name, kernel_site, QUERIES, isolated)
    assert page["runtime"] == "kernels" and page["prefix"] == "shipped" and list(page["complaints"]) == []
    assert page["isolated"] == isolated and page["peak_mb"] != 0
    wasm = read_manifest(kernel_site)["runtime"]["kernels"]["wasm"]
    assert page["wasm"] in wasm["threads" if page["threads"] > 1 else "single"].values()
    assert (page["threads"] == 1) == (ALONE[isolated] in page["why"]) and "failed" not in page["why"]
    assert isolated or page["threads"] == 1
    prompts, ids = [answer["prompt"] for answer in answers], [answer["ids"] for answer in answers]
    assert ids == [answer["ids"] for answer in node_site(prompts)]
    for prompt, ours, theirs in zip(prompts, ids, in_python.generate_ids(prompts), strict=True):
        assert ours
        same_but_for_ties(in_python, prompt, ours, theirs)


@pytest.mark.parametrize("name", ["Firefox", "WebKit"])
def test_onnxruntime_is_there_where_the_kernels_are_not_wanted(kernel_site, in_python, name):  # noqa: F811
    installed(ENGINES[name][0])
    page, (answer,) = try_in_engine(name, kernel_site, QUERIES[:1], runtime="onnxruntime")
    assert page["runtime"] == "onnxruntime" and page["wasm"].startswith("runtime/ort-wasm")
    (theirs,) = in_python.generate_ids([answer["prompt"]])
    assert answer["ids"]
    same_but_for_ties(in_python, answer["prompt"], answer["ids"], theirs)


@pytest.mark.parametrize(("find", "kind"), [(find_firefox, Firefox), (find_webkit, WebKit)])
def test_without_headers_the_service_worker_isolates_and_the_files_stay(kernel_site, find, kind):  # noqa: F811
    """Threads wherever the browser has shared memory, and nothing is downloaded a second time."""
    found = installed(find)
    with serving(kernel_site, isolated=False) as url, contextlib.closing(kind(*found)) as browser:
        browser.go(f"{url}?device=wasm")
        until(browser, "crossOriginIsolated", seconds=60)
        shared = browser.evaluate("typeof SharedArrayBuffer !== 'undefined'")
        first = start(browser)
        assert first["isolated"] and first["fromCache"] == 0 and first["kept"]
        assert (ALONE[True] in first["why"]) == (not shared)
        assert shared == (first["threads"] > 1) or browser.evaluate("navigator.hardwareConcurrency") == 1
        browser.go(f"{url}?device=wasm")
        assert start(browser)["fromCache"] == first["bytes"]


def test_a_browser_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for find, words in ((find_firefox, "firefox-esr"), (find_webkit, "webkit2gtk-driver")):
        assert words in find()
    with pytest.raises(BrowserError, match="firefox-esr"):
        try_in_engine("Firefox", tmp_path, QUERIES)
