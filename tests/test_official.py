"""Splits that a data set brings are kept; held-out calls are known ones in new words, or new values."""

import json

import pytest

from fgtune.data.examples import label
from fgtune.data.given import stratified_sample
from fgtune.data.grouping import has_open_value
from fgtune.data.novelty import NEW, SEEN, novelty_of, with_novelty
from fgtune.data.readers.examples import load_examples, read_examples
from fgtune.data.readers.files import DataError
from fgtune.data.readers.original import from_original
from fgtune.data.rows import case_of
from fgtune.data.split_audit import audit_split
from fgtune.data.splits import random_split, split_examples
from fgtune.evaluation.judging import judge
from fgtune.evaluation.scorecards import Comparison, Scorecard, score
from fgtune.format.calls import format_call

TIMER = {
    "name": "set_timer",
    "description": "Start a timer.",
    "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}},
}
HORN = {"name": "horn", "description": "Sound the horn."}
TOOLS = [TIMER, HORN]
SIZES = {"valid": 4, "test": 6, "similarity": 90, "seed": 3}
WAYS = (
    "hoot", "a long blast please", "make it loud", "sound the horn", "wake everybody up", "let us hear it", "blow",
    "give a signal", "tell them we are here", "noise, now", "honk twice", "trumpet", "toot toot", "warn the others",
    "beep",
)  # fmt: skip


def timer(minutes, words="wait {} minutes", **more):
    call = {"name": "set_timer", "arguments": {"minutes": minutes}}
    return {"userQuery": words.format(minutes), "expectedToolCalls": [call], **more}


def horn(words, **more):
    return {"userQuery": words, "expectedToolCalls": [{"name": "horn", "arguments": {}}], **more}


TRAIN = [timer(7 * n, "{} on the clock, " + chr(97 + n) * 12) for n in range(20)] + [horn(words) for words in WAYS]
VALID = [timer(200 + n, "let me know after {} minutes") for n in range(10)]
TEST = [timer(400 + n, "in {} minutes, ring") for n in range(10)] + [horn(f"horn, {n} times") for n in range(20)]


def folder(tmp_path, **files):
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def by_split(examples):
    return {name: [e["id"] for e in examples if e.get("split") == name] for name in ("train", "valid", "test")}


@pytest.mark.parametrize(
    "names",
    [("train", "valid", "test"), ("Training", "validation", "testing"), ("train-00000-of-00001", "dev", "eval")],
)
def test_a_folder_of_splits_is_kept_and_its_tools_are_no_examples(tmp_path, names):
    path = folder(tmp_path, tools=TOOLS, **dict(zip(names, (TRAIN, VALID, TEST))))
    rows, findings = load_examples(path, TOOLS)
    assert [len(ids) for ids in by_split(rows).values()] == [35, 10, 30] and len(rows) == 75
    assert {f.code: f.file for f in findings}["file-not-read"] == "tools.json"
    assert not [f for f in findings if f.level in ("error", "warning")]
    (told,) = [f for f in findings if f.code == "split"]
    assert "35 train and 10 valid and 30 test" in told.message


def test_a_file_beside_the_splits_is_named(tmp_path):
    rows, findings = load_examples(folder(tmp_path, train=TRAIN, test=TEST, more=VALID), TOOLS)
    assert len(rows) == 65
    assert [f.file for f in findings if f.level == "warning"] == ["more.json"]


def test_a_folder_in_which_one_file_is_called_train_is_no_data_set_with_splits(tmp_path):
    rows = read_examples(folder(tmp_path, train=TRAIN, more=VALID), TOOLS)
    assert len(rows) == 45 and not any("split" in row for row in rows)


def test_sub_folders_may_be_the_splits(tmp_path):
    for name, rows in {"train": TRAIN, "test": TEST}.items():
        (tmp_path / name).mkdir()
        folder(tmp_path / name, part=rows)
    assert [len(ids) for ids in by_split(read_examples(tmp_path, TOOLS)).values()] == [35, 0, 30]


def test_keys_and_marks_give_the_same_splits(tmp_path):
    parts = {"train": TRAIN, "validation": VALID, "test": TEST}
    marked = [row | {"split": name} for name, rows in parts.items() for row in rows]
    inside = [row | {"metadata": {"split": name.upper(), "source": 1}} for name, rows in parts.items() for row in rows]
    mobile = [row | {"metadata": name} for name, rows in parts.items() for row in rows]
    found = [by_split(read_examples(folder(tmp_path, x=value), TOOLS)) for value in (parts, marked, inside, mobile)]
    assert found[0] == found[1] == found[2] == found[3]
    assert [len(ids) for ids in found[0].values()] == [35, 10, 30]


def test_a_mark_that_names_no_split_is_a_key_like_any_other(tmp_path):
    rows, findings = load_examples(folder(tmp_path, x=[timer(1, split="fold 3"), timer(2, metadata="web")]), TOOLS)
    assert not any("split" in row for row in rows)
    assert any('"metadata", "split"' in f.message for f in findings if f.code == "not-used")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train": TRAIN, "test": "test.json"}, "'test' must be a list of rows, not a text"),
        ({"train": TRAIN, "version": 2}, "'version' stands beside the splits"),
    ],
)
def test_an_object_of_splits_that_cannot_be_read_says_why(tmp_path, value, message):
    with pytest.raises(DataError, match=message):
        read_examples(folder(tmp_path, x=value), TOOLS)


def test_ids_that_begin_anew_in_each_file(tmp_path):
    parts = {name: [row | {"id": i} for i, row in enumerate(rows)] for name, rows in (("train", TRAIN), ("test", TEST))}
    ids = by_split(read_examples(folder(tmp_path, **parts), TOOLS))
    assert ids["train"][0] == "train-0" and ids["test"][0] == "test-0" and ids["train"][34] == "34"


@pytest.fixture
def official(tmp_path):
    return read_examples(folder(tmp_path, train=TRAIN, valid=VALID, test=TEST), TOOLS)


def test_given_splits_are_kept_and_sampled_by_tool(official):
    given = by_split(official)
    splits = split_examples(official, **SIZES)
    assert [e["id"] for e in splits["train"]] == given["train"]
    assert {e["id"] for e in splits["test"]} < set(given["test"])
    assert sorted(label(e) for e in splits["test"]) == ["horn"] * 4 + ["set_timer"] * 2
    assert splits == split_examples(official, **SIZES) != split_examples(official, **SIZES | {"seed": 4})
    audit = audit_split(splits, official, TOOLS, **SIZES)
    assert audit.left_out == 6 + 24 and sum(map(len, splits.values())) + audit.left_out == len(official)
    notes = [f.message for f in audit.findings.findings if f.code == "split-sampled"]
    assert "6 of the 30 test examples" in " ".join(notes) and "test_cases = 30 takes all" in " ".join(notes)
    everything = SIZES | {"test": 700, "valid": 10}
    splits = split_examples(official, **everything)
    assert {name: [e["id"] for e in rows] for name, rows in splits.items()} == given
    audit = audit_split(splits, official, TOOLS, **everything)
    assert audit.left_out == 0 and len(audit.findings) == 0


def test_a_split_that_is_not_given_is_taken_from_train(tmp_path):
    rows = read_examples(folder(tmp_path, train=TRAIN, test=TEST), TOOLS)
    splits = split_examples(rows, **SIZES)
    assert len(splits["valid"]) == 4 and all(e["split"] == "train" for e in splits["valid"])
    assert len(splits["train"]) == 31 and {e["split"] for e in splits["test"]} == {"test"}
    audit = audit_split(splits, rows, TOOLS, **SIZES)
    assert audit.unreported == [] and not [f for f in audit.findings.findings if f.code == "held-out-lowered"]
    with pytest.raises(DataError, match="none to train on"):
        split_examples([e for e in rows if e["split"] == "test"], **SIZES)


def test_leaks_of_given_splits_are_reported_and_others_are_not(tmp_path):
    twin = [TRAIN[3], horn("wake everybody  UP!"), timer(14, "two weeks' worth of minutes")]
    rows = read_examples(folder(tmp_path, train=TRAIN, valid=VALID, test=TEST[:3] + twin), TOOLS)
    splits = split_examples(rows, **SIZES)
    audit = audit_split(splits, rows, TOOLS, **SIZES)
    (warning,) = [f for f in audit.findings.findings if f.code == "split-leaks"]
    assert warning.level == "warning" and "3 of 6 test cases are trained on: 2 in nearly" in warning.message
    assert "test-0004 (train-0004), test-0005 (train-0025), test-0006 (train-0003)" in warning.message
    assert audit.unreported == [] and "but 3 cases of the given splits" in audit.claim
    mixed = {**splits, "valid": splits["valid"] + splits["train"][:1]}
    assert {held for held, _, _ in audit_split(mixed, rows, TOOLS, **SIZES).unreported} == {"train-0001"}


def test_a_tool_that_only_the_given_test_calls_is_a_warning(tmp_path):
    rows = read_examples(folder(tmp_path, train=TRAIN[:20], valid=VALID, test=TEST), TOOLS)
    audit = audit_split(split_examples(rows, **SIZES), rows, TOOLS, **SIZES)
    assert audit.untrained == []
    assert [f.tool for f in audit.findings.findings if f.code == "split-untrained"] == ["horn"]


def test_without_given_splits_nothing_is_reported():
    rows = [{**e, "id": str(i)} for i, e in enumerate(as_rows(TRAIN))]
    splits = random_split([*rows, {**rows[0], "id": "twin"}, {**rows[1], "id": "twin 2"}], valid=9, test=9, seed=1)
    audit = audit_split({**splits, "test": rows[:2]}, rows, TOOLS, **SIZES)
    assert audit.reported == [] and audit.unreported == audit.leaks != [] and audit.left_out == 0
    assert audit.claim == "no test or validation case is trained on"


def test_a_sample_has_each_label_by_its_share(official):
    test = [e for e in official if e["split"] == "test"]
    for count in (1, 3, 10, 29, 30, 31):
        chosen = stratified_sample(test, count, 1)
        horns = sum(label(e) == "horn" for e in chosen)
        assert len(chosen) == min(count, 30) and abs(horns - len(chosen) * 2 / 3) < 1
        assert [e for e in test if e in chosen] == chosen


# ---------------------------------------------------------------- what a held-out case asks


def as_rows(items):
    return [{"id": f"r{i}", **from_original(item, TOOLS, lambda key: None)} for i, item in enumerate(items)]


def test_closed_calls_are_held_out_by_sentence_and_open_ones_by_value():
    rows = as_rows(TRAIN)
    splits = split_examples(rows, **SIZES)
    kinds = novelty_of(splits)
    held = splits["valid"] + splits["test"]
    assert {kinds[e["id"]] for e in held if not has_open_value(e)} == {SEEN}
    assert {kinds[e["id"]] for e in held if has_open_value(e)} == {NEW}
    audit = audit_split(splits, rows, TOOLS, **SIZES)
    assert audit.novelty == {SEEN: 5, NEW: 5} and audit.leaks == []
    assert (
        all(e["novelty"] == kinds[e["id"]] for e in audit.splits["test"]) and audit.splits["train"] is splits["train"]
    )


def test_a_text_answer_is_neither_and_capitals_make_no_new_value():
    text = {"userQuery": "hello", "expectedToolCalls": [], "expectedFinalResponse": "Hi."}
    train, same, other = as_rows([timer(1, label="Tea"), timer(1, "one minute"), text])
    assert novelty_of({"train": [train, other], "valid": [], "test": [same, {**other, "id": "t"}]}) == {"r1": SEEN}


def test_cards_score_the_two_kinds_apart(tmp_path):
    examples = with_novelty(split_examples(as_rows(TRAIN), **SIZES))["test"]
    cases = [case_of(example) for example in examples]
    seen = sum(case.novelty == SEEN for case in cases)
    assert 0 < seen < len(cases) and judge(cases[0], "").novelty == cases[0].novelty
    card = score(lambda p: ["".join(map(format_call, c.calls)) if c.novelty == SEEN else "no" for c in cases], cases)
    summary = card.summary()
    assert (summary["seen_cases"], summary["seen_exact"]) == (seen, 1.0)
    assert (summary["new_cases"], summary["new_exact"]) == (len(cases) - seen, 0.0)
    for text in (str(card), card._repr_html_(), str(Comparison([card])), Comparison([card])._repr_html_()):
        assert SEEN in text and f"{seen} of {seen} (100.0%)" in text and NEW in text
    only = Scorecard("m", [r for r in card.results if r.novelty == SEEN])
    assert (
        only.summary()["new_exact"] is None
        and f"{NEW}: –" in str(only)
        and "<td style='text-align:left'>–</td>" in only._repr_html_()
    )
    card.save(tmp_path / "card.json")
    assert Scorecard.load(tmp_path / "card.json") == card


def test_an_old_card_loads_and_shows_no_kinds(tmp_path):
    card = score(lambda p: ["no"] * len(p), [case_of(example) for example in as_rows(TRAIN[:2])])
    card.save(tmp_path / "card.json")
    value = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    for result in value["results"]:
        del result["novelty"]
    (tmp_path / "card.json").write_text(json.dumps(value), encoding="utf-8")
    old = Scorecard.load(tmp_path / "card.json")
    assert old == card and old.summary()["seen_cases"] == 0 and old.by_novelty() == {}
    for text in (str(old), old._repr_html_(), str(Comparison([old]))):
        assert SEEN not in text and NEW not in text
