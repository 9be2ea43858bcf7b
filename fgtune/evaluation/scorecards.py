"""Scorecards of one runtime, and several side by side."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ..data.novelty import NEW, SEEN
from ..data.rows import Case
from ..runtimes.constrained import Grammar
from ..runtimes.protocols import Generator
from .judging import CALL, MALFORMED, TEXT, Result, judge
from .needs import Needs, needs_of
from .shares import percent, share, wilson
from .tables import html_table, text_table


@dataclass(repr=False)
class Scorecard:
    """Results of one runtime on a list of cases; saves as JSON and shows itself as a table."""

    name: str
    results: list[Result] = field(default_factory=list)
    seconds: float | None = None

    @property
    def n(self) -> int:
        """The number of cases."""
        return len(self.results)

    @property
    def hits(self) -> int:
        """How many cases have exactly the expected calls, in order."""
        return sum(r.exact for r in self.results)

    @property
    def exact(self) -> float | None:
        """`hits` of all cases, 0 to 1; None without a case."""
        return share([r.exact for r in self.results])

    def states(self) -> dict[str, Counter]:
        """For cases that expect calls and for those that expect none: how many answered text, call, malformed."""
        table = {"call expected": Counter(), "text expected": Counter()}
        for r in self.results:
            table["call expected" if r.expected else "text expected"][r.state] += 1
        return table

    def summary(self) -> dict[str, Any]:
        """The figures that a report shows. A share lies between 0 and 1, and is None where it is of nothing.

        Of all `cases`: `exact` (the expected calls, in order) with Wilson's 95 % interval `exact_low` to `exact_high`,
        and `exact_any_order` (the expected calls, in whatever order). Of the cases that expect calls: `right_tools`
        (the expected names, in order). Of the arguments that those cases expect or get: `arguments` (the expected
        value). Of the cases that expect no call: `abstained` (a text answer). `malformed` is a number of cases: no
        well-formed answer, or one truncated at max_tokens. `seen_exact` of the `seen_cases` whose calls are trained on
        in other words, and `new_exact` of the `new_cases` whose calls are not.
        """
        seen, new = ([r.exact for r in self.results if r.novelty == kind] for kind in (SEEN, NEW))
        calls = [r for r in self.results if r.expected]
        none = [r for r in self.results if not r.expected]
        arguments = sum(r.arguments for r in self.results)
        low, high = wilson(self.hits, self.n)
        return {
            "cases": self.n,
            "exact": self.exact,
            "exact_low": low,
            "exact_high": high,
            "exact_any_order": share([r.exact_any_order for r in self.results]),
            "right_tools": share([[c["name"] for c in r.got] == [c["name"] for c in r.expected] for r in calls]),
            "arguments": sum(r.arguments_right for r in self.results) / arguments if arguments else None,
            "abstained": share([r.state == TEXT for r in none]),
            "malformed": sum(r.state == MALFORMED for r in self.results),
            "seen_cases": len(seen),
            "seen_exact": share(seen),
            "new_cases": len(new),
            "new_exact": share(new),
        }

    def by_novelty(self) -> dict[str, str]:
        """Exact match of seen calls in new words and of new values, as text; empty where no case is labelled."""
        if not any(r.novelty for r in self.results):
            return {}
        parts = {kind: [r.exact for r in self.results if r.novelty == kind] for kind in (SEEN, NEW)}
        return {
            kind: f"{sum(flags)} of {len(flags)} ({percent(share(flags))})" if flags else "–"
            for kind, flags in parts.items()
        }

    def confusion(self) -> dict[tuple[str, str], int]:
        """How often the first tool expected was answered by which; `no call` and `malformed` count as tools."""
        pairs: Counter = Counter()
        for r in self.results:
            want = r.expected[0]["name"] if r.expected else "no call"
            have = MALFORMED if r.state == MALFORMED else r.got[0]["name"] if r.got else "no call"
            pairs[want, have] += 1
        return dict(pairs)

    def needs(self, examples: list[dict]) -> Needs:
        """What to add to the training `examples` (chat rows): right calls per tool, and one sentence."""
        return needs_of(self.results, examples)

    def lost_against(self, other: Scorecard) -> list[Result]:
        """Cases that `other` gets right and this one does not."""
        right = {r.id for r in other.results if r.exact}
        return [r for r in self.results if r.id in right and not r.exact]

    def same_outputs(self, other: Scorecard) -> int:
        """In how many cases the two gave the same text, to the letter."""
        theirs = {r.id: r.output for r in other.results}
        return sum(theirs.get(r.id) == r.output for r in self.results)

    def different_from(self, other: Scorecard) -> list[tuple[str, str, str]]:
        """(query, their answer, this answer) where neither the text nor the calls are the same."""
        theirs = {r.id: r for r in other.results}
        pairs = [(theirs[r.id], r) for r in self.results]
        return [
            (b.query, a.output, b.output) for a, b in pairs if a.output != b.output and (not b.got or a.got != b.got)
        ]

    def save(self, path: Path) -> None:
        """Write the scorecard as JSON."""
        value = {"name": self.name, "seconds": self.seconds, "summary": self.summary()}
        value["results"] = [asdict(r) for r in self.results]
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Scorecard:
        """Read what `save` wrote."""
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(value["name"], [Result(**r) for r in value["results"]], value["seconds"])

    def __str__(self) -> str:
        lines = [f"{self.name}: {self._headline()}"]
        lines += [f"  {kind}: {text}" for kind, text in self.by_novelty().items()]
        lines += [f"  {r.query[:60]} → {'; '.join(r.differs)}" for r in self.results if not r.exact]
        return "\n".join(lines)

    __repr__ = __str__

    def _headline(self) -> str:
        s = self.summary()
        interval = f"95 % interval {percent(s['exact_low'], 0)} to {percent(s['exact_high'], 0)}"
        return f"{self.hits} of {self.n} exact ({percent(s['exact'])}, {interval})"

    def _repr_html_(self) -> str:
        s = self.summary()
        rows = [
            ("exact match", self._headline()),
            *self.by_novelty().items(),
            ("exact match, any order of parallel calls", percent(s["exact_any_order"])),
            ("right tools", percent(s["right_tools"])),
            ("right arguments", percent(s["arguments"])),
        ]
        for kind, counts in self.states().items():
            numbers = " / ".join(str(counts[state]) for state in (TEXT, CALL, MALFORMED))
            rows.append((f"{kind}: text / call / malformed", numbers))
        wrong = [(r.query, "; ".join(r.differs) or f"{r.state} instead of a call") for r in self.results if not r.exact]
        lost = html_table(("not exact", "what differs"), wrong[:12]) if wrong else ""
        more = f"<p>… and {len(wrong) - 12} more</p>" if len(wrong) > 12 else ""
        return f"<b>{escape(self.name)}</b>{html_table((), rows)}{lost}{more}"


def score(
    generator: Generator | Callable[[list[str]], list[str]],
    cases: Sequence[Case],
    name: str = "model",
    grammar: Grammar | None = None,
) -> Scorecard:
    """Run a generator on all cases and judge each. Raises ValueError when answers are missing.

    A bare function of prompts will do; its answers count as finished. With a `grammar` decoding is constrained to the
    tools of each case.
    """
    begin = time.perf_counter()
    constraints = [[grammar.constraint(case.tools, case.prompt) for case in cases]] if grammar else []
    outputs = getattr(generator, "generate", generator)([case.prompt for case in cases], *constraints)
    if len(outputs) != len(cases):
        raise ValueError(f"{name} gave {len(outputs)} answers to {len(cases)} prompts")
    finished = getattr(generator, "finished", [True] * len(cases))
    results = [judge(*each) for each in zip(cases, outputs, finished, strict=True)]
    return Scorecard(name, results, time.perf_counter() - begin)


class Comparison:
    """Scorecards side by side, one line each, as text and as a table in a notebook.

    The two kinds of held-out calls (see `Scorecard.by_novelty`) have a column each where cases are labelled.
    """

    def __init__(self, cards: Sequence[Scorecard]):
        self.cards = list(cards)

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the columns."""
        kinds = (SEEN, NEW) if any(card.by_novelty() for card in self.cards) else ()
        shares = ("right tools", "right arguments", "abstained")
        return ("", "exact", "share", "95 %", *shares, *kinds, "malformed", "seconds")

    def rows(self) -> list[tuple[str, ...]]:
        """The columns of `head` as text; `–` for a share of nothing."""
        out = []
        for card in self.cards:
            s = card.summary()
            shares = [percent(s[key]) for key in ("right_tools", "arguments", "abstained")]
            interval = f"{percent(s['exact_low'], 0)}–{percent(s['exact_high'], 0)}"
            seconds = "" if card.seconds is None else f"{card.seconds:.0f}"
            exact = (f"{card.hits}/{card.n}", percent(s["exact"]), interval)
            labels = card.by_novelty()
            kinds = [labels.get(kind, "–") for kind in (SEEN, NEW) if kind in self.head]
            out.append((card.name, *exact, *shares, *kinds, str(s["malformed"]), seconds))
        return out

    def __str__(self) -> str:
        return text_table(self.head, self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self.head, self.rows())
