"""A smaller vocabulary: what is kept, the same tokens and logits for that, and any text still comes through."""

import json
import random
import subprocess
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_prune import texts
from tokenizers import Tokenizer

from fgtune.core.parameters import ParameterError
from fgtune.core.project import project_root
from fgtune.data.readers.examples import read_examples
from fgtune.data.readers.tools import read_tools
from fgtune.data.rows import Row, tokenize
from fgtune.format.tokens import STOP_IDS
from fgtune.models.adapters import load_model
from fgtune.models.base import resolve_base
from fgtune.models.prune import PruneError
from fgtune.models.tokenizer_files import load_tokenizer
from fgtune.models.vocabulary import (
    FIXED,
    VocabularyError,
    choose_entries,
    keep_vocabulary,
    prune_vocabulary,
    pruned_tokenizer,
    script_of,
    scripts_that_occur,
)
from fgtune.runtimes.constrained import Grammar
from fgtune.runtimes.node import find_node
from fgtune_helpers.params import coerce

ROUND_TRIP = [
    *("", " a  b\n\n\n\tc ", "東京の天気は?", "Привет, мир!", "نص عربي", "한국어 123"),
    *("\U0001f469\u200d\U0001f467\U0001f642 ẞ ﬁ", "\x00\x07\U0001f9ff"),
]


@pytest.fixture(scope="module")
def base():
    return resolve_base("tiny").path


@pytest.fixture(scope="module")
def tiny(base, tmp_path_factory):
    """(examples whose rows decided, others, the rows, the vocabulary that is kept for them)."""
    tokenizer = load_tokenizer(base)
    data = project_root() / "tests" / "data" / "ci"
    examples = read_examples(data / "examples.json", read_tools(data / "tools.json"))
    trained, others = examples[:40], examples[40:]
    rows = [tokenize(example, tokenizer) for example in trained]
    target = tmp_path_factory.mktemp("vocabulary") / "base"
    return trained, others, rows, keep_vocabulary(base, "512", rows, tokenizer, target)


def test_training_rows_keep_their_tokens_and_others_their_text(tiny, base):
    trained, others, rows, vocabulary = tiny
    full = load_tokenizer(base)
    assert FIXED < vocabulary.entries < vocabulary.of == 2048
    for example, row in zip(trained, rows):
        again = tokenize(example, vocabulary.tokenizer)
        assert vocabulary.old(again.ids) == row.ids and again.targets == row.targets
    longer = [len(tokenize(e, vocabulary.tokenizer).ids) - len(tokenize(e, full).ids) for e in others]
    assert min(longer) >= 0 < max(longer)
    for text in ROUND_TRIP + texts(Tokenizer.from_file(str(base / "tokenizer.json")))[::7]:
        for tokenizer in (full, vocabulary.tokenizer):  # a text with U+2581 comes back with spaces from both
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text.replace("\u2581", " ")
            assert 3 not in ids or "<unk>" in text


def test_a_text_of_kept_tokens_has_them_still(tiny, base):
    vocabulary = tiny[3]
    full, rng = load_tokenizer(base), random.Random(3)
    same = 0
    for text in texts(Tokenizer.from_file(str(base / "tokenizer.json")), seed=5):
        ids = full(text, add_special_tokens=False)["input_ids"]
        if set(ids) <= set(vocabulary.kept):
            assert vocabulary.old(vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"]) == tuple(ids), text
            same += len(ids) > 5
    assert same > 100
    for _ in range(50):
        text = "".join(full.decode([i]) for i in rng.choices(vocabulary.kept[FIXED:], k=12))
        ids = full(text, add_special_tokens=False)["input_ids"]
        if set(ids) <= set(vocabulary.kept):
            assert vocabulary.old(vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"]) == tuple(ids), text


def test_the_model_gives_the_logits_that_it_gave(tiny, base):
    _, _, rows, vocabulary = tiny
    place = {old: new for new, old in enumerate(vocabulary.kept)}
    ids = rows[0].ids[-40:]
    logits = []
    for folder, own in ((base, ids), (vocabulary.folder, [place[i] for i in ids])):
        model, _ = load_model(folder)
        import mlx.core as mx

        logits.append(np.array(model(mx.array([own])), np.float32)[0])
    assert logits[1].shape == (40, vocabulary.entries)
    np.testing.assert_allclose(logits[1], logits[0][:, list(vocabulary.kept)], atol=2e-4)


def test_the_files(tiny, base):
    vocabulary, folder = tiny[3], tiny[3].folder
    kept = list(vocabulary.kept)
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == vocabulary.entries and config["eos_token_id"] == list(STOP_IDS)
    assert config["vocabulary_scripts"] == list(vocabulary.scripts) == ["Latin"]
    embedding = [load_file(path / "model.safetensors")["model.embed_tokens.weight"] for path in (base, folder)]
    assert np.array_equal(embedding[1], embedding[0][kept])
    record = json.loads((folder / "vocabulary.json").read_text())
    assert record["kept"] == kept and record["first"] == 512 and record["of"] == 2048 and len(record["base"]) == 64
    assert kept[:FIXED] == list(range(FIXED))
    before, after = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (base, folder))
    assert all(after.id_to_token(i) == before.id_to_token(i) for i in range(FIXED))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    made = {left + right for left, right in tokenizer["model"]["merges"]}
    assert {part for pair in tokenizer["model"]["merges"] for part in pair} <= set(tokenizer["model"]["vocab"])
    spelt = [p for p in tokenizer["model"]["vocab"] if len(p) > 1 and not p.startswith("<")]
    assert made >= set(spelt), "each entry can be made"
    assert not list(folder.parent.glob("base.*")), "nothing is left beside it"


def test_constrained_decoding_copies_what_is_only_bytes(tiny, base):
    """A verbatim argument in a script without entries: the grammar must let its bytes through."""
    vocabulary = tiny[3]
    tools = [{"name": "play", "description": "d", "parameters": {
        "type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}]  # fmt: skip
    case = {"id": "x", "tools": tools, "messages": [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "play Калинка now"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {
            "name": "play", "arguments": {"query": "Калинка"}}}]}]}  # fmt: skip
    from fgtune.evaluation.coverage import refused_calls

    assert len(vocabulary.tokenizer("Калинка", add_special_tokens=False)["input_ids"]) == 14
    assert refused_calls(Grammar(vocabulary.folder, ["play.query"]), [case], vocabulary.tokenizer) == []


def test_all_entries_are_the_base_itself(base, tmp_path):
    tokenizer = load_tokenizer(base)
    vocabulary = keep_vocabulary(base, "full", [], tokenizer, tmp_path / "base")
    assert vocabulary.folder == base and vocabulary.tokenizer is tokenizer and not list(tmp_path.iterdir())
    assert vocabulary.entries == vocabulary.of == 2048 and vocabulary.scripts == () and vocabulary.old([7]) == (7,)


def test_the_real_tokenizer_on_all_shipped_requests(real_tokenizer, shipped):
    data = json.loads(real_tokenizer.to_str())
    queries = sorted({m["content"] for e in shipped[1] for m in e["messages"] if m["role"] == "user"})
    encode = lambda tokenizer, text: tokenizer.encode(text, add_special_tokens=False).ids
    ids = [encode(real_tokenizer, text) for text in queries]
    half = [Row(tuple(one), (True,) * len(one), 0) for one in ids[::2]]
    kept, scripts = choose_entries(data, half, 32768)
    assert scripts == ["Latin"] and kept[:FIXED] == list(range(FIXED)) and len(kept) < 45_000
    pieces = {i: piece for piece, i in data["model"]["vocab"].items()}
    assert sum(pieces[i].startswith("<unused") for i in kept) == sum(
        pieces[i].startswith("<unused") for i in range(FIXED)
    )
    assert not any(script_of(character) == "Hangul" for i in kept for character in pieces[i])
    small = Tokenizer.from_str(json.dumps(pruned_tokenizer(data, {old: new for new, old in enumerate(kept)})))
    for k, (text, one) in enumerate(zip(queries, ids)):
        own = encode(small, text)
        assert small.decode(own, skip_special_tokens=False) == text
        if k % 2 == 0 or set(one) <= set(kept):
            assert [kept[i] for i in own] == one, text
    longer = sum(len(encode(small, text)) for text in queries) / sum(map(len, ids))
    assert 1 < longer < 1.05
    for text in ROUND_TRIP:
        assert small.decode(encode(small, text), skip_special_tokens=False) == text and 3 not in encode(small, text)


def test_scripts():
    found = {character: script_of(character) for character in "aß1 .éЖ東あアー한가ｱＡ🙂ª々"}
    assert found["a"] == found["ß"] == found["é"] == found["Ａ"] == "Latin" and found["Ж"] == "Cyrillic"
    assert found["東"] == found["々"] == "Han" and found["あ"] == "Hiragana" and found["ア"] == found["ｱ"] == "Katakana"
    assert found["한"] == "Hangul" and {found[c] for c in "1 .🙂ー"} == {"Common"}
    counts = {"a": 5000, "한": 200, "Ж": 3, "1": 90_000}
    assert scripts_that_occur(Counter(counts)) == ["Latin", "Hangul"], "three letters of 5,203 are a stray"
    assert scripts_that_occur(Counter()) == []


def test_scripts_have_unicode_s_names():
    """`regex` (with transformers) knows the Unicode property; the page matches by the same names."""
    import regex

    for code in [*range(0x20, 0x3400), *range(0x4E00, 0x5000), *range(0xA000, 0xAC10), *range(0xF900, 0x10000)]:
        name = script_of(chr(code))
        allowed = rf"[\p{{Script={name}}}\p{{Script=Common}}\p{{Script=Inherited}}]"  # some are of several scripts
        assert name == "Common" or regex.fullmatch(allowed, chr(code)), (hex(code), name)


@pytest.mark.parametrize(
    ("scripts", "text", "others"),
    [
        ([], "Привет", []),
        (["Latin"], "Wie spät, 20 °C? 🙂 e\u0301", []),
        (["Latin"], "play Калинка", list("Калинка")),
        (["Hangul", "Latin"], "온도 26도 TV", []),
        (["Hangul"], "東 TV 온도", ["東", "T", "V"]),
    ],
)
def test_the_page_finds_other_scripts(scripts, text, others):
    code = """
        const { otherScripts } = await import('./web/scripts.js');
        const { text, scripts } = JSON.parse(process.argv[1]);
        console.log(JSON.stringify(otherScripts(text, scripts.length ? scripts : undefined)));
    """
    given = json.dumps({"text": text, "scripts": scripts})
    command = [find_node(), "--input-type=module", "-e", code, given]
    answer = subprocess.run(command, cwd=project_root(), capture_output=True, text=True)
    assert answer.returncode == 0 and json.loads(answer.stdout) == others, answer.stderr


def test_what_cannot_be_cut_is_refused(base, tmp_path):
    data = json.loads((base / "tokenizer.json").read_text())
    for kept in (range(1, 400), [*range(300), 299], range(200, 300)):
        with pytest.raises(VocabularyError, match="begin with the first 256 ids"):
            prune_vocabulary(base, data, list(kept), tmp_path / "base", {"scripts": []})
    with pytest.raises(PruneError, match="Unigram tokenizer"):
        choose_entries({"model": {"type": "Unigram", "vocab": {}}, "added_tokens": []}, [], 256)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VocabularyError, match="embed_tokens"):
        prune_vocabulary(tmp_path / "empty", data, list(range(300)), tmp_path / "base", {"scripts": []})
    assert not (tmp_path / "base").exists()


def test_token_ids_of_configs_follow(base, tmp_path):
    """As the Hub's configs name them: an image token behind the embedding, a list of stop ids, decoders by id."""
    from fgtune.models.vocabulary import _renumbered

    config = {
        "vocab_size": 600,
        "eos_token_id": [1, 106],
        "image_token_index": 600,
        "boi_token_id": 500,
        "hidden_size": 4,
    }
    place = {i: i for i in range(256)} | {500: 256, 600: 257}
    assert _renumbered(config, place, 257, ["Latin"]) == {
        **config, "vocab_size": 257, "image_token_index": 257, "boi_token_id": 256, "vocabulary_scripts": ["Latin"]
    }  # fmt: skip
    decoder = {"added_tokens_decoder": {"5": "a", "400": "b", "500": "c"}}
    assert _renumbered(decoder, place, 257, []) == {"added_tokens_decoder": {"5": "a", "256": "c"}}


def test_the_parameter_is_a_word_or_a_number():
    assert [coerce("vocabulary", v) for v in ("auto", "full", 16384, "16384", "1e4")] == [
        "auto", "full", "16384", "16384", "10000"
    ]  # fmt: skip
    for given in ("ful", 255, 262145, True, 2.5, "x"):
        with pytest.raises(ParameterError, match="none of auto, full or a number from 256 to 262144"):
            coerce("vocabulary", given)
    with pytest.raises(ParameterError, match="did you mean 'full'"):
        coerce("vocabulary", "ful")
