"""The report of a run, and the parts of the README that are generated: both from manifests alone."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from fgtune.evaluation.scorecards import Comparison, Scorecard
from fgtune.evaluation.shares import percent

from .params import PARAMETERS
from .stage import STAGES, read_manifest

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--soft:#6b7280;--line:#e5e7eb;--ok:#15803d;--bad:#b91c1c;--bg:#fff}
@media (prefers-color-scheme:dark){
:root{--ink:#e5e7eb;--soft:#9ca3af;--line:#374151;--ok:#4ade80;--bg:#111827}img{background:#fff}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--bg);max-width:60rem;margin:2rem auto;
padding:0 1rem}
table{border-collapse:collapse;margin:.6rem 0 1.6rem;display:block;overflow-x:auto}
td,th{padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:500}.ok{color:var(--ok)}.skip{color:#b45309}h1{margin-bottom:0}.sub{color:var(--soft)}
code,pre{font-size:.86em}img{max-width:100%}
"""


def manifests(run: Path) -> dict[str, dict]:
    """The manifests of all stages that have run."""
    found = {stage: read_manifest(run, stage) for stage in STAGES}
    return {stage: manifest for stage, manifest in found.items() if manifest}


def scorecards(run: Path) -> dict[str, list[Scorecard]]:
    """The scorecards by stage."""
    found = {stage: sorted((run / stage).glob("scorecard*.json")) for stage in STAGES}
    return {stage: [Scorecard.load(path) for path in paths] for stage, paths in found.items() if paths}


def gates(run: Path) -> list[tuple[str, str, str, str]]:
    """(stage, ok or skipped, headline, seconds) of every stage that has run; a stage that failed has no manifest."""
    rows = []
    for stage in STAGES:
        manifest = read_manifest(run, stage)
        if manifest is None:
            rows.append((stage, "missing", "", ""))
        else:
            state = "skipped" if manifest["skipped"] else "ok"
            text = manifest["skipped"] or manifest["metrics"].get("headline", "")
            rows.append((stage, state, text, f"{manifest['seconds']:.0f}"))
    return rows


def figure_png(fig) -> str:
    """A figure as an `<img>` with its bytes inside."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def write_report(run: Path, path: Path, figures: dict[str, object]) -> None:
    """One HTML file that needs nothing else: gates, scores, figures, what was lost, parameters, versions."""
    found, cards = manifests(run), scorecards(run)
    rows = "".join(
        f"<tr><td>{stage}</td><td class='{'ok' if state == 'ok' else 'skip'}'>{state}</td>"
        f"<td>{escape(text)}</td><td>{seconds}</td></tr>"
        for stage, state, text, seconds in gates(run)
        if stage != "11_report"
    )
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>fgtune report</title><style>{_STYLE}</style>",
        f"<h1>From tools to the browser</h1><p class=sub>Run <code>{escape(run.name)}</code> · "
        f"{escape(found['00_setup']['metrics']['source'])}</p>",
        "<h2>Every gate</h2><table><tr><th>stage</th><th></th><th>result</th><th>seconds</th></tr>" + rows + "</table>",
        "<h2>The same cases at every stage</h2>",
        Comparison([card for group in cards.values() for card in group])._repr_html_(),
    ]
    parts += [f"<h2>{escape(title)}</h2>{figure_png(fig)}" for title, fig in figures.items()]
    parts.append("<h2>What is still wrong</h2>")
    parts += [
        card._repr_html_() for stage in ("03_test_adapters", "08_test_onnx") for card in cards.get(stage, [])[-1:]
    ]
    used = {}
    for manifest in found.values():
        used |= manifest["parameters"]
    parts.append("<h2>Parameters</h2><table>" + "".join(
        f"<tr><td><code>{k}</code></td><td><code>{escape(str(v))}</code></td><td>{escape(PARAMETERS[k].help)}</td></tr>"
        for k, v in used.items()) + "</table>")  # fmt: skip
    versions = found["00_setup"]["versions"]
    parts.append(
        "<h2>Versions</h2><table>"
        + "".join(f"<tr><td>{k}</td><td>{v}</td></tr>" for k, v in versions.items())
        + "</table>"
    )
    path.write_text("\n".join(parts), encoding="utf-8")


def stage_table() -> str:
    """The README's stage table."""
    lines = ["| notebook | outcome | produces | minutes |", "|---|---|---|---|"]
    lines += [
        f"| [{name}](notebooks/{name}.ipynb) | {s.outcome} | {s.produces} | {s.minutes} |" for name, s in STAGES.items()
    ]
    return "\n".join(lines)


def parameter_table() -> str:
    """The README's parameter table."""
    lines = ["| parameter | default | meaning |", "|---|---|---|"]
    for name, p in PARAMETERS.items():
        default = ",".join(p.default) if isinstance(p.default, list) else p.default
        lines.append(f"| `{name}` | `{default}` | {p.help} |")
    return "\n".join(lines)


def result_table(run: Path) -> str:
    """The README's table of results, from the scorecards of one run."""
    lines = ["| model | exact match | 95 % | right tools | right arguments | abstained |", "|---|---|---|---|---|---|"]
    for name, hits, exact, interval, tools, arguments, abstained, *_ in Comparison(
        [card for group in scorecards(run).values() for card in group]
    ).rows():
        lines.append(f"| {name} | {hits} = {exact} | {interval} | {tools} | {arguments} | {abstained} |")
    return "\n".join(lines)


def size_table(rows: list[dict]) -> str:
    """The README's table of variants: size, accuracy, speed; rows as stage 08 records them."""
    lines = ["| variant | MB | exact match | tokens/s (two cores) |", "|---|---|---|---|"]
    lines += [f"| {r['variant']} | {r['mb']:.0f} | {percent(r['exact'])} | {r['tokens_per_s']:.0f} |" for r in rows]
    return "\n".join(lines)


def navigation(stage: str) -> str:
    """The previous/next line of a notebook."""
    names = list(STAGES)
    i = names.index(stage)
    before = f"← [{names[i - 1]}]({names[i - 1]}.ipynb)" if i else "← [README](../README.md)"
    after = f"[{names[i + 1]}]({names[i + 1]}.ipynb) →" if i + 1 < len(names) else "[README](../README.md) →"
    return f"{before} · {after}"


def needs_line(stage: str) -> str:
    """The **Needs · Produces · Time** line of a notebook."""
    spec = STAGES[stage]
    needs = ", ".join(spec.needs[-3:]) or "nothing"
    return f"**Needs** {needs} · **Produces** {spec.produces} · **Time** about {spec.minutes} min on two cores"


def replace_block(text: str, name: str, body: str) -> str:
    """Put `body` between `<!-- name -->` and `<!-- /name -->`. Raises ValueError where the markers are missing."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no block {name!r}")
    return f"{head}{start}\n{body}\n{end}{tail}"
