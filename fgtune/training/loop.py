"""Training: mlx-lm's models and adapter files, with a loss that runs what rows share only once.

`shared_loss` and `Batches` have the signatures of mlx-lm's `loss=` and `iterate_batches=`. The loop is our own,
because mlx-lm's (0.29.1) keeps the last weights instead of the best, cannot resume, cannot clip, drops the rows
that fill no batch and averages micro-batches without regard to their tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..core import blas
from ..core.errors import TrainError
from ..data.batches import check_rows, make_batch
from ..data.rows import Row
from ..models.adapters import load_adapters, save_adapters
from .batches import batches_from
from .callbacks import peak_memory_gb, print_report
from .checkpoints import Checkpoint, fingerprint
from .choose import make_engine, validation_loss
from .config import History, TrainConfig, learning_rate_at


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

    `evaluate(model)` gives the share of validation cases answered exactly; the best adapters are those with the
    highest share, then the lowest validation loss. `on_report(record)` gets every report and evaluation; without it
    each is printed. `callback` is an mlx-lm TrainingCallback (see `reporting_callback`). A run that was interrupted
    goes on from `out_dir/checkpoint` and ends with the same bits. At the end the model holds the best adapters.

    `group` (`mx.distributed.init()`) shares every batch among its workers, which take the same steps on the sum of
    their gradients; the first one validates, reports and writes.
    """
    import mlx.optimizers as optimizers
    from mlx.utils import tree_map

    mx = blas.mlx()
    check_rows(train_rows, "training rows")
    if valid_rows:
        check_rows(valid_rows, "validation rows")
    if not hasattr(model, "adapter_settings"):
        raise TrainError("the model has nothing to train: call add_lora(model, ...) first")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    optimizer = optimizers.AdamW(
        learning_rate=config.learning_rate,
        betas=[0.9, config.beta2],
        weight_decay=config.weight_decay,
        bias_correction=True,
    )
    optimizer.init(model.trainable_parameters())
    run = Checkpoint(model, optimizer, config, out_dir, fingerprint(model, train_rows, valid_rows, config))
    rank, workers = (group.rank(), group.size()) if group is not None else (0, 1)
    history = run.resume() or History(config=asdict(config))
    engine = make_engine(model, config, train_rows)
    say = on_report or print_report
    start = len(history.losses)
    order = batches_from(train_rows, config.batch_size, config.seed, start * config.grad_accumulation_steps)
    before, begun = history.seconds, time.perf_counter()
    mx.reset_peak_memory()
    window = {"tokens": 0, "seconds": 0.0}
    training = 0.0

    def evaluation(step: int) -> None:
        tick = time.perf_counter()
        model.eval()
        record = {"kind": "eval", "iter": step, "valid_loss": None, "exact": None}
        if valid_rows:
            record["valid_loss"] = validation_loss(model, valid_rows, config, engine)
        if evaluate is not None:
            record["exact"] = float(evaluate(model))
        model.train()
        record["seconds"] = time.perf_counter() - tick
        better = history.best is None or _rank(record) > _rank(history.best)
        record["best"] = better
        history.evals.append(record)
        if better:
            history.best_iter = step
            save_adapters(model, out_dir / "best", {"iter": step})
        say(record)
        if callback is not None and record["valid_loss"] is not None:
            callback.on_val_loss_report(
                {"iteration": step, "val_loss": record["valid_loss"], "val_time": record["seconds"]}
            )

    model.train()
    while len(history.losses) < config.iters and not history.stopped_early:
        step = len(history.losses)
        tick = time.perf_counter()
        mx.random.seed(
            config.seed * 1_000_003 + step
        )  # dropout's numbers belong to the step, so a resumed run has them
        total, count, tokens, gradients = 0.0, 0, 0, None
        for _ in range(config.grad_accumulation_steps):
            mine = next(order)[rank::workers]
            if not mine:
                continue
            batch = make_batch([train_rows[i] for i in mine])
            loss, tree = engine.gradients(batch)
            gradients = tree if gradients is None else tree_map(mx.add, gradients, tree)
            total, count, tokens = total + loss, count + len(batch.targets), tokens + batch.tokens
        if workers > 1:
            gradients = gradients or tree_map(mx.zeros_like, model.trainable_parameters())
            gradients, (total, count, tokens) = sum_over(group, gradients, (total, count, tokens))
        window["tokens"] += tokens
        mean = total / count
        if not math.isfinite(mean):
            raise TrainError(f"loss {mean} at step {step + 1}: lower learning_rate, raise warmup, keep grad_clip")
        optimizer.learning_rate = learning_rate_at(config, step)
        apply_gradients(model, optimizer, gradients, 1 / count, config.grad_clip)
        history.losses.append(mean)
        step += 1
        spent = time.perf_counter() - tick
        training += spent
        window["seconds"] += spent
        history.seconds = before + time.perf_counter() - begun
        if step % config.steps_per_report == 0 or step == config.iters:
            recent = history.losses[history.reports[-1]["iter"] if history.reports else 0 :]
            record = {
                "kind": "train",
                "iter": step,
                "iters": config.iters,
                "loss": sum(recent) / len(recent),
                "learning_rate": learning_rate_at(config, step - 1),
                "tokens_per_second": window["tokens"] / window["seconds"],
                "seconds_per_step": training / (step - start),
                "seconds_left": (time.perf_counter() - begun) / (step - start) * (config.iters - step),
                "peak_memory_gb": peak_memory_gb(),
            }
            window.update(tokens=0, seconds=0.0)
            history.reports.append(record)
            if rank == 0:
                say(record)
            if callback is not None and rank == 0:
                callback.on_train_loss_report(
                    {
                        "iteration": step,
                        "train_loss": record["loss"],
                        "learning_rate": record["learning_rate"],
                        "iterations_per_second": 1 / record["seconds_per_step"],
                        "tokens_per_second": record["tokens_per_second"],
                        "trained_tokens": None,
                        "peak_memory": record["peak_memory_gb"],
                    }
                )
        judged = step == config.iters or (config.steps_per_eval and step % config.steps_per_eval == 0)
        if judged:
            if rank == 0:
                evaluation(step)
                since = sum(1 for e in history.evals if e["iter"] > history.best_iter)
                history.stopped_early = bool(config.patience and since >= config.patience and step < config.iters)
            if workers > 1:  # the others wait here
                history.stopped_early = bool(sum_over(group, {}, (history.stopped_early,))[1][0])
        if rank == 0 and (judged or (config.save_every and step % config.save_every == 0)):
            history.seconds = before + time.perf_counter() - begun
            run.save(history)
    history.seconds = before + time.perf_counter() - begun
    if rank == 0:
        save_adapters(model, out_dir / "last", {"iter": len(history.losses)})
        history.save(out_dir / "history.json")
        load_adapters(model, out_dir / "best")
    return history


def sum_over(group, gradients, figures: Sequence[float]) -> tuple[dict, list[float]]:
    """Sums over all workers of a tree of gradients and of a few figures, in one message of float32."""
    from mlx.utils import tree_flatten, tree_unflatten

    mx = blas.mlx()
    leaves = tree_flatten(gradients)
    parts = [g.reshape(-1).astype(mx.float32) for _, g in leaves] + [mx.array([float(x) for x in figures])]
    whole = mx.distributed.all_sum(mx.concatenate(parts), group=group)
    out, start = [], 0
    for name, g in leaves:
        out.append((name, whole[start : start + g.size].reshape(g.shape).astype(g.dtype)))
        start += g.size
    mx.eval([g for _, g in out], whole)
    return tree_unflatten(out) if out else {}, whole[start:].tolist()


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


def _rank(record: dict) -> tuple[float, float]:
    """What makes an evaluation better: more exact matches, then a lower validation loss."""
    exact, loss = record["exact"], record["valid_loss"]
    return (exact if exact is not None else 0.0, -loss if loss is not None else 0.0)
