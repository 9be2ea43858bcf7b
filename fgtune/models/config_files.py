"""The config files of a Gemma 3 folder."""

from __future__ import annotations

from pathlib import Path

from ..core.files import write_json
from ..format.tokens import STOP_IDS


def write_config(folder: Path, **sizes) -> None:
    """Write `config.json` and `generation_config.json` of a `gemma3_text` model."""
    sizes["intermediate_size"] = sizes.get("intermediate_size") or 2048
    layers = sizes["num_hidden_layers"]
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "torch_dtype": "float32",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": STOP_IDS,
        "pad_token_id": 0,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "layer_types": ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)],
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": sizes["head_dim"],
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
        "use_cache": True,
        **sizes,
    }
    write_json(folder / "config.json", config)
    generation = {"bos_token_id": 2, "eos_token_id": STOP_IDS, "pad_token_id": 0, "do_sample": False}
    write_json(folder / "generation_config.json", generation)
