"""The developer turn that was trained: found in the rows, filled in by Python and by JavaScript alike."""

import json
import subprocess
from datetime import UTC, datetime, timedelta, timezone

import pytest

from fgtune.core.project import project_root
from fgtune.data.developer_turn import DeveloperTurn, format_time, lint_developer_turn, trained_turn
from fgtune.data.readers.examples import load_examples
from fgtune.data.readers.tools import load_tools
from fgtune.data.split_audit import audit_split
from fgtune.format.template import TRIGGER
from fgtune.runtimes.node import find_node

NOON = datetime(2025, 5, 7, 12, 4, 9, 1500)
DAYS = [datetime(2024, 1, 28, 9, 5, 7) + timedelta(days=17 * i, hours=5 * i, minutes=7 * i) for i in range(40)]


def rows(texts):
    return [{"id": f"r{i}", "messages": [{"role": "developer", "content": text}]} for i, text in enumerate(texts)]


@pytest.mark.parametrize("form", [
    "Current date and time: %Y-%m-%dT%H:%M:%S\nDay of week is %A\n" + TRIGGER, "It is %A, %-d %B %Y, %-I:%M %p. Help.",
    "Now: %Y-%m-%d %H:%M:%S.%f", "Now: %Y-%m-%dT%H:%M:%SZ", "Now: %Y-%m-%dT%H:%M:%S.%3fZ", "%Y-%m-%d %H:%M:%S.%3f",
    "%Y-%m-%dT%H:%M:%S+00:00", "Now: %Y-%m-%dT%H:%M:%S.%f+00:00.", "%Y-%m-%dT%H:%M:%S, open 09:00-17:30, 1:15:00.25",
    "Today is %B %d, %Y.", "%d %b %Y", "%d.%m.%Y %H:%M",
    "%m/%d/%Y", "%-d/%-m/%Y at %-H:%M", "%Y/%m/%d",
    "Use {date_1}. Today: %Y-%m-%d. Since 2020-01-01, v1.2.3, 99:99, 2020-13-40.",
])  # fmt: skip
def test_dates_are_found_and_filled_in_as_they_were_trained(form):
    texts = [format_time(day, form) for day in DAYS]
    turn, others = trained_turn(rows(texts))
    assert others == [] and turn.fields and "2024" not in turn.template
    assert [turn.fill(day) for day in DAYS] == texts
    assert turn.fill(NOON) == format_time(NOON, form)
    assert DeveloperTurn.from_json(json.loads(json.dumps(turn.to_json()))) == turn
    assert filled_by_javascript(turn, [NOON, *DAYS[:12]]) == [turn.fill(now) for now in [NOON, *DAYS[:12]]]


@pytest.mark.parametrize("zone, offset", [("Asia/Kolkata", "+05:30"), ("America/Phoenix", "-07:00"), ("UTC", "+00:00")])
@pytest.mark.parametrize("rest", ["", ".%3f", ".%f"])
def test_a_trained_offset_is_filled_in_as_that_of_the_place(zone, offset, rest):
    """Rows of one zone or of several: the page writes its own. Rows in UTC alone: it writes UTC."""
    form = f"Now: %Y-%m-%dT%H:%M:%S{rest}%:z"
    there = datetime.strptime(offset, "%z").tzinfo
    times = [day.replace(tzinfo=there) for day in DAYS[:9]]
    texts = [format_time(time, form) for time in times]
    if not rest:
        assert texts == [f"Now: {time.isoformat()}" for time in times]
    turn, others = trained_turn(rows(texts))
    end = "+00:00" if zone == "UTC" else "%:z"
    assert others == [] and turn.fields[1] == ("time_1", f"%H:%M:%S{rest}{end}")
    assert [turn.fill(time) for time in times] == filled_by_javascript(turn, times, zone) == texts
    elsewhere = [text for time in times for text in (format_time(time, form), format_time(time.astimezone(UTC), form))]
    turn, others = trained_turn(rows(elsewhere))
    assert others == [] and turn.fields[1] == ("time_1", f"%H:%M:%S{rest}{end}")
    east = DAYS[0].replace(tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert turn.fill(east) == format_time(east.astimezone(UTC) if zone == "UTC" else east, form)
    assert filled_by_javascript(turn, [east], "Asia/Kolkata") == [turn.fill(east)]


def filled_by_javascript(turn, times, zone="UTC"):
    code = """
        const { fillTurn, atTwoTimes } = await import('./web/turn.js');
        const { turn, times } = JSON.parse(process.argv[1]);
        console.log(JSON.stringify([...times.map((parts) => fillTurn(turn, new Date(...parts))), ...atTwoTimes(turn)]));
    """
    parts = [[t.year, t.month - 1, t.day, t.hour, t.minute, t.second, t.microsecond // 1000] for t in times]
    answer = subprocess.run(
        [find_node(), "--input-type=module", "-e", code, json.dumps({"turn": turn.to_json(), "times": parts})],
        cwd=project_root(), capture_output=True, text=True, env={"TZ": zone},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    *found, first, second = json.loads(answer.stdout)
    assert (first, second) == turn.at_two_times() or zone != "UTC"
    return [text.replace("001000", "001500") for text in found]  # JavaScript's clock counts milliseconds


def test_what_never_changes_stays():
    texts = [f"Data up to 2023-12-31. Today is {day:%Y-%m-%d}T00:00:00. Day of week is Tuesday." for day in DAYS]
    turn, others = trained_turn(rows(texts))
    assert turn.template == "Data up to 2023-12-31. Today is {date_1}T00:00:00. Day of week is Tuesday."
    assert turn.fields == (("date_1", "%Y-%m-%d"),) and others == []
    mondays = [datetime(2024, 1, 1) + timedelta(days=7 * i) for i in range(9)]
    turn, _ = trained_turn(rows(format_time(day, "%A %Y-%m-%d") for day in mondays))
    assert turn.fields == (("weekday_1", "%A"), ("date_1", "%Y-%m-%d")), "the weekday is the date's"
    assert trained_turn(rows([TRIGGER] * 3)) == (DeveloperTurn(TRIGGER), [])
    assert trained_turn(rows(["Today is 2024-05-01."] * 3))[0] == DeveloperTurn("Today is 2024-05-01.")
    assert trained_turn([{"id": "a", "messages": [{"role": "user", "content": "b"}]}])[0] == DeveloperTurn(TRIGGER)
    assert trained_turn([]) == (DeveloperTurn(TRIGGER), [])


def test_other_turns_are_reported_with_their_rows():
    dated = [f"Today is {day.day:02}/{day.month:02}/{day.year}." for day in DAYS]
    examples = rows([*dated, "Be brief.", "Today is 28/1/2024."])
    turn, others = trained_turn(examples)
    assert turn.fields == (("date_1", "%d/%m/%Y"),) and others == ["r40", "r41"]
    info, warning = lint_developer_turn(examples, "e.jsonl")
    assert (info.level, info.code) == ("info", "dated-turn") and "%d/%m/%Y" in info.message
    assert (warning.level, warning.code) == ("warning", "other-turn") and "2 of 42 rows" in warning.message
    assert "r40, r41." in warning.message
    assert lint_developer_turn(rows([TRIGGER] * 3)) == []


def test_utc_is_filled_in_where_it_was_trained():
    turn = DeveloperTurn("{date_1}T{time_1}", (("date_1", "%Y-%m-%d"), ("time_1", "%H:%M:%SZ")))
    east = datetime.fromisoformat("2025-01-01T01:30:00+05:00")
    assert turn.fill(east) == "2024-12-31T20:30:00Z"
    assert turn.fill(datetime(2025, 1, 1, tzinfo=UTC)) == turn.fill(datetime(2025, 1, 1)) == "2025-01-01T00:00:00Z"
    for directive in ("%j", "%3d", "%:H", "%z"):
        with pytest.raises(ValueError, match=f"{directive} is not supported"):
            format_time(NOON, directive)


def test_the_shipped_examples_have_the_standard_turn():
    examples = project_root() / "examples"
    for name in ("everyday.json", "office.json"):
        tools, _ = load_tools(examples / "tools" / name)
        shipped, findings = load_examples(examples / "requests" / name, tools)
        assert trained_turn(shipped) == (DeveloperTurn(TRIGGER), [])
        assert not {"dated-turn", "other-turn"} & {finding.code for finding in findings}
        dated = [{**row, "messages": [{"role": "system", "content": f"{day:%Y-%m-%d}"}, *row["messages"][1:]]}
                 for row, day in zip(shipped, DAYS, strict=False)]  # fmt: skip
        audit = audit_split(
            {"train": dated[8:], "valid": [], "test": dated[:8]}, dated, tools, similarity=80, valid=0, test=8
        )
        assert audit.developer_turn == {"template": "{date_1}", "fields": [{"name": "date_1", "format": "%Y-%m-%d"}]}
