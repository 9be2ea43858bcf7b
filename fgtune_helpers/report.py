"""Stage 11: a run as its manifests and scorecards tell it, and one HTML file of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from fgtune.evaluation.scorecards import Comparison, Scorecard

from .params import PARAMETERS
from .stage import STAGES, read_manifest

TEMPLATE = Path(__file__).with_name("report.html.jinja")


class RunReport:
    """What the stages of a run have left: `manifests` and `scorecards` by stage."""

    def __init__(self, run: Path):
        self.run = run
        self.manifests = {stage: manifest for stage in STAGES if (manifest := read_manifest(run, stage))}
        order = lambda path: (path.stem == "scorecard_tuned", path.stem)  # the last: what later stages are held to
        paths = {stage: sorted((run / stage).glob("scorecard*.json"), key=order) for stage in STAGES}
        self.scorecards = {stage: [Scorecard.load(path) for path in found] for stage, found in paths.items() if found}

    @property
    def cards(self) -> list[Scorecard]:
        """The scorecards of all stages, in order."""
        return [card for cards in self.scorecards.values() for card in cards]

    def gates(self) -> list[tuple[str, str, str, str]]:
        """(stage, state, headline, seconds) of every stage before the report; `state` is ok, skipped or missing."""
        rows = []
        for stage in list(STAGES)[:-1]:
            if stage not in self.manifests:  # a stage that failed has no manifest
                rows.append((stage, "missing", "", ""))
                continue
            manifest = self.manifests[stage]
            text = manifest["skipped"] or manifest["metrics"].get("headline", "")
            rows.append((stage, "skipped" if manifest["skipped"] else "ok", text, f"{manifest['seconds']:.0f}"))
        return rows

    def write(self, path: Path, figures: dict[str, object]) -> None:
        """One HTML file that needs nothing else: gates, scores, `figures` by title, what is wrong, parameters."""
        import jinja2

        setup = self.manifests["00_setup"]
        used = {name: value for manifest in self.manifests.values() for name, value in manifest["parameters"].items()}
        template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
        page = template.render(
            run=self.run.name, source=setup["metrics"]["source"], gates=self.gates(), comparison=Comparison(self.cards),
            figures=[(title, _png(figure)) for title, figure in figures.items()],
            wrong=[self.scorecards[s][-1] for s in ("03_test_adapters", "08_test_onnx") if s in self.scorecards],
            parameters=[(name, value, PARAMETERS[name].help) for name, value in used.items()],
            versions=setup["versions"].items(),
        )  # fmt: skip
        path.write_text(page, encoding="utf-8")


def _png(figure) -> str:
    """A figure as PNG in base64."""
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
