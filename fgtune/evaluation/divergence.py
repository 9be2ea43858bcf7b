"""How far two models' next-token distributions are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core import blas
from ..runtimes.protocols import LogitsModel

MODES = ("without_cache", "with_cache")


class TokenDivergence(NamedTuple):
    """Two models at each position of a text, three arrays [positions].

    `kl` is the Kullback-Leibler divergence from the reference in nats, `tv` the total variation distance (the share of
    probability that lies on other tokens), `same` whether the likeliest tokens are the same.
    """

    kl: np.ndarray
    tv: np.ndarray
    same: np.ndarray


def divergence(
    reference: LogitsModel,
    other: LogitsModel,
    prompts: Sequence[str | Sequence[int]],
    last: int | Sequence[int] = 48,
    window: int = 512,
    modes: Sequence[str] = MODES,
) -> dict:
    """Next-token distributions of `other` against those of `reference`, over the `last` positions of each prompt.

    `prompts` are token ids, or strings for `reference.encode`. `other` runs once in each of `modes`: a prompt at once,
    or over a cache. Returns what `summarize` gives over all positions and modes, and by name the same for each mode,
    for positions `below_window` and for those `beyond_window`. `window` is the attention window of the model's local
    layers, in tokens. A part without a position is None.
    Raises ValueError for logits that are not finite, and where there is nothing to compare.
    """
    parts: dict[str, list[TokenDivergence]] = {name: [] for name in (*MODES, "below_window", "beyond_window")}
    lasts = [last] * len(prompts) if isinstance(last, int) else last
    for prompt, count in zip(prompts, lasts, strict=True):
        ids = list(reference.encode(prompt) if isinstance(prompt, str) else prompt)
        start = max(1, len(ids) - count)
        if len(ids) <= start:
            raise ValueError("a prompt has fewer than two tokens")
        expected = log_softmax(_finite(reference.logits(ids, start, False), "the reference"))
        beyond = np.arange(start, len(ids)) >= window
        for mode in modes:
            found = log_softmax(_finite(other.logits(ids, start, mode == "with_cache"), "the variant"))
            each = token_divergence(expected, found)
            parts[mode].append(each)
            for name, where in (("below_window", ~beyond), ("beyond_window", beyond)):
                if where.any():
                    parts[name].append(TokenDivergence(*(values[where] for values in each)))
    whole = [each for mode in modes for each in parts[mode]]
    if not whole:
        raise ValueError("no prompts to compare on")
    return summarize(whole) | {name: summarize(found) if found else None for name, found in parts.items()}


def token_divergence(reference: np.ndarray, other: np.ndarray) -> TokenDivergence:
    """The divergence at each position, from log probabilities [positions, vocab]."""
    share = np.exp(reference)
    kl = (share * (reference - other)).sum(-1)
    tv = np.abs(share - np.exp(other)).sum(-1) / 2
    return TokenDivergence(kl, tv, reference.argmax(-1) == other.argmax(-1))


def summarize(found: Sequence[TokenDivergence]) -> dict:
    """Over all positions: `kl` and `tv` (means), `kl_max`, `tv_error` (standard error of the mean), `argmax_agreement`
    (positions with the same likeliest token, of all), `positions` (their number)."""
    kl, tv, same = (np.concatenate(values) for values in zip(*found, strict=True))
    return {
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "tv": float(tv.mean()),
        "tv_error": float(tv.std() / len(tv) ** 0.5),
        "argmax_agreement": float(same.mean()),
        "positions": len(same),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log of the softmax over the last axis, float64 inside."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _finite(logits: np.ndarray, whose: str) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise ValueError(f"{whose} gives logits that are not finite")
    return logits


class MlxLogits:
    """Logits of an MLX model folder, for `divergence`."""

    def __init__(self, folder: str | Path):
        blas.use_fast_blas()
        from mlx_lm.utils import load_model
        from tokenizers import Tokenizer

        self.model, _ = load_model(Path(folder))
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt."""
        return self.tokenizer.encode(prompt, add_special_tokens=False).ids

    def logits(self, ids: Sequence[int], start: int = 0, cached: bool = False) -> np.ndarray:
        """Logits after each of `ids[start:]`, float32; `cached` runs `ids[:start]` into a cache first."""
        from mlx_lm.models.cache import make_prompt_cache

        mx = blas.mlx()
        row = mx.array([list(ids)])
        if cached and start:
            cache = make_prompt_cache(self.model)
            self.model.model(row[:, :start], cache=cache)
            hidden = self.model.model(row[:, start:], cache=cache)
        else:
            hidden = self.model.model(row)[:, start:]
        head = self.model.model.embed_tokens.as_linear if self.model.tie_word_embeddings else self.model.lm_head
        return np.array(head(hidden)[0].astype(mx.float32))
