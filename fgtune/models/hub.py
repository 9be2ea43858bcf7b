"""Base models of the Hugging Face Hub, and of a local folder in the Hub's layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..core.folders import new_folder
from .base_model import CONVERSION_VERSION, PYPI_MODEL, BaseModel, BaseModelError, template_hash, weights_sha256
from .control_tokens import rename_control_tokens

HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "chat_template.jinja"]


def from_hub(name: str, cache: Path) -> BaseModel:
    """The Hub's model `OWNER/NAME`, downloaded once into the Hub's own cache. Raises BaseModelError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    remedy = f"or use the embedded default: base_model={PYPI_MODEL!r}"
    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except GatedRepoError:
        raise BaseModelError(
            f"{name} is gated: accept its terms at huggingface.co/{name}, run 'hf auth login', {remedy}"
        ) from None
    except RepositoryNotFoundError:
        raise BaseModelError(f"the Hub knows no {name} (or it is private: run 'hf auth login'), {remedy}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BaseModelError(
            f"{name} cannot be downloaded ({type(error).__name__}): check the network, {remedy}"
        ) from None
    base = from_folder(folder, cache)
    return BaseModel(base.path, f"Hub model {name}", base.sha256)


def from_folder(folder: Path, cache: Path) -> BaseModel:
    """The `gemma3_text` model of a folder with safetensors. Raises BaseModelError.

    A plain Gemma 3, whose chat template knows no functions, is copied into `cache` with FunctionGemma's control tokens.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).exists():
            raise BaseModelError(f"{folder} holds no {name}: base_model must be a transformers folder with safetensors")
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError(f"{folder} holds no *.safetensors: other weight formats are not loaded, convert it first")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type != "gemma3_text":
        raise BaseModelError(f"{folder} is a {model_type!r} model; this workbook tunes 'gemma3_text' (FunctionGemma)")
    digest = weights_sha256(folder)
    if _has_function_calling_template(folder):
        return BaseModel(folder.resolve(), f"local folder {folder.name}", digest)
    target = cache / f"local-{digest[:12]}-r{CONVERSION_VERSION}-{template_hash()}"
    if not (target / "config.json").exists():
        with new_folder(target) as copy:
            for file in folder.iterdir():
                if file.suffix in (".json", ".safetensors", ".jinja"):
                    shutil.copy2(file, copy / file.name)
            rename_control_tokens(copy)
    return BaseModel(target, f"local folder {folder.name}, control tokens renamed", digest)


def _has_function_calling_template(folder: Path) -> bool:
    """Whether the chat template of a folder declares functions."""
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else ""
    text += (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    return "start_function_declaration" in text
