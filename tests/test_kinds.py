"""Stage 01 on small data of each kind that people have: its cells assume nothing of the shipped examples."""

import json
from types import SimpleNamespace

import matplotlib
import pytest
from transformers import AutoTokenizer

from fgtune.core.project import project_root
from fgtune.models.base import resolve_base
from fgtune.models.vocabulary import keep_vocabulary
from fgtune_helpers.stage import CheckFailed

CITIES = "Oslo Rome Lima Quito Cairo Delhi Seoul Tunis Sofia Kyiv Bern Riga Doha Baku Accra Minsk".split()
PLACES = "横浜 東京 新宿 渋谷 町田 池袋 大宮 川崎 千葉 浅草 熱海 京都 奈良 神戸 博多 銀座".split()


def tool(name, required=(), **properties):
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "description": f"To {name}.", "parameters": parameters}


def typed(kind, **more):
    return {"type": kind, "description": "As said.", **more}


def asked(query, *calls):
    return {"userQuery": query, "expectedToolCalls": [{"name": name, "arguments": a} for name, a in calls]}


def function(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def turns(*contents):
    """Messages of user and assistant in turn; what is no text is the arguments of a call of `look`."""
    messages = []
    for i, content in enumerate(contents):
        role = ("user", "assistant")[i % 2]
        called = not isinstance(content, str)
        messages.append(
            {"role": role, **({"tool_calls": [function("look", content)]} if called else {"content": content})}
        )
    return {"messages": messages}


LOOK = tool("look", ["at"], at=typed("string"))
SET = tool("set", ["to"], to=typed("object"))
NUMBERS = [1e-7, 0.30000000000000004, 1000000000000001, 9007199254740991, -2.5e-9, 0.5, 12, -3]


def every(make, values=CITIES):
    return [make(i, value) for i, value in enumerate(values)]


def numbers(i, city):
    return asked(f"gauge {city}", ("gauge", {"n": NUMBERS[i % 8] * (-1) ** (i // 8)}))


KINDS = {
    "free objects": ([SET], every(lambda i, c: asked(f"{c} {i}", ("set", {"to": {"low-end": i, c: {"x": [i, c]}}})))),
    "maps": ([tool("set", to=typed("object", additionalProperties=typed("integer")))],
             every(lambda i, c: asked(f"{c} to {i}", ("set", {"to": {f"{c}-1": i, "all": 1}})))),
    "keys with hyphens": ([tool("set", ["low-end"], **{"low-end": typed("string"), "x.y": typed("integer")})],
                          every(lambda i, c: asked(f"{c} {i}", ("set", {"low-end": c, "x.y": i})))),
    "lists of anything": ([tool("order", things=typed("array"))],
                          every(lambda i, c: asked(f"{c} {i}", ("order", {"things": [{"name": c, "n": i}, c, [i]]})))),
    "numbers": ([tool("gauge", n=typed("number"))], every(numbers)),
    "markup": ([LOOK], every(lambda i, c: asked(f"{c} in bold", ("look", {"at": f"<b>{c}</b>"})))),
    "line separators": ([LOOK], every(lambda i, c: asked(f"see\u2028{c}", ("look", {"at": c})))),
    "no arguments": ([tool("sit"), tool("wave")],
                     every(lambda i, c: asked(f"{('sit', 'wave')[i % 2]} like {c}", (("sit", "wave")[i % 2], {})))),
    "an unused tool": ([LOOK, tool("ping")], every(lambda i, c: asked(f"see {c}", ("look", {"at": c})))),
    "Japanese": ([tool("駅検索", ["駅名"], 駅名=typed("string"))],
                 every(lambda i, c: asked(f"{c}駅を探して", ("駅検索", {"駅名": c})), PLACES)),
    "several turns": ([LOOK], every(lambda i, c: turns(f"I like {c}", "Shall I look?", f"yes, {c}", {"at": c}))),
    "own tools": ([LOOK, SET], every(lambda i, c: {**turns(f"see {c}", {"at": c}), "tools": [
        {"type": "function", "function": each} for each in ([LOOK] if i % 2 else [SET, LOOK])]})),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    folder = resolve_base("tiny").path
    return folder, AutoTokenizer.from_pretrained(folder)


def run_stage(tmp_path, tiny, tools, rows, capsys):
    """What the code cells of stage 01 save, print and finish with, run one after the other on `tools` and `rows`."""
    matplotlib.use("agg")
    files = {"tools_file": tmp_path / "tools.json", "examples_file": tmp_path / "examples.jsonl"}
    files["tools_file"].write_text(json.dumps(tools), encoding="utf-8")
    files["examples_file"].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    saved = {}
    notebook = json.loads((project_root() / "notebooks" / "01_data.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    parameters, start, *sources = ["".join(cell["source"]) for cell in cells]
    assert "run_dir" in parameters and "start_stage" in start
    values: dict = {}
    exec(parameters, values)
    values |= {name: str(file) for name, file in files.items()} | {"test_cases": 3, "valid_cases": 2}
    run = SimpleNamespace(
        p=SimpleNamespace(**values),
        tokenizer=lambda: tiny[1],
        base=lambda: tiny[0],
        vocabulary=lambda rows, tokenizer: keep_vocabulary(tiny[0], "full", rows, tokenizer, tmp_path / "base"),
        save_json=saved.__setitem__,
        save_jsonl=saved.__setitem__,
        finish=lambda metrics: saved.update(metrics=metrics),
    )
    namespace = {"run": run}
    for source in sources:
        exec(source, namespace)
    return saved, namespace, capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_stage_01_takes_it(tmp_path, tiny, capsys, kind):
    tools, rows = KINDS[kind]
    saved, namespace, printed = run_stage(tmp_path, tiny, tools, rows, capsys)
    assert saved["metrics"]["counts"].keys() == {"train", "valid", "test"} and "FAIL" not in printed
    assert len(namespace["examples"]) == len(rows), "nothing is left out"
    findings = str(namespace["audit"].findings) + " ".join(saved["lint.json"])
    assert ("ping" in findings) is (kind == "an unused tool")
    if kind == "Japanese":
        assert saved["verbatim_arguments.json"] == {"駅検索.駅名": saved["metrics"]["counts"]["train"] // 2}


@pytest.mark.parametrize("value, said", [(2**53, "9007199254740992"), ("a <end_of_turn> b", "<end_of_turn>")])
def test_what_is_refused_names_the_row_and_the_value(tmp_path, tiny, capsys, value, said):
    tools, rows = [tool("set", to=typed("object"))], [asked(f"see {c}", ("set", {"to": {c: 1}})) for c in CITIES]
    rows[4] = asked("see more", ("set", {"to": {"more": value}}))
    with pytest.raises(CheckFailed) as failed:
        run_stage(tmp_path, tiny, tools, rows, capsys)
    assert said in str(failed.value) and ("5" in str(failed.value) or "[4]" in str(failed.value)), failed.value
