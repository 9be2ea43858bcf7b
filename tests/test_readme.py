"""The README says what the code does and what the recorded run showed."""

import re
import sys

import pytest

from fgtune.core.project import project_root
from fgtune_helpers.params import PARAMETERS

sys.path.insert(0, str(project_root() / "tests"))
import readme
from readme import replace_block

TEXT = readme.README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["stages", "parameters"])
def test_generated_blocks_are_current(name):
    assert replace_block(TEXT, name, readme.code_blocks()[name]) == TEXT, "run: python tests/readme.py"


def test_results_are_those_of_the_recorded_notebooks():
    block = TEXT.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    if not readme.recorded_scores():
        assert block.strip() == readme.NOT_RECORDED
        return
    shown = {m[1].strip(): m[2] for m in re.finditer(r"^\| ([^|]+) \| (\d+/\d+) = ", block, re.M)}
    assert shown == readme.recorded_scores() and len(shown) >= 8


def test_every_local_link_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (project_root() / target).exists(), target


def test_commands_and_flags_exist():
    makefile = (project_root() / "Makefile").read_text()
    for target in re.findall(r"\bmake (run|test|lab|setup|verify)\b", TEXT):
        assert re.search(rf"^{target}:", makefile, re.M)
    source = (project_root() / "fgtune_helpers" / "__main__.py").read_text()
    for flag in re.findall(r"(--[a-z][a-z-]+)", TEXT.split("## From the seed")[0].split("fgtune_helpers run", 1)[1]):
        assert f'"{flag}"' in source or flag in ("--extra-index-url", "--json"), flag
    for name in re.findall(r"-p ([a-z_]+) ", TEXT):
        assert name in PARAMETERS, name


def test_nothing_is_said_of_the_machine_it_was_written_on():
    assert not re.search(r"/(work|root|home)/", TEXT)
