"""Pictures: each function takes data and returns a matplotlib figure, titled, with units on its axes."""

from __future__ import annotations

import io
from collections.abc import Sequence

from fgtune.evaluation.learning_curve import LearningCurve
from fgtune.evaluation.scorecards import Scorecard
from fgtune.evaluation.shares import wilson

INK, MUTED, ACCENT, WARM = "#1f2937", "#9ca3af", "#2563eb", "#d97706"


def _axes(title: str, width: float = 7.0, height: float = 3.4):
    """A figure that shows itself in a notebook without pyplot and its global state, and its axes."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=96)
            return file.getvalue()

    fig = Picture(figsize=(width, height), layout="constrained")
    ax = fig.subplots()
    ax.set_title(title, color=INK, loc="left", fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK, labelsize=9)
    return fig, ax


def plot_lengths(lengths: Sequence[int], prefix: int):
    """Histogram of the tokens that each row has beyond the shared developer turn of `prefix` tokens."""
    fig, ax = _axes(f"Tokens per dialogue, beside the {prefix:,} that all of them share")
    ax.hist(lengths, bins=min(40, max(5, max(lengths) - min(lengths) + 1)), color=ACCENT)
    ax.set(xlabel="own tokens", ylabel="dialogues")
    return fig


def plot_history(records: Sequence[dict]):
    """Training loss per report and, on the right axis, validation exact match; records have `iter`, `loss`, `exact`."""
    fig, ax = _axes("Training")
    loss, valid, exact = ([(r["iter"], r[key]) for r in records if r.get(key) is not None]
                          for key in ("loss", "valid_loss", "exact"))  # fmt: skip
    ax.plot(*zip(*loss), color=ACCENT, label="training loss") if loss else None
    ax.plot(*zip(*valid), color=MUTED, marker=".", label="validation loss") if valid else None
    ax.set(xlabel="iteration", ylabel="loss (nats per answer token)")
    ax.set_ylim(bottom=0)
    lines, names = ax.get_legend_handles_labels()
    if exact:
        right = ax.twinx()
        right.spines[["top"]].set_visible(False)
        steps, shares = zip(*exact)
        lines += right.plot(steps, [100 * share for share in shares], color=WARM, marker="o")
        names.append("validation exact match")
        right.set(ylim=(0, 102), ylabel="exact match (%)")
    ax.legend(lines, names, frameon=False, fontsize=9, loc="center right")
    return fig


def plot_scores(cards: Sequence[Scorecard]):
    """Exact match of several runtimes as bars, with Wilson's 95 % intervals."""
    fig, ax = _axes("Exact match on the same held-out cases", height=0.5 + 0.45 * max(3, len(cards)))
    for i, card in enumerate(cards):
        s = card.summary()
        ax.barh(i, 100 * (s["exact"] or 0), color=ACCENT, height=0.6)
        ax.plot([100 * s["exact_low"], 100 * s["exact_high"]], [i, i], color=INK, linewidth=1.2)
        ax.text(101, i, f"{card.hits}/{card.n}", va="center", fontsize=9, color=INK)
    ax.set_yticks(range(len(cards)), [card.name for card in cards])
    ax.invert_yaxis()
    ax.set(xlim=(0, 112), xlabel="exact match (%), line: 95 % interval")
    return fig


def plot_sizes(rows: Sequence[dict]):
    """Size against exact match, dots as large as they are fast; rows have `variant`, `mb`, `exact`, `tokens_per_s`."""
    fig, ax = _axes("Size, accuracy and speed of the variants")
    for i, row in enumerate(sorted(rows, key=lambda row: row["mb"])):
        speed, spot = row.get("tokens_per_s") or 1, (row["mb"], 100 * row["exact"])
        ax.scatter(*spot, s=30 + 8 * speed, color=ACCENT, alpha=0.6, edgecolor=INK)
        # neighbours are named above and below, so that names of variants of like size do not lie on each other
        dy, va = (-20, "top") if i % 2 else (20, "bottom")
        ax.annotate(f"{row['variant']}\n{speed:.0f} tok/s", spot, (0, dy), textcoords="offset points", fontsize=8,
                    color=INK, ha="center", va=va)  # fmt: skip
    ax.set(xlabel="download (MB)", ylabel="exact match (%)", xlim=(0, 1.2 * max(row["mb"] for row in rows)))
    ax.margins(y=0.5)  # room for the names of the highest and the lowest
    return fig


def plot_confusion(card: Scorecard):
    """Which tool was expected (rows) and which was called (columns), first call of each case."""
    pairs = card.confusion()
    names = sorted({n for pair in pairs for n in pair})
    fig, ax = _axes(f"Tools: expected and called, {card.name}", 1.6 + 0.5 * len(names), 1.2 + 0.36 * len(names))
    grid = [[pairs.get((a, b), 0) for b in names] for a in names]
    ax.imshow(grid, cmap="Blues", aspect="auto")
    for (a, b), n in pairs.items():
        color = "white" if n > max(pairs.values()) / 2 else INK
        ax.text(names.index(b), names.index(a), n, ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set(xlabel="called", ylabel="expected")
    return fig


def plot_curve(curve: LearningCurve):
    """Accuracy by number of training examples, with Wilson's 95 % intervals, and as a band up to twice as many."""
    fig, ax = _axes("Exact match by number of training examples")
    for examples, right, cases in curve.points:
        ax.plot([examples] * 2, [100 * bound for bound in wilson(right, cases)], color=INK, linewidth=1.2)
        ax.plot(examples, 100 * right / cases, "o", color=ACCENT)
    ticks = [*(point.examples for point in curve.points), curve.twice]
    for start, end, color in ((ticks[0], ticks[-2], ACCENT), (*ticks[-2:], WARM)):  # measured, and extrapolated
        steps = [start * (end / start) ** (i / 24) for i in range(25)]
        if (band := curve.band(steps)) is not None:
            ax.fill_between(steps, *(100 * band), color=color, alpha=0.25, linewidth=0)
    ax.set(xscale="log", ylim=(0, 103), ylabel="exact match (%)", xlabel="training examples; orange is extrapolated")
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
    ax.set_xticks([], minor=True)
    return fig
