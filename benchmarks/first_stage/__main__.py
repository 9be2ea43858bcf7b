"""A first stage for the base model: calling functions of many tool sets, before it sees a user's few examples.

    python -m benchmarks.first_stage rows  [--wheel FILE]      # runs/first_stage/rows: train, valid, check
    python -m benchmarks.first_stage train [--iters 460]       # runs/first_stage/training; goes on if stopped
    python -m benchmarks.first_stage fuse                      # runs/first_stage/{adapters,model}
    python -m benchmarks.first_stage check [--model FOLDER]    # exact match on tools never trained

The rows come from tools and sentences of our own (`kinds.txt`) and from the Berkeley Function-Calling Leaderboard
(`bfcl-eval`, Apache 2.0), none from the shipped examples. Every batch is one tool set, whose declarations are read
once. `base_model: runs/first_stage/model` starts the series from the result. The workbook does not: first figures
(docs/benchmarks.md) do not show that few examples go further from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from fgtune.data.rows import case_of, load_rows, write_jsonl
from fgtune.models.base import resolve_base
from fgtune.models.tokenizer_files import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "runs" / "first_stage"
VALID = 6  # episodes of the validation loss, their tool sets not trained either


def rows(options) -> None:
    """Write the chat rows of all episodes; lints them first."""
    from benchmarks.bfcl import find_wheel
    from fgtune.format.lint import lint_examples

    from .episodes import Episodes
    from .leaderboard import read

    items = [] if options.no_leaderboard else read(options.wheel or find_wheel(ROOT / "runs" / "cache" / "bfcl"))
    source = Episodes(options.seed, items)
    episodes = list(source.training(options.episodes + VALID))
    check = source.check(options.cases)
    written = [row for episode in episodes for row in episode]
    errors = [finding for finding in lint_examples(written + check) if finding.level == "error"]
    if errors:
        raise SystemExit(f"{len(errors)} errors, the first: {errors[0]}")
    folder = options.out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    train = [row for episode in episodes[VALID:] for row in episode]
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "valid.jsonl", [row for episode in episodes[:VALID] for row in episode])
    write_jsonl(folder / "check.jsonl", check)
    print(f"{len(items)} requests of the leaderboard; {options.episodes} tool sets, {len(train)} rows to train, "
          f"{len(check)} to check; {folder}")  # fmt: skip


def train(options) -> None:
    """Train adapters on the rows, or go on with them."""
    from fgtune.models.adapters import add_lora, load_model
    from fgtune.training.batches import plan_epoch
    from fgtune.training.callbacks import format_record
    from fgtune.training.choose import choose_precision, choose_softmax
    from fgtune.training.config import TrainConfig
    from fgtune.training.loop import train as train_adapters

    base = resolve_base(options.base)
    model, _ = load_model(base.path)
    tokenizer = load_tokenizer(base.path)
    data = {split: load_rows(options.out / "rows", split, tokenizer) for split in ("train", "valid")}
    plan = plan_epoch(data["train"], options.batch, options.seed, 0)
    alone = sum(len({data["train"][i].ids[: data["train"][i].prefix] for i in batch}) == 1 for batch in plan)
    print(f"{len(plan)} batches an epoch, {alone} of one tool set", flush=True)
    print(f"{add_lora(model, options.rank, options.scale):,} parameters to train", flush=True)
    config = TrainConfig(
        iters=options.iters, batch_size=options.batch, learning_rate=options.learning_rate, warmup=20,
        min_learning_rate=options.learning_rate / 30, steps_per_eval=0, save_every=options.save_every,
        seed=options.seed,
        precision=choose_precision(model, options.precision), softmax=choose_softmax(model, options.softmax),
    )  # fmt: skip
    started, state = time.monotonic(), options.out / "training"

    def report(record: dict) -> None:
        print(format_record(record), flush=True)
        if options.minutes and time.monotonic() - started > 60 * options.minutes and record["kind"] == "train":
            raise KeyboardInterrupt

    try:
        history = train_adapters(model, tokenizer, data["train"], data["valid"], config, state, on_report=report)
    except KeyboardInterrupt:
        print(f"stopped; train goes on with {state / 'checkpoint'}, fuse --from checkpoint uses it")
        return
    print(f"{len(history.losses)} steps in {history.seconds / 60:.1f} minutes; {state / 'last'}")


def fuse(options) -> None:
    """Keep the adapters in float16, and the base model with them merged in."""
    import torch
    from safetensors.torch import load_file, save_file

    from fgtune.models.fuse import fuse as merge

    source, kept = options.out / "training" / options.source, options.out / "adapters"
    settings = source / "adapter_config.json"
    if not settings.exists():  # a checkpoint has none
        parameters = {"rank": options.rank, "scale": options.scale, "dropout": 0.0}
        settings.write_text(json.dumps({"fine_tune_type": "lora", "num_layers": 18, "lora_parameters": parameters}))
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(settings, kept / "adapter_config.json")
    halves = {name: value.to(torch.float16) for name, value in load_file(source / "adapters.safetensors").items()}
    save_file(halves, kept / "adapters.safetensors", metadata={"format": "pt"})
    report = merge(resolve_base(options.base).path, kept, options.out / "model")
    size = (kept / "adapters.safetensors").stat().st_size / 1e6
    print(f"{report.path}: {report.merged} tensors changed, by {report.max_delta:.4f} at most; adapters {size:.1f} MB")


def check(options) -> None:
    """Exact match on the check cases, constrained; for the base model too unless a model is named."""
    from fgtune.data.readers.files import read_json
    from fgtune.evaluation.scorecards import score
    from fgtune.models.adapters import load_model
    from fgtune.runtimes.constrained import Grammar
    from fgtune.runtimes.mlx import MlxGenerator

    cases = [case_of(row) for row in read_json(options.out / "rows" / "check.jsonl")][: options.cases]
    for folder in [options.model] if options.model else [resolve_base(options.base).path, options.out / "model"]:
        model, tokenizer = load_model(folder)
        generator = MlxGenerator(model, tokenizer, max_tokens=160)
        card = score(generator, cases, str(folder), Grammar(folder))
        calls = [result for result in card.results if result.expected]
        right = sum(result.exact for result in calls)
        print(f"{folder}: {card.exact:.1%} of {card.n} exact; with calls {right} of {len(calls)}", flush=True)
        (options.out / f"check_{Path(folder).name}.json").write_text(
            json.dumps([vars(r) for r in card.results], ensure_ascii=False, indent=1), encoding="utf-8"
        )


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("rows", "train", "fuse", "check"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--base", default="pypi:gemma3-270m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=800, help="tool sets to train")
    parser.add_argument("--cases", type=int, default=150, help="requests to check")
    parser.add_argument("--wheel", type=Path, help="the bfcl-eval wheel, instead of a download")
    parser.add_argument("--no-leaderboard", action="store_true", help="without bfcl-eval")
    parser.add_argument("--iters", type=int, default=460, help="steps, each over one tool set")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; the schedule is that of --iters")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--scale", type=float, default=20.0)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--softmax", default="auto")
    parser.add_argument("--from", dest="source", default="last", choices=("best", "last", "checkpoint"))
    parser.add_argument("--model", type=Path, help="the model to check")
    options = parser.parse_args()
    {"rows": rows, "train": train, "fuse": fuse, "check": check}[options.step](options)


if __name__ == "__main__":
    main()
