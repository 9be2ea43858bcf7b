"""What the grammar of the tools costs and what it is worth, in onnxruntime and in Chromium.

    python benchmarks/grammar.py --run runs/quickstart --json rows.json

`--run` is a finished run. Its held-out cases are answered with the grammar and without it: by the base model as it came
(fp32, exported here), by the tuned one, and by the tuned one on the deployed page. A row says how many answers are
malformed, how many call a tool that does not exist, how many are exactly right, and what a token costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--variant", default="q4")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--page-cases", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from fgtune_helpers import data
    from fgtune_helpers.export import export_onnx
    from fgtune_helpers.ort import OrtGenerator

    cases = data.load_cases(options.run / "01_data", "test")[: options.cases]
    tools = json.loads((options.run / "01_data" / "tools.json").read_text(encoding="utf-8"))
    base = json.loads((options.run / "00_setup" / "stage.json").read_text(encoding="utf-8"))["metrics"]["path"]
    rows = []
    print("where                    grammar  malformed  no such tool  exact    ms/token  grammar ms/token")
    with tempfile.TemporaryDirectory() as temporary:
        untuned = Path(temporary) / "base"
        export_onnx(base, untuned)
        for where, folder, variant in (
            ("base model, fp32", untuned, "fp32"),
            (f"tuned, {options.variant}", options.run / "07_quantize", options.variant),
        ):
            generator = OrtGenerator(folder, variant, max_tokens=96)
            for constrained in (False, True):
                rows.append({"where": where, **in_python(generator, folder, tools, cases, constrained)})
                show(rows[-1])
        for constrained in (False, True):
            found = on_page(options.run, options.variant, tools, cases[: options.page_cases], constrained, temporary)
            rows.append({"where": f"tuned, {options.variant}, page", **found})
            show(rows[-1])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["malformed"] or row["unknown"] for row in rows if row["grammar"]))


def in_python(generator, folder: Path, tools, cases, constrained: bool) -> dict:
    """A row of onnxruntime, one answer at a time with the shared prompt run once, with the grammar or without it."""
    from fgtune_helpers.evaluate import score
    from fgtune_helpers.grammar import ConstrainedGenerator

    maker = ConstrainedGenerator(generator, tools, folder / "tokenizer.json") if constrained else generator
    generator.batch_size = 1
    begin = time.perf_counter()
    card = score(maker, cases, "")
    seconds = time.perf_counter() - begin
    tokens = sum(len(generator.encode(r.output)) + 1 for r in card.results)
    cost = statistics.mean(maker.ms_per_token) if constrained else None
    return summary(card.results, tools, constrained, 1000 * seconds / tokens, cost)


def on_page(run: Path, variant: str, tools, cases, constrained: bool, temporary: str) -> dict:
    """A row of the deployed page in Chromium."""
    from fgtune_helpers.deploy import build_site, try_in_browser
    from fgtune_helpers.evaluate import judge

    site = build_site(run / "07_quantize", variant, tools, Path(temporary) / "site", max_tokens=96).path
    said = try_in_browser(site, [case.query for case in cases], constrained=constrained)
    results = [judge(case, a["text"], a["finished"]) for case, a in zip(cases, said, strict=True)]
    cost = statistics.mean(a["grammar_ms"] for a in said) if constrained else None
    return summary(results, tools, constrained, 1000 / statistics.median(a["tokens_per_second"] for a in said), cost)


def summary(results, tools, constrained: bool, ms: float, cost: float | None) -> dict:
    """The columns of a row."""
    from fgtune_helpers.evaluate import MALFORMED

    names = {tool["name"] for tool in tools}
    return {
        "grammar": constrained,
        "cases": len(results),
        "malformed": sum(r.state == MALFORMED for r in results),
        "unknown": sum(any(call["name"] not in names for call in r.got) for r in results),
        "exact": sum(r.exact for r in results),
        "ms_per_token": ms,
        "grammar_ms": cost,
    }


def show(row: dict) -> None:
    """Print a row."""
    cost = "" if row["grammar_ms"] is None else f"{row['grammar_ms']:.2f}"
    print(f"{row['where']:<25}{'on' if row['grammar'] else 'off':<9}{row['malformed']:>9}{row['unknown']:>14}"
          f"{row['exact']:>5}/{row['cases']:<3}{row['ms_per_token']:>8.1f}{cost:>18}", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
