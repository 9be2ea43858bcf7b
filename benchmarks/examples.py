"""Exact match against the number of examples, on several data sets and seeds: what training defaults are decided by.

    python benchmarks/examples.py --sets heating pantry --sizes 10 25 --seeds 1 2 --recipes before auto
    python benchmarks/examples.py --data FOLDER --sets all --sizes 5 10 25 50 100 all --seeds 1 2 3 --json table.json

A fit takes `size` examples per tool (a text answer and several tools count as tools of their own), all that its user
has: validation cases come from them. It trains, answers the set's cases with constrained decoding, and is kept in
`--out` case by case, so that an interrupted grid goes on and two recipes can be compared on the same cases (McNemar's
exact test over all fits that both have). `--part choose` answers the cases that a recipe may be chosen by, `report`
the others; the two have none in common. A recipe is a name of `RECIPES`, or changes to one:
`auto:learning_rate=2e-4,augment=3`. `--vocabulary full 65536` trains each recipe with each of these vocabularies, which
is `vocabulary` of a recipe; the second one's fits are compared with the first one's.

`FOLDER` holds public sets with official splits as `NAME/{tools,train,valid,test}.json` (snips, home_ko): choose takes
`valid`, report takes `test`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package
# ruff: noqa: E402

from fgtune.core import blas
from fgtune.data.augment import augment_examples
from fgtune.data.examples import label
from fgtune.data.readers.examples import load_examples
from fgtune.data.readers.tools import load_tools
from fgtune.data.rows import case_of, tokenize
from fgtune.data.splits import split_examples
from fgtune.data.verbatim import verbatim_arguments
from fgtune.evaluation.scorecards import score
from fgtune.models.adapters import add_lora, load_model
from fgtune.models.base import resolve_base
from fgtune.models.tokenizer_files import load_tokenizer
from fgtune.models.vocabulary import keep_vocabulary
from fgtune.runtimes.constrained import Grammar
from fgtune.runtimes.mlx import MlxGenerator
from fgtune.training.choose import choose_precision, choose_softmax
from fgtune.training.config import TrainConfig
from fgtune.training.loop import train
from fgtune.training.recipe import DERIVED, derive_settings
from fgtune_helpers.params import coerce

SHIPPED, SMALL = ("everyday", "office"), ("heating", "pantry", "workshop")
PUBLIC = ("snips", "home_ko")
SIMILARITY, MAX_TOKENS, LONGEST_ROW = 85, 128, 8192
DEFAULTS = {"rank": 8, "scale": 20.0, "dropout": 0.0, "num_layers": 12, "augment": 1, "combine": 0.1, "valid": 32}
RECIPES = {
    "auto": {**DERIVED, "augment": -1, "patience": 3},  # the workbook's defaults
    # the defaults of the workbook until November 2026, and the other recipe that was tried beside them
    "before": {"iters": 150, "batch_size": 24, "learning_rate": 5e-4, "steps_per_eval": 140},
    "slow": {"iters": 100, "batch_size": 8, "learning_rate": 1e-4, "num_layers": -1, "steps_per_eval": 50},
}


@dataclass(frozen=True)
class DataSet:
    """A set's `tools`, the examples that fits may take (`pool`), its own validation examples (`valid`, may be empty),
    and the cases that choose or report."""

    tools: list[dict]
    pool: list[dict]
    valid: list[dict]
    cases: list[dict]


@cache
def load_set(name: str, part: str, data: Path | None) -> DataSet:
    """A set by name; the cases of `part`, choose or report."""
    if name in SHIPPED:
        tools_file = ROOT / "examples" / "tools" / ("everyday.json" if name == "everyday" else "")  # office needs all
        tools, rows = _read(tools_file, ROOT / f"examples/requests/{name}.json")
        splits = split_examples(rows, valid=0, test=480, similarity=SIMILARITY, seed=7)
        return DataSet(tools, splits["train"], [], _half(splits["test"], part))
    folder = (ROOT / "benchmarks" / "sets" if name in SMALL else Path(data)) / name
    tools, pool = _read(folder / "tools.json", folder / "train.json")
    if name in SMALL:
        return DataSet(tools, pool, [], _half(_read(folder / "tools.json", folder / "test.json")[1], part))
    official = {split: _read(folder / "tools.json", folder / f"{split}.json")[1] for split in ("valid", "test")}
    return DataSet(tools, pool, official["valid"], official["valid" if part == "choose" else "test"])


def _read(tools_file: Path, examples_file: Path) -> tuple[list[dict], list[dict]]:
    tools, findings = load_tools(tools_file)
    rows, more = load_examples(examples_file, tools)
    if errors := [f for f in [*findings, *more] if f.level == "error"]:
        raise SystemExit(str(errors[0]))
    return tools, rows


def _half(rows: list[dict], part: str) -> list[dict]:
    odd = lambda row: hashlib.sha256(row["id"].encode()).digest()[0] % 2
    return [row for row in rows if odd(row) == (part == "report")]


def sample(rows: list[dict], per_label: int | None, seed: int) -> list[dict]:
    """At most `per_label` rows of each label (None: all), chosen by the seed, in the order of `rows`; a larger sample
    of the same seed holds the smaller one."""
    if per_label is None:
        return rows
    rank = lambda row: hashlib.sha256(f"{seed} {row['id']}".encode()).digest()
    by_label = defaultdict(list)
    for row in rows:
        by_label[label(row)].append(row)
    kept = {row["id"] for members in by_label.values() for row in sorted(members, key=rank)[:per_label]}
    return [row for row in rows if row["id"] in kept]


# ---------------------------------------------------------------- one fit


@dataclass(frozen=True)
class Fit:
    """What one fit is made of; `size` None takes all examples."""

    set: str
    size: int | None
    seed: int
    recipe: str
    settings: tuple[tuple[str, object], ...]
    part: str
    limit: int
    base: str

    def path(self, out: Path) -> Path:
        """Where its result is kept."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()[:10]
        return out / f"{self.set}-{self.size or 'all'}-{self.seed}-{self.part}-{digest}.json"


def settings_of(recipe: str) -> dict:
    """The settings of a recipe: those of its name, with the changes behind the colon."""
    name, _, changes = recipe.partition(":")
    if name not in RECIPES:
        raise SystemExit(f"no recipe {name!r}: {', '.join(RECIPES)}")
    pairs = dict(change.split("=", 1) for change in changes.split(",") if change)
    if wanted := pairs.pop("vocabulary", None):
        wanted = {"vocabulary": coerce("vocabulary", wanted)}
    return {**DEFAULTS, **RECIPES[name], **{key: json.loads(value) for key, value in pairs.items()}, **(wanted or {})}


def with_vocabulary(recipe: str, wanted: str) -> str:
    """A recipe that trains with another vocabulary; the whole one is no change."""
    return recipe if wanted == "full" else f"{recipe}{',' if ':' in recipe else ':'}vocabulary={wanted}"


def split_of(data: DataSet, fit: Fit, valid: int) -> dict[str, list[dict]]:
    """The splits of a fit: what its user has, split as stage 01 splits it, but for test cases."""
    rows = sample(data.pool, fit.size, fit.seed)
    if fit.size is None and data.valid:
        return {"train": rows, "valid": sample_cases(data.valid, valid), "test": []}
    return split_examples(rows, valid=valid, test=0, similarity=SIMILARITY, seed=fit.seed)


def run(fit: Fit, data: DataSet) -> dict:
    """Train and answer: the result as it is kept."""
    p = dict(fit.settings)
    splits = split_of(data, fit, p["valid"])
    varied = {"copies": p["augment"], "joined": p["combine"], "similarity": SIMILARITY, "seed": fit.seed}
    made = augment_examples(splits, **varied)
    base = resolve_base(fit.base).path
    with tempfile.TemporaryDirectory() as folder:
        if (wanted := p.get("vocabulary", "full")) != "full":
            plain = load_tokenizer(base)
            rows = [tokenize(example, plain, LONGEST_ROW) for example in splits["train"] + made.examples]
            base = keep_vocabulary(base, wanted, rows, plain, Path(folder) / "base").folder
        return _run(fit, data, base, splits, made.examples)


def _run(fit: Fit, data: DataSet, base: Path, splits: dict[str, list[dict]], made: list[dict]) -> dict:
    p = dict(fit.settings)
    mx = blas.mlx()
    mx.random.seed(fit.seed)
    model, tokenizer = load_model(base)
    plain = tokenizer._tokenizer
    kept, valid = splits["train"], splits["valid"]
    rows = [tokenize(example, plain, LONGEST_ROW) for example in kept + made]
    valid_rows = [tokenize(example, plain, LONGEST_ROW) for example in valid]
    p |= {setting.name: setting.value for setting in derive_settings(rows, {**DERIVED, **p}, fit.seed)}
    adapters = {key: p[key] for key in ("rank", "scale", "dropout", "num_layers")}
    add_lora(model, **adapters, seed=fit.seed)
    chosen = {key.name: p[key.name] for key in fields(TrainConfig) if key.name in p}
    fixed = {"precision": choose_precision(model), "softmax": choose_softmax(model), "save_every": 0}
    config = TrainConfig(**{"steps_per_report": 50, **fixed, **chosen, "seed": fit.seed})
    checks = [case_of(example) for example in valid]
    exact = lambda model: score(MlxGenerator(model, tokenizer, max_tokens=MAX_TOKENS), checks).exact
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        history = train(model, tokenizer, rows, valid_rows, config, folder, exact if checks else None)
    seconds = time.perf_counter() - began
    cases = [case_of(example) for example in sample_cases(data.cases, fit.limit)]
    grammar = Grammar(base, verbatim_arguments(kept))
    card = score(MlxGenerator(model, tokenizer, max_tokens=MAX_TOKENS), cases, fit.recipe, grammar)
    return {
        "fit": asdict(fit),
        "examples": len(kept) + len(valid),
        "rows": len(rows),
        "entries": json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"],
        "steps": len(history.losses),
        "train_seconds": seconds,
        "loss": statistics.fmean(history.losses[-10:]),
        "evals": history.evals,
        "best_iter": history.best_iter,
        "summary": card.summary(),
        "results": [asdict(result) for result in card.results],
    }


def sample_cases(cases: list[dict], limit: int) -> list[dict]:
    """At most `limit` cases, the same ones in every fit."""
    order = sorted(cases, key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    return order[:limit] if limit else order


# ---------------------------------------------------------------- the table


def mcnemar(first: list[dict], second: list[dict]) -> tuple[int, int, float]:
    """(only `first` right, only `second` right, two-sided exact p) over the cases of results of the same fits."""
    a = b = 0
    for one, other in zip(first, second, strict=True):
        right = {result["id"]: result["exact"] for result in other["results"]}
        for result in one["results"]:
            mine, theirs = result["exact"], right[result["id"]]
            a, b = a + (mine and not theirs), b + (theirs and not mine)
    n, low = a + b, min(a, b)
    p = min(1.0, 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n) if n else 1.0
    return a, b, p


def table(results: list[dict]) -> list[dict]:
    """One record for each set, size and recipe: the fits' mean exact match and its spread over the seeds."""
    cells = defaultdict(list)
    for result in results:
        fit = result["fit"]
        cells[fit["set"], fit["size"], fit["recipe"]].append(result)
    records = []
    for (name, size, recipe), members in cells.items():
        exact = [m["summary"]["exact"] for m in members]
        records.append(
            {
                "set": name,
                "size": size or "all",
                "recipe": recipe,
                "seeds": len(members),
                "cases": members[0]["summary"]["cases"],
                "exact": statistics.fmean(exact),
                "spread": statistics.stdev(exact) if len(exact) > 1 else None,
                "right_tools": statistics.fmean(m["summary"]["right_tools"] or 0 for m in members),
                "arguments": statistics.fmean(m["summary"]["arguments"] or 0 for m in members),
                "steps": statistics.fmean(m["steps"] for m in members),
                "train_seconds": statistics.median(m["train_seconds"] for m in members),
            }
        )
    return sorted(records, key=lambda r: (r["set"], math.inf if r["size"] == "all" else r["size"], r["recipe"]))


def print_table(results: list[dict], recipes: list[str]) -> None:
    """The table, and each further recipe against the first one on the cases that both answered."""
    print(
        f"{'set':<10}{'size':>5}  {'recipe':<44}{'exact':>7}{'±':>6}{'tools':>7}{'args':>6}{'steps':>7}{'train s':>9}"
    )
    for r in table(results):
        spread = "" if r["spread"] is None else f"{100 * r['spread']:.1f}"
        print(
            f"{r['set']:<10}{r['size']:>5}  {r['recipe']:<44}{100 * r['exact']:>7.1f}{spread:>6}"
            f"{100 * r['right_tools']:>7.1f}{100 * r['arguments']:>6.1f}{r['steps']:>7.0f}{r['train_seconds']:>9.0f}"
        )
    key = lambda result: tuple(result["fit"][name] for name in ("set", "size", "seed", "limit"))
    by_recipe = {name: {key(r): r for r in results if r["fit"]["recipe"] == name} for name in recipes}
    first = by_recipe[recipes[0]]
    for name in recipes[1:]:
        shared = [k for k in by_recipe[name] if k in first]
        a, b, p = mcnemar([first[k] for k in shared], [by_recipe[name][k] for k in shared])
        print(f"{name} against {recipes[0]}, {len(shared)} fits: {b} cases won, {a} lost, p = {p:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SMALL), help="names, or all")
    parser.add_argument("--sizes", nargs="+", default=["10", "25"], help="examples per tool, or all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--recipes", nargs="+", default=["before"])
    parser.add_argument("--vocabulary", nargs="+", default=["full"], help="full, auto, or how many first entries")
    parser.add_argument("--part", choices=["choose", "report"], default="choose")
    parser.add_argument("--cases", type=int, default=0, help="at most so many cases of a set; 0 is all")
    parser.add_argument("--base", default="pypi:gemma3-270m")
    parser.add_argument("--data", type=Path, help="folder of the public sets")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "examples")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sets = [*SMALL, *SHIPPED, *(PUBLIC if args.data else ())] if args.sets == ["all"] else args.sets
    recipes = [with_vocabulary(recipe, wanted) for recipe in args.recipes for wanted in args.vocabulary]
    sizes = [None if size == "all" else int(size) for size in args.sizes]
    args.out.mkdir(parents=True, exist_ok=True)
    grid = [
        Fit(name, size, seed, recipe, tuple(sorted(settings_of(recipe).items())), args.part, args.cases, args.base)
        for size in sizes for seed in args.seeds for name in sets for recipe in recipes
    ]  # fmt: skip
    results = []
    for number, fit in enumerate(grid, 1):
        path = fit.path(args.out)
        if not path.exists():
            print(
                f"[{number}/{len(grid)}] {fit.set}, {fit.size or 'all'} per tool, seed {fit.seed}, {fit.recipe}",
                flush=True,
            )
            value = run(fit, load_set(fit.set, fit.part, args.data))
            part = path.with_suffix(".part")
            part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
            part.replace(path)
            print(
                f"    {value['summary']['exact']:.1%} of {value['summary']['cases']}, {value['train_seconds']:.0f} s",
                flush=True,
            )
        results.append(json.loads(path.read_text(encoding="utf-8")))
    print_table(results, recipes)
    if args.json:
        args.json.write_text(json.dumps(table(results), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
