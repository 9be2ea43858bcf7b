"""The training loop: AdamW on the adapters of mlx-lm's models, with gradients from one of the step engines.

The loop is our own, because mlx-lm's (0.29.1) keeps the last weights instead of the best, cannot resume, cannot clip,
drops the rows that fill no batch, and averages micro-batches without regard to their numbers of target tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core import blas
from ..core.errors import TrainError
from ..data.batches import check_rows, make_batch
from ..data.rows import Row
from ..models.adapters import load_adapters, save_adapters
from .batches import batches_from, plan_epoch
from .callbacks import Reporter, peak_memory_gb
from .checkpoints import Checkpoint, run_fingerprint
from .choose import make_engine
from .config import History, TrainConfig, learning_rate_at
from .workers import sum_over_workers


def train(
    model,
    tokenizer,
    train_rows: Sequence[Row],
    valid_rows: Sequence[Row],
    config: TrainConfig,
    out_dir: str | Path,
    evaluate: Callable | None = None,
    on_report: Callable[[dict], None] | None = None,
    callback=None,
    group=None,
) -> History:
    """Train the adapters that `add_lora` added; keep the best and the last under `out_dir/best` and `out_dir/last`.

    `evaluate(model)` gives the share of validation cases answered exactly; the best adapters are the last ones that
    are within chance of the highest share (`is_better`), without it those of the lowest validation loss.
    `on_report(record)` gets every report and evaluation; without it each is printed. `callback` is an mlx-lm
    TrainingCallback (see `reporting_callback`). A run that was interrupted goes on from `out_dir/checkpoint` and ends
    with the same bits. At the end the model holds the best adapters.

    `group` (`mx.distributed.init()`) divides every batch among its workers. They take the same steps, on the sum of
    their gradients; the first one evaluates, reports and writes. Raises TrainError.
    """
    check_rows(train_rows, "training rows")
    if valid_rows:
        check_rows(valid_rows, "validation rows")
    if not hasattr(model, "adapter_settings"):
        raise TrainError("the model has nothing to train: call add_lora(model, ...) first")
    reporter = Reporter(on_report, callback)
    return Trainer(model, train_rows, valid_rows, config, Path(out_dir), evaluate, reporter, group).run()


class Trainer:
    """One run of `train`: the model, the optimiser and the history, and the steps that move them.

    An interrupted run goes on: all three come from the checkpoint, if there is one of the same run.
    """

    def __init__(
        self,
        model,
        train_rows: Sequence[Row],
        valid_rows: Sequence[Row],
        config: TrainConfig,
        out_dir: Path,
        evaluate: Callable | None = None,
        reporter: Reporter | None = None,
        group=None,
    ):
        import mlx.optimizers as optimizers

        self.model, self.config, self.out_dir = model, config, out_dir
        self.train_rows, self.valid_rows = train_rows, valid_rows
        self.exact_match, self.reporter = evaluate, reporter or Reporter()
        self.group = group
        self.rank, self.workers = (group.rank(), group.size()) if group is not None else (0, 1)
        out_dir.mkdir(parents=True, exist_ok=True)
        self.optimizer = optimizers.AdamW(
            learning_rate=config.learning_rate,
            betas=[0.9, config.beta2],
            weight_decay=config.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(model.trainable_parameters())
        fingerprint = run_fingerprint(model, train_rows, valid_rows, config)
        self.checkpoint = Checkpoint(model, self.optimizer, out_dir, fingerprint)
        self.history = self.checkpoint.resume() or History(config=asdict(config))
        self.engine = make_engine(model, config, train_rows)
        self.first_step = self.step
        first_batch = self.first_step * config.grad_accumulation_steps
        self.batches = batches_from(train_rows, config.batch_size, config.seed, first_batch)
        self.seconds_before, self.started = self.history.seconds, time.perf_counter()
        self.throughput = Throughput()
        blas.mlx().reset_peak_memory()

    @property
    def step(self) -> int:
        """Optimiser steps that were taken, those before an interruption included."""
        return len(self.history.losses)

    def run(self) -> History:
        """Take optimiser steps until `iters` or an early stop; the model then holds the best adapters."""
        config = self.config
        self.model.train()
        while self.step < config.iters and not self.history.stopped_early:
            self.optimizer_step()
            if self.is_due(config.steps_per_report):
                self.report()
            evaluation_is_due = self.is_due(config.steps_per_eval)
            if evaluation_is_due:
                self.evaluate()
                self.stop_early()
            if evaluation_is_due or self.is_due(config.save_every):
                self.save_checkpoint()
        self.finish()
        return self.history

    def is_due(self, every: int) -> bool:
        """Whether this step is a multiple of `every` (0: never) or the last one."""
        return self.step == self.config.iters or bool(every and self.step % every == 0)

    def optimizer_step(self) -> None:
        """One step of the optimiser, on the mean gradient per target token of `grad_accumulation_steps` batches."""
        started, config = time.perf_counter(), self.config
        # Dropout's random numbers belong to the step, so that a resumed run draws the same ones.
        blas.mlx().random.seed(config.seed * 1_000_003 + self.step)
        gradients, loss_sum, targets, tokens = self.accumulate_gradients()
        loss = loss_sum / targets
        if not math.isfinite(loss):
            raise TrainError(f"loss {loss} at step {self.step + 1}: lower learning_rate, raise warmup, keep grad_clip")
        self.optimizer.learning_rate = learning_rate_at(config, self.step)
        apply_gradients(self.model, self.optimizer, gradients, 1 / targets, config.grad_clip)
        self.history.losses.append(loss)
        self.throughput.add(tokens, time.perf_counter() - started)

    def accumulate_gradients(self) -> tuple[dict, float, float, float]:
        """(gradients, loss, target tokens, all tokens), each summed over the step's batches and over all workers.

        Each worker takes its rows of every batch; a batch may have none for it.
        """
        from mlx.utils import tree_map

        mx = blas.mlx()
        gradients, loss_sum, targets, tokens = None, 0.0, 0, 0
        for _ in range(self.config.grad_accumulation_steps):
            mine = next(self.batches)[self.rank :: self.workers]
            if not mine:
                continue
            batch = make_batch([self.train_rows[i] for i in mine])
            loss, tree = self.engine.gradients(batch)
            gradients = tree if gradients is None else tree_map(mx.add, gradients, tree)
            loss_sum, targets, tokens = loss_sum + loss, targets + len(batch.targets), tokens + batch.tokens
        if self.workers > 1:
            gradients = gradients or tree_map(mx.zeros_like, self.model.trainable_parameters())
            figures = (loss_sum, targets, tokens)
            gradients, (loss_sum, targets, tokens) = sum_over_workers(self.group, gradients, figures)
        return gradients, loss_sum, targets, tokens

    def report(self) -> None:
        """Record the mean loss and the speed since the last report; the first worker passes it on."""
        config, history, speed = self.config, self.history, self.throughput
        recent = history.losses[history.reports[-1]["iter"] if history.reports else 0 :]
        taken = self.step - self.first_step
        elapsed = time.perf_counter() - self.started
        record = {
            "kind": "train",
            "iter": self.step,
            "iters": config.iters,
            "loss": sum(recent) / len(recent),
            "learning_rate": learning_rate_at(config, self.step - 1),
            "tokens_per_second": speed.recent_tokens / speed.recent_seconds,
            "seconds_per_step": speed.seconds / taken,
            "seconds_left": elapsed / taken * (config.iters - self.step),
            "peak_memory_gb": peak_memory_gb(),
        }
        speed.start_window()
        history.reports.append(record)
        if self.rank == 0:
            self.reporter.report(record)

    def evaluate(self) -> None:
        """On the first worker: validation loss and exact match; better adapters than all before go to `best`."""
        if self.rank != 0:
            return
        started, history = time.perf_counter(), self.history
        self.model.eval()
        record = {"kind": "eval", "iter": self.step, "valid_loss": None, "exact": None}
        if self.valid_rows:
            record["valid_loss"] = validation_loss(self.model, self.valid_rows, self.config, self.engine)
        if self.exact_match is not None:
            record["exact"] = float(self.exact_match(self.model))
        self.model.train()
        record["seconds"] = time.perf_counter() - started
        record["best"] = is_better(record, history.evals, len(self.valid_rows))
        history.evals.append(record)
        if record["best"]:
            history.best_iter = self.step
            save_adapters(self.model, self.out_dir / "best", {"iter": self.step})
        self.reporter.evaluation(record)

    def stop_early(self) -> None:
        """Mark the run as stopped after `patience` evaluations without a better one; all workers follow the first."""
        config, history = self.config, self.history
        if self.rank == 0:
            worse = sum(1 for record in history.evals if record["iter"] > history.best_iter)
            history.stopped_early = bool(config.patience and worse >= config.patience and self.step < config.iters)
        if self.workers > 1:  # the others wait here for the evaluation to end
            history.stopped_early = bool(sum_over_workers(self.group, {}, (history.stopped_early,))[1][0])

    def save_checkpoint(self) -> None:
        """On the first worker: write what an interrupted run goes on from."""
        self.count_seconds()
        if self.rank == 0:
            self.checkpoint.save(self.history)

    def finish(self) -> None:
        """On the first worker: write the last adapters and the history, and put the best adapters into the model."""
        self.count_seconds()
        if self.rank == 0:
            save_adapters(self.model, self.out_dir / "last", {"iter": self.step})
            self.history.save(self.out_dir / "history.json")
            load_adapters(self.model, self.out_dir / "best")

    def count_seconds(self) -> None:
        """Bring `history.seconds` up to date, the seconds before an interruption included."""
        self.history.seconds = self.seconds_before + time.perf_counter() - self.started


@dataclass
class Throughput:
    """What optimiser steps took: `seconds` of all steps of this process, and tokens and seconds since a report."""

    seconds: float = 0.0
    recent_seconds: float = 0.0
    recent_tokens: float = 0

    def add(self, tokens: float, seconds: float) -> None:
        """Count one step."""
        self.seconds += seconds
        self.recent_seconds += seconds
        self.recent_tokens += tokens

    def start_window(self) -> None:
        """Start counting for the next report."""
        self.recent_seconds, self.recent_tokens = 0.0, 0


def validation_loss(model, rows: Sequence[Row], config: TrainConfig, engine=None) -> float:
    """Mean cross-entropy per target token over all rows."""
    engine = engine or make_engine(model, config)
    total = count = 0
    for indices in plan_epoch(rows, config.batch_size, 0, 0):
        loss, n = engine.loss(make_batch([rows[i] for i in indices]))
        total, count = total + loss, count + n
    return total / count


def apply_gradients(model, optimizer, gradients, scale: float, clip: float) -> float:
    """One optimiser step with `scale * gradients`, clipped to the norm `clip` (0: not); returns the norm before."""
    import mlx.optimizers as optimizers
    from mlx.utils import tree_map

    mx = blas.mlx()
    gradients = tree_map(lambda g: g * scale, gradients)
    gradients, norm = optimizers.clip_grad_norm(gradients, clip if clip else float("inf"))
    optimizer.update(model, gradients)
    mx.eval(model.trainable_parameters(), optimizer.state, norm)
    return norm.item()


def is_better(record: dict, before: Sequence[dict], cases: int) -> bool:
    """Whether the adapters of this evaluation are to be kept in place of those kept `before`, on `cases` cases.

    The later ones are, unless they are worse than the most exact matches so far by more than two standard errors (of
    Agresti and Coull's share, which are not 0 where all are right): less than that is chance, and later steps have a
    lower learning rate. Without exact match the lower validation loss is better; without either the later.
    """
    if record["exact"] is None:
        losses = [e["valid_loss"] for e in before]
        return record["valid_loss"] is None or not losses or record["valid_loss"] < min(losses)
    top = max([e["exact"] for e in before], default=0.0)
    p = (top * cases + 2) / (cases + 4)
    return record["exact"] >= top - 2 * math.sqrt(p * (1 - p) / (cases + 4))
