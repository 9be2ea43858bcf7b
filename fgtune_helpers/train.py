"""Training: mlx-lm's models and adapter files, with a loss that runs what rows share only once.

`shared_loss` and `Batches` have the signatures of mlx-lm's `loss=` and `iterate_batches=`. The loop is our own,
because mlx-lm's (0.29.1) keeps the last weights instead of the best, cannot resume, cannot clip, drops the rows
that fill no batch and averages micro-batches without regard to their tokens.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from . import blas, forward
from .data import Row

FINE_TUNE_TYPES = ("lora", "dora", "full")


class TrainError(ValueError):
    """Training cannot start or go on; the message is one line that says what to do."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. `iters` counts optimiser steps, each over `batch_size * grad_accumulation_steps` rows.

    `steps_per_eval` 0: validate at the end only. `patience` 0: no early stopping; n: stop after n evaluations without
    a better one. `save_every`: steps between checkpoints to resume from (0: at evaluations only).
    `prefix_chunk`: queries per attention block in the prefix; `logits_chunk`: rows of logits held at a time.
    `engine`: "mlx", "torch" (CPU only, several times faster there) or "auto". `precision`: "auto" multiplies in the
    dtype of the model (float32 on CPU); "bfloat16" rounds the factors of products on CPUs that are fast at it.
    `beta2`: AdamW's memory of squared gradients, about 1 / (1 - beta2) steps: short, as a run has a few hundred.
    `softmax`: "exact", or "sampled" (engine "torch"): gradients from the learned words and a sample of the others.
    """

    iters: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-4
    warmup: int = 10
    lr_schedule: str = "cosine"
    min_learning_rate: float = 0.0
    beta2: float = 0.99
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    grad_accumulation_steps: int = 1
    steps_per_report: int = 10
    steps_per_eval: int = 50
    patience: int = 0
    seed: int = 0
    prefix_chunk: int = 256
    logits_chunk: int = 64
    save_every: int = 25
    engine: str = "auto"
    precision: str = "auto"
    softmax: str = "exact"

    def __post_init__(self):
        counts = ("iters", "batch_size", "grad_accumulation_steps", "steps_per_report", "prefix_chunk", "logits_chunk")
        for name in counts:
            if getattr(self, name) < 1:
                raise TrainError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "grad_clip", "steps_per_eval", "patience", "save_every"):
            if getattr(self, name) < 0:
                raise TrainError(f"{name} must not be negative, but is {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise TrainError(f"beta2 must be at least 0 and below 1, not {self.beta2}")
        if not self.learning_rate > 0:
            raise TrainError(f"learning_rate must be positive, not {self.learning_rate}")
        if self.lr_schedule not in ("cosine", "constant", "linear"):
            raise TrainError(f"lr_schedule is cosine, linear or constant, not {self.lr_schedule!r}")
        if self.engine not in ("auto", "mlx", "torch"):
            raise TrainError(f"engine is auto, mlx or torch, not {self.engine!r}")
        if self.precision not in ("auto", "bfloat16"):
            raise TrainError(f"precision is auto or bfloat16, not {self.precision!r}")
        if self.softmax not in ("exact", "sampled"):
            raise TrainError(f"softmax is exact or sampled, not {self.softmax!r}")


@dataclass
class History:
    """What a run measured. `reports`: iter, loss, tokens_per_second, learning_rate, peak_memory_gb, seconds_left;
    `evals`: iter, valid_loss, exact (share of cases, or None), seconds. `best_iter` names the kept adapters."""

    reports: list[dict] = field(default_factory=list)
    evals: list[dict] = field(default_factory=list)
    best_iter: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    config: dict = field(default_factory=dict)

    @property
    def best(self) -> dict | None:
        """The evaluation whose adapters were kept."""
        return next((e for e in self.evals if e["iter"] == self.best_iter), None)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


# ---------------------------------------------------------------- model and adapters


def load_model(path: str | Path, dtype: str | None = None, adapter_path: str | Path | None = None):
    """(model, tokenizer) of a folder, by mlx-lm; `dtype` defaults to float32 on CPU, bfloat16 on Metal and CUDA."""
    import contextlib
    import io
    import logging
    import warnings

    mx = blas.mlx()
    if not (Path(path) / "config.json").exists():
        raise TrainError(f"{path} holds no config.json: not a model folder")
    quiet = logging.getLogger("transformers")
    level, said = quiet.level, io.StringIO()
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            from mlx_lm.utils import load

            model, tokenizer = load(str(path), adapter_path=None if adapter_path is None else str(adapter_path))
    finally:
        quiet.setLevel(level)
    wanted = getattr(mx, dtype or ("bfloat16" if mx.default_device() == mx.gpu else "float32"))
    if getattr(model, "model_type", "") != "gemma3_text":
        raise TrainError(f"{Path(path).name} is a {model.model_type} model; this workbook trains gemma3_text")
    model.set_dtype(wanted)
    mx.eval(model.parameters())
    return model, tokenizer


def add_lora(
    model,
    rank: int = 8,
    scale: float = 20.0,
    dropout: float = 0.0,
    num_layers: int = -1,
    fine_tune_type: str = "lora",
    seed: int = 0,
) -> int:
    """Freeze the model and add adapters (`lora`, `dora`) to every linear layer of the last `num_layers` (-1: all), or
    unfreeze those layers (`full`). Returns the number of trainable parameters."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx = blas.mlx()
    total = len(model.layers)
    if fine_tune_type not in FINE_TUNE_TYPES:
        raise TrainError(f"fine_tune_type is one of {', '.join(FINE_TUNE_TYPES)}, not {fine_tune_type!r}")
    if num_layers == 0 or num_layers < -1 or num_layers > total:
        raise TrainError(f"num_layers is -1 (all) or 1 to {total}, not {num_layers}")
    if fine_tune_type != "full" and (rank < 1 or not 0 <= dropout < 1):
        raise TrainError(f"rank must be 1 or more and dropout in [0, 1), not {rank} and {dropout}")
    if any("lora_a" in name for name, _ in tree_flatten(model.parameters())):
        raise TrainError("the model has adapters already: load it again")
    mx.random.seed(seed)
    count = total if num_layers == -1 else num_layers
    model.freeze()
    parameters = {"rank": rank, "scale": scale, "dropout": dropout}
    if fine_tune_type == "full":
        for layer in model.layers[-count:]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(model, count, parameters, use_dora=fine_tune_type == "dora")
        dtype = model.model.norm.weight.dtype
        model.apply(lambda p: p.astype(dtype) if mx.issubdtype(p.dtype, mx.floating) else p)
    model.adapter_settings = {
        "fine_tune_type": fine_tune_type,
        "num_layers": count,
        "lora_parameters": None if fine_tune_type == "full" else parameters,
    }
    trainable = tree_flatten(model.trainable_parameters())
    mx.eval([value for _, value in trainable])
    return sum(value.size for _, value in trainable)


def trainable_bytes(model) -> dict:
    """Trainable parameters by name."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.trainable_parameters()))


def save_adapters(model, folder: str | Path, extra: dict | None = None) -> None:
    """Write `adapters.safetensors` and `adapter_config.json` as mlx-lm reads them; replaces what was there at once."""
    mx = blas.mlx()
    folder = Path(folder)
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    mx.save_safetensors(str(fresh / "adapters.safetensors"), trainable_bytes(model))
    config = {**(extra or {}), **model.adapter_settings}
    (fresh / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _replace_folder(fresh, folder)


def _replace_folder(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; a kill between the two renames leaves the old one as `.old`."""
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_adapters(model, folder: str | Path):
    """Put saved adapters into `model` (adding the layers if need be), in evaluation mode. Returns the model."""
    from mlx.utils import tree_flatten

    mx = blas.mlx()
    folder = Path(folder)
    if not (folder / "adapters.safetensors").exists():
        raise TrainError(f"{folder} holds no adapters.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not hasattr(model, "adapter_settings"):
        settings = dict(config.get("lora_parameters") or {})
        kind = config.get("fine_tune_type", "lora")
        add_lora(model, num_layers=config["num_layers"], fine_tune_type=kind, **settings)
    weights = mx.load(str(folder / "adapters.safetensors"))
    known = {name: value.shape for name, value in tree_flatten(model.parameters())}
    for name, value in weights.items():
        if known.get(name) != value.shape:
            raise TrainError(f"{folder.name}: {name} {value.shape} does not fit the model ({known.get(name)})")
    model.load_weights(list(weights.items()), strict=False)
    model.eval()
    mx.eval(model.parameters())
    return model


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """Rows over one prefix, as lists: `prefix [P]`, `rows [B][<= S]` (what follows it), and for each learned token
    the row and the column (within `rows`) that predict it, and its id."""

    prefix: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    where: tuple[tuple[int, int], ...]
    targets: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all rows, the prefix counted for each row."""
        return sum(len(r) + len(self.prefix) for r in self.rows)


def make_batch(rows: Sequence[Row]) -> Batch:
    """The batch of rows that share their first `prefix` tokens; the split moves forward if a target needs it."""
    length = min(min(r.prefix, max(first_target(r) - 1, 0)) for r in rows)
    prefix = tuple(rows[0].ids[:length])
    for r in rows:
        if tuple(r.ids[:length]) != prefix:
            raise TrainError("rows of one batch must begin with the same prefix")
    where, targets, suffixes = [], [], []
    for b, r in enumerate(rows):
        suffixes.append(tuple(r.ids[length : last_target(r)]))  # the last target is predicted, never read
        for i, learned in enumerate(r.targets):
            if learned and i:
                where.append((b, i - 1 - length))
                targets.append(r.ids[i])
    return Batch(prefix, tuple(suffixes), tuple(where), tuple(targets))


def first_target(row: Row) -> int:
    """Index of the first learned token (index 0 cannot be predicted); TrainError if there is none."""
    for i, learned in enumerate(row.targets):
        if learned and i:
            return i
    raise TrainError("a row has no token to learn: every row needs an assistant turn")


def last_target(row: Row) -> int:
    """Index of the last learned token."""
    return max(i for i, learned in enumerate(row.targets) if learned)


def check_rows(rows: Sequence[Row], name: str = "rows") -> None:
    """Raise TrainError for what cannot be trained on."""
    if not rows:
        raise TrainError(f"no {name}")
    for i, r in enumerate(rows):
        if len(r.ids) != len(r.targets):
            raise TrainError(f"{name}, row {i + 1}: {len(r.ids)} ids but {len(r.targets)} targets")
        if not 0 <= r.prefix <= len(r.ids):
            raise TrainError(f"{name}, row {i + 1}: prefix {r.prefix} of {len(r.ids)} ids")
        first_target(r)


def plan_epoch(rows: Sequence[Row], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of every row once, shuffled, in batches of one prefix; the same for the same seed and epoch.

    A group that no multiple of `batch_size` fills is spread over batches of nearly equal size. Rows are not sorted by
    length: rows of like length are rows of like kind, and steps of text answers alone undo what calls have learned.
    """
    import random

    rng = random.Random(f"{seed}/{epoch}")
    groups: dict[tuple, list[int]] = {}
    for i, r in enumerate(rows):
        groups.setdefault(tuple(r.ids[: r.prefix]), []).append(i)
    batches = []
    for group in groups.values():
        rng.shuffle(group)
        count = math.ceil(len(group) / batch_size)
        edges = [round(k * len(group) / count) for k in range(count + 1)]
        batches += [group[a:b] for a, b in pairwise(edges)]
    rng.shuffle(batches)
    return batches


def batches_from(rows: Sequence[Row], batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of indices from batch number `start` on: epoch after epoch, each with an order of its own."""
    epoch = 0
    while True:
        plan = plan_epoch(rows, batch_size, seed, epoch)
        if start >= len(plan):
            start -= len(plan)
        else:
            yield from plan[start:]
            start = 0
        epoch += 1


def batch_arrays(batch: Batch, multiple: int = 1):
    """The batch as MLX arrays `(prefix [P], rows [B, S], where [N], targets [N], weights [N])`.

    `where` counts positions of the flattened `[B, S]`. S and N are padded to a `multiple`, with weight 0.
    """
    mx = blas.mlx()
    width = round_up(max(len(r) for r in batch.rows), multiple)
    rows = [list(r) + [0] * (width - len(r)) for r in batch.rows]
    count = len(batch.targets)
    padding = round_up(count, multiple) - count
    where = [b * width + s for b, s in batch.where] + [0] * padding
    return (
        mx.array(list(batch.prefix), dtype=mx.int32),
        mx.array(rows, dtype=mx.int32),
        mx.array(where, dtype=mx.int32),
        mx.array(list(batch.targets) + [0] * padding, dtype=mx.int32),
        mx.array([1.0] * count + [0.0] * padding, dtype=mx.float32),
    )


def iterate_batches(dataset, batch_size, max_seq_length=None, loop=False, seed=None, comm_group=None):
    """mlx-lm's `iterate_batches=` for `shared_loss`: arrays of every batch of `dataset` (a sequence of Row)."""
    rows, epoch = list(dataset), 0
    rank, size = (comm_group.rank(), comm_group.size()) if comm_group is not None else (0, 1)
    while True:
        for indices in plan_epoch(rows, batch_size, seed or 0, epoch):
            yield batch_arrays(make_batch([rows[i] for i in indices[rank::size] or indices[:1]]))
        epoch += 1
        if not loop:
            return


def round_up(n: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `n`."""
    return -(-n // multiple) * multiple


# ---------------------------------------------------------------- loss


def shared_loss(model, prefix, rows, where, targets, weights, prefix_chunk: int = 256, logits_chunk: int = 64):
    """(mean cross-entropy over the learned tokens, their number), differentiable; `batch_arrays` gives the arrays."""
    shared = forward.run_prefix(model, prefix, prefix_chunk)
    h = forward.run_rows(model, rows, shared)
    h = model.model.norm(h.reshape(-1, h.shape[-1])[where])
    count = weights.sum()
    return cross_entropy_sum(model, h, targets, weights, logits_chunk) / count, count


def cross_entropy_sum(model, h, targets, weights, chunk: int = 64):
    """Weighted sum of the cross-entropy of normed hidden states `h [N, hidden]`, with `chunk` rows of logits at a time.

    The gradient for `h` is made beside the loss, chunk by chunk, so that no logits are kept for a backward pass.
    """
    import mlx.nn as nn

    mx = blas.mlx()
    head = model.model.embed_tokens if model.tie_word_embeddings else model.lm_head
    if type(head) not in (nn.Embedding, nn.Linear):  # quantised: let MLX differentiate, a chunk recomputed at a time

        @mx.checkpoint
        def part(h, targets, weights):
            z = (head.as_linear(h) if model.tie_word_embeddings else head(h)).astype(mx.float32)
            picked = mx.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
            return ((mx.logsumexp(z, axis=-1) - picked) * weights).sum()

        pieces = range(0, h.shape[0], chunk)
        return sum(part(h[a : a + chunk], targets[a : a + chunk], weights[a : a + chunk]) for a in pieces)
    table = head.weight

    @mx.custom_function
    def entropy(h, targets, weights):
        total, gradients = mx.array(0.0), []
        for a in range(0, h.shape[0], chunk):
            x, w = h[a : a + chunk], weights[a : a + chunk, None]
            rows = table[targets[a : a + chunk]]
            z = (x @ table.T).astype(mx.float32)
            top = mx.max(z, axis=-1, keepdims=True)
            z = mx.exp(z - top)
            norm = z.sum(axis=-1, keepdims=True)
            picked = (x.astype(mx.float32) * rows.astype(mx.float32)).sum(axis=-1, keepdims=True)
            total = total + ((mx.log(norm) + top - picked) * w).sum()
            pulled = ((z @ table.astype(mx.float32)) if x.dtype == mx.float32 else (z.astype(x.dtype) @ table)) / norm
            gradients.append(((pulled - rows) * w).astype(x.dtype))
        return total, mx.concatenate(gradients)

    @entropy.vjp
    def entropy_vjp(primals, cotangents, outputs):
        _, targets, weights = primals
        return (cotangents[0] * outputs[1]).astype(outputs[1].dtype), mx.zeros_like(targets), mx.zeros_like(weights)

    return entropy(h, targets, weights)[0]


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate of optimiser step `step` (from 0): a linear warm-up, then the schedule down to the minimum."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.lr_schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup) / max(1, config.iters - config.warmup)
    fall = 0.5 * (1 + math.cos(math.pi * share)) if config.lr_schedule == "cosine" else 1 - share
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * fall


# ---------------------------------------------------------------- the step


class MlxEngine:
    """Loss and gradients by MLX, on any device."""

    name = "mlx"

    def __init__(self, model, config: TrainConfig):
        import mlx.nn as nn

        mx = blas.mlx()
        self.model = model
        self.multiple = 16 if mx.default_device() == mx.gpu else 1

        def loss(model, *arrays):
            mean, count = shared_loss(model, *arrays, config.prefix_chunk, config.logits_chunk)
            return mean * count, count

        self._loss, self._gradients = loss, nn.value_and_grad(model, loss)

    def loss(self, batch: Batch) -> tuple[float, int]:
        """(sum of the cross-entropy, learned tokens)."""
        return self._loss(self.model, *batch_arrays(batch, self.multiple))[0].item(), len(batch.targets)

    def gradients(self, batch: Batch):
        """(sum of the cross-entropy, tree of the sum's gradients), evaluated."""
        mx = blas.mlx()
        (total, _), tree = self._gradients(self.model, *batch_arrays(batch, self.multiple))
        mx.eval(total, tree)
        return total.item(), tree


def choose_precision(model, wanted: str = "auto") -> str:
    """`TrainConfig.precision` for `auto` (bfloat16 products where this CPU has them), `float32` or `bfloat16`."""
    from . import torch_step

    if wanted == "auto" and torch_step.why_not(model) is None and torch_step.why_not_bfloat16() is None:
        return "bfloat16"
    return "bfloat16" if wanted == "bfloat16" else "auto"


def choose_softmax(model, wanted: str = "auto") -> str:
    """`TrainConfig.softmax` for `auto` (sampled where torch's kernels train), `exact` or `sampled`."""
    from . import torch_step

    return ("exact" if torch_step.why_not(model) else "sampled") if wanted == "auto" else wanted


def make_engine(model, config: TrainConfig, rows: Sequence[Row] = ()):
    """The engine `config.engine` names; "auto" takes torch's kernels on CPU where they can be used. A sampled softmax
    must know the `rows` to come."""
    from . import torch_step

    half = config.precision == "bfloat16" and blas.mlx().default_device() != blas.mlx().gpu
    reason = torch_step.why_not(model) or (torch_step.why_not_bfloat16() if half else None)
    if config.engine != "mlx" and reason is None:
        sampled = rows if config.softmax == "sampled" else ()
        learned = {i for row in sampled for i, target in zip(row.ids, row.targets) if target}
        return torch_step.TorchEngine(model, config, learned)
    if half:
        raise TrainError(f"precision bfloat16 cannot be used: {reason or 'MLX has no fast bfloat16 products on CPU'}")
    if config.softmax == "sampled":
        raise TrainError(f"softmax sampled cannot be used: {reason or 'MLX takes the whole vocabulary'}")
    if config.engine == "torch":
        raise TrainError(f"engine torch cannot be used: {reason}")
    return MlxEngine(model, config)


def validation_loss(model, rows: Sequence[Row], config: TrainConfig, engine=None) -> float:
    """Mean cross-entropy per learned token over all rows."""
    engine = engine or make_engine(model, config)
    total = count = 0
    for indices in plan_epoch(rows, config.batch_size, 0, 0):
        loss, n = engine.loss(make_batch([rows[i] for i in indices]))
        total, count = total + loss, count + n
    return total / count


# ---------------------------------------------------------------- the loop


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
    run = _Run(model, optimizer, config, out_dir, fingerprint(model, train_rows, valid_rows, config))
    rank, workers = (group.rank(), group.size()) if group is not None else (0, 1)
    history = run.resume() or History(config=asdict(config))
    engine = make_engine(model, config, train_rows)
    say = on_report or _print_report
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


def reporting_callback(report_to: str, folder: str | Path, config: dict):
    """mlx-lm's callback for `wandb` or `swanlab`, one of our own for `tensorboard`, None for "". Raises TrainError."""
    folder = Path(folder)
    try:
        if report_to == "tensorboard":
            return TensorBoardCallback(folder)
        from mlx_lm.tuner.callbacks import get_reporting_callbacks

        return get_reporting_callbacks(report_to, "fgtune", str(folder), config)
    except ImportError:
        raise TrainError(f"report_to {report_to!r} needs its package: pip install {report_to}") from None


class TensorBoardCallback:
    """Loss, rate and validation loss as TensorBoard scalars; the interface of mlx-lm's TrainingCallback."""

    def __init__(self, folder: str | Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def on_train_loss_report(self, info: dict) -> None:
        """Scalars of a training report."""
        self._write(info, ("train_loss", "learning_rate", "tokens_per_second", "peak_memory"))

    def on_val_loss_report(self, info: dict) -> None:
        """Scalars of a validation."""
        self._write(info, ("val_loss",))

    def _write(self, info: dict, names: Sequence[str]) -> None:
        for name in names:
            self.writer.add_scalar(name, info[name], info["iteration"])
        self.writer.flush()


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


def peak_memory_gb() -> float:
    """Peak memory: of the device on Metal and CUDA, of the whole process on CPU."""
    mx = blas.mlx()
    if mx.default_device() == mx.gpu:
        return mx.get_peak_memory() / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def format_record(record: dict) -> str:
    """A report or an evaluation as one line."""
    if record["kind"] == "eval":
        parts = [f"iter {record['iter']:4d}"]
        if record["valid_loss"] is not None:
            parts.append(f"validation loss {record['valid_loss']:.4f}")
        if record["exact"] is not None:
            parts.append(f"exact match {record['exact']:.1%}")
        return " · ".join(parts + [f"{record['seconds']:.1f} s", "best so far" if record["best"] else "not better"])
    left = max(0, round(record["seconds_left"]))
    return (
        f"iter {record['iter']:4d}/{record['iters']} · loss {record['loss']:.4f} · "
        f"rate {record['learning_rate']:.1e} · "
        f"{record['tokens_per_second']:.0f} tokens/s · {record['seconds_per_step']:.2f} s/step · "
        f"peak {record['peak_memory_gb']:.1f} GB · {left // 60}:{left % 60:02d} left"
    )


def _print_report(record: dict) -> None:
    print(format_record(record), flush=True)


# ---------------------------------------------------------------- checkpoints


def fingerprint(model, train_rows, valid_rows, config: TrainConfig) -> str:
    """What a checkpoint belongs to: settings, rows and sizes; a run with other ones starts afresh."""
    import hashlib

    digest = hashlib.sha256()
    settings = {k: v for k, v in asdict(config).items() if k not in ("steps_per_report", "save_every")}
    about = [settings, model.adapter_settings, vars(model.args)]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for row in [*train_rows, *valid_rows]:
        digest.update(repr((row.ids, row.targets, row.prefix)).encode())
    return digest.hexdigest()


class _Run:
    """The checkpoint of a run: adapters, optimiser state and history in one folder, replaced at once."""

    def __init__(self, model, optimizer, config: TrainConfig, out_dir: Path, mark: str):
        self.model, self.optimizer, self.mark = model, optimizer, mark
        self.folder = out_dir / "checkpoint"

    def save(self, history: History) -> None:
        from mlx.utils import tree_flatten

        mx = blas.mlx()
        fresh = self.folder.with_name("checkpoint.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        mx.save_safetensors(str(fresh / "adapters.safetensors"), trainable_bytes(self.model))
        mx.save_safetensors(str(fresh / "optimizer.safetensors"), dict(tree_flatten(self.optimizer.state)))
        history.save(fresh / "history.json")
        (fresh / "run.json").write_text(json.dumps({"fingerprint": self.mark}) + "\n", encoding="utf-8")
        _replace_folder(fresh, self.folder)

    def resume(self) -> History | None:
        """Restore the last checkpoint of this very run, if there is one; anything else is left alone."""
        from mlx.utils import tree_unflatten

        mx = blas.mlx()
        old = self.folder.with_name("checkpoint.old")
        folder = self.folder if self.folder.exists() else old
        if not (folder / "run.json").exists():
            return None
        if json.loads((folder / "run.json").read_text())["fingerprint"] != self.mark:
            return None
        self.model.load_weights(list(mx.load(str(folder / "adapters.safetensors")).items()), strict=False)
        self.optimizer.state = tree_unflatten(list(mx.load(str(folder / "optimizer.safetensors")).items()))
        mx.eval(self.model.parameters(), self.optimizer.state)
        return History.load(folder / "history.json")
