"""FunctionGemma's control tokens in a plain Gemma 3, which has them as reserved entries: their names and embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..core.files import write_json
from ..format.tokens import CONTROL_TOKENS, STOP_IDS
from .base_model import BaseModelError
from .tokenizer_files import write_tokenizer_config

#: For each control token (by id) ordinary text of about its meaning; see `seed_control_embeddings`.
INITIAL_MEANINGS = {
    46: (" declare", " function"),
    47: ("};",),
    48: (" call", " invoke"),
    49: (");",),
    50: (" returns", " =>"),
    51: ("...",),
    52: ('"',),
    105: ("##",),
    106: ("<eos>", "\n\n"),
}


def rename_control_tokens(folder: Path) -> None:
    """Turn a plain Gemma 3 tokenizer into FunctionGemma's: rename ids 46 to 52, write the workbook's chat template.

    Raises BaseModelError when one of these ids is no reserved entry.
    """
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    old = {entry["id"]: entry for entry in data["added_tokens"]}
    vocab = data["model"]["vocab"]
    by_id = {i: token for token, i in vocab.items() if i in CONTROL_TOKENS}
    for i, name in CONTROL_TOKENS.items():
        if not (by_id[i].startswith("<unused") or by_id[i] == name):
            raise BaseModelError(
                f"token {i} of {folder.name} is {by_id[i]!r}, not a reserved one: no Gemma 3 tokenizer"
            )
        vocab.pop(by_id[i])
        vocab[name] = i
        if i in old:
            old[i]["content"] = name
        else:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            data["added_tokens"].append({"id": i, "content": name, **flags})
    data["added_tokens"].sort(key=lambda entry: entry["id"])
    data["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    write_tokenizer_config(folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"eos_token_id": STOP_IDS})


def seed_control_embeddings(embedding: np.ndarray, tokenizer_file: Path) -> np.ndarray:
    """The embedding `[vocabulary, hidden]` with initial values for the control tokens that plain Gemma 3 never trained.

    There they are near copies of each other (cosine 0.90 to 0.99, also with `<end_of_turn>`). The output layer is the
    same matrix, so adapters can hardly tell "another call" from "the calls are done". Each token gets the mean of
    ordinary tokens of about its meaning, plus half of its own direction so that it is no copy of them; its norm stays.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    out = embedding.copy()
    for token, texts in INITIAL_MEANINGS.items():
        ids = [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]
        norm = np.linalg.norm(embedding[token])
        mean = embedding[ids].mean(axis=0)
        mixed = mean / np.linalg.norm(mean) + 0.5 * embedding[token] / norm
        out[token] = mixed * (norm / np.linalg.norm(mixed))
    return out
