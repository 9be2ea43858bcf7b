"""From a Gemma 3 GGUF file, as llama.cpp reads it, to a folder as transformers reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .config_files import write_config
from .control_tokens import seed_control_embeddings
from .tokenizer_files import write_tokenizer

#: Tensors outside the layers, and parts of a layer: GGUF's names and Hugging Face's.
TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
LAYER_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write `folder` from a Gemma 3 GGUF file: dequantised float32 safetensors, BPE tokenizer, template, config."""
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(str(gguf))
    meta = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.t")}
    weights = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        value = value.reshape([int(n) for n in reversed(tensor.shape)])
        if tensor.name.endswith("_norm.weight"):
            value = value - np.float32(1)  # GGUF stores 1 + w, Gemma's own files store w
        weights[hugging_face_name(tensor.name)] = np.ascontiguousarray(value)
    tokens, added = gguf_vocabulary(reader)
    write_tokenizer(folder, tokens, added)
    embedding = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = seed_control_embeddings(embedding, folder / "tokenizer.json")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    arch = {key.removeprefix("gemma3."): value for key, value in meta.items() if key.startswith("gemma3.")}
    write_config(
        folder,
        vocab_size=len(tokens),
        hidden_size=arch["embedding_length"],
        num_hidden_layers=arch["block_count"],
        intermediate_size=arch.get("feed_forward_length"),
        num_attention_heads=arch["attention.head_count"],
        num_key_value_heads=arch["attention.head_count_kv"],
        head_dim=arch["attention.key_length"],
        sliding_window=arch["attention.sliding_window"],
        max_position_embeddings=arch["context_length"],
    )


def gguf_vocabulary(reader) -> tuple[list[str], set[int]]:
    """The entries of a GGUF file by id, and the ids of its control (3) and user-defined (4) ones."""
    tokens = [str(t) for t in reader.fields["tokenizer.ggml.tokens"].contents()]
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    return tokens, {i for i, kind in enumerate(types) if int(kind) in (3, 4)}


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in TENSORS:
        return TENSORS[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_PARTS[part]}.weight"
