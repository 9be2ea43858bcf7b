"""The parameters of the series: one name, one meaning, one default, in every notebook.

The notebooks' `parameters` cells repeat what stands here (a test compares them), so that papermill sees plain
literals and a reader sees the help beside the value.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from fgtune.export import layout


class ParameterError(ValueError):
    """A parameter is unknown, of the wrong type or out of range; the message is one line."""


@dataclass(frozen=True)
class Param:
    """A parameter: `default` (its type is the parameter's type), `help`, and a range or a set of `choices`."""

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None


VARIANTS = tuple(layout.VARIANTS)


PARAMETERS: dict[str, Param] = {
    "run_dir": Param("runs/quickstart", "folder of this run, below the project unless absolute"),
    "seed": Param(7, "seed of the split, the training order and the adapters", 0, 2**31 - 1),
    "base_model": Param("pypi:gemma3-270m", "pypi:gemma3-270m, a Hub id, a local folder, or tiny (for tests)"),
    "tools_file": Param("examples/tools/everyday.json", "your tools: a JSON file, or a folder of them"),
    "examples_file": Param(
        "examples/requests/everyday.json", "your examples: the seed's JSON, or chat rows (JSON, JSONL, or a folder)"
    ),
    "test_cases": Param(48, "held-out cases, the same at every stage", 2, 5000),
    "valid_cases": Param(32, "validation cases, for the best checkpoint", 2, 5000),
    "similarity": Param(85, "queries at least this alike (0 to 100) stay in one split", 50, 100),
    "augment": Param(1, "new examples made of each training example by exchanging names and numbers", 0, 100),
    "combine": Param(0.1, "new examples of two or three requests in one, as a share of the training examples", 0, 10),
    "max_seq_length": Param(2048, "longest training row in tokens; a longer one is an error", 64, 32768),
    "fine_tune_type": Param("lora", "lora, dora or full", choices=("lora", "dora", "full")),
    "num_layers": Param(12, "layers that get adapters, counted from the last; -1 is all", -1, 1000),
    "rank": Param(8, "rank of the adapters", 1, 512),
    "scale": Param(20.0, "factor on the adapters' product", 0.01, 1000),
    "dropout": Param(0.0, "dropout on the adapters' input", 0, 0.9),
    "iters": Param(275, "training steps", 1, 1_000_000),
    "batch_size": Param(24, "rows per step", 1, 1024),
    "grad_accumulation_steps": Param(1, "batches per optimiser step", 1, 1024),
    "learning_rate": Param(5e-4, "peak of the schedule", 1e-8, 1.0),
    "precision": Param(
        "auto",
        "auto: bfloat16 products where the CPU has them, else float32; or float32, bfloat16",
        choices=("auto", "float32", "bfloat16"),
    ),
    "softmax": Param(
        "auto",
        "auto: gradients from a sample of the vocabulary where torch's kernels train on the CPU; or exact, sampled",
        choices=("auto", "exact", "sampled"),
    ),
    "warmup": Param(10, "steps of linear warm-up, before the cosine", 0, 100_000),
    "steps_per_report": Param(10, "steps between two lines of progress", 1, 100_000),
    "steps_per_eval": Param(140, "steps between two validations by exact match", 1, 100_000),
    "patience": Param(0, "validations without a better one before training stops; 0 never stops early", 0, 1000),
    "workers": Param(1, "processes that share each batch, started by mlx.launch", 1, 64),
    "report_to": Param(
        "",
        "also log to wandb, swanlab or tensorboard (their package must be installed)",
        choices=("", "wandb", "swanlab", "tensorboard"),
    ),
    "max_tokens": Param(96, "longest answer in tokens", 1, 4096),
    "constrained": Param(True, "hold answers to the tools' schemas, and arguments that are copied to the user's words"),
    "min_exact": Param(0.75, "least share of held-out cases that the tuned model must get exactly right", 0, 1),
    "exporter": Param(
        "direct", "direct (written from the weights) or optimum (the reference)", choices=("direct", "optimum")
    ),
    "max_positions": Param(4096, "longest dialogue in tokens that the exported model can hold", 128, 32768),
    "variants": Param(["fp16", "int8", "q4"], "ONNX variants to make beside fp32: " + ", ".join(VARIANTS[1:])),
    "max_drop": Param(
        0.01, "share of held-out cases that a variant may lose against the fused model; one case, unless 0", 0, 1
    ),
    "node_variants": Param(["q4"], "variants that transformers.js is tested with in Node"),
    "deploy_variant": Param("q4", "variant that the browser page loads", choices=VARIANTS),
    "browser_cases": Param(8, "held-out cases that a real browser answers", 1, 1000),
}


def closest(name: str, known) -> str:
    """`; did you mean 'x'?` when some known name is close, else an empty string."""
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def coerce(name: str, value: Any) -> Any:
    """`value` as the type of parameter `name`, range-checked. Raises ParameterError.

    papermill hands `-p dry true` over as a string and YAML reads `1e-4` as one, so strings are converted.
    """
    if name not in PARAMETERS:
        raise ParameterError(f"unknown parameter {name!r}{closest(name, PARAMETERS)}")
    param, given = PARAMETERS[name], value
    kind = type(param.default)
    try:
        if kind is list:
            value = [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else list(value)
        elif kind is bool:
            value = {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        elif kind is int:
            if isinstance(value, bool) or float(value) != int(float(value)):
                raise ValueError
            value = int(float(value))
        elif kind is float:
            if isinstance(value, bool):
                raise ValueError
            value = float(value)
        else:
            if not isinstance(value, str):
                raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ParameterError(f"{name} must be {_kind(kind)}, not {given!r}") from None
    if param.low is not None and not param.low <= value <= param.high:
        raise ParameterError(f"{name} = {value!r} is outside {param.low:g} to {param.high:g}")
    if param.choices and value not in param.choices:
        raise ParameterError(f"{name} = {value!r} is none of {', '.join(param.choices)}{closest(value, param.choices)}")
    if name in ("variants", "node_variants"):
        for variant in value:
            if variant not in VARIANTS:
                raise ParameterError(f"{name}: unknown variant {variant!r}{closest(variant, VARIANTS)}")
    if name in ("num_layers",) and value == 0:
        raise ParameterError("num_layers = 0 trains nothing: use -1 for all layers")
    return value


def _kind(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}[kind]
