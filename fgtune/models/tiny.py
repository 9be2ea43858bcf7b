"""A tiny random model with a tokenizer of its own, for tests and for trying the notebooks in minutes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np

from ..core.folders import new_folder
from ..core.project import project_root
from .base_model import CONVERSION_VERSION, BaseModel, template_hash, weights_sha256
from .config_files import write_config
from .tokenizer_files import write_tokenizer


def tiny_vocabulary(texts: list[str], size: int = 2048) -> tuple[list[str], set[int]]:
    """A vocabulary of `size` entries over `texts`: control tokens where Gemma has them, bytes, characters, pieces."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<unused{i}>" for i in range(101)]
    tokens += ["<start_of_turn>", "<end_of_turn>"]
    added = set(range(len(tokens)))
    tokens += ["\n" * n for n in range(1, 5)] + ["\u2581" * n for n in range(1, 9)]
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    known = set(tokens)
    tokens += sorted({c for text in texts for c in text} - known - {" "})
    words = Counter(word for text in texts for word in text.replace(" ", " \u2581").split(" "))
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for a in range(len(word)):
            for b in range(a + 2, min(a + 9, len(word) + 1)):
                pieces[word[a:b]] += count * (b - a - 1)
    known = set(tokens)
    # A piece is reachable only through merges: keep one whose halves are there already.
    for length in range(2, 9):
        room = (size - len(tokens)) // (9 - length)
        ranked = sorted((p for p in pieces if len(p) == length), key=lambda p: (-pieces[p], p))
        new = [p for p in ranked if any(p[:k] in known and p[k:] in known for k in range(1, length))][:room]
        tokens += new
        known |= set(new)
    return tokens, added


def tiny_model(cache: Path, seed: int = 0) -> BaseModel:
    """A random 6-layer gemma3_text model with a 2,048-entry tokenizer made from the shipped examples."""
    data = [
        (project_root() / "examples" / name / "everyday.json").read_text(encoding="utf-8")
        for name in ("tools", "requests")
    ]
    key = hashlib.sha256(json.dumps([CONVERSION_VERSION, seed, data, template_hash()]).encode()).hexdigest()[:12]
    target = cache / f"tiny-{key}"
    if not (target / "config.json").exists():
        from safetensors.numpy import save_file

        texts = [string for text in data for string in _strings(json.loads(text))]
        tokens, added = tiny_vocabulary(texts)
        sizes = {"vocab_size": len(tokens), "hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 128,
                     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 128,
                     "max_position_embeddings": 4096}  # fmt: skip
        with new_folder(target) as folder:
            save_file(_random_weights(sizes, seed), folder / "model.safetensors", metadata={"format": "pt"})
            write_tokenizer(folder, tokens, added)
            write_config(folder, **sizes)
    return BaseModel(target, "a tiny random model built on the spot, for tests", weights_sha256(target))


def _random_weights(sizes: dict, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden, heads, kv, dim, mlp = (
        sizes[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    )

    def normal(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    weights = {"model.embed_tokens.weight": normal(sizes["vocab_size"], hidden)}
    for i in range(sizes["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (heads * dim, hidden),
            "self_attn.k_proj": (kv * dim, hidden),
            "self_attn.v_proj": (kv * dim, hidden),
            "self_attn.o_proj": (hidden, heads * dim),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }
        norms = {"self_attn.q_norm": dim, "self_attn.k_norm": dim, "input_layernorm": hidden}
        norms |= {f"{name}_layernorm": hidden for name in ("post_attention", "pre_feedforward", "post_feedforward")}
        weights |= {f"model.layers.{i}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        weights |= {f"model.layers.{i}.{name}.weight": np.zeros(n, np.float32) for name, n in norms.items()}
    return weights | {"model.norm.weight": np.zeros(hidden, np.float32)}


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for k, v in value.items() for s in [k, *_strings(v)]]
    return [s for v in value for s in _strings(v)] if isinstance(value, list) else [str(value)]
