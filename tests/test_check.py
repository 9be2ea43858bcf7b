"""The check command: what it prints, what it writes, how it ends, and that it stays light."""

import json
import subprocess
import sys

import pytest

from fgtune_helpers.__main__ import main

BELL = {
    "name": "ring_bell",
    "description": "Ring it.",
    "parameters": {"type": "object", "properties": {"times": {"type": "integer", "description": "How often"}}},
}
GATE = {"name": "open_gate", "description": "Open it."}


@pytest.fixture
def files(tmp_path):
    """A tools file and an examples file; the second is written by the test."""
    (tmp_path / "tools.json").write_text(json.dumps([BELL, GATE]))
    return tmp_path / "tools.json", tmp_path / "rows.jsonl"


def check(tools, rows, content, *more):
    rows.write_text("".join(json.dumps(row) + "\n" for row in content))
    return main(["check", "--tools", str(tools), "--examples", str(rows), *more])


def rung(times, **more):
    return {
        "userQuery": f"Ring {times} times",
        "expectedToolCalls": [{"name": "ring_bell", "args": {"times": times}}],
        **more,
    }


def test_good_files_are_ready_and_written_in_canonical_form(files, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert check(*files, [rung(2), rung(3, mood="glad")], "--json", str(out)) == 0
    said = capsys.readouterr().out
    assert "2 rows read as the original project's format" in said and '"mood"' in said
    assert "2  calls of ring_bell" in said and "0  calls of open_gate: add examples that call it" in said
    assert said.endswith("ready for stage 01\n")
    value = json.loads(out.read_text())
    assert value["tools"] == [BELL, GATE]
    assert [set(row) for row in value["examples"]] == [{"id", "messages"}] * 2
    call = value["examples"][0]["messages"][2]["tool_calls"][0]["function"]
    assert call == {"name": "ring_bell", "arguments": {"times": 2}}
    unused = [finding for finding in value["findings"] if finding["code"] == "tool-unused"]
    assert [(f["level"], "open_gate" in f["where"]) for f in unused] == [("warning", True)]


def test_bad_rows_are_refused_with_file_row_tool_and_parameter(files, tmp_path, capsys):
    out = tmp_path / "out.json"
    rows = [rung("twice", id="a"), rung(2, id="b"), {"userQuery": "x"}]
    assert check(*files, rows, "--json", str(out)) == 2
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "wrong-type" in line or '"twice"' in line]
    assert line.split()[:3] == ["error", "rows.jsonl", "a"] and "ring_bell" in line and "arguments.times" in line
    assert lines[0].split()[:5] == ["level", "file", "row", "tool", "where"] and lines[-1].startswith("refused")
    errors = [f for f in json.loads(out.read_text())["findings"] if f["level"] == "error"]
    assert {f["code"] for f in errors} == {"wrong-type", "unreadable"}
    assert all(f["message"].startswith("rows.jsonl") for f in errors), "a message says its place"


@pytest.mark.parametrize("tools", ["missing.json", "."])
def test_files_that_are_not_there_are_one_sentence(tmp_path, capsys, tools):
    assert main(["check", "--tools", str(tmp_path / tools)]) == 2
    assert "Traceback" not in capsys.readouterr().out


def test_tools_of_a_row_are_written_with_it(files, tmp_path):
    out = tmp_path / "out.json"
    row = {"messages": [{"role": "user", "content": "Open"}, {"role": "assistant", "content": "No."}], "tools": [GATE]}
    assert check(*files, [row, rung(1)], "--json", str(out)) == 0
    assert [row.get("tools") for row in json.loads(out.read_text())["examples"]] == [[GATE], None]


def test_the_command_needs_no_kernel_and_no_engine(files):
    code = (
        "import sys\nfrom fgtune_helpers.__main__ import main\n"
        "assert main(['check', '--tools', sys.argv[1]]) == 0\n"
        "heavy = {'torch', 'mlx', 'onnx', 'onnxruntime', 'transformers', 'nbclient', 'ipykernel'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(files[0])], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
