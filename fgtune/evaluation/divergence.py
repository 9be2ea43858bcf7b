"""How far two models' next-token distributions are apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..core import blas
from ..quantize.recipes import QuantizeError


def compare(a, b, prompts: Sequence[str | Sequence[int]], last: int | Sequence[int] = 48, window: int = 512) -> dict:
    """Next-token distributions of `a` (the reference) and `b` over the `last` positions of each prompt.

    `a` and `b` have `logits(ids, start, cached)` (`OrtGenerator`, `MlxLogits`); `prompts` are token ids, or strings
    for `a.encode`. Returns `kl` (mean, nats), `kl_max`, `argmax_agreement`, `positions`, and the same for
    `without_cache`, `with_cache`, `below_window` and `beyond_window` (None where no position is).
    Raises QuantizeError for logits that are not finite.
    """
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    lasts = [last] * len(prompts) if isinstance(last, int) else last
    for prompt, count in zip(prompts, lasts, strict=True):
        ids = list(a.encode(prompt) if isinstance(prompt, str) else prompt)
        start = max(1, len(ids) - count)
        if len(ids) <= start:
            raise QuantizeError("a prompt has fewer than two tokens")
        reference = log_softmax(_finite(a.logits(ids, start, False), "the reference"))
        beyond = np.arange(start, len(ids)) >= window
        for mode, cached in (("without_cache", False), ("with_cache", True)):
            other = log_softmax(_finite(b.logits(ids, start, cached), "the variant"))
            divergence = (np.exp(reference) * (reference - other)).sum(-1)
            same = reference.argmax(-1) == other.argmax(-1)
            parts.setdefault(mode, []).append((divergence, same))
            for name, where in (("below_window", ~beyond), ("beyond_window", beyond)):
                if where.any():
                    parts.setdefault(name, []).append((divergence[where], same[where]))

    def mean(names: Iterable[str]) -> dict | None:
        found = [pair for name in names for pair in parts.get(name, [])]
        if not found:
            return None
        divergence, same = (np.concatenate(values) for values in zip(*found, strict=True))
        return {
            "kl": float(divergence.mean()),
            "kl_max": float(divergence.max()),
            "argmax_agreement": float(same.mean()),
            "positions": len(same),
        }

    whole = mean(("without_cache", "with_cache"))
    if whole is None:
        raise QuantizeError("no prompts to compare on")
    return {
        **whole,
        **{name: mean([name]) for name in ("without_cache", "with_cache", "below_window", "beyond_window")},
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log of the softmax over the last axis, float64 inside."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _finite(logits: np.ndarray, whose: str) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise QuantizeError(f"{whose} gives logits that are not finite")
    return logits


class MlxLogits:
    """Logits of an MLX model folder, for `compare`."""

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
