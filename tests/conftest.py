"""What several test files share."""

import os

import pytest

from fgtune.core.project import project_root
from fgtune.data.readers.examples import read_examples
from fgtune.data.readers.tools import read_tools
from fgtune.export.onnx import export_onnx
from fgtune.models.base import resolve_base

os.environ["FGTUNE_PARAMS"] = ""  # the project's run.yaml is not for tests, nor for the processes that they start


@pytest.fixture(scope="session")
def shipped():
    """The shipped tools, and the shipped examples as chat rows; tests must not change them."""
    root = project_root() / "examples"
    tools = read_tools(root / "tools")
    return tools, read_examples(root / "requests", tools)


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory):
    """The tiny model as fp32 ONNX, in the transformers.js layout; tests must not write into it."""
    folder = tmp_path_factory.mktemp("tiny_onnx")
    export_onnx(resolve_base("tiny").path, folder)
    return folder
