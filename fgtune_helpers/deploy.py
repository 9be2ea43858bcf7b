"""Stage 10: the static page, and what a real browser makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from fgtune.data.developer_turn import DeveloperTurn
from fgtune.data.readers.files import read_json
from fgtune.data.rows import Case
from fgtune.evaluation.judging import judge
from fgtune.evaluation.scorecards import Scorecard
from fgtune.runtimes.onnxruntime import OrtGenerator
from fgtune.site.browser import try_in_browser as ask_in_browser
from fgtune.site.build import SiteReport
from fgtune.site.build import build_site as site_of
from fgtune.site.pieces import whole_model
from fgtune.site.prompt_cache import stored_prompt_cache

from .stage import Run


def build_site(run: Run, cases: Sequence[Case]) -> SiteReport:
    """Write the site of the variant `deploy_variant` to `<run.dir>/site`; the page offers the queries of `cases`.
    Raises DeployError, ToolMissing."""
    return site_of(
        run.input("07_quantize"), run.p.deploy_variant, read_json(run.input("01_data") / "tools.json"),
        run.dir / "site", examples=[case.query for case in cases], max_tokens=run.p.max_tokens,
        constrained=run.p.constrained, verbatim=run.verbatim_arguments(),
        developer_turn=DeveloperTurn.from_json(read_json(run.input("01_data") / "developer_turn.json")),
        rows=run.rows("train", run.tokenizer("07_quantize")),
    )  # fmt: skip


class PageReport(NamedTuple):
    """What a browser answered on the page: one dict a case (`answers`), them judged (`card`), and what the page says of
    itself (`page`: variant, device, times). `generator` runs the page's variant in Python, from the prompt cache that
    the page starts from; `cases` are those asked, with the prompts that the page sent."""

    answers: list[dict]
    card: Scorecard
    page: dict
    generator: OrtGenerator
    cases: list[Case]


def try_in_browser(run: Run, cases: Sequence[Case]) -> PageReport:
    """Ask `cases` on the built page in headless Chromium, as a visitor would; pictures go to `<run.dir>/screenshots`.
    Raises DeployError, NodeError, ToolMissing."""
    site, variant = run.dir / "site", run.p.deploy_variant
    answers = ask_in_browser(site, [case.query for case in cases], screenshots=run.dir / "screenshots")
    results = [judge(case, answer["text"], answer["finished"]) for case, answer in zip(cases, answers, strict=True)]
    sent = [replace(case, prompt=answer["prompt"]) for case, answer in zip(cases, answers, strict=True)]
    page = answers[0]["page"]
    with whole_model(site) as model:
        here = OrtGenerator(model, variant, max_tokens=run.p.max_tokens)
    here.use_prompt_cache(*stored_prompt_cache(site, variant))
    return PageReport(answers, Scorecard(f"{variant} (Chromium)", results), page, here, sent)
