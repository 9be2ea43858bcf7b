"""Base models of a local folder or of the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..core.files import write_json
from ..core.folders import new_folder
from ..format.tokens import CONTROL_TOKENS
from .routes import PYPI_MODEL, RECIPE, BaseModel, BaseModelError, template_hash, weights_sha256
from .tokenizer_files import STOP_IDS, write_tokenizer_config

HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "chat_template.jinja"]


def from_folder(folder: Path, cache: Path) -> BaseModel:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).exists():
            raise BaseModelError(f"{folder} holds no {name}: base_model must be a transformers folder with safetensors")
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError(f"{folder} holds no *.safetensors: other weight formats are not loaded, convert it first")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type != "gemma3_text":
        raise BaseModelError(f"{folder} is a {model_type!r} model; this workbook tunes 'gemma3_text' (FunctionGemma)")
    digest = weights_sha256(folder)
    if _knows_function_calls(folder):
        return BaseModel(folder.resolve(), f"local folder {folder.name}", digest)
    target = cache / f"local-{digest[:12]}-r{RECIPE}-{template_hash()}"
    if not (target / "config.json").exists():
        with new_folder(target) as copy:
            for file in folder.iterdir():
                if file.suffix in (".json", ".safetensors", ".jinja"):
                    shutil.copy2(file, copy / file.name)
            rename_control_tokens(copy)
    return BaseModel(target, f"local folder {folder.name}, control tokens renamed", digest)


def _knows_function_calls(folder: Path) -> bool:
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else ""
    text += (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    return "start_function_declaration" in text


def rename_control_tokens(folder: Path) -> None:
    """Turn a plain Gemma 3 tokenizer into FunctionGemma's: rename ids 46 to 52, write the workbook's template."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    old = {entry["id"]: entry for entry in data["added_tokens"]}
    vocab = data["model"]["vocab"]
    by_id = {i: token for token, i in vocab.items() if i in CONTROL_TOKENS}
    for i, name in CONTROL_TOKENS.items():
        if not (by_id[i].startswith("<unused") or by_id[i] == name):
            raise BaseModelError(
                f"token {i} of {folder.name} is {by_id[i]!r}, not a reserved one: no Gemma 3 tokenizer"
            )
        vocab.pop(by_id[i])
        vocab[name] = i
        if i in old:
            old[i]["content"] = name
        else:
            entry = {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            data["added_tokens"].append(entry | {"special": False})
    data["added_tokens"].sort(key=lambda entry: entry["id"])
    data["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    write_tokenizer_config(folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"eos_token_id": STOP_IDS})


def from_hub(name: str, cache: Path) -> BaseModel:
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
