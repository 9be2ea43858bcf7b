"""The keys and values of the tool declarations, computed once and shipped."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import DeployError

ROUNDING_TOKENS = 32  # answers are compared that far when the prefix is rounded to 16 bits


def precompute_prompt_cache(
    model_dir, variant: str, tools: list[dict], trigger: str, samples: Sequence[str], path, weights: list[str]
) -> dict:
    """Write the keys and values of the developer turn (trigger and declarations) as safetensors; returns a summary.

    Stored as float16 when the answers to `samples` stay the same token for token, else as the graph has them.
    `weights` are the SHA-256 of the variant's files: with the token ids they make the hash that the page checks.
    """
    from ..runtimes.onnxruntime import OrtGenerator

    generator = OrtGenerator(model_dir, variant, max_tokens=ROUNDING_TOKENS)
    ids = prefix_ids(generator.encode, tools, trigger)
    if not ids:
        raise DeployError("two prompts share no tokens: nothing can be baked")
    model = generator.model
    _, past = model.run(np.array([ids]), model.empty())
    exact = [value.numpy() for value in past]
    with np.errstate(over="ignore"):
        arrays = [array.astype(np.float16) for array in exact]
    asked = [_question(text, tools, trigger) for text in list(samples)[:4] or ["a"]]
    if exact[0].dtype == np.float32 and not _same_answers(generator, asked, len(ids), arrays):
        arrays = exact
    hash = hashlib.sha256("\n".join([*weights, ",".join(map(str, ids))]).encode()).hexdigest()
    named = dict(zip(model.past_names, arrays, strict=True))
    _write_safetensors(Path(path), named, {"hash": hash, "ids": json.dumps(ids)})
    dtype = str(arrays[0].dtype)
    return {"path": f"prefix/{Path(path).name}", "tokens": len(ids), "dtype": dtype, "bytes": Path(path).stat().st_size}


def prefix_ids(encode, tools: list[dict], trigger: str) -> list[int]:
    """The token ids that every question about `tools` begins with (as web/engine.js finds them)."""
    a, b = (encode(_question(text, tools, trigger)) for text in ("a", "7"))
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return list(a[:count])


def _question(query: str, tools: list[dict], trigger: str) -> str:
    from ..format.template import render

    messages = [{"role": "developer", "content": trigger}, {"role": "user", "content": query}]
    return render(messages, tools, add_generation_prompt=True)


def _same_answers(generator, prompts: list[str], count: int, rounded: list[np.ndarray]) -> bool:
    """Whether greedy answers stay the same token for token when the first `count` positions are the rounded ones."""
    if not all(np.isfinite(array).all() for array in rounded):
        return False
    model = generator.model
    for prompt, made in zip(prompts, generator.generate_ids(prompts), strict=True):
        own = generator.encode(prompt)[count:]
        past = [model._value(array.astype(model.past_dtype)) for array in rounded]
        logits, _ = model.run(np.array([own + made]), past, keep=0)
        chosen = logits[0, len(own) - 1 :].argmax(-1).tolist()  # what is chosen after the prompt and each answer token
        if chosen[: len(made)] != made:
            return False
        if len(made) < generator.max_tokens and chosen[-1] not in generator.stop_ids:
            return False
    return True


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays one after the other; the header is padded so that the data starts at a multiple of 8 bytes."""
    header, offset = {"__metadata__": metadata}, 0
    for name, array in arrays.items():
        kind = {"float16": "F16", "float32": "F32"}[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
