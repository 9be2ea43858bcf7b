"""The tokenizer files of a Gemma 3 folder: written from a vocabulary, and loaded."""

from __future__ import annotations

from pathlib import Path

from ..core.files import write_json
from ..format.template import TEMPLATE_FILE
from ..format.tokens import CONTROL_TOKENS, IMAGE_TOKENS


def bpe_merges(tokens: list[str], skip: set[int]) -> list[tuple[str, str]]:
    """All pairs of entries whose concatenation is an entry, in the order of Gemma's own tokenizer.

    Runs of one whitespace character come first (longest left part, then longest right part), then every
    other pair by the id of what it makes. `skip` holds the ids that are no ordinary text.
    """
    ids = {token: i for i, token in enumerate(tokens) if i not in skip}
    runs, others = [], []
    for whole, i in ids.items():
        pairs = [(whole[:k], whole[k:]) for k in range(1, len(whole))]
        pairs = [(a, b) for a, b in pairs if a in ids and b in ids]
        if len(set(whole)) == 1 and whole[0] in "\n\u2581\t":
            runs += pairs
        else:
            others += [(i, ids[a], ids[b], a, b) for a, b in pairs]
    order = {"\n": 0, "\u2581": 1, "\t": 2}
    runs.sort(key=lambda pair: (-len(pair[0]), -len(pair[1]), order[pair[0][0]]))
    return runs + [(a, b) for *_, a, b in sorted(others)]


def write_tokenizer(folder: Path, tokens: list[str], added: set[int]) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and the template into `folder`.

    `tokens` is the vocabulary by id; `added` holds the ids that are matched whole in the text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    names = [CONTROL_TOKENS.get(i, token) for i, token in enumerate(tokens)]
    names = ["\u2581" * len(name) if name.strip(" ") == "" else name for name in names]
    is_byte = {i for i, name in enumerate(names) if len(name) == 6 and name.startswith("<0x")}
    runs = {i for i in added if set(names[i]) in ({"\n"}, {"\t"}, {"\u2581"})}  # matched whole, and merged as well
    merges = bpe_merges(names, (added - runs) | is_byte)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    special = {0, 1, 2, 3, 105, 106} | {i for i, name in enumerate(names) if name in IMAGE_TOKENS}
    plain = [AddedToken(names[i], normalized=False, special=False) for i in sorted(added - special)]
    tokenizer.add_tokens(plain)
    tokenizer.add_special_tokens([AddedToken(names[i], normalized=False, special=True) for i in sorted(special)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_tokenizer_config(folder)


def write_tokenizer_config(folder: Path) -> None:
    """Write `tokenizer_config.json`, `special_tokens_map.json` and the workbook's chat template into `folder`."""
    template = TEMPLATE_FILE.read_text(encoding="utf-8")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        **names,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "padding_side": "left",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "chat_template": template,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", names)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def load_tokenizer(folder: Path):
    """The folder's fast tokenizer, without transformers' Mistral warning, which every local Gemma copy triggers."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    finally:
        logging.set_verbosity(level)
