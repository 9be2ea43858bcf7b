"""The deployed page in headless Chromium: loading, first token with and without the shipped prefix, speed, memory.

    python benchmarks/browser.py --run runs/quickstart --json rows.json

`--run` is a finished run. For each variant and device the same held-out questions are asked twice, with the shipped
keys and values of the tool declarations and without them; the answers must be the same, token for token. "packed" is
WASM without the dequantised graph, whose weights are unpacked when it starts. With `--cases N` N held-out cases are
compared with onnxruntime in Python on the graph and the keys and values that the page chose, and with stage 09's
answers of Node, whose products round activations to 8 bits; `--questions 0` does only that. WebGPU is only tried with
`--webgpu` (it needs a GPU: on SwiftShader a 270M model takes minutes a token).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from fgtune.data.readers.files import read_json
from fgtune.data.rows import load_cases

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package
WAYS = {
    "wasm, threads": {"isolated": True},
    "wasm, one thread": {"isolated": False},
    "wasm, packed": {"isolated": True, "memory": "small"},  # without the dequantised graph
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--variants", default="q4")
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--webgpu", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from fgtune.site.build import build_site

    cases = load_cases(options.run / "01_data", "test")
    tools, verbatim = (read_json(options.run / "01_data" / f"{name}.json") for name in ("tools", "verbatim_arguments"))
    questions = [case.query for case in cases if case.calls][: options.questions]
    ways = WAYS | ({"webgpu": {"device": "webgpu"}} if options.webgpu else {})
    rows, bad = [], 0
    print("variant device            prefix    load s  first token s  tokens/s      MB  same tokens")
    with tempfile.TemporaryDirectory() as temporary:
        for variant in options.variants.split(","):
            site = build_site(
                options.run / "07_quantize", variant, tools, Path(temporary) / variant, max_tokens=96,
                constrained=True, verbatim=verbatim,
            ).path  # fmt: skip
            for name, how in ways.items() if questions else ():
                found = time_way(site, variant, name, questions, how)
                rows += found
                bad += not all(row["same_tokens"] for row in found)
            if options.cases:
                row, wrong = compare_answers(options.run, site, variant, cases[: options.cases], verbatim)
                rows.append(row)
                bad += wrong
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if bad else 0


def time_way(site: Path, variant: str, name: str, questions: list[str], how: dict) -> list[dict]:
    """The rows of one way to run the page, with the shipped prefix and without; prints them."""
    from fgtune.site.browser import try_in_browser

    rows, answers = [], {}
    for prefix in (True, False):
        found = answers[prefix] = try_in_browser(site, questions, use_prefix=prefix, **how)
        page = found[0]["page"]
        # Without the file the first question computes the prefix in the page; later ones reuse it.
        row = {
            "variant": variant,
            "device": name,
            "prefix": "shipped" if prefix else "in page",
            "load_seconds": sum(page["seconds"].values()),
            "first_ttft": found[0]["ttft"],
            "later_ttft": statistics.median(a["ttft"] for a in found[1:]) if found[1:] else None,
            "tokens_per_second": statistics.median(a["tokens_per_second"] for a in found),
            "memory_mb": None if page["memory"] is None else page["memory"] / 1e6,
            "same_tokens": [a["ids"] for a in found] == [a["ids"] for a in answers[True]],
        }
        rows.append(row)
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        print(f"{variant:<8}{name:<18}{row['prefix']:<8}{row['load_seconds']:>8.1f}{row['first_ttft']:>15.2f}"
              f"{row['tokens_per_second']:>10.1f}{memory:>8}  {'yes' if row['same_tokens'] else 'NO'}",
              flush=True)  # fmt: skip
    gain = rows[1]["first_ttft"] / rows[0]["first_ttft"]
    print(f"        first answer: first token {gain:.1f}x sooner with the shipped prefix")
    return rows


def compare_answers(run: Path, site: Path, variant: str, asked: list, verbatim: list[str]) -> tuple[dict, bool]:
    """A row that compares the page's answers with Python's and Node's, and whether something is wrong with them."""
    from fgtune.evaluation.judging import judge
    from fgtune.evaluation.near_ties import unexplained_differences
    from fgtune.evaluation.scorecards import Scorecard, score
    from fgtune.runtimes.constrained import Grammar
    from fgtune.runtimes.onnxruntime import OrtGenerator
    from fgtune.site.browser import try_in_browser
    from fgtune.site.pieces import whole_model
    from fgtune.site.prompt_cache import stored_prompt_cache

    grammar = Grammar(run / "07_quantize", verbatim)
    node = Scorecard.load(run / "09_test_node" / f"scorecard_{variant}.json")
    answers = try_in_browser(site, [case.query for case in asked])
    page = Scorecard("page", [judge(c, a["text"], a["finished"]) for c, a in zip(asked, answers, strict=True)])
    with whole_model(site) as model:
        same_graph = OrtGenerator(model, variant, max_tokens=96, dequantized=answers[0]["page"]["dequantized"])
    same_graph.use_prompt_cache(*stored_prompt_cache(site, variant))
    python = score(same_graph, asked, "the page's graph in Python", grammar)
    row = {"variant": variant, "cases": page.n, "hits": page.hits}
    for other in (python, node):
        row[other.name] = {"hits": sum(r.exact for r in other.results if r.id in {c.id for c in asked}),
                           "same": page.same_outputs(other)}  # fmt: skip
        for query, theirs, mine in page.different_from(other):
            print(f"  {query}\n    page: {mine}\n    {other.name}: {theirs}")
    unexplained = unexplained_differences(page, python, same_graph, asked, grammar)
    row["unexplained"] = len(unexplained)
    print(f"{variant}: {row}", *unexplained, sep="\n")
    return row, bool(unexplained) or page.hits < row[node.name]["hits"]


if __name__ == "__main__":
    sys.exit(main())
