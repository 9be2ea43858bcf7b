"""What to add to the training examples, by what the held-out cases lose: which tool, argument, kind of request.

The cases fall into parts that have none in common: those that need no call, those that need one call of a tool, and
those that need several. The part that loses most of them is where examples are added, if it can be told from the rest.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.examples import NO_CALL, first_calls, written
from ..format.calls import Call, same_call
from .judging import MALFORMED, Result
from .shares import percent, wilson
from .tables import html_table, text_table

ONE_CALL, SEVERAL = "one call", "several calls"  # kinds of requests, beside NO_CALL
MISSING, UNASKED, CUT, OTHER = "missing", "not asked for", "cut or grown", "other value"
FEWEST = 3  # lost cases of a part that can be told from the rest: one or two may be chance
MANY = 10  # lost cases that ask for more examples, even where no part stands out
SHOWN = 40  # rows of a table


@dataclass(frozen=True)
class Tally:
    """`trained` training examples that somebody wrote, `cases` held-out cases, and `right` of `asked` (calls of a tool,
    or the cases themselves)."""

    trained: int
    cases: int
    right: int
    asked: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share that is right."""
        return wilson(self.right, self.asked)

    @property
    def lost(self) -> int:
        """How many are not right."""
        return self.asked - self.right


@dataclass(frozen=True, repr=False)
class Needs:
    """What a scorecard's cases lose; shows itself as a sentence and tables.

    `tools`: calls of each tool; an expected call is right where the answer holds its equal, in whatever order. `kinds`:
    cases that need no call, one, several. `parts`: the same, those of one call by tool; keys are (kind, tool).
    `arguments`: by `tool.argument`, how often it is expected or given in calls of the right tool (`calls`), and how
    often it is missing, not asked for, cut or grown, or has another value. `faults`: by part, in how many lost cases
    each thing is wrong.
    """

    examples: int
    tools: dict[str, Tally]
    kinds: dict[str, Tally]
    parts: dict[tuple[str, str], Tally]
    arguments: dict[str, Counter]
    faults: dict[tuple[str, str], Counter]

    @property
    def sentence(self) -> str:
        """What to add, in one sentence with its counts; or that nothing is lost, or too little to say."""
        every = _sum(self.kinds.values())
        if not every.cases:
            return "No case is held out, so nothing can be said of what to add."
        if not every.lost:
            low, high = (percent(bound, 0) for bound in every.interval)
            unseen = [name for name, tally in self.tools.items() if not tally.cases]
            but = f", though none of them calls {_list(unseen)}" if unseen else ""
            return (
                f"Nothing is lost that more examples could win: all {every.cases} held-out cases are right, so between "
                f"{low} and {high} of such requests are{but}."
            )
        malformed = sum(counts["malformed",] for counts in self.faults.values())
        if 2 * malformed > every.lost:
            return (
                f"{malformed} of the {every.lost} lost cases have no well-formed answer, which more examples do not "
                "cure: train for more steps, or raise max_tokens."
            )
        worst = sorted((key for key in self.parts if self.parts[key].lost), key=self._badness)
        clear = next((key for key in worst if self._stands_out(key, every)), None)
        return self._advice(clear) if clear else self._doubt(worst[0], every)

    def _badness(self, key: tuple[str, str]) -> tuple:
        return -self.parts[key].lost, self.parts[key].right / self.parts[key].asked, key

    def _stands_out(self, key: tuple[str, str], every: Tally) -> bool:
        """Whether more is lost here than elsewhere: the intervals of the shares right do not overlap, or most of all
        lost cases are here, beyond chance."""
        part = self.parts[key]
        elsewhere = wilson(every.right - part.right, every.asked - part.asked)
        most = wilson(part.lost, every.lost)[0] > 0.5
        return part.lost >= FEWEST and (part.interval[1] < elsewhere[0] or most)

    def _advice(self, key: tuple[str, str]) -> str:
        part, (cause, count) = self.parts[key], self._cause(key)
        what, why = _request(key), ""
        if count:
            of = f"all {count} others" if count == part.lost else f"{count} of the {part.lost} others"
            why = f", {_fault(cause)} in {of}"
        if cause[0] == "argument":
            tool, argument, how = cause[1:]
            inside = f" of {tool}" if key[0] == SEVERAL else ""
            way = {MISSING: f"that say {argument}", UNASKED: f"that leave {argument} out"}
            what += f" {way.get(how, f'with other values of {argument}')}{inside}"
        return (
            f"Add requests {what}: {part.right} of {part.asked} such cases {_are(part.right)} right{why}, and "
            f"{part.trained} of {self.examples} training examples {_are(part.trained)} such."
        )

    def _doubt(self, key: tuple[str, str], every: Tally) -> str:
        part = self.parts[key]
        low, high = (percent(bound, 0) for bound in part.interval)
        text = "no kind of request stands out, so add some of every kind"
        if every.lost < MANY:
            text = "that is too little to say what to add"
        return (
            f"{every.lost} of {every.cases} held-out cases {_are(every.lost)} lost, and {text}; requests "
            f"{_request(key)} lose the most ({part.right} of {part.asked} {_are(part.right)} right, between {low} and "
            f"{high}; {part.trained} of {self.examples} training examples {_are(part.trained)} such)."
        )

    def _cause(self, key: tuple[str, str]) -> tuple[tuple, int]:
        """The fault of more than half of a part's lost cases, and of how many; an empty one and 0 where none is.

        An argument counts however it is wrong; it comes with the way that is the most frequent.
        """
        counts: Counter = Counter()
        for fault, count in self.faults[key].items():
            counts[fault[:3]] += count
        for fault, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if 2 * count > self.parts[key].lost:
                ways = [(-n, way) for way, n in self.faults[key].items() if way[:3] == fault]
                return min(ways)[1], count
        return ("",), 0

    def tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """(names of columns, rows) of the tools, the kinds of requests, and the arguments that are ever wrong."""
        columns = ("training examples", "held-out cases")
        tools = sorted(self.tools.items(), key=lambda item: -item[1].lost)
        wrong = {name: counts for name, counts in self.arguments.items() if counts.total() > counts["calls"]}
        most = sorted(wrong.items(), key=lambda item: (item[1]["calls"] - item[1].total(), item[0]))
        ways = (MISSING, UNASKED, CUT, OTHER)
        arguments = [(name, str(n["calls"]), *(str(n[way]) for way in ways)) for name, n in most]
        return [
            (("tool", *columns, "right calls", "share", "95 %"), [_row(*item) for item in tools]),
            (("kind of request", *columns, "right cases", "share", "95 %"), [_row(*i) for i in self.kinds.items()]),
            *([(("wrong argument", "in calls", *ways), arguments)] if arguments else []),
        ]

    def __str__(self) -> str:
        tables = [text_table(head, rows[:SHOWN]) + _more(rows) for head, rows in self.tables() if rows]
        return "\n\n".join([self.sentence, *tables])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = [html_table(head, rows[:SHOWN]) + _more(rows) for head, rows in self.tables() if rows]
        return "".join([html_table((), [(self.sentence,)]), *tables])


def needs_of(results: Sequence[Result], examples: list[dict]) -> Needs:
    """Count what `results` lose, beside the training `examples` (chat rows) that somebody wrote."""
    examples = written(examples)
    called = [[call.name for call in first_calls(example)] for example in examples]
    trained = Counter(name for names in called for name in set(names))
    parts = Counter(map(_part, called))
    names = dict.fromkeys(tool["name"] for example in examples for tool in example["tools"])
    names |= dict.fromkeys([*trained, *(call["name"] for result in results for call in result.expected)])
    wanted = [[call["name"] for call in result.expected] for result in results]
    cases = Counter(name for each in wanted for name in set(each))
    asked = Counter(name for each in wanted for name in each)
    right: Counter = Counter()
    arguments: dict[str, Counter] = defaultdict(Counter)
    faults: dict[tuple[str, str], Counter] = defaultdict(Counter)
    split: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for result, each in zip(results, wanted):
        pairs = _pairs(result)
        right.update(want.name for want, have in pairs if want and have and same_call(want, have))
        for want, have in pairs:
            for name, way in _arguments(want, have):
                arguments[name].update(["calls", *([way] if way else [])])
        split[_part(each)].append(result.exact)
        if not result.exact:
            faults[_part(each)].update(set(_faults(result, pairs)))
    tallies = {key: Tally(parts[key], len(flags), sum(flags), len(flags)) for key, flags in sorted(split.items())}
    kinds = {
        kind: _sum(tally for key, tally in tallies.items() if key[0] == kind) for kind in (NO_CALL, ONE_CALL, SEVERAL)
    }
    for kind, tally in kinds.items():
        count = sum(n for key, n in parts.items() if key[0] == kind)
        kinds[kind] = Tally(count, tally.cases, tally.right, tally.asked)
    tools = {name: Tally(trained[name], cases[name], right[name], asked[name]) for name in names}
    return Needs(len(examples), tools, kinds, tallies, dict(arguments), faults)


def _part(names: Sequence[str]) -> tuple[str, str]:
    """The part of an example or a case whose first answer calls these tools."""
    return (SEVERAL, "") if len(names) > 1 else (ONE_CALL, names[0]) if names else (NO_CALL, "")


def _pairs(result: Result) -> list[tuple[Call | None, Call | None]]:
    """(expected, given) calls: equal ones first, then those of the same tool, in order; None beside what is alone."""
    wanted, given = ([Call(**call) for call in calls] for calls in (result.expected, result.got))
    pairs: list[tuple[Call | None, Call | None]] = []
    for alike in (same_call, lambda want, have: want.name == have.name):
        alone = []
        for want in wanted:
            spot = next((i for i, have in enumerate(given) if alike(want, have)), None)
            if spot is None:
                alone.append(want)
            else:
                pairs.append((want, given.pop(spot)))
        wanted = alone
    return pairs + [(want, None) for want in wanted] + [(None, have) for have in given]


def _arguments(want: Call | None, have: Call | None) -> list[tuple[str, str]]:
    """(`tool.argument`, how it is wrong) of each argument of two calls of one tool; right ones with an empty text."""
    if want is None or have is None:
        return []
    found = []
    for name in sorted({*want.arguments, *have.arguments}):
        way = MISSING if name not in have.arguments else UNASKED if name not in want.arguments else ""
        if not way:
            a, b = want.arguments[name], have.arguments[name]
            same = same_call(Call(want.name, {name: a}), Call(want.name, {name: b}))
            way = "" if same else CUT if _is_cut(a, b) or _is_cut(b, a) else OTHER
        found.append((f"{want.name}.{name}", way))
    return found


def _is_cut(part: Any, whole: Any) -> bool:
    """Whether `part` is a text inside the text `whole`, or a list of some items of the list `whole`."""
    if isinstance(part, str) and isinstance(whole, str):
        return 0 < len(part) < len(whole) and part.casefold() in whole.casefold()
    if isinstance(part, list) and isinstance(whole, list):
        items, of = (Counter(json.dumps(item, sort_keys=True) for item in value) for value in (part, whole))
        return items < of
    return False


def _faults(result: Result, pairs: Iterable[tuple[Call | None, Call | None]]) -> list[tuple]:
    """What is wrong with a lost case: (what, tool, argument, way), as far as there are such."""
    if result.state == MALFORMED:
        return [("malformed",)]
    found: list[tuple] = []
    for want, have in pairs:
        if have is None:
            found.append(("left out", want.name))
        elif want is None:
            found.append(("unasked", have.name))
        found += [
            ("argument", want.name, name.removeprefix(f"{want.name}."), way)
            for name, way in _arguments(want, have)
            if way
        ]
    return found or [("order",)]


def _fault(fault: tuple) -> str:
    texts = {
        "malformed": "the answer is not well-formed",
        "order": "the calls come in another order",
        "left out": "{} is not called",
        "unasked": "{} is called unasked",
        "argument": "{}.{} is wrong, mostly {},",
    }
    return texts[fault[0]].format(*fault[1:])


def _request(key: tuple[str, str]) -> str:
    return {NO_CALL: "that need no call", SEVERAL: "that need several calls"}.get(key[0], f"for {key[1]} alone")


def _sum(tallies: Iterable[Tally]) -> Tally:
    columns = zip(*((t.trained, t.cases, t.right, t.asked) for t in tallies))
    return Tally(*([sum(column) for column in columns] or [0] * 4))


def _row(name: str, tally: Tally) -> tuple[str, ...]:
    low, high = tally.interval
    interval = f"{percent(low, 0)}–{percent(high, 0)}"
    right = f"{tally.right} of {tally.asked}" if tally.asked else "–"
    part = percent(tally.right / tally.asked) if tally.asked else "–"
    return name, str(tally.trained), str(tally.cases), right, part, interval


def _more(rows: Sequence) -> str:
    return f"\n… and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _list(names: Sequence[str]) -> str:
    return (
        names[0] if len(names) == 1 else f"{', '.join(names[:-1][:5])}{', …' if len(names) > 6 else ''} or {names[-1]}"
    )
