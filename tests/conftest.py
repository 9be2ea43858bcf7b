"""What several test files share."""

import pytest

from fgtune_helpers import data
from fgtune_helpers.base import resolve_base
from fgtune_helpers.export import export_onnx
from fgtune_helpers.stage import project_root


@pytest.fixture(scope="session")
def shipped():
    """The shipped tools, and the shipped examples as chat rows; tests must not change them."""
    root = project_root() / "examples"
    tools = data.read_tools(root / "tools")
    return tools, data.read_examples(root / "requests", tools)


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory):
    """The tiny model as fp32 ONNX, in the transformers.js layout; tests must not write into it."""
    folder = tmp_path_factory.mktemp("tiny_onnx")
    export_onnx(resolve_base("tiny").path, folder)
    return folder
