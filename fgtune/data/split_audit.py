"""What a split lets through: leaks, what copying would score, tools that are never asked for or never trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..format.findings import FindingsTable
from .developer_turn import trained_turn
from .examples import calls_per_tool
from .splits import held_out_per_tool, leaks, lint_splits, nearest_neighbour_score


@dataclass(frozen=True)
class SplitAudit:
    """`leaks`: (held-out id, training id, likeness) of held-out examples whose calls, or nearly whose words, are
    trained on. `copying`: share of test examples that copying the most alike training example's answer gets right.
    `held_out`: by tool, the cases whose first answer calls it. `untrained`: tools that some example calls, but no
    training example. `developer_turn`: that of most training examples, as JSON (`DeveloperTurn.to_json`). `findings`:
    what there is to say where fewer cases are held out than asked for."""

    leaks: list[tuple[str, str, float]]
    copying: float
    held_out: dict[str, int]
    untrained: list[str]
    developer_turn: dict
    findings: FindingsTable


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
    called, trained = (calls_per_tool(rows, tools) for rows in (examples, splits["train"]))
    return SplitAudit(
        leaks=leaks(splits, similarity),
        copying=nearest_neighbour_score(splits),
        held_out=held_out_per_tool(splits, tools),
        untrained=[name for name, count in called.items() if count and not trained.get(name)],
        developer_turn=trained_turn(splits["train"])[0].to_json(),
        findings=FindingsTable(lint_splits(splits, tools, valid=valid, test=test)),
    )
