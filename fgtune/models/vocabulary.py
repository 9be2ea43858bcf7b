"""A vocabulary that holds what the user's texts need: a base model with fewer entries, the rest of it as it was.

The embedding of a small model with a large vocabulary is most of its weights. Kept are control tokens, bytes, single
characters and frequent entries of the scripts that occur, and every token of the training rows, with all that these are
merged from. So training rows have the tokens they had, other texts may have more, and what no entry covers is bytes.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import FgtuneError
from ..core.files import write_json
from ..core.folders import rewritten_folder
from ..data.rows import Row
from .base_model import weights_sha256
from .prune import last_merge, merges_of, used_merges
from .tokenizer_files import load_tokenizer

AUTO, FULL = "auto", "full"
AUTO_FIRST = 65536  # with `auto`: of so many first entries those of the scripts that occur
FIXED = 256  # so many first ids keep their places: control tokens, stop ids, white space
MIN_SHARE = 0.001  # of the letters: a script below it counts as a stray; its tokens in the rows are kept all the same
EMBEDDING = "model.embed_tokens.weight"
RECORD = "vocabulary.json"  # beside the weights: which entries were kept
SCRIPTS_KEY = "vocabulary_scripts"  # of config.json, which travels with the model to the page
COMMON = "Common"  # digits, punctuation, marks, emoji: of no script, or of many
#: Unicode's name of a script by the first word of its characters' names, where it is not that word.
SCRIPTS = {
    "CJK": "Han", "IDEOGRAPHIC": "Han", "CANADIAN": "Canadian_Aboriginal", "MEETEI": "Meetei_Mayek", "OL": "Ol_Chiki"
}  # fmt: skip
SCRIPTS |= {
    name.upper(): name
    for name in (
        *("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Syriac", "Thaana", "Nko"),
        *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam"),
        *("Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Khmer", "Mongolian", "Hangul", "Hiragana", "Katakana"),
        *("Bopomofo", "Yi", "Ethiopic", "Cherokee", "Tifinagh", "Vai", "Coptic", "Runic", "Ogham", "Cuneiform"),
        *("Bamum", "Javanese", "Balinese", "Kaithi", "Adlam"),
    )
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNUSED = re.compile(r"<unused\d+>")


class VocabularyError(FgtuneError, ValueError):
    """The vocabulary cannot be cut as wanted."""


@dataclass(frozen=True)
class Vocabulary:
    """A base model in `folder` with its `tokenizer`: the entries `kept` (old ids by new ones) of the `of` that it came
    with, and the `scripts` of most of them (none named: all); `width` is the embedding's."""

    folder: Path
    tokenizer: Any
    kept: Sequence[int]
    of: int
    scripts: tuple[str, ...]
    width: int

    @property
    def entries(self) -> int:
        """How many entries have a row in the embedding."""
        return bisect_left(self.kept, self.of)

    def old(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The ids that tokens had before."""
        return tuple(self.kept[i] for i in ids)

    def __repr__(self) -> str:
        if self.entries == self.of:
            return f"all {self.of:,} entries"
        before, after = (2 * count * self.width / 1e6 for count in (self.of, self.entries))
        return (
            f"{self.entries:,} of {self.of:,} entries are kept; scripts: {', '.join(self.scripts)}\n"
            f"the embedding has {after:,.1f} MB in 16 bits instead of {before:,.1f}"
        )


def keep_vocabulary(base: Path, wanted: str, rows: Sequence[Row], tokenizer, target: Path) -> Vocabulary:
    """The base model with the entries that `wanted` says: all (`full`: the folder as it is), or what the training
    `rows` need beside the first 65,536 (`auto`) or so many. It is written to `target`.

    `tokenizer` is the base's, by transformers; the rows have its ids. Raises VocabularyError, PruneError.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    total, width = config["vocab_size"], config["hidden_size"]
    if wanted == FULL:
        return Vocabulary(base, tokenizer, range(total), total, (), width)
    data = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    first = AUTO_FIRST if wanted == AUTO else int(wanted)
    kept, scripts = choose_entries(data, rows, first)
    about = {"base": weights_sha256(base), "first": first, "scripts": scripts}
    prune_vocabulary(base, data, kept, target, about)
    return Vocabulary(target, load_tokenizer(target), kept, total, tuple(scripts), width)


@cache
def script_of(character: str) -> str:
    """Unicode's name of the script of a letter or a mark; `Common` for any other character."""
    if unicodedata.category(character)[0] not in "LM":
        return COMMON
    words = unicodedata.name(character, "").split(" ")
    word = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") else words[0]
    return SCRIPTS.get(word, COMMON)


def scripts_that_occur(counts: Counter[str]) -> list[str]:
    """The scripts of at least a thousandth of the letters, the most frequent first, by how often characters occur."""
    letters: Counter[str] = Counter()
    for character, count in counts.items():
        letters[script_of(character)] += count
    del letters[COMMON]
    return [script for script, count in letters.most_common() if count >= MIN_SHARE * letters.total()]


def choose_entries(tokenizer: dict, rows: Iterable[Row], first: int) -> tuple[list[int], list[str]]:
    """The ids to keep, sorted, and the scripts that occur in `rows`.

    `tokenizer` is a parsed `tokenizer.json` whose ids the rows have. Of its `first` entries those of these scripts are
    kept, with all single characters of theirs, whatever the rows use, and what merges into any of these. Raises
    PruneError for a tokenizer that is no plain BPE.
    """
    vocabulary = tokenizer["model"]["vocab"]
    merges = merges_of(tokenizer, "tokenizer.json")
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}  # of equal pairs the first counts
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    pieces = {i: piece for piece, i in (vocabulary | added).items()}
    used = Counter(i for row in rows for i in row.own)
    used.update(i for head in {row.head for row in rows} for i in head)
    counts: Counter[str] = Counter()
    for i, count in used.items():
        if pieces[i] not in added and not _BYTE.fullmatch(pieces[i]):
            for character in pieces[i]:
                counts[character] += count
    scripts = scripts_that_occur(counts)
    known = {COMMON, *scripts}

    def wanted(i: int, piece: str) -> bool:
        if i < FIXED or i in used or _BYTE.fullmatch(piece):
            return True
        if piece in added:
            return not _UNUSED.fullmatch(piece)
        return (i < first or len(piece) == 1) and known.issuperset(map(script_of, piece))

    entries, kept = set(vocabulary), set()
    todo = [i for i, piece in pieces.items() if wanted(i, piece)]
    while todo:
        i = todo.pop()
        if i in kept:
            continue
        piece = pieces[i]
        pair = last_merge(piece, ranks, entries) if len(piece) > 1 and not _BYTE.fullmatch(piece) else None
        if pair is None and len(piece) > 1 and not (i < FIXED or piece in added or _BYTE.fullmatch(piece)):
            continue  # no text has it
        kept.add(i)
        todo += [vocabulary[part] for part in pair or ()]
    return sorted(kept), scripts


def prune_vocabulary(base: Path, tokenizer: dict, kept: Sequence[int], target: Path, about: dict) -> None:
    """Write the model of `base` with the entries `kept` (sorted ids) to `target`; new ids are the places in `kept`.

    `tokenizer` is the parsed `tokenizer.json` of `base`. `vocabulary.json` beside the weights holds `kept` and what is
    in `about`; its `scripts` stand in config.json too. What was in `target` is replaced whole. Raises VocabularyError.
    """
    place = {old: new for new, old in enumerate(kept)}
    if list(kept) != sorted(place) or any(place.get(i) != i for i in range(min(FIXED, len(kept)))):
        raise VocabularyError(f"the kept entries must be sorted and begin with the first {FIXED} ids")
    with rewritten_folder(target) as folder:
        for file in base.iterdir():
            if file.suffix in (".json", ".jinja") and not file.name.startswith((".", "model.safetensors")):
                shutil.copyfile(file, folder / file.name)
        pruned = pruned_tokenizer(tokenizer, place)
        text = json.dumps(pruned, ensure_ascii=False, separators=(",", ":"))
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        entries = _write_weights(base, kept, folder / "model.safetensors")
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            if (folder / name).exists():
                values = json.loads((folder / name).read_text(encoding="utf-8"))
                write_json(folder / name, _renumbered(values, place, entries, about["scripts"]))
        record = json.dumps({**about, "entries": entries, "of": len(tokenizer["model"]["vocab"]), "kept": list(kept)})
        (folder / RECORD).write_text(record + "\n", encoding="utf-8")


def pruned_tokenizer(tokenizer: dict, place: dict[int, int]) -> dict:
    """A parsed `tokenizer.json` with the entries of `place` (old id: new id) and the merges that make them."""
    model = tokenizer["model"]
    vocabulary = {piece: place[i] for piece, i in model["vocab"].items() if i in place}
    merges = [
        (left, right)
        for left, right in merges_of(tokenizer, "tokenizer.json")
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    added = [{**token, "id": place[token["id"]]} for token in tokenizer["added_tokens"] if token["id"] in place]
    vocabulary = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    model = {**model, "vocab": vocabulary, "merges": [list(pair) for pair in used_merges(merges, set(vocabulary))]}
    return {**tokenizer, "added_tokens": added, "model": model}


def _write_weights(base: Path, kept: Sequence[int], path: Path) -> int:
    """Write the weights with the `kept` rows of the embedding (and of an output layer of its own); their number."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    weights = {}
    for file in sorted(base.glob("model*.safetensors")):
        with safe_open(file, "pt") as source:
            weights |= {name: source.get_tensor(name) for name in source.keys()}
    if EMBEDDING not in weights:
        raise VocabularyError(f"{base} holds no {EMBEDDING}: it is no gemma3_text model")
    rows = torch.tensor([i for i in kept if i < len(weights[EMBEDDING])])
    for name in (EMBEDDING, "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][rows]
    save_file(weights, path, metadata={"format": "pt"})
    return len(rows)


def _renumbered(config: dict, place: dict[int, int], entries: int, scripts: Sequence[str]) -> dict:
    """A config with the new size and the new ids of the tokens that it names; dropped tokens are left out."""
    out = dict(config)
    if "vocab_size" in out:
        out |= {"vocab_size": entries, SCRIPTS_KEY: list(scripts)}
    for key, value in config.items():
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int | list):
            ids = [place[i] for i in (value if isinstance(value, list) else [value]) if i in place]
            out[key] = ids if isinstance(value, list) else ids[0] if ids else None
        elif key == "added_tokens_decoder":
            out[key] = {str(place[int(i)]): token for i, token in value.items() if int(i) in place}
    return out
