"""The deployed site: what is in it, how it is served, and what a real Chromium makes of it."""

import contextlib
import functools
import http.client
import http.server
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from test_prompt import in_node

from fgtune.core.errors import DeployError, ToolMissing
from fgtune.core.project import project_root
from fgtune.data.developer_turn import DeveloperTurn
from fgtune.data.rows import Row
from fgtune.data.verbatim import is_verbatim
from fgtune.engines.ort import OrtError
from fgtune.format.findings import SchemaError
from fgtune.format.template import TRIGGER, render
from fgtune.quantize.recipes import Recipe
from fgtune.quantize.variants import quantize
from fgtune.runtimes.constrained import Grammar
from fgtune.runtimes.node import NodeError, NodeGenerator, NodeProcess
from fgtune.runtimes.onnxruntime import OrtGenerator
from fgtune.site import browser, prompt_cache
from fgtune.site.browser import browser_job, find_chromium, run_browser, try_in_browser
from fgtune.site.build import build_site
from fgtune.site.drafts import answers_of, context_hash, next_tokens, write_drafts
from fgtune.site.manifest import file_entry, read_manifest
from fgtune.site.pieces import piece_paths, whole_model
from fgtune.site.prompt_cache import precompute_prompt_cache, prefix_ids, question, same_answers, stored_prompt_cache
from fgtune.site.server import bind, serve, serving

TOOLS = json.loads((project_root() / "examples" / "tools" / "everyday.json").read_text(encoding="utf-8"))[:3]
QUERIES = ["What is 3 + 4?", "Weather in Paris, please", "find pictures of cats"]
MAX_TOKENS = 48
SCENARIOS = ("cold_warm_offline", "one_thread", "service_worker_isolates", "webgpu", "broken_downloads", "other_tools",
             "all_at_once", "damaged_prompt_cache", "other_scripts", "other_format", "hostile_tools", "grammar",
             "keyboard_and_access", "hundred_questions")  # fmt: skip
OWN_SCENARIOS = ("cold_warm_offline", "one_thread", "other_tools", "all_at_once", "damaged_prompt_cache",
                 "hostile_tools", "grammar", "hundred_questions")  # fmt: skip


@pytest.fixture(scope="module")
def site(tiny_onnx, tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "site"
    build_site(tiny_onnx, "fp32", TOOLS, out, examples=QUERIES, max_tokens=MAX_TOKENS)
    return out


# ---------------------------------------------------------------- the folder


def test_the_site_is_whole_and_repeatable(tiny_onnx, site, tmp_path):
    description = json.loads((site / "site.json").read_text())
    files = {entry["path"]: entry for entry in description["files"]}
    for path, entry in files.items():
        if "piece" not in entry:
            assert file_entry(site, path) == entry
    variant = description["variants"]["fp32"]
    assert set(variant["files"]) | {variant["prefix"]} <= set(files)
    for device in ("wasm", "webgpu"):
        assert description["runtime"]["transformers"][device]["wasm"] in files
    listed = {path for entry in files.values() for path in piece_paths(entry)} | set(description["shell"])
    there = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert there - listed == {
        "site.json", "sw.js", "tools.json", "model/chat_template.jinja", "model/special_tokens_map.json",
        "runtime/LICENSE-transformers.js.txt", "runtime/LICENSE-onnxruntime.txt", "runtime/LICENSE-tokenizers.txt",
        "runtime/LICENSE-jinja.txt", "runtime/transformers.min.js", "runtime/tokenizers.min.js", "runtime/jinja.js",
        "runtime/ort-wasm-simd-threaded.js", "runtime/ort-wasm-simd-threaded.asyncify.js",
    }  # fmt: skip
    config = json.loads((site / "model/config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": 1}
    assert "chat_template" in json.loads((site / "model/tokenizer_config.json").read_text())
    assert (site / "model/tokenizer.json").stat().st_size < 0.9 * (tiny_onnx / "tokenizer.json").stat().st_size
    text = "".join((site / path).read_text() for path in description["shell"] if path.endswith((".html", ".css", ".js"))
                   and not path.startswith("runtime/"))  # fmt: skip
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text and "innerHTML" not in text
    report = build_site(tiny_onnx, ["fp32"], TOOLS, tmp_path / "again", examples=QUERIES, max_tokens=MAX_TOKENS)
    assert report.hash == description["hash"]
    assert (tmp_path / "again/site.json").read_bytes() == (site / "site.json").read_bytes()
    other = build_site(tiny_onnx, "fp32", TOOLS[:2], tmp_path / "again", prefix=False)
    assert other.hash != report.hash and other.variants["fp32"]["prefix"] is None


def test_the_shipped_prefix_gives_the_same_tokens(tiny_onnx, site):
    prompts = [render([{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}],
                             TOOLS, add_generation_prompt=True) for query in QUERIES]  # fmt: skip
    expected = OrtGenerator(tiny_onnx, "fp32", max_tokens=16).generate_ids(prompts)
    with NodeGenerator(site / "model", "fp32", max_tokens=16) as generator:
        count = generator.use_prefix(site / "prefix/fp32.safetensors")
        for text, ids in zip(prompts, expected, strict=True):
            assert generator.generate_ids([text]) == [ids]
            assert generator.stats[0]["reusedTokens"] == count
        # other tools: only what the two prompts really share may be taken from the prefix
        other = question(QUERIES[0], TOOLS[:2], TRIGGER)
        assert generator.generate_ids([other]) == generator.generate_ids([other], share=False)
        generator.use_prefix(site / "prefix/fp32.safetensors")
        generator.generate_ids([other])
        assert 0 < generator.stats[0]["reusedTokens"] < count
    variant = json.loads((site / "site.json").read_text())["variants"]["fp32"]
    assert variant["prefix_tokens"] == count > 100 and variant["prefix_dtype"] == "float16"


def test_a_prefix_that_rounding_would_change_stays_exact(tiny_onnx, monkeypatch, tmp_path):
    monkeypatch.setattr(prompt_cache, "same_answers", lambda *_: False)
    summary = precompute_prompt_cache(
        tiny_onnx, "fp32", TOOLS, DeveloperTurn(TRIGGER), QUERIES, tmp_path / "p.safetensors", ["x"]
    )
    assert summary["dtype"] == "float32"
    from safetensors.numpy import load_file

    arrays = load_file(tmp_path / "p.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert {array.shape[2] for array in arrays.values()} == {summary["tokens"]}


DATED = DeveloperTurn(f"Date and time: {{date_1}}T{{time_1}}\nDay of week is {{weekday_1}}\n{TRIGGER}\n", (
    ("date_1", "%Y-%m-%d"), ("time_1", "%H:%M:%S"), ("weekday_1", "%A")))  # fmt: skip


@pytest.fixture(scope="module")
def dated_site(tiny_onnx, tmp_path_factory):
    """A site whose model was trained with the date and time in the developer turn."""
    out = tmp_path_factory.mktemp("dated") / "site"
    build_site(tiny_onnx, "fp32", TOOLS, out, examples=QUERIES, developer_turn=DATED, max_tokens=12)
    return out


def test_a_dated_site_ships_what_comes_before_the_date(tiny_onnx, site, dated_site):
    usual, dated = read_manifest(site), read_manifest(dated_site)
    assert usual["developer_turn"] == {"template": TRIGGER, "fields": []} and usual["trigger"] == TRIGGER
    assert DeveloperTurn.from_json(dated["developer_turn"]) == DATED
    ids, _ = stored_prompt_cache(dated_site, "fp32")
    generator = OrtGenerator(tiny_onnx, "fp32")
    assert generator.decode(ids).endswith("Date and time:")
    for now in (datetime(2024, 2, 29, 23, 59), datetime(1999, 12, 31)):
        assert generator.encode(question(QUERIES[0], TOOLS, DATED.fill(now)))[: len(ids)] == ids


@pytest.mark.browser
def test_the_page_sends_the_turn_that_was_trained(dated_site):
    before = datetime.now().replace(microsecond=0)
    rows = try_in_browser(dated_site, QUERIES[:2], timeout=90)
    ids, _ = stored_prompt_cache(dated_site, "fp32")
    seconds = range(int((datetime.now() - before).total_seconds()) + 2)
    at = [before + timedelta(seconds=s) for s in seconds]
    for query, row in zip(QUERIES, rows, strict=False):
        assert row["prompt"] in [question(query, TOOLS, DATED.fill(now)) for now in at]
        assert row["reused_tokens"] >= len(ids)
    assert rows[0]["page"]["prefix"] == "shipped", "the page finds the same prefix"
    expected = OrtGenerator(dated_site / "model", "fp32", max_tokens=12)
    assert [row["ids"] for row in rows] == [expected.generate_ids([row["prompt"]])[0] for row in rows]


def test_rounding_is_judged_by_the_answers(tiny_onnx):
    generator = OrtGenerator(tiny_onnx, "fp32", max_tokens=8)
    ids = prefix_ids(generator.encode, TOOLS, DeveloperTurn(TRIGGER))
    _, past = generator.model.run(np.array([ids]), generator.model.empty())
    exact = {name: value.numpy() for name, value in zip(generator.model.past_names, past, strict=True)}
    asked = [question(query, TOOLS, TRIGGER) for query in QUERIES]
    answers = generator.generate_ids(asked)
    assert same_answers(generator, asked, answers, ids, exact)
    noise = np.random.default_rng(0)
    spoiled = {name: array + noise.standard_normal(array.shape).astype(np.float32) for name, array in exact.items()}
    assert not same_answers(generator, asked, answers, ids, spoiled)
    assert not same_answers(generator, asked, answers, ids, {name: array * np.inf for name, array in exact.items()})
    assert not same_answers(generator, asked, [ids[:3] for ids in answers], ids, exact), "an answer that goes on"


def test_refusals_are_one_line(tiny_onnx, tmp_path):
    for variants, words in (("q9", "unknown variant 'q9'"), ("q4", "does not exist"), ([], "no variant")):
        with pytest.raises(DeployError, match=words):
            build_site(tiny_onnx, variants, TOOLS, tmp_path / "out")
    full = tmp_path / "mine"
    full.mkdir()
    (full / "thesis.txt").write_text("dear")
    with pytest.raises(DeployError, match="not overwritten"):
        build_site(tiny_onnx, "fp32", TOOLS, full)
    with pytest.raises(SchemaError):
        build_site(tiny_onnx, "fp32", [{"name": "f", "parameters": {"type": ["x"]}}, {"name": "f"}], tmp_path / "out")
    assert (full / "thesis.txt").read_text() == "dear" and sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


# ---------------------------------------------------------------- what hosts take


@pytest.fixture(scope="module")
def pieces_site(tiny_onnx, tmp_path_factory):
    """A site for a host that takes 5 MiB a file: weights (grown by unused bytes) and runtime stand in pieces."""
    base = tmp_path_factory.mktemp("pieces")
    shutil.copytree(tiny_onnx, base / "model")
    with open(base / "model" / "onnx" / "model.onnx_data", "ab") as file:
        file.write(np.random.default_rng(0).bytes(8 << 20))
    build_site(base / "model", "fp32", TOOLS, base / "site", examples=QUERIES, max_tokens=MAX_TOKENS, part_mb=5)
    return base


@contextlib.contextmanager
def plainly_served(folder):
    """Python's own file server: no headers of ours, no ranges."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def test_no_file_is_larger_than_hosts_take(site, pieces_site):
    for folder, mb in ((site, 25), (pieces_site / "site", 5)):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        assert max(path.stat().st_size for path in paths) <= mb << 20
        assert not [path for path in paths if path.suffix == ".mjs"], "some hosts give it a type that browsers refuse"
    files = {entry["path"]: entry for entry in read_manifest(pieces_site / "site")["files"]}
    assert files["runtime/ort-wasm-simd-threaded.wasm"]["piece"] == 4 << 20, "whole checked parts"
    assert piece_paths(files["model/onnx/model.onnx_data"]) == [
        f"model/onnx/model.onnx_data.part0{i}" for i in range(3)
    ]


def test_python_reads_a_model_in_pieces(pieces_site):
    site, prompts = pieces_site / "site", [question(query, TOOLS, TRIGGER) for query in QUERIES]
    with whole_model(site) as folder:
        generator = OrtGenerator(folder, "fp32", max_tokens=8)
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for name in names:
            assert name == "tokenizer.json" or "config" in name or (folder / name).read_bytes() == (
                pieces_site / "model" / name).read_bytes(), name  # fmt: skip
    assert not folder.exists() and "onnx/model.onnx_data" in names
    assert generator.generate_ids(prompts) == OrtGenerator(pieces_site / "model", max_tokens=8).generate_ids(prompts)


def test_python_reads_a_prompt_cache_in_pieces(site, tmp_path):
    split, (ids, arrays) = tmp_path / "split", stored_prompt_cache(site, "fp32")
    shutil.copytree(site, split)
    manifest = read_manifest(split)
    (entry,) = [entry for entry in manifest["files"] if entry["path"].startswith("prefix/")]
    data, entry["piece"] = (split / entry["path"]).read_bytes(), 1 << 14
    (split / entry["path"]).unlink()
    for i, path in enumerate(piece_paths(entry)):
        (split / path).write_bytes(data[i << 14 : (i + 1) << 14])
    (split / "site.json").write_text(json.dumps(manifest))
    again = stored_prompt_cache(split, "fp32")
    assert len(piece_paths(entry)) > 1 and again[0] == ids
    assert all(np.array_equal(again[1][name], array) for name, array in arrays.items())


def test_a_whole_model_is_read_where_it_stands(packed_site):
    with whole_model(packed_site) as folder:
        assert folder == packed_site / "model"


def test_parts_that_are_too_small_are_refused(tiny_onnx, tmp_path):
    with pytest.raises(DeployError, match="part_mb = 3 is too small: the page checks parts of 4 MiB"):
        build_site(tiny_onnx, "fp32", TOOLS, tmp_path / "out", part_mb=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_a_plain_file_server_is_enough(pieces_site):
    """No headers, no ranges, files of at most 5 MiB: one thread, and the same answers."""
    with plainly_served(pieces_site / "site") as url:
        status, headers, _ = get(url, "/site.json", Range="bytes=10-")
        assert status == 200 and not [name for name in headers if name.startswith("Cross-Origin")]
        job = browser_job("ask", url=url, queries=QUERIES[:1], serviceWorkers="block", device="wasm", timeout=90000)
        row, final = run_browser(job)
    assert final["page"]["threads"] == 1 and not final["page"]["isolated"] and final["page"]["complaints"] == []
    prompts = [question(QUERIES[0], TOOLS, TRIGGER)]
    generator = OrtGenerator(pieces_site / "model", max_tokens=MAX_TOKENS)
    assert [row["ids"]] == generator.generate_ids(prompts) and final["page"]["prefix"] == "shipped"


@pytest.mark.browser
def test_opened_from_disk_the_page_says_what_to_do(site):
    job = browser_job(url=(site / "index.html").as_uri(), timeout=30000)
    (answer,) = run_browser(job, Path(__file__).parent / "browser" / "from_disk.mjs")
    assert answer["state"] == "failed" and answer["button"] == "Not possible here"
    assert 'serve its folder with "python -m fgtune_helpers serve"' in answer["message"]


@pytest.mark.browser
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ARM's SIMD cannot be switched off")
def test_without_simd_the_page_says_so_before_anything_is_downloaded(site):
    with serving(site) as url:
        job = browser_job(url=url, timeout=30000, moreArgs=["--js-flags=--no-enable-ssse3 --no-enable-sse4-1"])
        (answer,) = run_browser(job, Path(__file__).parent / "browser" / "from_disk.mjs")
    assert answer["button"] == "Not possible here"
    assert answer["message"].startswith("WebAssembly has no SIMD instructions here")


# ---------------------------------------------------------------- two runtimes over the same weights


@pytest.fixture(scope="module")
def packed_site(tiny_onnx, tmp_path_factory):
    """A site with a 4-bit variant; its activations stay floats, as they do in WASM."""
    base = tmp_path_factory.mktemp("packed")
    quantize(tiny_onnx, "q4", base / "model", recipe=Recipe(method="rtn", accuracy_level=0))
    build_site(base / "model", "q4", TOOLS, base / "site", examples=QUERIES, max_tokens=12)
    return base / "site"


def test_the_kernels_share_the_data(packed_site):
    """One file of weights for both runtimes, and nothing of the other runtime among what one needs."""
    description = read_manifest(packed_site)
    variant = description["variants"]["q4"]
    own, files = variant["kernels"], {entry["path"] for entry in description["files"]}
    assert set(own["files"]) <= files and own["layout"] in own["files"]
    assert set(own["files"]) - set(variant["files"]) == {own["layout"]}
    assert set(variant["files"]) - set(own["files"]) == {
        "model/config.json", "model/generation_config.json", "model/onnx/model_q4.onnx"
    }  # fmt: skip
    kernels = description["runtime"]["kernels"]
    for threads in ("threads", "single"):
        assert {kernels["wasm"][threads][kind] for kind in ("relaxed", "simd")} <= files
    for name in ("tokenizers", "jinja"):
        assert (packed_site / kernels[name]).exists() and (packed_site / f"runtime/LICENSE-{name}.txt").exists()
    assert not [path for path in description["shell"] if path.startswith("runtime/")], "scripts come when they are used"
    assert {"kernels/decoder.js", "kernels/helper.js", "native.js"} <= set(description["shell"])


def test_kernels_run_only_what_is_packed(site):
    assert read_manifest(site)["variants"]["fp32"]["kernels"] is None


def test_python_starts_where_the_page_starts(packed_site):
    """From the shipped keys and values, which no longer prefix of the prompts displaces."""
    ids, arrays = stored_prompt_cache(packed_site, "q4")
    entry = read_manifest(packed_site)["variants"]["q4"]
    assert len(ids) == entry["prefix_tokens"] > 100
    assert {str(array.dtype) for array in arrays.values()} == {entry["prefix_dtype"]}
    prompts = [question(query, TOOLS, TRIGGER) for query in ("Weather in Rome", "Weather in Oslo")]
    other = [question(query, TOOLS[:2], TRIGGER) for query in QUERIES]
    moved = {name: array + np.float16(0.5) for name, array in arrays.items()}
    generator = OrtGenerator(packed_site / "model", "q4", max_tokens=8)
    own, expected = generator.generate_ids(prompts), generator.generate_ids(other)
    generator.use_prompt_cache(ids, arrays)
    with NodeGenerator(packed_site / "model", "q4", max_tokens=8) as node:
        node.use_prefix(packed_site / entry["prefix"])
        # one by one: Node would compute what several prompts share
        answers = [node.generate_ids([prompt])[0] for prompt in prompts]
        assert {stats["reusedTokens"] for stats in node.stats} == {len(ids)}
        assert generator.generate_ids(prompts) == answers == own
    logits = [generator.logits(generator.encode(prompts[0]), len(ids), cached) for cached in (False, True)]
    np.testing.assert_allclose(*logits, atol=1e-3)
    generator.use_prompt_cache(ids, moved)
    assert not np.allclose(generator.logits(generator.encode(prompts[0]), len(ids)), logits[0], atol=1e-2)
    assert generator.generate_ids(prompts) != own, "they are what it starts from"
    assert generator.generate_ids(other) == expected, "prompts that begin otherwise do not"
    assert generator.generate_ids(prompts) != own, "and they stay"
    with pytest.raises(OrtError, match="does not hold"):
        generator.use_prompt_cache(ids[:-1], arrays)
    with pytest.raises(DeployError, match="ships no prompt cache"):
        stored_prompt_cache(packed_site, "int8")


def test_a_site_of_another_format_is_refused_in_one_line(tmp_path):
    (tmp_path / "site.json").write_text('{"format": 1}')
    with pytest.raises(DeployError, match="has format 1, not 4: build the site again"):
        read_manifest(tmp_path)
    with pytest.raises(DeployError, match="build a site there first"):
        read_manifest(tmp_path / "none")


@pytest.fixture(scope="module")
def kernel_site(tiny_onnx, tmp_path_factory):
    """A site with a 4-bit variant as recipes make it: activations are rounded to 8 bits, here as in Python."""
    base = tmp_path_factory.mktemp("kernels")
    quantize(tiny_onnx, "q4", base / "model", recipe=Recipe(method="rtn"))
    build_site(base / "model", "q4", TOOLS, base / "site", examples=QUERIES, max_tokens=MAX_TOKENS)
    return base / "site"


def same_but_for_ties(generator, prompt, ours, theirs, gap=0.1):
    """Token ids are the same up to where the two likeliest are so close that rounding to 8 bits decides."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    if shared < max(len(ours), len(theirs)):
        ids = generator.encode(prompt) + theirs[:shared]
        last = np.sort(generator.logits(ids, len(ids) - 1)[-1])
        assert last[-1] - last[-2] < gap, f"after {shared} tokens"


@pytest.fixture(scope="module")
def node_site(kernel_site):
    """The site in Node, on the page's own kernels: `ask(prompts, **options)` gives the answers."""
    with NodeProcess(project_root() / "web" / "node" / "site.mjs") as node:
        loaded = next(node.ask({"op": "load", "folder": str(kernel_site), "threads": 2}))
        assert loaded["prefixTokens"] == read_manifest(kernel_site)["variants"]["q4"]["prefix_tokens"]

        def ask(prompts, **options):
            request = {"op": "generate", "prompts": prompts, **options}
            return list(node.ask(request, last=lambda answer: "done" in answer))[:-1]

        yield ask


def test_kernels_in_node_give_the_tokens_of_onnxruntime(kernel_site, node_site):
    """With drafts and without, free and constrained, from the shipped prompt cache, whatever was asked before."""
    prompts = [question(query, TOOLS, TRIGGER) for query in QUERIES]
    ids, arrays = stored_prompt_cache(kernel_site, "q4")
    generator = OrtGenerator(kernel_site / "model", "q4", max_tokens=MAX_TOKENS)
    generator.use_prompt_cache(ids, arrays)
    grammar = Grammar(kernel_site / "model")
    for constrained in (False, True):
        limits = [grammar.constraint(TOOLS, prompt) for prompt in prompts] if constrained else None
        expected = generator.generate_ids(prompts, limits)
        plain = node_site(prompts, constrained=constrained, drafts=False)
        drafted = node_site(prompts[::-1], constrained=constrained)[::-1]
        assert [answer["ids"] for answer in drafted] == [answer["ids"] for answer in plain]
        for prompt, answer, theirs in zip(prompts, plain, expected, strict=True):
            same_but_for_ties(generator, prompt, answer["ids"], theirs)
        assert {answer["stats"]["reusedTokens"] for answer in (*plain, *drafted)} == {len(ids)}
        for answer in plain:
            assert answer["stats"]["passes"] == len(answer["ids"]) + answer["finished"]
        assert sum(answer["stats"]["passes"] for answer in drafted) <= sum(a["stats"]["passes"] for a in plain)


def test_kernels_in_node_go_on_with_a_dialogue(node_site):
    """Its keys and values are used again, a longer one gets room, and another question starts from the stored ones."""
    first = question(QUERIES[0], TOOLS, TRIGGER)
    (answer,) = node_site([first], constrained="call", maxTokens=80)
    assert answer["finished"]
    response = "<start_function_response>response:calculate{value:7}<end_function_response>"
    longer = first + answer["text"] + response
    (again,) = node_site([longer], maxTokens=8)
    known = again["stats"]["promptTokens"] - again["stats"]["reusedTokens"]
    assert again["stats"]["reusedTokens"] > answer["stats"]["promptTokens"] and known < 40
    far = longer + again["text"] + "<end_of_turn>\n" + "<start_of_turn>user\n" + "and then? " * 700
    (long,) = node_site([far], maxTokens=2)
    assert long["stats"]["promptTokens"] > 1536
    assert node_site([first], constrained="call", maxTokens=80)[0]["ids"] == answer["ids"]


def test_kernels_in_node_say_what_is_too_long_and_go_on(node_site):
    prompt = question(QUERIES[0], TOOLS, TRIGGER)
    (expected,) = node_site([prompt], maxTokens=8)
    with pytest.raises(
        NodeError, match=r"The dialogue has \d+ tokens with the tools, and the model takes fewer than \d+\."
    ):
        node_site([question("and then? " * 3000, TOOLS, TRIGGER)])
    assert node_site([prompt], maxTokens=8)[0]["ids"] == expected["ids"]
    (single,) = node_site([[2]], maxTokens=8)
    assert single["stats"]["promptTokens"] == 1 and single["ids"]


def test_kernels_in_node_leave_what_is_of_another_model(kernel_site, tmp_path):
    """Neither keys and values of other weights nor a damaged table of drafts change an answer."""
    shutil.copytree(kernel_site, tmp_path / "site")
    manifest = read_manifest(kernel_site)
    (weights,) = [entry for entry in manifest["files"] if entry["path"].endswith("q4.onnx_data")]
    weights["sha256"] = "0" * 64
    (tmp_path / "site/prefix/drafts.bin").write_bytes(b"FGN1 damaged")
    manifest["files"].append(file_entry(tmp_path / "site", "prefix/drafts.bin"))
    manifest["drafts"] = "prefix/drafts.bin"
    (tmp_path / "site/site.json").write_text(json.dumps(manifest))
    prompt, answers = question(QUERIES[0], TOOLS, TRIGGER), []
    for folder, tokens in ((kernel_site, manifest["variants"]["q4"]["prefix_tokens"]), (tmp_path / "site", 0)):
        with NodeProcess(project_root() / "web" / "node" / "site.mjs") as node:
            assert next(node.ask({"op": "load", "folder": str(folder)}))["prefixTokens"] == tokens
            request = {"op": "generate", "prompts": [prompt], "maxTokens": 8}
            answers.append(next(node.ask(request, last=lambda answer: "ids" in answer))["ids"])
    generator = OrtGenerator(kernel_site / "model", "q4", max_tokens=8)
    same_but_for_ties(generator, prompt, *answers)


@pytest.mark.browser
def test_kernels_and_onnxruntime_in_chromium(kernel_site, node_site):
    ways = {"threads": {}, "one thread": {"isolated": False}, "plain": {"drafts": False},
            "onnxruntime": {"runtime": "onnxruntime"}}  # fmt: skip
    answers, generator = {}, OrtGenerator(kernel_site / "model", "q4", max_tokens=MAX_TOKENS)
    for name, how in ways.items():
        rows = try_in_browser(kernel_site, QUERIES, timeout=300, **how)
        page = rows[0]["page"]
        assert page["runtime"] == ("onnxruntime" if name == "onnxruntime" else "kernels") and page["complaints"] == []
        assert (page["threads"] > 1) == (name != "one thread") and page["prefix"] == "shipped"
        assert (rows[0]["passes"] is None) == (name == "onnxruntime")
        answers[name] = [row["ids"] for row in rows]
    prompts = [row["prompt"] for row in rows]
    for prompt, ours, theirs in zip(prompts, answers["threads"], answers["onnxruntime"], strict=True):
        same_but_for_ties(generator, prompt, ours, theirs)
    assert answers["threads"] == answers["one thread"] == answers["plain"]
    assert answers["threads"] == [answer["ids"] for answer in node_site(prompts)]


@pytest.mark.browser
@pytest.mark.parametrize(("gone", "runtime", "threads", "why"), [
    ("kernels/helper.js", "kernels", 1, r"WASM, \d+ threads failed: a helper thread does not start"),
    ("runtime/jinja.js", "onnxruntime", None, "WASM, one thread failed"),
])  # fmt: skip
def test_what_does_not_start_is_replaced(kernel_site, tmp_path, gone, runtime, threads, why):
    shutil.copytree(kernel_site, tmp_path / "site")
    (tmp_path / "site" / gone).unlink()
    (row,) = try_in_browser(tmp_path / "site", QUERIES[:1], timeout=300)
    page = row["page"]
    assert page["runtime"] == runtime and page["threads"] == (threads or page["threads"])
    assert re.search(why, page["why"]) and row["ids"]


# ---------------------------------------------------------------- drafts


def test_the_table_of_drafts_says_what_usually_comes_next(tmp_path):
    answers = [[48, 7, 8, 9, 50]] * 3 + [[48, 7, 8, 10, 50], [48, 5, 8, 11, 50], [48, 5, 8, 11, 50], [1, 2, 3, 4, 5]]
    found = next_tokens(answers)
    assert found[(8,)][0] == 9 and found[(5, 8)][0] == 11, "a longer context that knows better"
    assert (48, 7, 8) not in found, "one that says the same is left out"
    assert (1,) not in found and (3, 4) not in found, "what came once is kept nowhere"
    assert write_drafts(answers, tmp_path / "drafts.bin") == len(found)
    contexts = [[48, 7, 8], [48, 5, 8], [48], [2, 3]]
    cases = {"file": str(tmp_path / "drafts.bin"), "contexts": contexts, "hashes": [[0, *each] for each in contexts]}
    read = in_node("drafts_cases.mjs", cases, tmp_path)
    assert [each and each["id"] for each in read["next"]] == [9, 11, 7, None]
    assert read["hashes"] == [context_hash([0, *each]) for each in contexts]
    assert (tmp_path / "drafts.bin").stat().st_size == 12 + 8 * len(found)


def test_answers_are_the_learned_stretches(tiny_onnx):
    row = Row((2, 5, 6, 7, 8, 9), (False, True, True, False, True, True), 1)
    assert answers_of([row]) == [[5, 6], [8, 9]]


def test_a_site_ships_drafts_of_its_rows(tiny_onnx, packed_site, tmp_path):
    rows = [Row((2, 48, 7, 8, 50), (False, True, True, True, True), 1)] * 2
    build_site(packed_site / "model", "q4", TOOLS, tmp_path / "site", prefix=False, rows=rows)
    manifest = read_manifest(tmp_path / "site")
    assert manifest["drafts"] == "prefix/drafts.bin" in [entry["path"] for entry in manifest["files"]]
    assert read_manifest(packed_site)["drafts"] is None


# ---------------------------------------------------------------- serving


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "site").mkdir()
    (folder / "secret.txt").write_text("secret")
    (folder / "site/index.html").write_text("<p>hello")
    (folder / "site/a.wasm").write_bytes(bytes(range(100)))
    (folder / "site/.hidden").write_text("hidden")
    (folder / "site/sub").mkdir()
    (folder / "site/link").symlink_to(folder / "secret.txt")
    with serving(folder / "site") as url:
        yield url


def get(url, path, method="GET", **headers):
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), body


def test_serving_headers_and_ranges(served):
    status, headers, body = get(served, "/a.wasm")
    assert (status, len(body), headers["Content-Type"]) == (200, 100, "application/wasm")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["X-Content-Type-Options"] == "nosniff" and "default-src 'none'" in headers["Content-Security-Policy"]
    assert get(served, "/")[2] == b"<p>hello" and get(served, "/")[1]["Content-Type"].startswith("text/html")
    status, headers, body = get(served, "/a.wasm", Range="bytes=90-")
    assert (status, body, headers["Content-Range"]) == (206, bytes(range(90, 100)), "bytes 90-99/100")
    assert get(served, "/a.wasm", Range="bytes=5-9")[2] == bytes(range(5, 10))
    assert get(served, "/a.wasm", Range="bytes=-3")[2] == bytes(range(97, 100))
    assert get(served, "/a.wasm", Range="bytes=100-")[0] == 416
    assert get(served, "/a.wasm", method="HEAD")[1]["Content-Length"] == "100"


@pytest.mark.parametrize("path", [
    "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/sub/../../secret.txt", "//../secret.txt", "/link",
    "/.hidden", "/%2ehidden", "/sub/", "/none", "/a.wasm%00.html", "/..\\secret.txt",
])  # fmt: skip
def test_nothing_outside_the_folder(served, path):
    status, _, body = get(served, path)
    assert status == 404 and body == b""


def test_only_this_machine(served):
    assert get(served, "/", Host="evil.example")[0] == 403
    with bind() as taken:
        host, port = taken.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(DeployError, match="cannot be used"):
            serve(project_root() / "web", port)
    with pytest.raises(DeployError, match=r"holds no index\.html"), serving(Path(__file__).parent / "data"):
        pass


def test_a_preview_ends_with_ctrl_c():
    heard = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background ignores it
    )
    code = f"{heard}; from fgtune.site.server import serve; serve('web', 0)"
    preview = subprocess.Popen([sys.executable, "-c", code], cwd=project_root(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    url = preview.stdout.readline().split()[0]
    assert get(url, "/")[0] == 200
    preview.send_signal(signal.SIGINT)
    out, errors = preview.communicate(timeout=20)
    assert (preview.returncode, out) == (0, "\n") and errors == '127.0.0.1 "GET /" 200\n'


def test_what_was_built_again_arrives(tmp_path):
    page = tmp_path / "index.html"
    page.write_text("one")
    with serving(tmp_path) as url:
        status, headers, body = get(url, "/")
        assert (status, body) == (200, b"one") and "Etag" not in headers
        stamp = page.stat().st_mtime
        page.write_text("two")
        os.utime(page, (stamp, stamp))
        assert get(url, "/", **{"If-Modified-Since": headers["Last-Modified"]})[2] == b"two"


def test_without_isolation_the_two_headers_are_left_out(site):
    with serving(site, isolated=False) as url:
        assert "Cross-Origin-Opener-Policy" not in get(url, "/")[1]


# ---------------------------------------------------------------- a real browser


def test_a_missing_browser_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("FGTUNE_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(ToolMissing, match="FGTUNE_CHROMIUM"):
        find_chromium()
    monkeypatch.delenv("FGTUNE_CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(browser, "MAC_BROWSERS", ())
    with pytest.raises(ToolMissing, match="no Chromium-based browser"):
        find_chromium()


def play(site, names, runtime, tokens):
    """What the scenarios of tests/browser/scenarios.mjs say of a site."""
    from fgtune.runtimes.node import find_package

    with serving(site) as isolated, serving(site, isolated=False) as plain:
        job = browser_job(
            isolated=isolated, plain=plain, queries=QUERIES, names=list(names), maxTokens=tokens, runtime=runtime,
            axe=str(find_package("axe-core") / "axe.min.js"), wasm=str(site / "runtime/ort-wasm-simd-threaded.wasm"),
            timeout=float(os.environ.get("FGTUNE_BROWSER_TIMEOUT", 90)) * 1000,
        )  # fmt: skip
        answers = run_browser(job, Path(__file__).parent / "browser" / "scenarios.mjs")
    return {answer["name"]: answer for answer in answers if "name" in answer}


@pytest.fixture(scope="module")
def scenarios(site):
    """Every scenario on onnxruntime, run once."""
    return play(site, SCENARIOS, "onnxruntime", MAX_TOKENS)


@pytest.fixture(scope="module")
def own_scenarios(kernel_site):
    """The scenarios that the runtime matters to on our own kernels, run once."""
    return play(kernel_site, OWN_SCENARIOS, "kernels", MAX_TOKENS)


@pytest.mark.browser
@pytest.mark.parametrize("name", OWN_SCENARIOS)
def test_on_kernels_in_chromium(own_scenarios, name):
    assert own_scenarios[name]["ok"], own_scenarios[name]["detail"]


@pytest.mark.browser
def test_kernels_give_the_tokens_of_node_in_every_way(own_scenarios, node_site):
    cold, changed = own_scenarios["cold_warm_offline"], own_scenarios["other_tools"]
    assert cold["ids"] == [answer["ids"] for answer in node_site(cold["prompts"])]
    assert changed["ids"] == [answer["ids"] for answer in node_site(changed["prompts"])]
    assert own_scenarios["one_thread"]["ids"] == cold["ids"][:1]


@pytest.mark.browser
@pytest.mark.parametrize("name", SCENARIOS)
def test_in_chromium(scenarios, name):
    assert scenarios[name]["ok"], scenarios[name]["detail"]


@pytest.mark.browser
def test_every_device_gives_the_tokens_of_node(scenarios, site):
    cold, changed = scenarios["cold_warm_offline"], scenarios["other_tools"]
    with NodeGenerator(site / "model", "fp32", max_tokens=MAX_TOKENS) as generator:
        assert cold["ids"] == generator.generate_ids(cold["prompts"])
        assert changed["ids"] == generator.generate_ids(changed["prompts"])
    assert scenarios["one_thread"]["ids"] == cold["ids"][:1]
    assert scenarios["webgpu"]["ids"] == [cold["ids"][0][:4]]
    for text, query in zip(cold["prompts"], QUERIES, strict=True):
        messages = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}]
        assert text == render(messages, TOOLS, add_generation_prompt=True)


@pytest.mark.browser
def test_a_constrained_site_constrains_answers_without_being_asked(tiny_onnx, tmp_path):
    """Calls of a random model fit the tools, and verbatim arguments are words of the question."""
    out, verbatim = tmp_path / "site", ["get_weather.city", "web_search.query"]
    build_site(tiny_onnx, "fp32", TOOLS, out, max_tokens=120, prefix=False, constrained=True, verbatim=verbatim)
    rows = try_in_browser(out, ["Look up Łódź, please"], timeout=90)
    rows += try_in_browser(out, ["Look up Łódź, please"], constrained="call", timeout=90)
    assert all(row["grammar_ms"] is not None for row in rows) and rows[1]["error"] is None
    values = [
        value for call in rows[1]["calls"] for key, value in call["arguments"].items() if key in ("city", "query")
    ]
    assert values and all(is_verbatim(value, "Look up Łódź, please") for value in values)


@pytest.mark.browser
def test_try_in_browser_asks_through_the_page(site, tmp_path):
    rows = try_in_browser(site, [{"userQuery": QUERIES[0]}], constrained="call", screenshots=tmp_path, timeout=90)
    assert [row["query"] for row in rows] == QUERIES[:1]
    assert rows[0]["calls"] and rows[0]["error"] is None and rows[0]["ttft"] > 0
    assert rows[0]["page"]["prefix"] == "shipped" and rows[0]["page"]["complaints"] == []
    assert rows[0]["reused_tokens"] == rows[0]["page"]["prefixTokens"]
    assert {Path(path).name for path in rows[0]["screenshots"]} == {"before.png", "answer.png", "dark.png", "phone.png"}
    with pytest.raises(DeployError, match="no case"):
        try_in_browser(site, [])
