"""Examples by a teacher: plan, evidence and verification alone, and all of it against llama.cpp's own server."""

import importlib.util
import json
import random
import re
import subprocess
import sys

import pytest
from teacher_server import join_gguf

from fgtune.core.project import project_root
from fgtune.data.readers.examples import load_examples
from fgtune.data.readers.tools import load_tools
from fgtune.data.teacher import ExamplePlan, Teacher, TeacherError, collect_values, generate, make_plan, summary
from fgtune.data.teacher.evidence import evidence, said_numbers
from fgtune.data.teacher.log import AnswerLog
from fgtune.data.teacher.plan import NO_CALL_EVERY
from fgtune.data.teacher.prompts import parse_answer, read_messages, write_messages
from fgtune.data.teacher.task import STYLES, Task, style_of
from fgtune.data.teacher.values import Values, _own_values
from fgtune.data.teacher.verify import BARE, LINT, PROGRAM, UNSAID, Twins, as_written, blind_problem, problem_of
from fgtune.data.teacher.write import writing_shots
from fgtune.format.calls import Call

ROOT = project_root()
TOOLS = load_tools(ROOT / "examples" / "tools" / "everyday.json")[0]
CITY, UNIT, DAYS = (("get_weather", name) for name in ("city", "unit", "days"))
VALUES = {
    CITY: Values(["Lima", "Oslo", "Nuuk"], "your examples"),
    UNIT: Values(["celsius", "fahrenheit"], "schema"),
    DAYS: Values([3, 5], "your examples"),
    ("web_search", "query"): Values(["jazz", "old maps"], "your examples"),
}
TWO = [tool for tool in TOOLS if tool["name"] in ("get_weather", "web_search")]


def task(*calls, name="t", style="plain"):
    return Task(name, "one call" if calls else "far off", calls[0].name if calls else "", style, calls, 1)


def weather(**arguments):
    return Call("get_weather", arguments)


@pytest.mark.parametrize(
    ("value", "schema", "name", "query", "rule"),
    [
        ("Lima", {}, "city", "Weather in Lima?", "verbatim"),
        ("Lim", {}, "city", "Weather in Lima?", None),
        ("lima", {}, "city", "Weather in Lima?", None),
        (12, {}, "minutes", "a timer of twelve minutes", "number"),
        (42, {}, "minutes", "forty-two minutes", "number"),
        (300, {}, "n", "three hundred", "number"),
        (7, {}, "days", "rain over a week?", "number"),
        (2, {}, "n", "a couple of hits", "number"),
        (1, {}, "n", "a couple of hits", None),
        (13, {}, "days", "the next 9 days", None),
        (-20, {}, "n", "between 10-20 hits", None),
        (-20, {}, "n", "set it to -20 degrees", "number"),
        (20, {}, "n", "set it to -20 degrees", None),
        (1250, {}, "n", "find 1,250 of them", "number"),
        ("celsius", {"enum": ["celsius"]}, "unit", "in Celsius please", "word of the enum"),
        ("very_fast", {"enum": ["very_fast"]}, "mode", "very fast", "word of the enum"),
        ("celsius", {"enum": ["celsius"]}, "unit", "in Fahrenheit", None),
        (True, {}, "shuffle", "jazz, shuffled", "name"),
        (True, {}, "shuffle", "jazz, shuffling it", "name"),
        (True, {}, "shuffle", "jazz", None),
        (True, {}, "shuffle", "jazz, don't shuffle", None),
        (False, {}, "shuffle", "jazz, don't shuffle", "name"),
        (False, {}, "shuffle", "jazz, shuffle off", "name"),
        (False, {}, "shuffle", "jazz, shuffle", None),
        ("12 * 7", {}, "expression", "twelve times seven", "expression"),
        ("12 * 7", {}, "expression", "12 divided by 7", None),
        ("12 * 7", {}, "expression", "12 times 8", None),
        ("12", {}, "expression", "twelve", None),
        ("2026-05-03", {}, "date", "on the 3rd of May 2026", "date"),
        ("2026-05-03", {}, "date", "on the 3rd of May", None),
        ("2026-05-03", {}, "date", "on the 3rd of June 2026", None),
        (["Ann", "Bo"], {}, "attendees", "with Ann and Bo", "verbatim"),
        (["Ann", "Bo"], {}, "attendees", "with Ann", None),
        ([], {}, "attendees", "with nobody", None),
        ({"city": "Oslo", "n": 3}, {}, "address", "3 in Oslo", "verbatim, number"),
        (None, {}, "x", "null", None),
    ],
)
def test_evidence_is_a_stated_rule_or_none(value, schema, name, query, rule):
    assert evidence(value, schema, name, query) == rule


def test_numbers_are_read_as_english_says_them():
    assert said_numbers("twenty-five or 3.5, half an hour, twice") >= {25.0, 3.5, 30.0, 2.0}
    assert said_numbers("1-2") == {1.0, 2.0}


def test_a_plan_is_decided_by_its_seed_and_a_longer_one_begins_with_it():
    plan = make_plan(TWO, VALUES, 60, 7)
    assert plan == make_plan(TWO, VALUES, 60, 7) and plan[:20] == make_plan(TWO, VALUES, 20, 7)
    assert [t.calls for t in plan] != [t.calls for t in make_plan(TWO, VALUES, 60, 8)]
    assert len({t.id for t in plan}) == 60


def test_a_plan_varies_tool_number_of_calls_arguments_style_and_no_call():
    plan = make_plan(TWO, VALUES, 84, 7)
    counts = summary(plan)
    assert sum(counts["kind"].get(kind, 0) for kind in ("near miss", "far off")) == 84 // NO_CALL_EVERY
    assert abs(counts["kind"]["near miss"] - counts["kind"]["far off"]) <= 1 and counts["kind"]["several calls"] >= 10
    assert set(counts["style"]) == set(STYLES) and max(counts["style"].values()) - min(counts["style"].values()) <= 1
    sets = {tuple(call.arguments) for t in plan for call in t.calls if call.name == "get_weather"}
    assert sets == {("city",), ("city", "unit"), ("city", "days"), ("city", "unit", "days")}
    used = {(call.name, n, v) for t in plan for call in t.calls for n, v in call.arguments.items()}
    assert used <= {(*key, value) for key, values in VALUES.items() for value in values.values}
    assert {value for _, name, value in used if name == "city"} == {"Lima", "Oslo", "Nuuk"}
    assert all(len({c.name for c in t.calls}) == 2 for t in plan if t.kind == "several calls")
    assert "several calls" not in summary(make_plan(TWO, VALUES, 84, 7, several=False))["kind"]


def test_own_values_count_only_where_their_request_says_them():
    row = lambda query, **arguments: {
        "id": query, "tools": TOOLS, "messages": [
            {"role": "developer", "content": ""}, {"role": "user", "content": query},
            {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": arguments}}]},
        ],
    }  # fmt: skip
    rows = [row("rain in Lima", city="Lima"), row("rain in lima, 3 days", city="Lima", days=3), row("x", city="Oslo")]
    assert _own_values(TOOLS, rows) == {CITY: ["Lima"], DAYS: [3]}


@pytest.mark.parametrize(
    ("calls", "request_text", "reason"),
    [
        ([weather(city="Lima")], "What is it like in Lima?", None),
        ([weather(city="Lima", days=3)], "What is it like in Lima?", UNSAID),
        ([weather(city="Lima")], "get_weather in Lima", PROGRAM),
        ([weather(city="Lima")], 'weather {"city": "Lima"}', PROGRAM),
        ([weather(city="Lima")], "Call: weather Lima", PROGRAM),
        ([weather(city="Lima", days=3)], "Lima 3", BARE),
        ([weather(city="Lima", unit="kelvin")], "Lima in kelvin, please", LINT),
        ([], "Tell me a story", None),
    ],
)
def test_an_example_is_refused_for_one_reason(calls, request_text, reason):
    written = as_written(task(*calls), {"request": request_text, "answer": "Once upon a time."})
    problem = problem_of(written, TOOLS)
    assert (problem and problem[0]) == reason, problem
    if calls and reason is None:
        assert written.rules == {"get_weather.city": "verbatim"}


def test_an_answer_that_only_repeats_the_request_is_refused():
    assert problem_of(as_written(task(), {"request": "Good morning", "answer": "good morning!"}), TOOLS)[0] == PROGRAM


@pytest.mark.parametrize("value", [None, 3, {}, {"request": " "}, {"request": 4}])
def test_what_is_not_of_the_form_is_no_example(value):
    assert as_written(task(weather(city="Lima")), value) is None


def test_a_text_without_a_call_needs_an_answer():
    assert as_written(task(), {"request": "hello"}) is None
    example = as_written(task(), {"request": " hello\nyou ", "answer": "Hi!"}).example
    assert (example["userQuery"], example["expectedFinalResponse"]) == ("hello you", "Hi!")


@pytest.mark.parametrize(
    ("read", "same"),
    [
        ([{"name": "get_weather", "arguments": {"city": "Lima", "days": 3}}], True),
        ([{"name": "get_weather", "arguments": {"city": "Lima", "days": 3.0, "unit": None}}], True),
        ([{"name": "get_weather", "arguments": {"city": "Lima"}}], False),
        ([{"name": "get_weather", "arguments": {"city": "lima", "days": 3}}], False),
        ([{"name": "web_search", "arguments": {"query": "Lima"}}], False),
        ([{"name": "get_weather", "arguments": {"city": "Lima", "days": 3}}] * 2, False),
        ([], False),
        ("none", False),
        ([{"name": "get_weather"}], False),
    ],
)
def test_the_blind_pass_must_give_the_same_calls(read, same):
    written = as_written(task(weather(city="Lima", days=3)), {"request": "Lima for 3 days"})
    assert (blind_problem(written, {"calls": read}, TOOLS) is None) == same


def test_without_a_call_the_blind_pass_must_give_none():
    written = as_written(task(), {"request": "hello", "answer": "Hi!"})
    assert blind_problem(written, {"calls": []}, TOOLS) is None
    read = {"calls": [{"name": "web_search", "arguments": {"query": "hello"}}]}
    assert "web_search" in blind_problem(written, read, TOOLS)[1]


def test_near_duplicates_are_found_in_any_order_of_words():
    twins = Twins()
    twins.add("what is the weather in Lima", "first")
    twins.add("play some jazz", "second")
    assert twins.near("In Lima, what is the weather?", 1, 85) == ["first"]
    assert twins.near("play the blues at noon", 1, 85) == [] and twins.near("play jazz", 2)[0] == "second"


def test_a_log_keeps_every_answer_and_drops_a_line_that_was_cut(tmp_path):
    log = AnswerLog(tmp_path / "deep" / "log.jsonl")
    log.add(AnswerLog.key(a=1), "one", "first")
    log.add(AnswerLog.key(a=2), "two", "sécond\nline")
    text = log.path.read_bytes()
    log.path.write_bytes(text[:-7])
    again = AnswerLog(log.path)
    assert again.answers == {AnswerLog.key(a=1): "first"}
    again.add(AnswerLog.key(a=2), "two", "again")
    assert AnswerLog(log.path).answers == {AnswerLog.key(a=1): "first", AnswerLog.key(a=2): "again"}


def test_answers_are_found_in_fences_and_after_thoughts():
    assert parse_answer('<think>{"a": 1}</think>```json\n{"request": "x"}\n``` {') == {"request": "x"}
    assert parse_answer("[1]") is None and parse_answer("{") is None


def test_the_blind_pass_is_told_nothing_of_the_task():
    call = weather(city="Lima", days=3)
    written, _ = write_messages(task(call), TOOLS, [])
    read, schema = read_messages("how will it be there", TOOLS, [])
    assert "Lima" in written[-1]["content"] and "Lima" not in json.dumps(read)
    names = [part["properties"]["name"]["enum"] for part in schema["properties"]["calls"]["items"]["anyOf"]]
    assert names == [[tool["name"]] for tool in TOOLS]


def test_shown_examples_have_the_same_arguments_and_style_where_there_are_any():
    shots = [{"request": f"{city} please", "calls": (weather(city=city),)} for city in ("Lima", "Oslo", "Nuuk")]
    shots.append({"request": "3 days of Rome?", "calls": (weather(city="Rome", days=3),)})
    random.Random(3).shuffle(shots)
    chosen = writing_shots(task(weather(city="Pune", days=9), style="question"), shots)
    assert len(chosen) == 3 and chosen[-1]["request"] == "3 days of Rome?"
    assert all(not shot["calls"] for shot in writing_shots(task(), [*shots, {"request": "hi", "calls": ()}]))
    assert [style_of(text) for text in ("Rain?", "Rain please", "Rain in Lima")] == ["question", "polite", "terse"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x/v1", "http://[1", "http://x:y/v1"])
def test_an_address_that_is_none_is_one_line(tmp_path, url):
    with pytest.raises(TeacherError, match=r"must look like http://127\.0\.0\.1:8080/v1"):
        Teacher(url, "", tmp_path / "log.jsonl")


def test_a_missing_package_says_what_to_install(tmp_path):
    code = (
        "import sys, pathlib; sys.modules['openai'] = None\nfrom fgtune.data.teacher import Teacher, TeacherError\n"
        "try: Teacher('http://127.0.0.1:9/v1', '', pathlib.Path('x'))\nexcept TeacherError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "the package openai is not installed: pip install -e '.[generate]'", done.stderr


def test_importing_the_teacher_imports_no_client():
    code = "import sys\nfrom fgtune.data.teacher import Teacher, generate\nprint('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


# What follows asks a real server.

needs_openai = pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="pip install -e '.[generate]'")
needs_server = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="pip install -e '.[teacher-test]'"
)
SECRET = "sk-test-0123456789abcdef"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """llama.cpp's server in a process of its own, which refuses whoever has not the key; its address."""
    folder = tmp_path_factory.mktemp("gguf")
    join_gguf(folder)
    command = [sys.executable, str(ROOT / "tests" / "teacher_server.py"), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--folder", str(folder), "--api-key", SECRET], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    yield process.stdout.readline().split()[0]
    process.kill()
    process.wait()


@needs_openai
def test_no_server_is_one_line(tmp_path):
    with pytest.raises(TeacherError, match=r"no server answers at http://127\.0\.0\.1:9/v1: start it, or correct"):
        Teacher("http://127.0.0.1:9/v1", "", tmp_path / "log.jsonl")


@needs_openai
@needs_server
def test_a_missing_key_a_wrong_key_and_a_wrong_model_are_one_line_each(server, tmp_path, monkeypatch):
    for key, model, message in (
        ("", "", "wants a key: put it into OPENAI_API_KEY"),
        ("sk-wrong-0123456789", "", "refuses the key in OPENAI_API_KEY"),
        ("two words", "", "holds characters that no key has"),
        (SECRET, "gemma3-270n", "has no model 'gemma3-270n'; did you mean 'gemma3-270m'?"),
    ):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(TeacherError, match=re.escape(message)) as error:
            Teacher(server, model, tmp_path / "log.jsonl").ask([], {}, temperature=0, seed=0, about="")
        assert "\n" not in str(error.value) and (not key or key not in str(error.value))


@needs_openai
@needs_server
def test_real_examples_are_written_verified_and_never_asked_for_twice(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    rows, _ = load_examples(ROOT / "examples" / "requests" / "everyday.json", TOOLS)
    teacher = Teacher(server, "", tmp_path / "log.jsonl")
    first = generate(ExamplePlan.make(TOOLS, rows, teacher, 3, 7), 85)
    assert len(first.taken) + len(first.refused) == 3 and teacher.asked >= 3
    resumed = Teacher(server, "", tmp_path / "log.jsonl")
    told = []
    made = generate(ExamplePlan.make(TOOLS, rows, resumed, 8, 7), 85, lambda *step: told.append(step))
    assert made.taken[: len(first.taken)] == first.taken and told[0] == ("written", 1, 8)
    assert resumed.asked == len(resumed.log.answers) - teacher.asked and resumed.asked >= 5
    again = Teacher(server, "", tmp_path / "log.jsonl")
    same = generate(ExamplePlan.make(TOOLS, rows, again, 8, 7), 85)
    assert (same.taken, same.refused, again.asked) == (made.taken, made.refused, 0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(parse_answer(line["answer"]) for line in lines if line["about"].endswith("read blind"))
    assert SECRET not in (tmp_path / "log.jsonl").read_text() + repr(made) + repr(teacher)
    assert sum(made.reasons.values()) == len(made.refused) == len(made.table)
    made.save_refused(tmp_path / "refused.jsonl")
    assert len((tmp_path / "refused.jsonl").read_text().splitlines()) == len(made.refused)
    examples = tmp_path / "examples.json"
    examples.write_text(json.dumps(made.examples))
    if made.examples:
        read, findings = load_examples(examples, TOOLS)
        assert len(read) == len(made.examples) and not [f for f in findings if f.level == "error"]


@needs_openai
@needs_server
def test_a_teacher_invents_values_where_there_are_no_examples(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    teacher = Teacher(server, "", tmp_path / "log.jsonl")
    values = collect_values(TWO[:1], [], teacher, 7)
    assert values[UNIT] == Values(["celsius", "fahrenheit"], "schema") and values[CITY].source == "teacher"
    assert values[CITY].values and all(isinstance(value, str) and value for value in values[CITY].values)
    assert all(isinstance(value, int) for value in values.get(DAYS, Values([], "")).values)
