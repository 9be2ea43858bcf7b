"""What a folder gives to ask a model: a finished run, a deployed site, or a model with its tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import FgtuneError
from ..data.developer_turn import DeveloperTurn
from ..data.readers.files import DataError
from ..data.readers.tools import load_tools
from ..export.layout import VARIANTS, model_file
from ..format.findings import one_line
from ..format.template import TRIGGER
from ..site.manifest import read_manifest
from ..site.pieces import whole_model

#: The folders of a run that are read, and no others.
DATA, EXPORTED, QUANTIZED, DEPLOYED = "01_data", "06_export_onnx", "07_quantize", "10_deploy_browser"
#: The files beside a model that say how it was trained; they stand in the first folder of a run.
TOOLS, TURN, VERBATIM = "tools.json", "developer_turn.json", "verbatim_arguments.json"
MODEL_FILES = ("tokenizer.json", "generation_config.json")


class LoadError(FgtuneError, ValueError):
    """A folder that no model can be loaded from, or a question that cannot be asked; the message is one line."""


@dataclass(frozen=True)
class Source:
    """`model` (a folder with `onnx/`), its `tools`, developer `turn` and `verbatim` arguments as they were trained.

    `tokenizer` is the smallest `tokenizer.json` there is; `site` a deployed site of the same model and tools, if any.
    """

    model: Path
    tokenizer: Path
    tools: list[dict]
    turn: DeveloperTurn
    verbatim: tuple[str, ...]
    site: Path | None = None


@contextmanager
def open_source(folder: str | Path, variant: str) -> Iterator[Source]:
    """What `folder` gives for a variant; files of a site that stand in pieces are whole within the block.

    Raises LoadError, or DeployError for a site of another format.
    """
    if not isinstance(folder, (str, Path)):
        raise LoadError(f"the folder is a {type(folder).__name__}: give a path")
    folder = Path(folder).expanduser()
    if (folder / "site.json").exists():
        with _of_site(folder, variant) as source:
            yield source
    elif (folder / QUANTIZED).is_dir() or (folder / DATA).is_dir():
        yield _of_run(folder, variant)
    elif (folder / "onnx").is_dir():
        if not (folder / TOOLS).exists():
            raise LoadError(f"{folder} has a model but no {TOOLS}: put the tools beside it that it was trained with")
        yield _of_folder(folder, folder, variant)
    else:
        what = "is no folder" if not folder.is_dir() else "holds no model"
        raise LoadError(
            f'{one_line(str(folder))} {what}: give a finished run, a deployed site, or a folder with "onnx" and {TOOLS}'
        )


@contextmanager
def _of_site(site: Path, variant: str) -> Iterator[Source]:
    manifest = read_manifest(site)
    _require(site, variant, list(manifest["variants"]))
    with whole_model(site, variant) as model:
        tools = _tools(site / TOOLS)
        turn, verbatim = DeveloperTurn.from_json(manifest["developer_turn"]), tuple(manifest["verbatim"])
        yield Source(model, model / "tokenizer.json", tools, turn, verbatim, site)


def _of_run(run: Path, variant: str) -> Source:
    made, data = _stage(run, EXPORTED if variant == "fp32" else QUANTIZED), _stage(run, DATA)
    source = _of_folder(run / made["stage"], run / DATA, variant)
    try:
        deployed, quantized = _stage(run, DEPLOYED), _stage(run, QUANTIZED)
    except LoadError:
        return source
    site, inputs = run / DEPLOYED / "site", deployed.get("inputs", {})
    pruned = site / "model" / "tokenizer.json"
    if (inputs.get(QUANTIZED), inputs.get(DATA)) != (quantized["key"], data["key"]) or not pruned.exists():
        return source  # the site is of an earlier training
    return replace(source, tokenizer=pruned, site=site)


def _of_folder(model: Path, data: Path, variant: str) -> Source:
    _require(model, variant, [name for name in VARIANTS if (model / "onnx" / model_file(name)).exists()])
    for name in MODEL_FILES:
        if not (model / name).exists():
            raise LoadError(f"{model} holds no {name}")
    verbatim = _json(data / VERBATIM) or ()
    if not isinstance(verbatim, (list, tuple, dict)) or not all(isinstance(name, str) for name in verbatim):
        raise LoadError(f"{data / VERBATIM} holds no names of arguments (tool.argument)")
    return Source(
        model,
        model / "tokenizer.json",
        _tools(data / TOOLS),
        _turn(data / TURN),
        tuple(verbatim),
    )


def _turn(path: Path) -> DeveloperTurn:
    """The developer turn of a training; the plain one where no file says another."""
    if not (value := _json(path)):
        return DeveloperTurn(TRIGGER)
    try:
        return DeveloperTurn.from_json(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LoadError(one_line(f"{path} holds no developer turn: {type(error).__name__}: {error}")) from None


def _stage(run: Path, stage: str) -> dict:
    """`stage.json` of a finished stage."""
    manifest = _json(run / stage / "stage.json")
    if not isinstance(manifest, dict) or not {"stage", "key"} <= set(manifest) or manifest.get("skipped"):
        command = f"python -m fgtune_helpers run -p run_dir {run} --to {stage[:2]}"
        raise LoadError(f"{run} has no finished {stage}: {command}")
    return manifest


def _require(folder: Path, variant: str, there: list[str]) -> None:
    if variant not in there:
        raise LoadError(f"{folder} has no variant {variant!r}: {', '.join(there) or 'none'} is there")


def _tools(path: Path) -> list[dict]:
    try:
        tools, findings = load_tools(path)
    except (DataError, OSError) as error:
        raise LoadError(one_line(str(error))) from None
    if errors := [finding for finding in findings if finding.level == "error"]:
        raise LoadError(str(errors[0]))
    return tools


def _json(path: Path):
    """What a JSON file holds, or None where it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LoadError(f"{path} is no JSON: {error}") from None
