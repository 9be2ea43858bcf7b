"""A tuned model in a program: what it loads, what it answers, and the functions that it calls."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import types

import pytest

from fgtune import Answer, LoadError, ToolError, load, tool
from fgtune.core.errors import FgtuneError
from fgtune.core.files import write_json
from fgtune.core.project import project_root
from fgtune.data.developer_turn import DeveloperTurn
from fgtune.data.rows import tokenize
from fgtune.export.onnx import export_onnx
from fgtune.format.calls import Call, parse_calls
from fgtune.format.template import TRIGGER, render
from fgtune.models.base import resolve_base
from fgtune.models.tokenizer_files import load_tokenizer
from fgtune.quantize.recipes import Recipe
from fgtune.quantize.variants import quantize
from fgtune.runtimes.onnxruntime import OrtGenerator
from fgtune.site.build import build_site
from fgtune_helpers.stage import Run


@tool
def add(a: int, b: int) -> dict:
    """Add."""
    return {"result": a + b}


@tool
def ring(who: str) -> None:
    """Ring.

    Args:
        who: As said
    """
    if who == "Bob":
        raise ValueError("busy")


RECIPE = Recipe(bits=8, method="rtn")  # what was learned by heart survives it
FUNCTIONS = [add, ring]
TOOLS = [function.__fgtune_tool__.declaration for function in FUNCTIONS]
ANN, BOB, SUM = Call("ring", {"who": "Ann"}), Call("ring", {"who": "Bob"}), Call("add", {"a": 1, "b": 2})
DIALOGUES = {  # by request: the calls, what they came to, and the answer
    "add 1 and 2": ([SUM], [{"result": 3}], "It is 3."),
    "ring Ann": ([ANN], [{"status": "ok"}], "Done."),
    "ring Bob": ([BOB], [{"error": "ValueError: busy"}], "Sorry."),
    "hi": ([], [], "Hello."),
}


def row(query: str) -> dict:
    calls, responses, text = DIALOGUES[query]
    messages = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}]
    if calls:
        made = [{"type": "function", "function": vars(call)} for call in calls]
        told = [{"name": call.name, "response": value} for call, value in zip(calls, responses)]
        messages += [{"role": "assistant", "tool_calls": made}, {"role": "tool", "content": told}]
    return {"id": query, "tools": TOOLS, "messages": [*messages, {"role": "assistant", "content": text}]}


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    """The tiny model with the dialogues learned by heart, as fp32 ONNX."""
    import torch
    from transformers import AutoModelForCausalLM

    base, folder = resolve_base("tiny").path, tmp_path_factory.mktemp("memorised")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), load_tokenizer(base)
    rows = [tokenize(row(query), tokenizer) for query in DIALOGUES]
    width = max(len(each.ids) for each in rows)
    ids = torch.tensor([[*each.ids] + [0] * (width - len(each.ids)) for each in rows])
    labels = torch.tensor([
        [i if learned else -100 for i, learned in zip(each.ids, each.targets)] + [-100] * (width - len(each.ids))
        for each in rows
    ])  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 6e-3)
    for _ in range(80):
        loss = model(input_ids=ids, attention_mask=(ids > 0).long(), labels=labels).loss
        if loss.item() < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shutil.copytree(base, folder / "fused")
    model.save_pretrained(folder / "fused")
    shutil.copy(base / "config.json", folder / "fused" / "config.json")
    export_onnx(folder / "fused", folder / "onnx", max_positions=1024)
    return folder / "onnx"


def finish(run, stage, inputs, key, fill):
    """A finished stage of a run: `fill(folder)` makes its files."""
    work = run / ".work" / stage
    work.mkdir(parents=True)
    fill(work)
    Run(stage, run, types.SimpleNamespace(), work, key, {name: {"key": each} for name, each in inputs.items()}).finish()


@pytest.fixture(scope="module")
def run(memorised, tmp_path_factory):
    """A finished run: the folders that `load` reads, as the stages write them."""
    run, keys = tmp_path_factory.mktemp("run"), {"01_data": "d", "07_quantize": "q"}

    def data(folder):
        write_json(folder / "tools.json", TOOLS)
        write_json(folder / "developer_turn.json", DeveloperTurn(TRIGGER).to_json())
        write_json(folder / "verbatim_arguments.json", {"ring.who": 12})

    def site(folder):
        build_site(run / "07_quantize", "q4", TOOLS, folder / "site", verbatim=["ring.who"], part_mb=4)

    finish(run, "01_data", {}, "d", data)
    finish(run, "06_export_onnx", {}, "e", lambda folder: shutil.copytree(memorised, folder, dirs_exist_ok=True))
    finish(run, "07_quantize", keys, "q", lambda folder: quantize(memorised, "q4", folder, recipe=RECIPE))
    finish(run, "10_deploy_browser", keys, "s", site)
    return run


@pytest.fixture(scope="module")
def model(run):
    return load(run)


# ---------------------------------------------------------------- folders


def test_a_run_a_site_and_a_plain_folder_give_the_same_answers(run, model, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(run / "07_quantize", plain)
    shutil.copy(run / "01_data" / "tools.json", plain)
    shutil.copy(run / "01_data" / "verbatim_arguments.json", plain)
    for other in (load(run / "10_deploy_browser" / "site"), load(plain)):
        assert other.tools == model.tools == TOOLS and other.source.verbatim == ("ring.who",)
        for query in DIALOGUES:
            assert other.call(query).ids == model.call(query).ids
    assert load(run, "fp32").call("ring Ann").calls == (ANN,)
    assert load(str(run), threads=1).call("hi").text == "Hello."


def test_the_answers_are_those_of_the_generator_alone(run, model):
    for query in DIALOGUES:
        opening = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}]
        prompt = render(opening, TOOLS, add_generation_prompt=True)
        [ids] = OrtGenerator(run / "07_quantize", "q4").generate_ids([prompt], None)
        assert model.call(query, constrained=False).ids == (*ids,)


def test_the_prompt_cache_is_the_sites_where_it_fits_and_else_is_run_once(run, tmp_path, monkeypatch):
    taken = []
    use, ran = OrtGenerator.use_prompt_cache, OrtGenerator.run_prompt_cache
    monkeypatch.setattr(OrtGenerator, "use_prompt_cache", lambda self, *a: taken.append("stored") or use(self, *a))
    monkeypatch.setattr(OrtGenerator, "run_prompt_cache", lambda self, *a: taken.append("run") or ran(self, *a))
    asked = load(run)
    asked.call("hi"), asked.call("ring Ann"), asked.call("hi", tools=[add]), asked.call("hi")
    assert taken == ["stored", "run", "stored"]
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "07_quantize" / "stage.json").read_text())
    write_json(copy / "07_quantize" / "stage.json", manifest | {"key": "trained again"})
    assert load(copy).source.site is None, "the site is of an earlier training"
    taken.clear()
    assert load(copy).call("ring Ann").calls == (ANN,) and taken == ["run"]
    described = json.loads((run / "10_deploy_browser/site/site.json").read_text())
    for entry in described["files"]:
        entry["sha256"] = "0" * 64
    shutil.copy(run / "07_quantize" / "stage.json", copy / "07_quantize" / "stage.json")
    write_json(copy / "10_deploy_browser/site/site.json", described)
    taken.clear()
    assert load(copy).call("ring Ann").calls == (ANN,) and taken == ["run"], "the cache is of other weights"


DAMAGED = [
    ("07_quantize/generation_config.json", "{}", "names no eos_token_id"),
    ("07_quantize/generation_config.json", '{"eos_token_id": "x"}', "no token id"),
    ("07_quantize/generation_config.json", '{"eos', "names no eos_token_id"),
    ("07_quantize/stage.json", "[]", "no finished 07_quantize"), ("01_data/stage.json", "{}", "no finished 01_data"),
    ("07_quantize/onnx/model_q4.onnx", "x", "does not load"), ("01_data/tools.json", None, "tools.json"),
    ("10_deploy_browser/site/model/tokenizer.json", "{", "does not load"),
    ("01_data/developer_turn.json", "3", "no developer turn"), ("01_data/verbatim_arguments.json", "[3]", "no names"),
    ("10_deploy_browser/stage.json", '{"stage": "10_deploy_browser", "key": "s"}', ""),
]  # fmt: skip


@pytest.mark.parametrize("file, text, message", DAMAGED)
def test_a_damaged_run_is_one_line_that_names_the_file(run, tmp_path, file, text, message):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / file
    path.write_text(text) if text is not None else path.unlink()
    if not message:  # the site is left out, and the run loads without it
        assert load(tmp_path / "run").source.site is None
        return
    with pytest.raises(LoadError, match=message) as error:
        load(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_what_is_no_folder_is_one_line():
    for folder in (None, 3, ["x"], b"x", "a\nb", "x" * 5000):
        with pytest.raises(LoadError) as error:
            load(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(LoadError, match="threads is 'two'"):
        load("x", threads="two")


@pytest.mark.parametrize("what", ["nothing", "no folder", "variant", "no tools", "unfinished", "bad tools", "no data"])
def test_what_cannot_be_loaded_is_one_line(run, tmp_path, what):
    folder, variant = tmp_path / "x", "q4"
    if what == "variant":
        folder, variant = run, "int8"
    elif what in ("no tools", "bad tools"):
        shutil.copytree(run / "07_quantize", folder)
        if what == "bad tools":
            write_json(folder / "tools.json", [{"name": "f", "parameters": {"type": "array"}}])
    elif what in ("unfinished", "no data"):
        shutil.copytree(run / "01_data", folder / "01_data")
        if what == "no data":
            shutil.copytree(run / "07_quantize", folder / "07_quantize")
            (folder / "01_data" / "stage.json").unlink()
    elif what == "nothing":
        folder.mkdir()
    messages = {"nothing": "holds no model", "no folder": "is no folder", "variant": "no variant 'int8': q4",
                "no tools": "no tools.json", "unfinished": "no finished 07_quantize: python -m fgtune_helpers run",
                "bad tools": "object", "no data": "no finished 01_data"}  # fmt: skip
    with pytest.raises(FgtuneError, match=messages[what]) as error:
        load(folder, variant)
    assert "\n" not in str(error.value) and isinstance(error.value, LoadError)


# ---------------------------------------------------------------- questions


def test_calls_and_texts(model):
    answer = model.call("ring Ann")
    assert isinstance(answer, Answer) and answer.calls == (ANN,) and answer.text == "" and answer.error == ""
    assert answer.seconds > 0 and parse_calls(model.generator.decode(answer.ids)) == [ANN]
    said = model.call("hi")
    assert (said.calls, said.text, said.error) == ((), "Hello.", "")
    assert model.call("ring Ann", max_tokens=3).error == "truncated at max_tokens = 3"
    for wrong in ("", "  ", "\n\n"):
        with pytest.raises(LoadError, match="empty"):
            model.call(wrong)
    for wrong in (None, 12, b"hi", ["hi"]):
        with pytest.raises(LoadError, match="give a text"):
            model.call(wrong)
    for wrong in ("hi", None, 3):
        with pytest.raises(LoadError, match="give a list"):
            model.batch(wrong)


def test_a_question_that_cannot_be_asked_is_one_line_and_the_next_one_is_answered(model):
    for wrong, message in [("a<end_of_turn>b", "control token <end_of_turn>"), ("a▁b", "reads as a space"),
                           ("a\ud800", "half of a character"), ("x " * 3000, "do not fit.*shorten")]:  # fmt: skip
        for ask in (model.call, lambda query: list(model.stream(query)), lambda query: model.run(query, FUNCTIONS)):
            with pytest.raises(LoadError, match=message) as error:
                ask(wrong)
            assert "\n" not in str(error.value) and "messages[" not in str(error.value)
    for count in (0, -1, 1.5, None, "3"):
        with pytest.raises(LoadError, match=f"max_tokens is {count!r}: give a whole number"):
            model.call("hi", max_tokens=count)
        with pytest.raises(LoadError, match="rounds is"):
            model.run("hi", FUNCTIONS, rounds=count)
    for wrong in (3, "add", TOOLS[0], add):
        with pytest.raises(LoadError, match=r"tools is a .*: give a list"):
            model.call("hi", tools=wrong)
    with pytest.raises(ToolError, match="give a list of functions"):
        model.run("hi", add)
    assert model.call("hi").text == "Hello."


def test_an_answer_ends_where_the_positions_of_the_model_do(model):
    """Nothing is allocated beyond them."""
    assert model.call("hi", max_tokens=10**9).text == "Hello."
    answer = model.call("x " * 400, tools=[], max_tokens=10**9, constrained=False)
    long = len(model.generator.encode(render([{"role": "developer", "content": TRIGGER},
                                              {"role": "user", "content": "x " * 400}], [], True)))  # fmt: skip
    assert answer.error in ("", "truncated: the model holds 1024 tokens (max_positions)")
    assert long + len(answer.ids) <= 1025


def test_threads_take_turns(model):
    alone, found = {query: model.call(query).ids for query in DIALOGUES}, []

    def ask(query):
        found.extend((query, model.call(query).ids) for _ in range(8))

    threads = [threading.Thread(target=ask, args=(query,)) for query in DIALOGUES]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 8 * len(DIALOGUES) and all(alone[query] == ids for query, ids in found)


def test_other_questions_may_be_asked_within_a_stream(model):
    alone, pieces = model.call("ring Ann"), []
    stream = model.stream("ring Ann")
    pieces.append(next(stream))
    assert model.call("hi", max_tokens=1).error  # a stream takes neither its limit nor its end
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as last:
            assert (last.value.ids, last.value.error, last.value.calls) == (alone.ids, "", alone.calls)
            break
        model.call("hi", max_tokens=2)
    left = model.stream("ring Bob")
    next(left), left.close()
    assert model.call("ring Ann").ids == alone.ids


def test_what_the_grammar_forces_and_the_dialogue_says_costs_no_pass(model, monkeypatch):
    """Drafts of these: fewer passes than tokens."""
    passes, run = [], model.generator.model.run
    monkeypatch.setattr(model.generator.model, "run", lambda *given, **named: passes.append(1) or run(*given, **named))
    answer = model.call("ring Ann")
    assert answer.calls == (ANN,) and 0 < len(passes) < len(answer.ids) / 1.5


def test_a_batch_and_a_stream_give_the_answers_of_single_questions(model):
    alone = [model.call(query).ids for query in DIALOGUES]
    assert [answer.ids for answer in model.batch(list(DIALOGUES))] == alone and model.batch([]) == []
    for query, ids in zip(DIALOGUES, alone):
        pieces, stream = [], model.stream(query)
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as stopped:
                end = stopped.value
                break
        assert "".join(pieces) == model.generator.decode(ids) and end.ids == ids and len(pieces) > 1


def test_a_stream_gives_whole_characters(model, monkeypatch):
    encoded = model.generator.encode("é🦉 a")
    assert len(encoded) > 5  # bytes: the tiny vocabulary has neither

    def stream_ids(*_):
        yield from encoded
        return True

    monkeypatch.setattr(model.generator, "stream_ids", stream_ids)
    pieces = list(model.stream("hi", constrained=False))
    assert "".join(pieces) == "é🦉 a" and "🦉" in "".join(pieces) and not any("\ufffd" in piece for piece in pieces)


def test_other_tools_stand_in_for_those_of_the_training(model):
    answer = model.call("ring Ann", tools=[add])
    assert all(call.name == "add" for call in answer.calls)
    with pytest.raises(LoadError, match="object"):
        model.call("hi", tools=[{"name": "f", "parameters": {"type": "array"}}])
    with pytest.raises(ToolError, match="is not decorated"):
        model.call("hi", tools=[lambda: 1])


# ---------------------------------------------------------------- functions


def test_run_calls_functions_and_lets_the_model_answer(model):
    answer = model.run("add 1 and 2", FUNCTIONS)
    assert answer.calls == (SUM,) and answer.text == "It is 3."
    [result] = answer.results
    assert (result.call, result.value, result.error) == (SUM, {"result": 3}, "")
    assert model.run("ring Ann", FUNCTIONS).text == "Done."
    assert model.run("hi", FUNCTIONS).results == ()
    by_name = {"add": lambda a, b: {"result": a + b}, "ring": lambda who: None}
    assert model.run("add 1 and 2", by_name).text == "It is 3."


def test_what_a_function_raises_is_told_to_the_model_and_reported(model):
    answer = model.run("ring Bob", FUNCTIONS)
    [result] = answer.results
    assert answer.text == "Sorry." and result.error == "ValueError: busy" and isinstance(result.exception, ValueError)
    assert result.response == {"error": "ValueError: busy"}


def test_arguments_are_checked_before_a_function_runs(model):
    ran = []
    strict = {"name": "ring", "description": "Ring.", "parameters": {"type": "object", "properties": {
        "who": {"type": "string", "description": "As said", "maxLength": 2}}, "required": ["who"]}}  # fmt: skip
    answer = model.run("ring Ann", {"ring": ran.append}, tools=[TOOLS[0], strict])
    assert not ran and answer.results, answer
    assert all("who: 'A" in result.error and "too long" in result.error for result in answer.results)


def test_functions_that_do_not_fit_are_named(model):
    with pytest.raises(LoadError, match="no tool 'rings'") as error:
        model.run("hi", {"rings": print})
    assert 'Did you mean "ring"' in str(error.value)
    with pytest.raises(ToolError, match="print is not decorated"):
        model.run("hi", [print])
    [result] = model.run("ring Ann", {"add": add}, rounds=1).results
    assert "no function ring" in result.error and result.exception is None
    assert model.run("ring Ann", FUNCTIONS, rounds=1).error == "still calling after 1 rounds"


@pytest.mark.parametrize("value, told", [
    ("<escape>", "error"), (float("nan"), "error"), ({"a": None, "b": [1]}, {"b": [1]}), (None, {"status": "ok"}),
    ({1, 2}, [1, 2]), (3.0, 3), ("<start_function_call>x", "error"), (object(), "error"),
])  # fmt: skip
def test_any_result_can_be_told(model, value, told):
    answer = model.run("ring Ann", {"ring": lambda who: value})
    [result, *_] = answer.results
    assert result.response == told if told != "error" else set(result.response) == {"error"} and result.error
    said = {"role": "assistant", "tool_calls": [{"function": vars(ANN)}]}
    came = {"role": "tool", "content": [{"name": "ring", "response": result.response}]}
    messages = [{"role": "user", "content": "x"}, said, came]
    assert "response:ring" in render(messages, TOOLS, add_generation_prompt=True)


# ---------------------------------------------------------------- a program of its own


def script(run, code, *arguments):
    text = textwrap.dedent(code).replace("RUN", repr(str(run)))
    environment = {**os.environ, "PYTHONPATH": str(project_root())}
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, timeout=300)


def test_ten_lines_are_a_program_without_torch_mlx_or_transformers(run):
    done = script(run, """
        import sys
        from fgtune import load, tool
        @tool
        def add(a: int, b: int) -> dict:
            "Add."
            return {"result": a + b}
        model = load(RUN)
        print(model.call("ring Ann").calls[0])
        print(model.run("add 1 and 2", [add]).text)
        print(*model.stream("hi"), sep="")
        print(sorted({"torch", "mlx", "mlx_lm", "transformers", "onnx"} & set(sys.modules)))
    """)  # fmt: skip
    assert done.stdout.splitlines() == [str(ANN), "It is 3.", "Hello.", "[]"], done.stdout + done.stderr


def test_an_answer_needs_neither_jsonschema_nor_pydantic_and_unconstrained_no_llguidance(run):
    done = script(run, """
        import sys
        import fgtune
        first = sorted(set(sys.modules) & {"numpy", "onnxruntime", "jinja2"})
        model = fgtune.load(RUN)
        model.call("hi", constrained=False)
        heavy = {"jsonschema", "pydantic", "llguidance", "onnx", "torch", "transformers"}
        print(first, sorted(heavy & set(sys.modules)))
        model.call("hi")
        print(sorted(heavy & set(sys.modules)))
    """)  # fmt: skip
    assert done.stdout.splitlines() == ["[] []", "['llguidance']"], done.stdout + done.stderr
