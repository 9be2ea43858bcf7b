"""What constrained decoding costs and what it is worth, in onnxruntime and in Chromium.

    python benchmarks/grammar.py --run runs/quickstart --json rows.json

`--run` is a finished run. Its held-out cases are answered by unconstrained decoding, by decoding constrained to the
schemas of the tools, and with verbatim arguments constrained to words of the request besides: by the base model as it
came (fp32, exported here), by the tuned one, and by the tuned one on the deployed page. A row says how many answers are
malformed (one that is truncated at 96 tokens is), how many call a tool that does not exist, how many are exactly right,
and what a token costs.
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
HOW = ("off", "tools", "and verbatim")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--variant", default="q4")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--page-cases", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from fgtune.data.readers.files import read_json
    from fgtune.data.rows import load_cases
    from fgtune.export.onnx import export_onnx
    from fgtune.runtimes.constrained import Grammar
    from fgtune.runtimes.onnxruntime import OrtGenerator

    cases = load_cases(options.run / "01_data", "test")[: options.cases]
    tools, verbatim = (read_json(options.run / "01_data" / f"{name}.json") for name in ("tools", "verbatim_arguments"))
    base = json.loads((options.run / "00_setup" / "stage.json").read_text(encoding="utf-8"))["metrics"]["path"]
    rows = []
    print("where                    grammar           malformed  no such tool  exact    ms/token  grammar ms/token")
    with tempfile.TemporaryDirectory() as temporary:
        untuned = Path(temporary) / "base"
        export_onnx(base, untuned)
        for where, folder, variant in (
            ("base model, fp32", untuned, "fp32"),
            (f"tuned, {options.variant}", options.run / "07_quantize", options.variant),
        ):
            generator = OrtGenerator(folder, variant, max_tokens=96, batch_size=1)
            for how, grammar in zip(HOW, (None, Grammar(folder), Grammar(folder, verbatim))):
                rows.append({"where": where, "grammar": how, **in_python(generator, grammar, tools, cases)})
                show(rows[-1])
        for how in HOW:
            found = on_page(options.run, options.variant, tools, verbatim, cases[: options.page_cases], how, temporary)
            rows.append({"where": f"tuned, {options.variant}, page", "grammar": how, **found})
            show(rows[-1])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    constrained = [row for row in rows if row["grammar"] != HOW[0]]
    return int(any(row["malformed"] > row["truncated"] or row["unknown"] for row in constrained))


def in_python(generator, grammar, tools, cases) -> dict:
    """A row of onnxruntime, one answer at a time with the shared prompt run once; `grammar` constrains it, if given."""
    from fgtune.evaluation.judging import judge

    constraints = [grammar.constraint(case.tools, case.prompt) for case in cases] if grammar else None
    begin = time.perf_counter()
    outputs = generator.generate([case.prompt for case in cases], constraints)
    seconds = time.perf_counter() - begin
    results = list(map(judge, cases, outputs, generator.finished))
    tokens = sum(len(ids) + 1 for ids in generator.ids)
    cost = statistics.mean(each.ms_per_token for each in constraints) if constraints else None
    return summary(results, tools, 1000 * seconds / tokens, cost)


def on_page(run: Path, variant: str, tools, verbatim, cases, how: str, temporary: str) -> dict:
    """A row of the deployed page in Chromium."""
    from fgtune.evaluation.judging import judge
    from fgtune.site.browser import try_in_browser
    from fgtune.site.build import build_site

    rules = {"constrained": how != HOW[0], "verbatim": verbatim if how == HOW[2] else ()}
    site = build_site(run / "07_quantize", variant, tools, Path(temporary) / "site", max_tokens=96, **rules).path
    answers = try_in_browser(site, [case.query for case in cases])
    results = [judge(case, a["text"], a["finished"]) for case, a in zip(cases, answers, strict=True)]
    cost = statistics.mean(a["grammar_ms"] for a in answers) if rules["constrained"] else None
    return summary(results, tools, 1000 / statistics.median(a["tokens_per_second"] for a in answers), cost)


def summary(results, tools, ms: float, cost: float | None) -> dict:
    """The columns of a row."""
    from fgtune.evaluation.judging import MALFORMED

    names = {tool["name"] for tool in tools}
    return {
        "cases": len(results),
        "malformed": sum(r.state == MALFORMED for r in results),
        "truncated": sum(not r.finished for r in results),
        "unknown": sum(any(call["name"] not in names for call in r.got) for r in results),
        "exact": sum(r.exact for r in results),
        "ms_per_token": ms,
        "grammar_ms": cost,
    }


def show(row: dict) -> None:
    """Print a row."""
    cost = "" if row["grammar_ms"] is None else f"{row['grammar_ms']:.2f}"
    print(f"{row['where']:<25}{row['grammar']:<18}{row['malformed']:>9}{row['unknown']:>14}"
          f"{row['exact']:>5}/{row['cases']:<3}{row['ms_per_token']:>8.1f}{cost:>18}", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
