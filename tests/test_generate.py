"""Batched greedy decoding over a shared prefix: token for token what mlx-lm says, whatever the batch."""

import random

import numpy as np
import pytest

from fgtune.core import blas
from fgtune.data.prefixes import common_prefix
from fgtune.engines import mlx_forward, torch_decoder, torch_support
from fgtune.engines.argmax import ExactArgmax
from fgtune.engines.mlx_forward import run_prefix
from fgtune.engines.torch_decoder import TorchDecoder
from fgtune.models.adapters import add_lora, load_model
from fgtune.models.base import resolve_base
from fgtune.runtimes.mlx import MlxGenerator

mx = blas.mlx()
WINDOW = 128


class Numbers:
    """A tokenizer whose text is ids in words, so that lengths are exact."""

    @staticmethod
    def encode(text, add_special_tokens=False):
        return [int(n) for n in text.split()]

    @staticmethod
    def decode(ids, skip_special_tokens=False):
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def model():
    """The tiny model with its layers stirred, so that what it says hangs on all it has read."""
    from mlx.utils import tree_flatten, tree_unflatten

    model, _ = load_model(resolve_base("tiny").path)
    mx.random.seed(3)
    weights = [(k, v) for k, v in tree_flatten(model.parameters()) if v.ndim == 2 and "layers" in k]
    model.update(tree_unflatten([(k, v + 0.3 * mx.random.normal(v.shape)) for k, v in weights]))
    mx.eval(model.parameters())
    return model


def prompts(shared, lengths, seed=0):
    rng = random.Random(seed)
    head = [2] + [rng.randrange(300, 2000) for _ in range(shared - 1)]
    return [
        " ".join(map(str, head + [300 + k] + [rng.randrange(300, 2000) for _ in range(n - 1)]))
        for k, n in enumerate(lengths)
    ]


@pytest.fixture(params=["torch", "mlx"])
def way(request, monkeypatch):
    """Both decoders: torch's on this CPU, MLX's as on a GPU."""
    if request.param == "mlx":
        monkeypatch.setattr(torch_support, "unsupported_reason", lambda model: "the test says so")
    return request.param


def by_mlx_lm(model, prompt, tokens, stops=(1, 50, 106)):
    from mlx_lm.generate import generate_step

    out = []
    for token, _ in generate_step(mx.array(Numbers.encode(prompt)), model, max_tokens=tokens):
        if token in stops:
            break
        out.append(token)
    return out


@pytest.mark.parametrize(
    "shared, lengths",
    [
        (20, [1, 7, 30]),  # below the window throughout
        (100, [3, 20, 60]),  # the prompts cross it
        (120, [2, 5, 4]),  # the answers cross it
        (WINDOW - 1, [1, 9]),
        (WINDOW, [1, 9]),
        (WINDOW + 1, [1, 9]),
        (300, [5, 40, 140]),  # the prefix is far longer, and one prompt is itself longer than the window
    ],
)
def test_equals_mlx_lm_token_by_token(model, way, shared, lengths):
    asked = prompts(shared, lengths, seed=shared)
    found = MlxGenerator(model, Numbers, max_tokens=16).generate_ids(asked)
    assert found == [by_mlx_lm(model, p, 16) for p in asked]


@pytest.mark.parametrize("shared", [20, 100, 120, 300])
def test_logits_of_every_step_are_the_models(model, way, shared, monkeypatch):
    """Forced tokens, so that nothing is hidden by an argmax: rows of three lengths, through and beyond the window."""
    monkeypatch.setattr(torch_decoder, "GROW", 4)
    rng = random.Random(shared)
    rows = [Numbers.encode(p) for p in prompts(shared, [2, 9, 30])]
    prefix = run_prefix(model, mx.array(rows[0][:shared]))
    maker = MlxGenerator(model, Numbers)
    state = maker._decoder()([r[shared:] for r in rows], prefix)
    assert isinstance(state, TorchDecoder) == (way == "torch")
    for step in range(12):
        logits = maker._logits(state)
        for i, row in enumerate(rows):
            want, got = np.array(model(mx.array([row]))[0, -1]), np.array(logits[i])
            assert np.abs(got - want).max() < 1e-4 * np.abs(want).max(), (step, i)
        tokens = [rng.randrange(300, 2000) for _ in rows]
        if step == 5:
            state.keep([0, 2])
            rows, tokens = [rows[0], rows[2]], tokens[:2]
        rows = [[*row, token] for row, token in zip(rows, tokens)]
        state.step(tokens)


def test_exact_argmax_is_float32s_choice_even_where_bfloat16_errs():
    """Tokens so alike that bfloat16 cannot tell them apart: the choice is float32's all the same."""
    import torch

    torch.manual_seed(0)
    table = torch.randn(600, 64)
    table = torch.cat([table, table * (1 + 1e-3 * torch.randn(600, 1))])
    hidden = torch.randn(40, 64)
    want = (hidden @ table.T).argmax(dim=1).tolist()
    coarse = (hidden.bfloat16() @ table.bfloat16().T).argmax(dim=1).tolist()
    assert sum(a != b for a, b in zip(want, coarse)) > 5, "this test would show nothing"
    assert ExactArgmax(table)(hidden) == want
    alike = ExactArgmax(torch.ones(2000, 64))  # more candidates than are looked at one by one
    assert alike(torch.ones(2, 64)) == [0, 0]


def test_decoding_is_the_same_with_and_without_the_exact_argmax(model):
    asked = prompts(60, [12, 3, 25, 8])
    maker = MlxGenerator(model, Numbers, max_tokens=12)
    found = []
    for maker.exact_argmax in (None, ExactArgmax.of(model)):
        found.append(maker.generate_ids(asked))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_what_is_said_follows_the_adapters(way, kind):
    """One generator over a model that trains: every call sees the weights of the moment, as mlx-lm does."""
    from mlx.utils import tree_flatten, tree_unflatten

    model, _ = load_model(resolve_base("tiny").path)
    add_lora(model, 4, 20.0, fine_tune_type=kind)
    maker, asked = MlxGenerator(model, Numbers, max_tokens=6, stop_ids=[]), prompts(60, [12, 3])
    found = []
    for _ in range(2):
        fresh = [(k, v + 0.3 * mx.random.normal(v.shape)) for k, v in tree_flatten(model.trainable_parameters())]
        model.update(tree_unflatten(fresh))
        found.append(maker.generate_ids(asked))
        assert found[-1] == [by_mlx_lm(model, p, 6, ()) for p in asked]
    assert found[0] != found[1]


def test_batch_size_and_order_do_not_matter(model):
    asked = prompts(60, [12, 3, 25, 8, 17])
    whole = MlxGenerator(model, Numbers, max_tokens=8).generate_ids(asked)
    assert MlxGenerator(model, Numbers, max_tokens=8, batch_size=2).generate_ids(asked) == whole
    assert MlxGenerator(model, Numbers, max_tokens=8).generate_ids(asked[::-1]) == whole[::-1]
    assert [MlxGenerator(model, Numbers, max_tokens=8).generate_ids([p])[0] for p in asked] == whole


def test_rows_end_at_their_own_stop_token(model):
    asked = prompts(60, [12, 3, 25, 8])
    free = MlxGenerator(model, Numbers, max_tokens=10, stop_ids=[]).generate_ids(asked)
    stops = {free[1][2], free[3][6]}
    generator = MlxGenerator(model, Numbers, max_tokens=10, stop_ids=stops)
    ended = generator.generate_ids(asked)
    for ids, cut, finished in zip(free, ended, generator.finished):
        at = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        assert cut == ids[:at] and finished == (at < len(ids))
    assert len(set(generator.finished)) == 2
    assert len(ended[1]) <= 2


def test_several_tool_sets_are_decoded_apart(model, monkeypatch):
    """Prompts of two developer turns (they end with token 106): each keeps its own prefix."""
    ran = []
    real = run_prefix
    monkeypatch.setattr(mlx_forward, "run_prefix", lambda m, ids, *a: ran.append(ids.shape[0]) or real(m, ids, *a))
    asked = prompts(40, [4, 9], seed=1) + prompts(50, [6, 2], seed=2)
    asked = [" ".join(p.split()[:30] + ["106"] + p.split()[30:]) for p in asked]
    found = MlxGenerator(model, Numbers, max_tokens=6, stop_ids=[1, 50]).generate_ids(asked)
    assert found == [by_mlx_lm(model, p, 6, (1, 50)) for p in asked]
    assert ran == [41, 51]  # 40 and 50 shared tokens, and the end of the turn


def test_text_comes_back_with_special_tokens():
    model, tokenizer = load_model(resolve_base("tiny").path)
    maker = MlxGenerator(model, tokenizer, max_tokens=4)
    prompt = "<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n"
    (ids,), (text,) = maker.generate_ids([prompt]), maker.generate([prompt])
    assert text == tokenizer.decode(ids, skip_special_tokens=False)
    assert maker.encode([prompt])[0][0] == 2 and maker.encode([prompt])[0].count(2) == 1
    assert maker.generate([]) == []


def test_bad_input_is_refused(model):
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        MlxGenerator(model, Numbers).generate_ids(["2 300", ""])
    for wrong in ({"max_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            MlxGenerator(model, Numbers, **wrong)


def test_common_prefix():
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1, 2], [1, 2, 4]]) == 1  # every row keeps a token of its own
    assert common_prefix([[1, 2, 3]]) == 2
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([]) == 0
