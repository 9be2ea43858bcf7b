"""Stage 02: adapters, and the training of them with the parameters of the stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

from IPython.display import display

from fgtune.data.rows import Row
from fgtune.models.adapters import add_lora
from fgtune.training.callbacks import format_record, reporting_callback
from fgtune.training.choose import choose_precision, choose_softmax
from fgtune.training.config import History, TrainConfig
from fgtune.training.loop import train as train_here
from fgtune.training.workers import train_on_workers

from .plots import plot_history
from .stage import Run

__all__ = ["add_lora", "train"]

ADAPTERS = ("rank", "scale", "dropout", "num_layers", "fine_tune_type", "seed")


def train(run: Run, model, tokenizer, rows: dict[str, Sequence[Row]], evaluate: Callable) -> History:
    """Train the adapters of `model` (see `add_lora`) as the stage's parameters say; best and last go to `run.dir`.

    `evaluate(model)` gives the share of validation cases that are exactly right. Reports are printed and drawn as they
    come. With `workers` above 1 processes of their own load the base model and validate. Raises TrainError.
    """
    p, out = run.p, run.dir
    precision, softmax = choose_precision(model, p.precision), choose_softmax(model, p.softmax)
    print(f"matmul operands: {'bfloat16' if precision == 'bfloat16' else 'as the weights'}; softmax: {softmax}")
    settings = {field.name: vars(p)[field.name] for field in fields(TrainConfig) if field.name in vars(p)}
    config = TrainConfig(**settings | {"precision": precision, "softmax": softmax})
    show = LiveTraining()
    if p.workers > 1:
        adapters, data = {name: getattr(p, name) for name in ADAPTERS}, run.input("01_data")
        return train_on_workers(p.workers, run.base(), data, adapters, config, out, p.max_tokens, show)
    log = reporting_callback(p.report_to, out / "logs", vars(p))
    history = train_here(model, tokenizer, rows["train"], rows["valid"], config, out, evaluate, show, log)
    done = sorted(history.reports + history.evals, key=lambda record: (record["iter"], record["kind"] == "eval"))
    for record in [] if show.records else done:  # taken over whole: what was said then
        show(record)
    return history


class LiveTraining:
    """Shows training as it goes: a line per report, and in a notebook one figure that redraws itself."""

    def __init__(self):
        self.records = []
        self.handle = None  # of the figure, from the first record on; there is none when nothing is left to do

    def __call__(self, record: dict) -> None:
        self.records.append(record)
        print(format_record(record), flush=True)
        if len(self.records) == 1:
            self.handle = display(plot_history(self.records), display_id=True)
        elif self.handle is not None:
            self.handle.update(plot_history(self.records))
