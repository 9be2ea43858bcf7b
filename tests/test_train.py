"""Shared-prefix training against mlx-lm's own loss: the same loss and gradients, the same files, the same bits."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fgtune.core import blas
from fgtune.core.errors import TrainError
from fgtune.data.batches import check_rows, make_batch, round_up
from fgtune.data.readers.examples import read_examples
from fgtune.data.readers.tools import read_tools
from fgtune.data.rows import Row, load_rows, write_jsonl
from fgtune.engines import torch_layout, torch_loss
from fgtune.engines import torch_step as torch_step_module
from fgtune.engines.mlx_forward import PrefixLayers, run_prefix
from fgtune.engines.mlx_step import MlxEngine, batch_arrays, shared_loss
from fgtune.engines.torch_layers import PackedLayers
from fgtune.engines.torch_loss import ROWS_MULTIPLE
from fgtune.engines.torch_step import TRIM_EVERY, TorchEngine
from fgtune.engines.torch_support import SHAPES_KEPT, bfloat16_unsupported_reason, trim_memory
from fgtune.models import gemma3
from fgtune.models.adapters import add_lora, load_adapters, load_model, named_trainable_parameters
from fgtune.models.base import resolve_base
from fgtune.training import loop
from fgtune.training.batches import batches_from, iterate_batches, plan_epoch
from fgtune.training.callbacks import format_record, reporting_callback
from fgtune.training.choose import choose_softmax, make_engine
from fgtune.training.config import History, TrainConfig, learning_rate_at
from fgtune.training.loop import train
from fgtune.training.workers import train_on_workers

mx = blas.mlx()
WINDOW = 128  # of the tiny model
ENGINES = {"mlx": MlxEngine, "torch": TorchEngine}


@pytest.fixture(scope="module")
def tiny():
    return resolve_base("tiny").path


def make_rows(count, prefix, seed=0, turns=1):
    """Rows that share `prefix` random tokens, then `turns` pairs of a user's and a learned part."""
    rng = random.Random(seed)
    head = [2] + [rng.randrange(300, 2000) for _ in range(prefix - 1)] if prefix else []
    rows = []
    for _ in range(count):
        ids, targets = list(head) or [2], [False] * max(prefix, 1)
        for _ in range(turns):
            for learned in (False, True):
                n = rng.randrange(3, 40)
                ids += [rng.randrange(300, 2000) for _ in range(n)]
                targets += [learned] * n
        rows.append(Row(tuple(ids), tuple(targets), prefix))
    return rows


def adapted(path, kind, layers=-1, rank=4, noise=0.03):
    """The tiny model with adapters that do something (a fresh LoRA B is zero)."""
    from mlx.utils import tree_flatten, tree_unflatten

    model, tokenizer = load_model(path)
    add_lora(model, rank, 20.0, 0.0, layers, kind)
    mx.random.seed(5)
    fresh = [(k, v + noise * mx.random.normal(v.shape)) for k, v in tree_flatten(model.trainable_parameters())]
    model.update(tree_unflatten(fresh))
    return model, tokenizer


def reference(model, rows):
    """Loss and gradients by mlx-lm's model over whole rows, every target weighted alike."""
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    width = max(len(r.ids) for r in rows)
    ids = mx.array([list(r.ids) + [0] * (width - len(r.ids)) for r in rows])
    mask = mx.array([list(r.targets) + [False] * (width - len(r.ids)) for r in rows])[:, 1:]

    def loss(model):
        entropy = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:]) * mask
        return entropy.sum() / mask.sum()

    value, gradients = nn.value_and_grad(model, loss)(model)
    return value.item(), dict(tree_flatten(gradients))


def assert_same_gradients(expected, tree, count):
    from mlx.utils import tree_flatten

    found = dict(tree_flatten(tree))
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        got, want = np.array(found[name]) / count, np.array(want)
        assert np.abs(want).max() > 0, name
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max(), name


# ---------------------------------------------------------------- loss and gradients


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "kind, layers, prefix, turns",
    [
        ("lora", -1, 20, 1),  # everything below the window
        ("lora", -1, 100, 2),  # rows cross it
        ("lora", -1, WINDOW - 1, 1),
        ("lora", -1, WINDOW, 1),
        ("lora", -1, WINDOW + 1, 1),
        ("lora", -1, 300, 3),  # the prefix is longer, rows are multi-turn
        ("lora", 2, 300, 1),
        ("lora", 2, 0, 1),
        ("dora", -1, 140, 2),
        ("full", -1, 140, 2),
        ("full", 3, 20, 1),
        ("lora", -1, 0, 1),  # nothing is shared
    ],
)
def test_loss_and_every_gradient(tiny, engine, kind, layers, prefix, turns):
    model, _ = adapted(tiny, kind, layers)
    rows = make_rows(3, prefix, seed=prefix, turns=turns)
    want, expected = reference(model, rows)
    batch = make_batch(rows)
    assert len(batch.prefix) == prefix
    total, gradients = ENGINES[engine](model, TrainConfig(prefix_chunk=48, logits_chunk=16)).gradients(batch)
    count = len(batch.targets)
    assert count == sum(sum(r.targets) for r in rows)
    assert total / count == pytest.approx(want, abs=2e-5)
    assert_same_gradients(expected, gradients, count)


def test_equals_mlx_lm_default_loss_on_single_turn_rows(tiny):
    """`default_loss` also scores the first pad token of a row: give it that token as a target, and the losses agree."""
    from mlx_lm.tuner.trainer import default_loss

    model, _ = adapted(tiny, "lora")
    rows = make_rows(3, 150)
    width = max(len(r.ids) for r in rows) + 1
    ids = mx.array([list(r.ids) + [0] * (width - len(r.ids)) for r in rows])
    spans = mx.array([[r.targets.index(True), len(r.ids)] for r in rows])
    theirs, scored = default_loss(model, ids, spans)
    padded = [Row(r.ids + (0,), r.targets + (True,), r.prefix) for r in rows]
    batch = make_batch(padded)
    assert scored.item() == len(batch.targets) == sum(sum(r.targets) for r in rows) + 3
    ours, count = shared_loss(model, *batch_arrays(batch))
    assert count.item() == scored.item()
    assert ours.item() == pytest.approx(theirs.item(), abs=2e-5)


def test_loss_and_batches_go_into_mlx_lms_own_trainer(tiny):
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.trainer import TrainingArgs
    from mlx_lm.tuner.trainer import train as mlx_lm_train

    model, _ = adapted(tiny, "lora")
    rows = make_rows(6, 40)
    seen = []

    class Callback:
        def on_train_loss_report(self, info):
            seen.append(info["train_loss"])

        def on_val_loss_report(self, info):
            pass

    first = reference(model, rows)[0]
    args = TrainingArgs(batch_size=6, iters=3, steps_per_report=1, steps_per_eval=10, adapter_file="/dev/null")
    args.steps_per_save = 1000
    real, mx.save_safetensors = mx.save_safetensors, lambda *_: None
    try:
        mlx_lm_train(
            model,
            optimizers.Adam(learning_rate=1e-3),
            rows,
            rows,
            args,
            loss=shared_loss,
            iterate_batches=iterate_batches,
            training_callback=Callback(),
        )
    finally:
        mx.save_safetensors = real
    assert seen[0] == pytest.approx(first, abs=1e-4)
    assert seen[2] < seen[0]


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_bfloat16_products_stay_close(tiny, kind):
    from mlx.utils import tree_flatten

    if bfloat16_unsupported_reason():
        with pytest.raises(ValueError, match="bfloat16"):
            TorchEngine(adapted(tiny, kind)[0], TrainConfig(precision="bfloat16"))
        return
    model, _ = adapted(tiny, kind)
    batch = make_batch(make_rows(3, 150))
    (want, exact), (got, rough) = (
        TorchEngine(model, TrainConfig(precision=p)).gradients(batch) for p in ("auto", "bfloat16")
    )
    assert got == pytest.approx(want, rel=2e-3) and got != want
    a, b = (np.concatenate([np.array(v).ravel() for _, v in tree_flatten(t)]) for t in (exact, rough))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.995


@pytest.mark.parametrize("sure", [0.05, 0.4, 1.5])
@pytest.mark.parametrize("dtype, near", [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_entropy_is_torchs_however_sure_the_model_is(monkeypatch, sure, dtype, near):
    """From "anything may come" to "nearly all chunks of the vocabulary are negligible": those are left out. Padding
    behind the 20 targets changes nothing."""
    import torch

    torch.manual_seed(1)
    monkeypatch.setattr(torch_loss, "VOCABULARY_CHUNK", 64)
    monkeypatch.setattr(torch_loss, "ROWS_MULTIPLE", 4)
    table = torch.randn(1000, 32).to(getattr(torch, dtype))
    targets = torch.randint(1000, (20,))
    h = (sure * table[targets].float() + 0.1 * torch.randn(20, 32)).to(table.dtype).float().requires_grad_()
    products = []
    monkeypatch.setattr(
        torch_loss, "_weighted_rows", lambda z, part: products.append(len(z)) or (z.to(part.dtype) @ part).float()
    )
    padded = torch.cat([h.detach(), torch.randn(4, 32)]).requires_grad_()
    loss = torch_loss.CrossEntropy.apply(padded, table, targets)
    (gradient,) = torch.autograd.grad(loss, padded)
    assert not gradient[20:].any()
    gradient = gradient[:20]
    with torch.enable_grad():
        want = torch.nn.functional.cross_entropy(h.double() @ table.double().T, targets, reduction="sum")
    (exact,) = torch.autograd.grad(want, h)
    assert abs(loss.item() - want.item()) <= near * max(5, want.item())
    assert (gradient - exact).norm() <= near * max(1, exact.norm())
    assert all(n % 4 == 0 for n in products)
    assert sum(products) < 300 if sure == 1.5 else sum(products) == 320 or sure != 0.05, sum(products)


def test_a_sure_model_has_no_negative_loss():
    """The target's logit is rounded as its neighbours are: a loss is the log of a share."""
    import torch

    torch.manual_seed(2)
    table = torch.randn(3000, 640).bfloat16()
    targets = torch.randint(3000, (64,))
    h = 0.06 * table[targets].float() + 0.003 * torch.randn(64, 640)
    for row, target in zip(h, targets):
        loss = torch_loss.CrossEntropy.apply(row[None], table, target[None]).item()
        assert -1e-6 <= loss < 1e-3


@pytest.fixture
def small_vocabulary(monkeypatch):
    """A vocabulary of 1000 in chunks of 64, of which 128 tokens are taken always; 20 states and their targets."""
    import torch

    torch.manual_seed(3)
    for name, value in (("VOCABULARY_CHUNK", 64), ("FREQUENT", 60), ("ROWS_MULTIPLE", 4)):
        monkeypatch.setattr(torch_loss, name, value)
    table, targets = torch.randn(1000, 32), torch.randint(500, 1000, (20,))
    h = (0.1 * table[targets] + 0.3 * torch.randn(20, 32)).requires_grad_()
    return table, targets, h, torch_loss.SampledVocabulary(table, targets.tolist())


def entropy(h, table, targets, sample=None):
    import torch

    loss = torch_loss.CrossEntropy.apply(h, table, targets, sample)
    return loss.item(), torch.autograd.grad(loss, h)[0]


def test_all_tokens_sampled_are_the_exact_softmax(monkeypatch, small_vocabulary):
    table, targets, h, sample = small_vocabulary
    monkeypatch.setattr(torch_loss, "SAMPLED_CHUNKS", 1000)
    loss, gradient = entropy(h, table, targets)
    sampled, pulled = entropy(h, table, targets, sample)
    assert sampled == pytest.approx(loss, rel=1e-6) and (gradient - pulled).abs().max() < 1e-5


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_sampled_sum_over_the_vocabulary_has_no_bias(monkeypatch, small_vocabulary, chunks):
    """The mean over all draws of the sum over the vocabulary (exp(loss), to a factor of the target's) is the sum."""
    from itertools import combinations
    from types import SimpleNamespace

    table, targets, h, sample = small_vocabulary
    monkeypatch.setattr(torch_loss, "SAMPLED_CHUNKS", chunks)
    assert len(sample.ids) == 128 and set(targets.tolist()) <= set(sample.ids.tolist()) and 0 in sample.ids
    exact = [math.exp(entropy(h[i : i + 1], table, targets[i : i + 1])[0]) for i in range(4)]
    sums = []
    for draw in combinations(range(len(sample.others)), chunks):
        chosen = SimpleNamespace(sample=lambda others, count, draw=draw: [others[k] for k in draw])
        monkeypatch.setattr(torch_loss.random, "Random", lambda seed, chosen=chosen: chosen)
        sums.append([math.exp(entropy(h[i : i + 1], table, targets[i : i + 1], sample)[0]) for i in range(4)])
    means = [sum(column) / len(sums) for column in zip(*sums)]
    assert means == pytest.approx(exact, rel=1e-4)
    assert max(abs(a - b) for a, b in zip(sums[0], exact)) > 1e-3 * exact[0], "one draw alone is an estimate"


def test_a_batch_has_one_draw_and_tokens_that_are_not_learned_are_refused(small_vocabulary):
    _, targets, _, sample = small_vocabulary
    draws = [sample.draw(t) for t in (targets, targets, targets.flip(0))]
    same = [all(a[0].data_ptr() == b[0].data_ptr() for a, b in zip(draws[0], other)) for other in draws[1:]]
    assert same == [True, False]
    unknown = next(i for i in range(999, 0, -1) if sample.place[i] < 0)
    with pytest.raises(ValueError, match="learned"):
        sample.draw(targets.new_tensor([unknown]))


def test_a_sampled_softmax_trains_and_validates_exactly(tiny, monkeypatch):
    monkeypatch.setattr(torch_loss, "VOCABULARY_CHUNK", 64)
    monkeypatch.setattr(torch_loss, "FREQUENT", 0)
    model, _ = adapted(tiny, "lora")
    rows = make_rows(8, 40)
    batch = make_batch(rows)
    config = TrainConfig(softmax="sampled", engine="torch")
    exact, sampled = (make_engine(model, c, rows) for c in (TrainConfig(engine="torch"), config))
    assert sampled.loss(batch) == exact.loss(batch)
    total, estimate = exact.gradients(batch)[0], sampled.gradients(batch)[0]
    assert total != estimate and abs(total - estimate) < 0.2 * total
    with pytest.raises(TrainError, match="whole vocabulary"):
        make_engine(model, TrainConfig(softmax="sampled", engine="mlx"), rows)
    with pytest.raises(TrainError, match="softmax"):
        TrainConfig(softmax="none")
    assert [choose_softmax(model, w) for w in ("auto", "exact", "sampled")] == ["exact", "exact", "sampled"]
    monkeypatch.setattr("fgtune.training.choose.SMALL_VOCABULARY", 2047)
    assert [choose_softmax(model, w) for w in ("auto", "exact", "sampled")] == ["sampled", "exact", "sampled"]


def test_batches_come_in_few_shapes():
    """Each shape of a bfloat16 product keeps memory: hundreds of batches must not be hundreds of shapes."""
    found = []
    for seed in range(100):
        batch = make_batch(make_rows(6, 20, seed))
        layout = torch_layout.PackedLayout.of(batch)
        own = sum(map(len, batch.rows))
        found.append((len(layout.ids) - 20, layout.width, len(layout.learned)))
        assert own <= len(layout.ids) - 20 < own + ROWS_MULTIPLE
        assert len(layout.targets) <= len(layout.learned) < len(layout.targets) + ROWS_MULTIPLE
        spots = dict(zip(layout.slots.tolist(), layout.ids[20:].tolist()))
        assert all(spots[b * layout.width + s] == i for b, r in enumerate(batch.rows) for s, i in enumerate(r))
    assert all(len(set(sizes)) < 14 for sizes in zip(*found))
    assert all(name in os.environ for name in SHAPES_KEPT)


def test_chunks_do_not_change_the_result(tiny):
    model, _ = adapted(tiny, "lora")
    batch = make_batch(make_rows(3, 200))
    arrays = batch_arrays(batch)
    values = {shared_loss(model, *arrays, p, c)[0].item() for p, c in ((1000, 1000), (7, 5), (64, 1))}
    assert max(values) - min(values) < 1e-5


def test_padding_of_arrays_has_no_weight(tiny):
    model, _ = adapted(tiny, "lora")
    batch = make_batch(make_rows(3, 60))
    plain, padded = (shared_loss(model, *batch_arrays(batch, m))[0].item() for m in (1, 64))
    assert plain == pytest.approx(padded, abs=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_target_right_behind_the_prefix_moves_the_split(tiny, engine):
    rows = [Row(r.ids, tuple(i >= 40 for i in range(len(r.ids))), 40) for r in make_rows(2, 40)]
    batch = make_batch(rows)
    assert len(batch.prefix) == 39
    model, _ = adapted(tiny, "lora")
    total, _ = ENGINES[engine](model, TrainConfig()).gradients(batch)
    assert total / len(batch.targets) == pytest.approx(reference(model, rows)[0], abs=2e-5)


def test_accumulated_micro_batches_are_one_batch(tiny, tmp_path):
    """Two steps over 3 rows each, weighted by tokens, move the adapters as one step over 6 rows."""
    rows = make_rows(6, 50)
    results = []
    for batch_size, accumulate in ((6, 1), (3, 2)):
        model, tokenizer = adapted(tiny, "lora")
        config = TrainConfig(
            iters=1, batch_size=batch_size, grad_accumulation_steps=accumulate, warmup=0, lr_schedule="constant"
        )
        history = train(model, tokenizer, rows, [], config, tmp_path / str(batch_size), on_report=lambda _: None)
        results.append((history.losses[0], named_trainable_parameters(model)))
    (loss_a, a), (loss_b, b) = results
    assert loss_a == pytest.approx(loss_b, abs=1e-5)
    # Adam's first step has the size of the rate whatever the gradient's size: compare where it is well above rounding.
    same = np.concatenate([np.array(mx.abs(a[k] - b[k]) < 2e-6).ravel() for k in a])
    assert same.mean() > 0.99


# ---------------------------------------------------------------- batches


def test_every_row_is_trained_once_an_epoch():
    rows = make_rows(13, 30, seed=1) + make_rows(5, 60, seed=2) + make_rows(1, 8, seed=3)
    plan = plan_epoch(rows, 4, seed=7, epoch=0)
    assert sorted(i for batch in plan for i in batch) == list(range(19))
    assert all(1 <= len(batch) <= 4 for batch in plan)
    assert len(plan) == 4 + 2 + 1
    for batch in plan:
        assert len({rows[i].ids[: rows[i].prefix] for i in batch}) == 1
        make_batch([rows[i] for i in batch])
    assert plan == plan_epoch(rows, 4, seed=7, epoch=0)
    assert plan == [[12, 7, 3], [10, 6, 8], [14, 15, 17], [13, 16], [18], [4, 2, 1, 0], [9, 5, 11]], "old runs go on"
    assert plan != plan_epoch(rows, 4, seed=7, epoch=1) != plan_epoch(rows, 4, seed=8, epoch=1)


def test_batches_mix_rows_of_all_lengths():
    rows = [Row(tuple(range(10)) + (7,) * n, (False,) * 10 + (True,) * n, 10) for n in range(1, 65)]
    first, second = (plan_epoch(rows, 8, seed=3, epoch=epoch) for epoch in (0, 1))
    assert first != second and sorted(i for batch in first for i in batch) == list(range(64))
    assert min(max(batch) - min(batch) for batch in first) > 16  # row i has i + 1 tokens of its own


@pytest.mark.parametrize("start", [0, 1, 4, 5, 11])
def test_batches_go_on_where_they_stopped(start):
    rows = make_rows(17, 10)
    whole, rest = batches_from(rows, 4, 3), batches_from(rows, 4, 3, start)
    taken = [next(whole) for _ in range(16)]
    assert [next(rest) for _ in range(16 - start)] == taken[start:]


def test_batches_of_one_row_and_more_than_there_are():
    rows = make_rows(3, 10)
    assert len(plan_epoch(rows, 1, 0, 0)) == 3
    assert [len(b) for b in plan_epoch(rows, 100, 0, 0)] == [3]


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "no training rows"),
        ([Row((2, 3), (False,), 1)], "2 ids but 1 targets"),
        ([Row((2, 3), (False, False), 1)], "no token to learn"),
        ([Row((2, 3), (True, False), 1)], "no token to learn"),
        ([Row((2, 3), (False, True), 3)], "prefix 3 of 2"),
    ],
)
def test_bad_rows_are_refused(rows, said):
    with pytest.raises(TrainError, match=said):
        check_rows(rows, "training rows")


def dated_rows(count, head=12, tail=30):
    """Rows whose prefixes differ in one token in the middle, a row each."""
    rows = []
    for day, row in enumerate(make_rows(count, head + tail)):
        rows.append(Row((*row.ids[:head], 2000 + day, *row.ids[head + 1 :]), row.targets, row.prefix))
    return rows


def test_rows_of_a_date_each_fill_batches():
    """Developer turns that differ by a date would be batches of one; rows of an often used prefix stay among theirs."""
    dated, usual = dated_rows(10), make_rows(9, 20, seed=4)
    plan = plan_epoch(dated + usual, 4, seed=7, epoch=0)
    assert sorted(i for batch in plan for i in batch) == list(range(19))
    assert len(plan) == 3 + 3 and all(len({i < 10 for i in batch}) == 1 for batch in plan)
    assert sorted(map(len, plan)) == [3, 3, 3, 3, 3, 4]
    pairs = [row for row in dated for _ in range(2)]
    for batch in plan_epoch(pairs, 4, seed=7, epoch=0):
        assert len({i // 2 for i in batch}) == 2, "rows of one prefix stand side by side"
    assert [len(b) for b in plan_epoch(dated, 1, 0, 0)] == [1] * 10


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_a_date_each_share_what_comes_before_it(tiny, engine):
    """The batch has the prefix up to the date, and the loss is that of each row alone."""
    model, _ = adapted(tiny, "lora")
    rows = dated_rows(3)
    batch = make_batch(rows)
    assert len(batch.prefix) == 12 and {row[0] for row in batch.rows} == {2000, 2001, 2002}
    worker = ENGINES[engine](model, TrainConfig())
    alone = [worker.loss(make_batch([row])) for row in rows]
    together = worker.loss(batch)
    assert together[1] == sum(count for _, count in alone)
    assert together[0] == pytest.approx(sum(loss for loss, _ in alone), rel=1e-5)
    other = make_batch([make_rows(1, 20, seed=1)[0], make_rows(1, 20, seed=2)[0]])
    assert other.prefix == (2,), "two prefixes that only begin alike"
    assert worker.loss(other)[0] > 0


# ---------------------------------------------------------------- settings


def test_learning_rate_warms_up_and_falls():
    config = TrainConfig(iters=110, learning_rate=1.0, warmup=10, min_learning_rate=0.1)
    rates = [learning_rate_at(config, i) for i in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_at(replace(config, lr_schedule="constant"), 100) == 1.0
    assert learning_rate_at(replace(config, lr_schedule="linear"), 60) == pytest.approx(0.55)
    assert learning_rate_at(replace(config, warmup=0), 0) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"iters": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"warmup": -1},
        {"beta2": 1.0},
        {"lr_schedule": "cosin"},
        {"engine": "cuda"},
        {"precision": "float16"},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(TrainError, match=next(iter(wrong))):
        TrainConfig(**wrong)


@pytest.mark.parametrize(
    "kind, layers, rank, count",
    [("lora", -1, 4, None), ("dora", 2, 8, None), ("full", 1, 8, None), ("lora", 1, 1, None)],
)
def test_trainable_parameters_are_counted_exactly(tiny, kind, layers, rank, count):
    model, _ = load_model(tiny)
    args = model.args
    sizes = [  # (in, out) of a layer's linear layers
        (args.hidden_size, args.num_attention_heads * args.head_dim),
        *[(args.hidden_size, args.num_key_value_heads * args.head_dim)] * 2,
        (args.num_attention_heads * args.head_dim, args.hidden_size),
        *[(args.hidden_size, args.intermediate_size)] * 2,
        (args.intermediate_size, args.hidden_size),
    ]
    layer = {
        "lora": sum(rank * (i + o) for i, o in sizes),
        "dora": sum(rank * (i + o) + o for i, o in sizes),
        "full": sum(i * o for i, o in sizes) + 4 * args.hidden_size + 2 * args.head_dim,
    }[kind]
    used = args.num_hidden_layers if layers == -1 else layers
    assert add_lora(model, rank, 20.0, 0.0, layers, kind) == used * layer


def test_bad_adapters_are_refused(tiny):
    model, _ = load_model(tiny)
    for wrong in ({"fine_tune_type": "lore"}, {"num_layers": 0}, {"num_layers": 7}, {"rank": 0}, {"dropout": 1.0}):
        with pytest.raises(TrainError, match=next(iter(wrong))):
            add_lora(model, **wrong)
    add_lora(model)
    with pytest.raises(TrainError, match="adapters already"):
        add_lora(model)


def test_dropout_and_half_precision_take_the_mlx_engine(tiny):
    model, _ = load_model(tiny)
    add_lora(model, dropout=0.1)
    assert make_engine(model, TrainConfig()).name == "mlx"
    with pytest.raises(TrainError, match="dropout"):
        make_engine(model, TrainConfig(engine="torch"))
    model, _ = load_model(tiny, dtype="bfloat16")
    assert make_engine(model, TrainConfig()).name == "mlx"
    model, _ = load_model(tiny)
    assert make_engine(model, TrainConfig()).name == "torch"


# ---------------------------------------------------------------- a run


def quick(**changes):
    config = TrainConfig(
        iters=8, batch_size=4, learning_rate=2e-3, warmup=2, steps_per_report=2, steps_per_eval=2, save_every=3
    )
    return replace(config, **changes)


def run(tiny, folder, config, evaluate=None, on_report=None, rows=None):
    model, tokenizer = load_model(tiny)
    add_lora(model, 4, 20.0, seed=config.seed)
    rows = rows or make_rows(10, 40) + make_rows(6, 70, seed=4)
    records = []
    history = train(
        model, tokenizer, rows[:14], rows[14:], config, folder, evaluate=evaluate, on_report=on_report or records.append
    )
    return model, history, records


def test_squared_gradients_are_forgotten_as_set(tiny, tmp_path):
    """After one step AdamW's averages are 0.1 g and (1 - beta2) g²."""
    run(tiny, tmp_path, quick(iters=1, warmup=0, steps_per_eval=0, save_every=1, beta2=0.75))
    state = mx.load(str(tmp_path / "checkpoint" / "optimizer.safetensors"))
    first = [name for name in state if name.endswith("lora_b.m")]
    assert first
    for name in first:
        gradient = 10 * np.array(state[name])
        assert np.abs(gradient).max() > 0
        np.testing.assert_allclose(np.array(state[name[:-1] + "v"]), 0.25 * gradient**2, rtol=1e-4, atol=1e-12)


def test_training_learns_reports_and_keeps_best_and_last(tiny, tmp_path):
    model, history, records = run(tiny, tmp_path, quick())
    assert len(history.losses) == 8 and history.losses[-1] < history.losses[0] - 0.3
    assert [r["iter"] for r in history.reports] == [2, 4, 6, 8] == [r["iter"] for r in history.evals]
    assert history.best_iter == min(history.evals, key=lambda e: e["valid_loss"])["iter"]
    assert history.reports[0]["loss"] == pytest.approx(sum(history.losses[:2]) / 2)
    assert [r["kind"] for r in records] == ["train", "eval"] * 4
    assert all("iter" in format_record(r) for r in records)
    again = History.load(tmp_path / "history.json")
    assert again == history
    from mlx_lm.utils import load

    theirs, _ = load(str(tiny), adapter_path=str(tmp_path / "best"))
    ids = mx.array([[2, 400, 500, 600]])
    assert np.array_equal(np.array(theirs(ids)), np.array(model(ids)))
    assert json.loads((tmp_path / "last" / "adapter_config.json").read_text())["iter"] == 8


def test_best_is_the_last_within_chance_of_the_highest_exact_match(tiny, tmp_path):
    shares = iter([0.25, 0.75, 0.75, 0.0])
    calls = []

    def evaluate(model):
        calls.append(model.training)
        return next(shares)

    model, history, _ = run(tiny, tmp_path, quick(), evaluate)
    assert calls == [False] * 4
    assert [e["exact"] for e in history.evals] == [0.25, 0.75, 0.75, 0.0] and history.best_iter == 6
    kept = mx.load(str(tmp_path / "best" / "adapters.safetensors"))
    assert all(np.array_equal(np.array(kept[k]), np.array(v)) for k, v in named_trainable_parameters(model).items())
    last = mx.load(str(tmp_path / "last" / "adapters.safetensors"))
    assert any(not np.array_equal(np.array(kept[k]), np.array(last[k])) for k in kept)


def test_some_cases_less_are_chance_and_many_are_not():
    def better(exact, *before, cases=32, loss=1.0):
        return loop.is_better(
            {"exact": exact, "valid_loss": loss}, [{"exact": e, "valid_loss": 2.0} for e in before], cases
        )

    assert better(0.0) and better(0.5, 0.25) and better(1.0, 1.0)
    assert better(30 / 32, 1.0) and not better(29 / 32, 1.0)
    assert better(12 / 32, 16 / 32) and not better(10 / 32, 16 / 32)
    assert better(0.3, 0.5, cases=10) and not better(0.4, 0.5, cases=400)
    assert not better(10 / 32, 16 / 32, 12 / 32)  # against the highest, not the one before
    assert better(None, None) and not better(None, None, loss=3.0)
    assert loop.is_better({"exact": None, "valid_loss": None}, [], 0)


def test_patience_stops_early(tiny, tmp_path):
    shares = iter([1.0, 0.0, 0.0, 1.0])
    _, history, _ = run(tiny, tmp_path, quick(patience=2), lambda _: next(shares))
    assert history.stopped_early and len(history.losses) == 6 and history.best_iter == 2


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A folder as stage 01 leaves it: six rows of one tool set, one of another, and two validation cases."""
    source = Path(__file__).parent / "data" / "ci"
    tools = read_tools(source / "tools.json")
    examples = read_examples(source / "examples.json", tools)
    folder = tmp_path_factory.mktemp("data")
    other = {**examples[6], "tools": examples[6]["tools"][:1]}
    write_jsonl(folder / "train.jsonl", [*examples[:6], other])
    write_jsonl(folder / "valid.jsonl", examples[7:9])
    return folder


def test_two_workers_take_the_steps_of_one(tiny, tmp_path, few):
    """Real processes over the ring; the row with tools of its own is a batch of one, which leaves a worker idle."""
    adapters = {"rank": 4, "scale": 20.0, "seed": 3}
    config = quick(iters=5, steps_per_eval=0, batch_size=3)
    model, tokenizer = load_model(tiny)
    add_lora(model, **adapters)
    rows = [load_rows(few, split, tokenizer._tokenizer) for split in ("train", "valid")]
    assert {len(batch) for batch in plan_epoch(rows[0], 3, config.seed, 0)} == {1, 3}
    alone = train(model, tokenizer, *rows, config, tmp_path / "one", on_report=lambda _: None)
    seen = []
    both = train_on_workers(2, tiny, few, adapters, config, tmp_path / "two", 4, seen.append)
    assert [r["kind"] for r in seen] == ["train", "train", "train", "eval"] and seen[-1]["exact"] is not None
    assert both.losses == pytest.approx(alone.losses, rel=1e-5)
    assert both.evals[0]["valid_loss"] == pytest.approx(alone.evals[0]["valid_loss"], rel=1e-5)
    one, two = (mx.load(str(tmp_path / name / "last" / "adapters.safetensors")) for name in ("one", "two"))
    assert all(np.allclose(np.array(one[k]), np.array(two[k]), rtol=1e-3, atol=1e-5) for k in one)


def test_a_failed_worker_is_named(tmp_path, few):
    with pytest.raises(TrainError, match=r"no config\.json"):
        train_on_workers(2, tmp_path, few, {"rank": 4}, quick(), tmp_path / "out", 4)


def test_reports_go_where_they_are_asked_to_go(tiny, tmp_path, monkeypatch):
    assert reporting_callback("", tmp_path, {}) is None
    for name in ("wandb", "swanlab", "tensorboard"):
        try:
            __import__(name)
        except ImportError:
            with pytest.raises(TrainError, match=f"pip install {name}"):
                reporting_callback(name, tmp_path, {})
    written = []

    class Writer:  # the interface of SummaryWriter, which needs a package that is not installed
        def __init__(self, folder):
            assert folder == str(tmp_path)

        def add_scalar(self, *point):
            written.append(point)

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    model, tokenizer = load_model(tiny)
    add_lora(model, 4)
    rows, callback = make_rows(6, 20), reporting_callback("tensorboard", tmp_path, {})
    history = train(
        model, tokenizer, rows[:4], rows[4:], quick(iters=4), tmp_path / "run", None, lambda _: None, callback
    )
    assert [(n, i) for n, _, i in written if n in ("train_loss", "val_loss")] == [
        ("train_loss", 2), ("val_loss", 2), ("train_loss", 4), ("val_loss", 4)]  # fmt: skip
    assert written[0][1] == pytest.approx(history.reports[0]["loss"])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_seed_gives_the_same_bits(tiny, tmp_path, engine):
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tiny, tmp_path / name, quick(iters=3, seed=seed, engine=engine))
        files.append((tmp_path / name / "last" / "adapters.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("stop_at", [3, 4, 5, 7])
def test_an_interrupted_run_ends_with_the_same_bits(tiny, tmp_path, stop_at):
    """Ctrl-C after any step; the second call goes on from the checkpoint, with dropout's random numbers as well."""
    config = quick(save_every=1 if stop_at == 5 else 3, steps_per_report=1)
    _, whole, _ = run(tiny, tmp_path / "whole", config)

    def interrupt(record):
        if record["kind"] == "train" and record["iter"] == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "cut", config, on_report=interrupt)
    _, resumed, records = run(tiny, tmp_path / "cut", config)
    assert records[0]["iter"] > 1  # it did not start afresh
    assert resumed.losses == whole.losses and resumed.best_iter == whole.best_iter
    for name in ("best", "last"):
        file = Path(name, "adapters.safetensors")
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_killed_run_resumes(tiny, tmp_path):
    """SIGKILL in another process, with dropout (random numbers are part of the state)."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path[:0] = [{tests!r}, {root!r}]
        import test_train as t
        from fgtune.models.adapters import add_lora, load_model
        from fgtune.models.base import resolve_base
        from fgtune.training.loop import train
        def report(record):
            if record["kind"] == "train" and record["iter"] == 5 and sys.argv[2] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        model, tokenizer = load_model(resolve_base("tiny").path)
        add_lora(model, 4, 20.0, 0.2)
        rows = t.make_rows(12, 40)
        train(model, tokenizer, rows, rows[:2], t.quick(steps_per_report=1), sys.argv[1], on_report=report)
        """
    ).format(tests=str(Path(__file__).parent), root=str(Path(__file__).parent.parent))

    def call(folder, mode):
        done = subprocess.run([sys.executable, "-c", script, folder, mode], capture_output=True, text=True)
        return done.returncode, done.stderr[-2000:]

    assert call(tmp_path / "cut", "kill")[0] == -signal.SIGKILL
    assert not (tmp_path / "cut" / "last").exists()
    for folder in ("cut", "whole"):
        code, said = call(tmp_path / folder, "go")
        assert code == 0, said
    file = Path("last", "adapters.safetensors")
    assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_folders_left_aside_by_a_kill_between_two_renames_are_found(tiny, tmp_path):
    """A checkpoint that was about to be replaced is still the checkpoint, and adapters are still the adapters."""
    run(tiny, tmp_path, quick(iters=3))
    for name in ("checkpoint", "best"):
        (tmp_path / name).rename(tmp_path / f"{name}.old")
    model, _ = load_model(tiny)
    load_adapters(model, tmp_path / "best")
    _, history, records = run(tiny, tmp_path, quick(iters=3))
    assert records == [] and len(history.losses) == 3  # all steps were taken before
    assert not list(tmp_path.glob("*.old"))


def test_another_run_does_not_take_the_checkpoint(tiny, tmp_path):
    run(tiny, tmp_path, quick(iters=3))
    _, history, records = run(tiny, tmp_path, quick(iters=3, learning_rate=1e-3))
    assert records[0]["iter"] == 2 and len(history.losses) == 3


def test_diverging_training_says_what_to_do(tiny, tmp_path):
    with pytest.raises(TrainError, match="lower learning_rate"):
        run(tiny, tmp_path, quick(iters=30, learning_rate=1e30, warmup=0, grad_clip=0))


def test_training_needs_adapters_and_a_model(tiny, tmp_path):
    model, tokenizer = load_model(tiny)
    with pytest.raises(TrainError, match="add_lora"):
        train(model, tokenizer, make_rows(2, 5), [], quick(), tmp_path)
    with pytest.raises(TrainError, match=r"config\.json"):
        load_model(tmp_path)
    with pytest.raises(TrainError, match=r"adapters\.safetensors"):
        load_adapters(model, tmp_path)


def test_the_prefix_runs_once_and_is_not_repeated(tiny):
    """What makes it fast: forward work grows with the rows' own tokens only, and the head sees learned tokens only."""
    model, _ = load_model(tiny)
    seen = []
    gate = model.layers[0].mlp.gate_proj

    class Spy(type(gate)):
        def __call__(self, x):
            seen.append(x.shape[0] * x.shape[1])
            return super().__call__(x)

    gate.__class__ = Spy
    rows = make_rows(5, 200)
    batch = make_batch(rows)
    shared_loss(model, *batch_arrays(batch))
    assert seen == [200, 5 * max(len(r) for r in batch.rows)]
    layout = torch_layout.PackedLayout.of(batch)
    assert len(layout.ids) == 200 + round_up(sum(len(r) for r in batch.rows), ROWS_MULTIPLE)
    assert len(run_prefix(model, mx.array(rows[0].ids[:200])).keys) == len(model.layers)


def test_the_last_layer_runs_only_where_its_output_is_read(tiny, monkeypatch):
    """Of a prefix it makes keys and values alone; behind attention, torch's has the tokens that predict a target."""
    model, _ = adapted(tiny, "lora")
    batch, last, seen = make_batch(make_rows(3, 150)), len(model.layers) - 1, []

    def spy(operations):
        real = operations.project
        note = lambda self, layer, names, x: seen.append((layer, names, x.shape[-2])) or real(self, layer, names, x)
        monkeypatch.setattr(operations, "project", note)

    spy(PrefixLayers)
    run_prefix(model, mx.array(batch.prefix))
    assert [names for layer, names, _ in seen if layer == 0] == list(gemma3.PROJECTIONS)
    assert [names for layer, names, _ in seen if layer == last] == [gemma3.KEY_VALUE]
    seen.clear()
    spy(PackedLayers)
    TorchEngine(model).loss(batch)
    layout = torch_layout.PackedLayout.of(batch)
    whole, learned = len(layout.ids), len(layout.learned)
    assert learned < whole - 150
    assert [count for layer, _, count in seen if layer == 0] == [whole] * 4
    assert [count for layer, _, count in seen if layer == last] == [whole] + [learned] * 3


def test_below_the_first_adapter_the_prefix_runs_once(tiny, monkeypatch):
    """Batches of two prefixes in turn: the same as by a fresh engine each, with less run; and few prefixes are kept."""
    model, _ = adapted(tiny, "lora", layers=2)
    engine, ran = TorchEngine(model), []
    assert engine.first == len(model.layers) - 2 > 0
    real = torch_step_module.decoder_layer
    spy = lambda layers, i, h: ran.append((i, len(h))) or real(layers, i, h)
    monkeypatch.setattr(torch_step_module, "decoder_layer", spy)
    batches = [make_batch(make_rows(2, 150, seed)) for seed in (1, 2, 1)]
    found = []
    for batch in batches:
        ran.clear()
        found.append((engine.gradients(batch), [n for i, n in ran if i == 0]))
    own = [len(torch_layout.PackedLayout.of(batch).ids) - 150 for batch in batches]
    assert [n for _, n in found] == [[150, own[0]], [150, own[1]], [own[2]]]
    for (result, _), batch in zip(found, batches):
        assert_close(result, TorchEngine(model).gradients(batch))
    monkeypatch.setattr(torch_step_module, "MOST_PREFIXES", 2)
    engine.loss(make_batch(make_rows(2, 150, 3)))
    assert len(engine._below) == 1


def assert_close(a, b):
    from mlx.utils import tree_flatten

    assert a[0] == pytest.approx(b[0], rel=1e-6)
    for (name, x), (_, y) in zip(tree_flatten(a[1]), tree_flatten(b[1]), strict=True):
        assert np.allclose(np.array(x), np.array(y), rtol=1e-4, atol=1e-6), name


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_given_back(tiny, monkeypatch):
    """Every second block of many is freed: without trimming their pages stay with the process."""
    seen = []
    monkeypatch.setattr(torch_step_module, "trim_memory", lambda: seen.append(1))
    model, _ = adapted(tiny, "lora")
    engine = TorchEngine(model)
    batch = make_batch(make_rows(2, 20))
    for _ in range(2 * TRIM_EVERY):
        engine.gradients(batch)
    assert len(seen) == 2
    monkeypatch.undo()

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    blocks = [bytearray(100_000) for _ in range(2000)]
    del blocks[::2]
    before = resident()
    trim_memory()
    assert before - resident() > 50_000_000 and len(blocks) == 1000
