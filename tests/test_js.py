"""The JavaScript unit tests, run by Node's own test runner."""

import subprocess

import pytest

from fgtune.core.project import project_root
from fgtune.runtimes.node import find_node

SUITES = sorted((project_root() / "tests" / "js").glob("*.test.mjs"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_suite(suite):
    result = subprocess.run([find_node(), "--test", str(suite)], cwd=project_root(), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "# pass 0" not in result.stdout and "# skipped 0" in result.stdout


def test_there_are_suites():
    assert SUITES
