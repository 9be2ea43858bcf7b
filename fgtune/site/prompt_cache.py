"""The prompt cache: keys and values of the developer turn, computed once and shipped with the site."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import DeployError
from ..data.developer_turn import DeveloperTurn
from .manifest import read_manifest
from .pieces import join_file

ROUNDING_TOKENS = 32  # answers are compared that far when the keys and values are rounded to 16 bits
METADATA = "prompt_cache"  # one entry, because the library writes several in an order that changes


def precompute_prompt_cache(
    model_dir, variant: str, tools: list[dict], turn: DeveloperTurn, samples: Sequence[str], path, weights: list[str]
) -> dict:
    """Write the keys and values of the developer turn (with the declarations) as safetensors; returns a summary.

    Where the turn has a date, they are those of what comes before it.
    Stored as float16 when the answers to `samples` stay the same token for token, else as the graph has them.
    `weights` are the SHA-256 of the variant's files: with the token ids they make the hash that the page checks.
    """
    from safetensors.numpy import save_file

    from ..runtimes.onnxruntime import OrtGenerator

    generator = OrtGenerator(model_dir, variant, max_tokens=ROUNDING_TOKENS)
    ids = prefix_ids(generator.encode, tools, turn)
    if not ids:
        raise DeployError("two prompts share no tokens: no prompt cache can be computed")
    model = generator.model
    _, past = model.run(np.array([ids]), model.empty())
    exact = {name: np.ascontiguousarray(value.numpy()) for name, value in zip(model.past_names, past, strict=True)}
    with np.errstate(over="ignore"):
        arrays = {name: array.astype(np.float16) for name, array in exact.items()}
    trigger = turn.at_two_times()[1]
    asked = [question(text, tools, trigger) for text in list(samples)[:4] or ["a"]]
    if model.past_dtype == np.float32 and not same_answers(
        generator, asked, generator.generate_ids(asked), ids, arrays
    ):
        arrays = exact
    save_file(arrays, path, {METADATA: json.dumps({"hash": cache_hash(weights, ids), "ids": ids})})
    dtype = str(next(iter(arrays.values())).dtype)
    return {"path": f"prefix/{Path(path).name}", "tokens": len(ids), "dtype": dtype, "bytes": Path(path).stat().st_size}


def cache_hash(weights: list[str], ids: Sequence[int]) -> str:
    """What ties a prompt cache to its model: over the SHA-256 of the variant's files and the token ids."""
    return hashlib.sha256("\n".join([*weights, ",".join(map(str, ids))]).encode()).hexdigest()


def stored_prompt_cache(site_dir: str | Path, variant: str) -> tuple[list[int], dict[str, np.ndarray]]:
    """The prompt cache that a site ships for a variant: token ids, and keys and values by the graph's input names.

    For `OrtGenerator.use_prompt_cache`: so it starts where the page starts. Raises DeployError where none is shipped,
    or one of other weights.
    """
    from safetensors import safe_open

    manifest = read_manifest(site_dir)
    entry = manifest["variants"].get(variant)
    if entry is None or not entry["prefix"]:
        raise DeployError(f"{site_dir} ships no prompt cache for {variant!r}")
    files = {file["path"]: file for file in manifest["files"]}
    stored, path = files[entry["prefix"]], Path(site_dir) / entry["prefix"]
    with tempfile.TemporaryDirectory() as temporary:
        if stored.get("piece"):
            path = Path(temporary) / "prefix.safetensors"
            join_file(Path(site_dir), stored, path)
        with safe_open(path, "np") as file:
            about = json.loads(file.metadata()[METADATA])
            if about["hash"] != cache_hash([files[each]["sha256"] for each in entry["weights"]], about["ids"]):
                raise DeployError(f"{path} is the prompt cache of other weights: build the site again")
            return about["ids"], {name: file.get_tensor(name) for name in file.keys()}


def prefix_ids(encode, tools: list[dict], turn: DeveloperTurn) -> list[int]:
    """The token ids that every question about `tools` begins with, at any time (as web/dialogue.js finds them)."""
    texts = zip(("a", "7"), turn.at_two_times(), strict=True)
    a, b = (encode(question(text, tools, trigger)) for text, trigger in texts)
    count = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return list(a[:count])


def question(query: str, tools: list[dict], trigger: str) -> str:
    """The rendered prompt of one question."""
    from ..format.template import render

    messages = [{"role": "developer", "content": trigger}, {"role": "user", "content": query}]
    return render(messages, tools, add_generation_prompt=True)


def same_answers(
    generator, prompts: list[str], answers: list[list[int]], ids: list[int], arrays: dict[str, np.ndarray]
) -> bool:
    """Whether greedy answers (token ids) stay the same when `ids` have these keys and values.

    Afterwards the generator starts from them.
    """
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return False
    generator.use_prompt_cache(ids, arrays)
    for prompt, made in zip(prompts, answers, strict=True):
        asked = generator.encode(prompt)
        chosen = generator.logits(asked + made, len(asked) - 1).argmax(-1).tolist()  # after the prompt and each token
        if chosen[: len(made)] != made:
            return False
        if len(made) < generator.max_tokens and chosen[-1] not in generator.stop_ids:
            return False
    return True
