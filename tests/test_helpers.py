"""What notebooks call over the engine: the parts of the helpers that decide something themselves."""

import json

import pytest

from fgtune.core.errors import ToolMissing
from fgtune.evaluation.scorecards import Scorecard
from fgtune_helpers import setup
from fgtune_helpers.data import (
    about,
    audit_split,
    augment_examples,
    read_examples,
    read_tools,
    split_examples,
    tokenize,
)
from fgtune_helpers.params import PARAMETERS
from fgtune_helpers.plots import plot_lengths
from fgtune_helpers.report import RunReport
from fgtune_helpers.stage import SCHEMA, STAGES, Run
from fgtune_helpers.train import LiveTraining

SIZES = {"valid": 10, "test": 20, "seed": 7, "similarity": 85}


class CharTokenizer:
    """Every character is a token."""

    def __call__(self, text, add_special_tokens=False, return_offsets_mapping=False):
        return {"input_ids": list(map(ord, text)), "offset_mapping": [(i, i + 1) for i in range(len(text))]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids))


def test_files_are_read_normalised_and_linted(tmp_path):
    tool = {"type": "function", "function": {"name": "add", "description": "d", "parameters": {"properties": {}}}}
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    tools, findings = read_tools(str(tmp_path / "tools.json"))
    assert tools[0]["name"] == "add" and tools[0]["parameters"]["type"] == "object"
    assert "repair" in str(findings) and not findings.errors
    rows = [{"userQuery": name, "expectedToolCalls": [{"name": name}]} for name in ("add", "ad")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    examples, findings = read_examples(str(tmp_path / "rows.json"), tools, CharTokenizer(), 10)
    assert len(examples) == 2 and {f.code for f in findings.errors} == {"unknown-tool", "too-long"}
    first = about(examples[0])
    assert first.label == first.query == "add" and [call.name for call in first.calls] == ["add"]


def test_a_row_shows_what_is_learned(shipped):
    _, examples = shipped
    row = tokenize(examples[0], CharTokenizer())
    assert sum(row.targets) > 0 and row._repr_html_().count("#cdeccd") == sum(row.targets)
    assert repr(row) == f"{len(row.ids)} tokens, {sum(row.targets)} of them learned"


def test_splits_by_group_leak_nothing_and_by_chance_are_another_split(shipped):
    examples = shipped[1][::8]
    groups, chance = (split_examples(examples, **SIZES, by=by) for by in ("group", "chance"))
    assert groups["test"] != chance["test"]
    assert {name: len(split) for name, split in groups.items()} == {name: len(split) for name, split in chance.items()}
    assert audit_split(groups, examples, shipped[0], **SIZES).leaks == []
    assert 0 <= audit_split(groups, examples, shipped[0], **SIZES).copying < 0.5
    doubled = {**groups, "train": groups["train"] + groups["test"][:5]}
    audit = audit_split(doubled, examples, shipped[0], **SIZES)
    assert sum(audit.held_out.values()) > 0 and not audit.untrained
    assert len(audit.leaks) >= 5 and audit.copying >= 5 / 20


def test_made_examples_come_near_no_held_out_case(shipped):
    examples = shipped[1][::8]
    splits = split_examples(examples, **SIZES)
    made = augment_examples(splits, copies=1, joined=0.1, similarity=85, seed=7)
    ids = {e["id"] for e in made.examples}
    assert len(made.joined) <= round(0.1 * len(splits["train"])) and not ids & made.too_near
    assert len(made.examples) == len(made.copies) + len(made.joined) - len(made.too_near)
    assert not audit_split({**splits, "train": made.examples}, examples, shipped[0], **SIZES).leaks
    assert augment_examples(splits, copies=0, joined=0.0, similarity=85, seed=7).examples == []


def test_a_missing_program_is_a_sentence(monkeypatch):
    def gone():
        raise ToolMissing("no such program: install it")

    monkeypatch.setitem(setup.PROGRAMS, "Node", (gone, "@huggingface/transformers"))
    monkeypatch.setitem(setup.PROGRAMS, "Chromium", (lambda: "/x", "no-such-package"))
    assert setup.missing_program("Node") == "no such program: install it"
    assert "npm ci" in setup.missing_program("Chromium")


def test_the_report_is_one_page_of_what_is_there(tmp_path):
    for stage, skipped in (("00_setup", None), ("03_test_adapters", None), ("09_test_node", "no <Node>")):
        (tmp_path / stage).mkdir()
        manifest = {"schema": SCHEMA, "stage": stage, "key": "k", "parameters": {"seed": 7}, "inputs": {}}
        manifest |= {"outputs": {}, "metrics": {"headline": "2 < 3", "source": "a model"}, "skipped": skipped}
        manifest |= {"versions": {"python": "3"}, "seconds": 1.0}
        (tmp_path / stage / "stage.json").write_text(json.dumps(manifest))
    for name in ("base", "tuned", "unconstrained"):
        Scorecard(name).save(tmp_path / "03_test_adapters" / f"scorecard_{name}.json")
    report = RunReport(tmp_path)
    assert [card.name for card in report.cards] == ["base", "unconstrained", "tuned"]
    states = {stage: state for stage, state, *_ in report.gates()}
    assert list(states) == list(STAGES)[:-1] and states["09_test_node"] == "skipped" and states["01_data"] == "missing"
    report.write(tmp_path / "report.html", {"Lengths & more": plot_lengths([1, 2, 3], 4)})
    html = (tmp_path / "report.html").read_text()
    assert "2 &lt; 3" in html and "no &lt;Node&gt;" in html and "Lengths &amp; more" in html
    assert 'src="data:image/png;base64,iVBOR' in html and "<script" not in html and PARAMETERS["seed"].help in html


def test_a_run_gives_cases_rows_and_constraints(tmp_path, shipped):
    _, examples = shipped
    (tmp_path / "01_data").mkdir()
    (tmp_path / "01_data" / "test.jsonl").write_text("".join(json.dumps(e) + "\n" for e in examples[:3]))
    (tmp_path / "01_data" / "verbatim_arguments.json").write_text('{"a.b": 12}')
    p = type("P", (), {"constrained": True})
    run = Run("03_test_adapters", tmp_path, p, tmp_path / "work", "k", {"01_data": {"metrics": {}}})
    assert [case.query for case in run.cases()] == [about(e).query for e in examples[:3]]
    wrapper = type("Wrapper", (), {"_tokenizer": CharTokenizer()})()  # as mlx-lm wraps it: not to be called
    assert run.rows("test", wrapper) == run.rows("test", CharTokenizer()) and len(run.rows("test", wrapper)) == 3
    assert list(run.grammar(tmp_path).verbatim) == ["a.b"] and run.grammar(tmp_path).folder == tmp_path
    p.constrained = False
    assert run.grammar(tmp_path) is None
    run.save_json("x/y.json", [1])
    run.save_jsonl("z.jsonl", [{"a": 1}, {"a": 2}])
    assert json.loads((tmp_path / "work" / "x" / "y.json").read_text()) == [1]
    assert (tmp_path / "work" / "z.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n'


def test_training_shows_itself_line_by_line(capsys):
    record = {"kind": "eval", "iter": 5, "valid_loss": 1.5, "exact": 0.5, "seconds": 2.0, "best": True}
    show = LiveTraining()
    show(record), show(record | {"iter": 6})
    out = capsys.readouterr().out
    assert "iter    5" in out and "iter    6" in out and "kept" in out


@pytest.mark.parametrize("name", ["prompt", "calls", "evaluate"])
def test_old_interfaces_stay(name):
    import importlib

    module = importlib.import_module(f"fgtune_helpers.{name}")
    promised = {
        "prompt": ("render", "lint_tools", "SchemaError", "Finding"),
        "calls": ("Call", "format_call", "parse_calls", "same_call", "CallSyntaxError"),
        "evaluate": ("score", "Scorecard", "judge", "Comparison"),
    }
    assert all(callable(getattr(module, n)) and n in module.__all__ for n in promised[name])
