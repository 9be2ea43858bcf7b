"""The pruned tokenizer is smaller and tokenizes identically, over many scripts and over nonsense."""

import json
import random

import pytest
from tokenizers import Tokenizer

from fgtune.models.base import resolve_base
from fgtune.models.prune import PruneError, last_merge, prune_unused_merges, used_merges

SCRIPTS = [
    (0x20, 0x7F), (0xA0, 0x250), (0x370, 0x590), (0x5D0, 0x700), (0x900, 0xE00), (0xE01, 0xE5C),
    (0x10A0, 0x1200), (0x3041, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1F300, 0x1FAFF),
]  # fmt: skip


def texts(tokenizer: Tokenizer, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    found = ["", " ", "Wie spät ist es in 東京?\n\n\tمرحبا — नमस्ते 👩‍👩‍👧", "<start_of_turn>user\n<escape>a<escape>"]
    for low, high in SCRIPTS:
        for _ in range(20):
            found.append(
                "".join(
                    chr(rng.randrange(low, high)) if rng.random() < 0.85 else rng.choice(" \n\t") for _ in range(80)
                )
            )
    vocabulary = sorted(tokenizer.get_vocab())
    found += ["".join(rng.choices(vocabulary, k=30)) for _ in range(300)]
    found += [
        "".join(rng.choices(["a", "aa", "ab", "b", " ", "  ", "\n", "\n\n", "\t", "\u2581"], k=60)) for _ in range(300)
    ]
    return found


def test_every_text_has_the_same_tokens(tmp_path):
    source = resolve_base("tiny").path / "tokenizer.json"
    report = prune_unused_merges(source, tmp_path / "pruned.json")
    before, after = (Tokenizer.from_file(str(path)) for path in (source, tmp_path / "pruned.json"))
    for text in texts(before):
        assert after.encode(text).ids == before.encode(text).ids, text
    assert after.get_vocab() == before.get_vocab()
    assert report.bytes_after < 0.6 * report.bytes_before
    assert report.merges_after < report.merges_before
    assert (tmp_path / "pruned.json").stat().st_size == report.bytes_after
    again = prune_unused_merges(tmp_path / "pruned.json")
    assert again.bytes_after == report.bytes_after and again.merges_after == report.merges_after


def test_the_kept_merge_is_the_one_that_happens():
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("b", "c")]
    vocabulary = {"a", "b", "c", "ab", "bc", "abc"}
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    assert last_merge("abc", ranks, vocabulary) == ("a", "bc")  # "bc" comes first, so "ab" + "c" never does
    assert used_merges(merges, vocabulary) == [("b", "c"), ("a", "b"), ("a", "bc")]
    assert last_merge("aaa", {("a", "a"): 0, ("aa", "a"): 1}, {"a", "aa", "aaa"}) == ("aa", "a")
    assert last_merge("abd", ranks, vocabulary) is None  # d becomes bytes
    assert last_merge("cb", ranks, vocabulary) is None


def test_random_vocabularies_keep_their_tokens(tmp_path):
    from tokenizers import models

    rng = random.Random(1)
    for round_ in range(30):
        pieces, merges = list("abcd"), []
        for _ in range(40):
            left, right = rng.choice(pieces), rng.choice(pieces)
            if len(left + right) < 9 and (left, right) not in merges:
                merges.append((left, right))
                if left + right not in pieces:
                    pieces.append(left + right)
        rng.shuffle(merges)  # ranks need not follow length
        path = tmp_path / f"{round_}.json"
        Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges)).save(str(path))
        before = Tokenizer.from_file(str(path))
        prune_unused_merges(path)
        after = Tokenizer.from_file(str(path))
        for _ in range(200):
            text = "".join(rng.choices("abcd", k=rng.randrange(1, 40)))
            assert after.encode(text).ids == before.encode(text).ids, (round_, text)


@pytest.mark.parametrize(
    ("model", "message"),
    [({"type": "Unigram"}, "Unigram tokenizer"), ({"type": "BPE", "dropout": 0.1}, "dropout")],
)
def test_other_tokenizers_are_refused(tmp_path, model, message):
    (tmp_path / "t.json").write_text(json.dumps({"model": model}))
    with pytest.raises(PruneError, match=message):
        prune_unused_merges(tmp_path / "t.json")
