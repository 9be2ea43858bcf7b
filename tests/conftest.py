"""What several test files share."""

import pytest

from fgtune_helpers.base import resolve_base
from fgtune_helpers.export import export_onnx


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory):
    """The tiny model as fp32 ONNX, in the transformers.js layout; tests must not write into it."""
    folder = tmp_path_factory.mktemp("tiny_onnx")
    export_onnx(resolve_base("tiny").path, folder)
    return folder
