"""The deployed page in headless Chromium: loading, first token, speed, a finished call, memory, by runtime.

    python benchmarks/browser.py --run runs/quickstart --json rows.json

`--run` is a finished run. For each variant and way to run it the same held-out questions are asked `--repeat` times,
with the shipped keys and values of the tool declarations and, with `--without-prefix`, without; figures are medians
and the middle half around them. The answers of a way must be the same each time, token for token, and those of the
page's own kernels on any number of threads. With `--cases N` N held-out cases are compared with onnxruntime in Python
from the keys and values that the page starts from, and with stage 09's answers of Node; `--questions 0` does only that.
WebGPU is only tried with `--webgpu` (it needs a GPU: on SwiftShader a 270M model takes minutes a token).
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
    "kernels, 2 threads": {"threads": 2, "runtime": "kernels"},
    "kernels, 1 thread": {"threads": 1, "runtime": "kernels"},
    "kernels, no drafts": {"threads": 2, "runtime": "kernels", "drafts": False},
    "onnxruntime": {"runtime": "onnxruntime"},  # the fallback: packed weights, all threads
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--variants", default="q4")
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help="pages opened one after the other, each way")
    parser.add_argument("--ways", help="names of WAYS, separated by ';' (all)")
    parser.add_argument("--without-prefix", action="store_true")
    parser.add_argument("--site", type=Path, help="a site that is built already")
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--webgpu", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from fgtune.data.rows import tokenize
    from fgtune.models.tokenizer_files import load_tokenizer
    from fgtune.site.build import build_site

    cases = load_cases(options.run / "01_data", "test")
    tools, verbatim = (read_json(options.run / "01_data" / f"{name}.json") for name in ("tools", "verbatim_arguments"))
    questions = [case.query for case in cases if case.calls][: options.questions]
    ways = WAYS | ({"webgpu": {"device": "webgpu"}} if options.webgpu else {})
    ways = {name: ways[name] for name in (options.ways.split(";") if options.ways else ways)}
    rows, bad = [], 0
    print("medians and middle halves: load, first token of the first question and of later ones, a call (s), tokens/s, "
          "passes, MB; MB served")  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        for variant in options.variants.split(","):
            site = options.site
            if site is None:
                tokenizer = load_tokenizer(options.run / "07_quantize")
                learned = [tokenize(row, tokenizer) for row in read_json(options.run / "01_data" / "train.jsonl")]
                site = build_site(
                    options.run / "07_quantize", variant, tools, Path(temporary) / variant, max_tokens=96,
                    constrained=True, verbatim=verbatim, rows=learned,
                ).path  # fmt: skip
            found = time_ways(site, variant, ways, questions, options) if questions else []
            rows += found
            own = [row["ids"] for row in found if "kernels" in row["way"]]
            bad += any(row["changed"] for row in found) or any(ids != own[0] for ids in own)
            if options.cases:
                row, wrong = compare_answers(options.run, site, variant, cases[: options.cases], verbatim)
                rows.append(row)
                bad += wrong
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if bad else 0


def time_ways(site: Path, variant: str, ways: dict, questions: list[str], options) -> list[dict]:
    """The rows of each way to run the page; they take turns, so that a busy minute meets all. Prints them."""
    from fgtune.site.browser import try_in_browser

    asked = [(name, prefix) for name in ways for prefix in ((True, False) if options.without_prefix else (True,))]
    found: dict = {key: [] for key in asked}
    for _ in range(options.repeat):
        for name, prefix in asked:
            found[name, prefix].append(try_in_browser(site, questions, use_prefix=prefix, **ways[name]))
    return [row_of(variant, name, prefix, pages) for (name, prefix), pages in found.items()]


def row_of(variant: str, name: str, prefix: bool, pages: list[list[dict]]) -> dict:
    """One row of the pages that a way was opened with; prints it."""
    answers = [answer for page in pages for answer in page]
    states, ids = [page[0]["page"] for page in pages], [[answer["ids"] for answer in page] for page in pages]
    figures = {
        "load_seconds": [sum(state["seconds"].values()) for state in states],
        "first_ttft": [page[0]["ttft"] for page in pages],
        "ttft": [answer["ttft"] for page in pages for answer in (page[1:] or page)],
        "seconds": [answer["seconds"] for answer in answers],
        "tokens_per_second": [answer["tokens_per_second"] for answer in answers],
        "passes": [answer["passes"] for answer in answers],
        "memory_mb": [state["memory"] and state["memory"] / 1e6 for state in states],
    }
    spread = {key: quartiles(values) for key, values in figures.items()}
    row = {"variant": variant, "way": name, "prefix": "shipped" if prefix else "in page", "pages": len(pages),
           "questions": len(pages[0]), "served_mb": states[0]["bytes"] / 1e6, "why": states[0]["why"], **spread,
           "ids": ids[0], "changed": any(each != ids[0] for each in ids)}  # fmt: skip
    shown = "  ".join("-" if value is None else "{1:.3g} ({0:.3g}-{2:.3g})".format(*value) for value in spread.values())
    print(f"{variant:<5}{name:<20}{row['prefix']:<9}{shown}  {row['served_mb']:.0f}"
          f"{'  TOKENS CHANGED' if row['changed'] else ''}", flush=True)  # fmt: skip
    return row


def quartiles(values: list[float | None]) -> list[float] | None:
    """The first quartile, the median and the third; None where there is nothing to measure."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return known * 3 or None
    return statistics.quantiles(known, n=4, method="inclusive")


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
        here = OrtGenerator(model, variant, max_tokens=96)
    here.use_prompt_cache(*stored_prompt_cache(site, variant))
    python = score(here, asked, "Python, the page's prompt cache", grammar)
    row = {"variant": variant, "cases": page.n, "hits": page.hits}
    for other in (python, node):
        row[other.name] = {"hits": sum(r.exact for r in other.results if r.id in {c.id for c in asked}),
                           "same": page.same_outputs(other)}  # fmt: skip
        for query, theirs, mine in page.different_from(other):
            print(f"  {query}\n    page: {mine}\n    {other.name}: {theirs}")
    unexplained = unexplained_differences(page, python, here, asked, grammar)
    row["unexplained"] = len(unexplained)
    print(f"{variant}: {row}", *unexplained, sep="\n")
    return row, bool(unexplained) or page.hits < row[node.name]["hits"]


if __name__ == "__main__":
    sys.exit(main())
