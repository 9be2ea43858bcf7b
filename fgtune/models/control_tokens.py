"""A start for the control tokens that plain Gemma 3 never trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np

#: What each control token should mean to a model that never saw it; see `seed_control_embeddings`.
MEANINGS = {
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


def seed_control_embeddings(embedding: np.ndarray, tokenizer_file: Path) -> np.ndarray:
    """The embedding `[vocabulary, hidden]` with a start of their own for the tokens that plain Gemma 3 never trained.

    There they are near copies of each other (cosine 0.90 to 0.99, also with `<end_of_turn>`), and since the output
    layer is the same matrix, adapters can hardly tell "another call" from "the calls are done". Each gets the mean of
    ordinary tokens of about its meaning, with half of what it was so that it is no copy of those, at its old length.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    out = embedding.copy()
    for token, words in MEANINGS.items():
        ids = [i for word in words for i in tokenizer.encode(word, add_special_tokens=False).ids]
        length = np.linalg.norm(embedding[token])
        mean = embedding[ids].mean(axis=0)
        mixed = mean / np.linalg.norm(mean) + 0.5 * embedding[token] / length
        out[token] = mixed * (length / np.linalg.norm(mixed))
    return out
