"""What a split lets through: leaks, what copying would score, tools that are never asked for or never trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..format.findings import Finding, FindingsTable
from .developer_turn import trained_turn
from .examples import calls_per_tool
from .given import is_given, left_out, lint_given
from .novelty import NEW, SEEN, with_novelty
from .splits import held_out_per_tool, leaks, lint_splits, nearest_neighbour_score


@dataclass(frozen=True)
class SplitAudit:
    """`leaks`: (held-out id, training id, likeness) of held-out examples whose calls, or nearly whose words, are
    trained on. `copying`: share of test examples that copying the most alike training example's answer gets right.
    `held_out`: by tool, the cases whose first answer calls it. `untrained`: tools that some example calls, but no
    training example. `findings`: what there is to say where fewer cases are held out than asked for, and about splits
    that the files give. `reported`: those of `leaks` that a given split came with. `left_out`: given held-out examples
    that are not used. `splits`: as they were, with the `novelty` of each held-out call; `novelty`: how many of each.
    `developer_turn`: that of most training examples, as JSON (`DeveloperTurn.to_json`)."""

    leaks: list[tuple[str, str, float]]
    copying: float
    held_out: dict[str, int]
    untrained: list[str]
    developer_turn: dict
    findings: FindingsTable
    reported: list[tuple[str, str, float]]
    left_out: int
    splits: dict[str, list[dict]]
    novelty: dict[str, int]

    @property
    def unreported(self) -> list[tuple[str, str, float]]:
        """The leaks that are nobody's but ours."""
        known = set(self.reported)
        return [leak for leak in self.leaks if leak not in known]

    @property
    def claim(self) -> str:
        """The sentence that holds where no leak is `unreported`."""
        text = "no test or validation case is trained on"
        return f"{text}, but {self.leak_note}, which the findings report" if self.reported else text

    @property
    def leak_note(self) -> str:
        """`no leak`, or how many cases leak."""
        cases = len({held for held, _, _ in self.leaks})
        return f"{cases} cases of the given splits" if self.reported else f"{cases or 'no'} leak{'s' * (cases > 1)}"


def audit_split(
    splits: dict[str, list[dict]],
    examples: list[dict],
    tools: list[dict],
    *,
    similarity: float,
    valid: int,
    test: int,
    seed: int | None = None,
) -> SplitAudit:
    """Look at the `splits` of `examples`; the keywords are those of `split_examples` (`seed` is not used)."""
    found = leaks(splits, similarity)
    given = {e["id"] for name, rows in splits.items() for e in rows if is_given(e, name)}
    reported = [leak for leak in found if leak[0] in given]
    labelled = with_novelty(splits)
    kinds = Counter(e.get("novelty") for name in ("valid", "test") for e in labelled[name])
    findings = lint_splits(splits, tools, valid=valid, test=test) + lint_given(splits, examples, reported, similarity)
    ours = [e for e in examples if not is_given(e, e.get("split", ""))]
    called, trained, everywhere = (calls_per_tool(rows, tools) for rows in (ours, splits["train"], examples))
    for name, count in everywhere.items():
        if count and not called.get(name):
            text = "Only given validation or test examples call this tool: it is not trained."
            findings.append(Finding("warning", "split-untrained", text, tool=name))
    return SplitAudit(
        leaks=found,
        copying=nearest_neighbour_score(splits),
        held_out=held_out_per_tool(splits, tools),
        untrained=[name for name, count in called.items() if count and not trained.get(name)],
        developer_turn=trained_turn(splits["train"])[0].to_json(),
        findings=FindingsTable(findings),
        reported=reported,
        left_out=left_out(splits, examples),
        splits=labelled,
        novelty={kind: kinds[kind] for kind in (SEEN, NEW)},
    )
