"""The ONNX variants side by side: size, distance from fp32, exact match, speed; and the export against optimum-cli.

    python benchmarks/onnx.py --data runs/quickstart/01_data --model runs/quickstart/04_fuse --json rows.json
    python benchmarks/onnx.py --data ... --model ... --only sizes,recipes

`--data` is the folder of stage 01, `--model` a fused model. Parts: `export`, `sizes`
(every variant with its distance from fp32), `exact` (held-out cases), `recipes` (ways to round to four bits), `fp16`
(scaled against clipped), `speed` (prefill and decode, interleaved with the reference), `settings` (accuracy level and
threads). Ratios are measured in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from fgtune.data.readers.files import read_json
from fgtune.data.rows import load_cases, load_rows

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package

PARTS = ("export", "sizes", "exact", "recipes", "fp16", "speed", "settings")
#: MB as published or described elsewhere: the seed pipeline, onnx-community/gemma-3-270m-it-ONNX.
PUBLISHED = {
    "fp32": (1600, 1139.5),
    "fp16": (832, 569.9),
    "int8": (417, None),
    "q4": (200, 801.1),
    "q4f16": (None, 425.7),
}
TARGET_MB = {"fp32": 1085, "fp16": 545, "int8": 290, "q4": 240, "q4s": 165}
VARIANTS = ("fp32", "fp16", "int8", "q4", "q4f16", "q4s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="fused model folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of stage 01")
    parser.add_argument("--work", type=Path, help="where the graphs go (default: a temporary folder)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rows", type=int, default=64, help="calibration rows")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of the speed part")
    parser.add_argument("--json", type=Path, help="write every row here")
    options = parser.parse_args()
    from fgtune_helpers.runner import HUGE_PAGES

    if HUGE_PAGES[0] not in os.environ:  # as the series' kernels have it; it must be there when a process starts
        os.environ[HUGE_PAGES[0]] = HUGE_PAGES[1]
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    parts = options.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}: use {', '.join(PARTS)}")
    work = options.work or Path(tempfile.mkdtemp(prefix="fgtune-onnx-"))
    bench = Bench(options.model, options.data, work, options.rows, options.rounds)
    try:
        for part in parts:
            print(f"\n## {part}", flush=True)
            getattr(bench, part)()
    finally:
        if options.json:
            options.json.write_text(json.dumps(bench.rows, indent=1) + "\n")
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)


class Bench:
    """Runs the parts; every printed line is a row of `rows`."""

    def __init__(self, model: Path, data: Path, work: Path, rows: int, rounds: int):
        pass
        from fgtune.models.tokenizer_files import load_tokenizer

        self.model, self.work, self.rounds, self.rows = model, work, rounds, []
        self.reference = None
        tokenizer = load_tokenizer(model)
        train = [list(row.ids) for row in load_rows(data, "train", tokenizer)]
        self.words = {token for row in train for token in row}
        self.calibration = random.Random(7).sample(train, rows)  # as stage 07 draws them
        self.held_out = load_rows(data, "test", tokenizer)
        self.prompt = list(self.held_out[0].ids)
        self.cases = load_cases(data, "test")
        self.copied = read_json(data / "verbatim_arguments.json")
        self.folder = work / "onnx"

    def row(self, part: str, name: str, **values) -> None:
        self.rows.append({"part": part, "name": name, **values})
        shown = "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                          for key, value in values.items())  # fmt: skip
        print(f"{name:<34} {shown}", flush=True)

    def ensure(self, variant: str, folder: Path | None = None, recipe=None) -> Path:
        """The folder in which `variant` is, made if need be."""
        from fgtune.export.layout import model_file
        from fgtune.export.onnx import export_onnx
        from fgtune.quantize.variants import quantize

        if not (self.folder / "onnx" / model_file("fp32")).exists():
            export_onnx(self.model, self.folder)
        folder = folder or self.folder
        if variant != "fp32" and (recipe or not (folder / "onnx" / model_file(variant)).exists()):
            quantize(self.folder, variant, folder, self.calibration, recipe, words=self.words)
        return folder

    def distance(self, folder: Path, variant: str) -> dict:
        """How far next-token distributions are from fp32's, at every token of the held-out answers.

        `kl` in nats; `tv` (total variation) is the share of probability that moves, which a few tokens decide less;
        `tv_error` is its standard error.
        """
        import numpy as np

        if self.reference is None:
            self.reference = self.work / "reference"
            self.reference.mkdir(exist_ok=True)
            for i, values in enumerate(self.distributions(self.ensure("fp32"), "fp32")):
                np.save(self.reference / f"{i}.npy", values.astype(np.float32))  # a gigabyte
        kl, tv, same = [], [], []
        for i, ours in enumerate(self.distributions(folder, variant)):
            theirs = np.load(self.reference / f"{i}.npy")
            share = np.exp(theirs)
            kl += (share * (theirs - ours)).sum(-1).tolist()
            tv += (np.abs(share - np.exp(ours)).sum(-1) / 2).tolist()
            same += (theirs.argmax(-1) == ours.argmax(-1)).tolist()
        error = np.std(tv) / len(tv) ** 0.5
        return {"kl": np.mean(kl), "tv": np.mean(tv), "tv_error": error, "argmax_agreement": np.mean(same)}

    def distributions(self, folder: Path, variant: str):
        """Log probabilities of the next token, [answer's tokens, vocab] for each held-out row."""
        from fgtune.evaluation.divergence import log_softmax
        from fgtune.runtimes.onnxruntime import OrtGenerator

        generator = OrtGenerator(folder, variant)
        for row in self.held_out:
            learned = [i for i, target in enumerate(row.targets) if target]
            yield log_softmax(generator.logits(row.ids[: learned[-1]], learned[0] - 1))

    # ---------------------------------------------------------------- parts

    def export(self) -> None:
        code = ("import sys; from fgtune_helpers.export import export_onnx; "
                "export_onnx(sys.argv[1], sys.argv[2], sys.argv[3])")  # fmt: skip
        rows = {}
        for name in ("direct", "optimum"):
            rows[name] = measured([sys.executable, "-c", code, str(self.model), str(self.work / name), name])
            size = sum(path.stat().st_size for path in (self.work / name / "onnx").iterdir())
            self.row("export", name, **rows[name], mb=size / 1e6)
        seconds = rows["optimum"]["seconds"] / rows["direct"]["seconds"]
        memory = rows["direct"]["peak_mb"] / rows["optimum"]["peak_mb"]
        self.row("export", "optimum / direct", faster=seconds, memory_share=memory)

    def sizes(self) -> None:
        from fgtune.export.layout import variant_bytes

        for variant in VARIANTS:
            begin = time.perf_counter()
            folder = self.ensure(variant)
            seconds = time.perf_counter() - begin
            seed, community = PUBLISHED.get(variant, (None, None))
            found = self.distance(folder, variant)
            mb, limit = variant_bytes(folder, variant) / 1e6, TARGET_MB.get(variant)
            others = {"at_most": limit, "seed": seed, "onnx_community": community}
            self.row("sizes", variant, mb=mb, **others, seconds=seconds, **found)

    def exact(self) -> None:
        """Held-out cases, held to the grammar as the stages hold them, and free."""
        from fgtune.evaluation.scorecards import score
        from fgtune.runtimes.constrained import Grammar
        from fgtune.runtimes.onnxruntime import OrtGenerator

        first = {}
        for variant in VARIANTS:
            generator = OrtGenerator(self.ensure(variant), variant)
            for how, grammar in (("constrained", Grammar(self.folder, self.copied)), ("free", None)):
                card = score(generator, self.cases, variant, grammar)
                reference = first.setdefault(how, card)
                lost = [result.id for result in card.lost_against(reference)]
                self.row("exact", f"{variant}, {how}", hits=card.hits, cases=card.n, lost=lost,
                         same_output=card.same_outputs(reference))  # fmt: skip

    def recipes(self) -> None:
        from fgtune.export.layout import variant_bytes
        from fgtune.quantize.recipes import MORE, RECIPES, Recipe

        int8, q4, q4s = (RECIPES[name] for name in ("int8", "q4", "q4s"))
        tried = (
            ("8 bits, blocks of 128, nearest", Recipe(bits=8, block=128, method="rtn")),
            ("... of 32, 64 in the embedding", replace(int8, method="rtn")),
            ("... gptq", replace(int8, smooth=0)),
            ("int8: ... even inputs", int8),
            ("... inputs not rounded", replace(int8, smooth=0, accuracy=0)),
            ("layers 4 bits, nearest", Recipe(method="rtn")),
            ("... gptq", Recipe()),
            ("... uncorrected", Recipe(asymmetric=0)),
            ("... k v, layer 3 8 bits", Recipe(more=MORE)),
            ("embedding 4 bits, nearest", replace(q4, method="rtn", mixed_precision_rows=False)),
            ("... gptq", replace(q4, mixed_precision_rows=False)),
            ("q4: ... words of the rows 8 bits", q4),
            ("... even inputs", replace(q4, smooth=0.5)),
            ("... and blocks of 128 in the layers", replace(q4, smooth=0.5, block=128)),
            ("... inputs not rounded", replace(q4, accuracy=0)),
            ("... blocks of 64 in the embedding", replace(q4, embed_block=64)),
            ("q4s: both 4 bits, gptq", q4s),
            ("... even inputs", replace(q4s, smooth=0.25)),
        )
        for name, recipe in tried:
            begin = time.perf_counter()
            folder = self.ensure("q4", self.work / "recipe", recipe)
            seconds = time.perf_counter() - begin
            mb = variant_bytes(folder, "q4") / 1e6
            self.row("recipes", name, mb=mb, seconds=seconds, **self.distance(folder, "q4"))

    def fp16(self) -> None:
        folder = self.ensure("fp16")
        self.row("fp16", "scaled residual stream", **self.distance(folder, "fp16"))
        clipped = clipped_copy(self.folder, self.work / "clipped")
        self.row("fp16", "fp32 clipped at 32,752", **self.distance(clipped, "fp32"))

    def speed(self) -> None:
        """Prefill of one held-out prompt and decoding after it, round by round each variant and the reference."""
        from fgtune.engines.ort import OrtModel
        from fgtune.export.layout import model_file
        from fgtune.export.onnx import export_onnx

        path = self.work / "optimum" / "onnx" / "model.onnx"
        if not path.exists():
            export_onnx(self.model, self.work / "optimum", exporter="optimum")
        reference = OrtModel(path)
        for variant in VARIANTS:
            path = self.ensure(variant) / "onnx" / model_file(variant)
            models = [reference, OrtModel(path)]  # no more at a time
            turns = [[tokens_per_second(model, self.prompt) for model in models] for _ in range(self.rounds + 1)]
            base, rates = (list(zip(*found)) for found in zip(*turns[1:]))  # the first round warms up
            row = {}
            for kind, theirs, ours in zip(("prefill", "decode"), base, rates):
                row[f"{kind}_per_s"] = statistics.median(ours)
                row[f"{kind}_per_s_optimum_fp32"] = statistics.median(theirs)
                row[f"{kind}_ratio"] = statistics.median(a / b for a, b in zip(ours, theirs))
            self.row("speed", variant, **row)

    def settings(self) -> None:
        """Accuracy level (of MatMulNBits) and threads: speed and distance of q4 and int8."""
        from fgtune.engines.ort import OrtModel
        from fgtune.export.layout import model_file
        from fgtune.quantize.recipes import RECIPES

        for variant in ("q4", "int8"):
            for level in (0, 4):
                recipe = replace(RECIPES[variant], accuracy=level)
                folder = self.ensure(variant, self.work / f"level{level}", recipe)
                found = self.distance(folder, variant)
                for threads in sorted({1, os.cpu_count() or 1}):
                    model = OrtModel(folder / "onnx" / model_file(variant), threads)
                    rates = [tokens_per_second(model, self.prompt) for _ in range(self.rounds)]
                    prefill, decode = (statistics.median(values) for values in zip(*rates))
                    self.row("settings", f"{variant}, level {level}, {threads} threads",
                             prefill_per_s=prefill, decode_per_s=decode, **found)  # fmt: skip


def tokens_per_second(model, ids: list[int], count: int = 24) -> tuple[float, float]:
    """Prompt tokens per second of one prefill, and new tokens per second after it."""
    import numpy as np

    begin = time.perf_counter()
    past = model.stack(model.empty(), 1, len(ids) + count) if model.right_padded else model.empty()
    logits, past = model.run(np.array([ids]), past, [0])
    prefill = time.perf_counter() - begin
    begin = time.perf_counter()
    for step in range(count):
        token = int(logits[0, -1].argmax())
        logits, past = model.run(np.array([[token]]), past, [len(ids) + step])
    return len(ids) / prefill, count / (time.perf_counter() - begin)


def measured(command: list[str]) -> dict:
    """Seconds and peak memory (MB) of a command and its children. Raises on failure."""
    code = (
        "import json, resource, subprocess, sys, time; begin = time.perf_counter();"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True);"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
        "print(done.stderr[-600:], file=sys.stderr);"
        "print(json.dumps({'rc': done.returncode, 'seconds': time.perf_counter() - begin, 'peak': peak}))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, env=env, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["rc"]:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return {"seconds": found["seconds"], "peak_mb": found["peak"] / (1e6 if sys.platform == "darwin" else 1e3)}


def clipped_copy(source: Path, target: Path, bound: float = 32752.0) -> Path:
    """The fp32 graph with its residual stream clipped, as published fp16 builds do, over the same data file."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=lambda _, names: [n for n in names if n.startswith("model")])
    os.link(source / "onnx" / "model.onnx_data", target / "onnx" / "model.onnx_data")
    model = onnx.load(source / "onnx" / "model.onnx", load_external_data=False)
    limits = {"clip.low": -bound, "clip.high": bound}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.float32), k) for k, v in limits.items())
    nodes = []
    for node in model.graph.node:
        if node.op_type != "SkipSimplifiedLayerNormalization":
            nodes.append(node)
            continue
        stream = node.output[3] if len(node.output) > 3 else node.output[0] + ".stream"
        epsilon = next(helper.get_attribute_value(a) for a in node.attribute if a.name == "epsilon")
        nodes += [
            helper.make_node("Add", list(node.input[:2]), [stream + ".sum"]),
            helper.make_node("Clip", [stream + ".sum", *limits], [stream]),
            helper.make_node("SimplifiedLayerNormalization", [stream, node.input[2]], [node.output[0]],
                             axis=-1, epsilon=epsilon, stash_type=1),
        ]  # fmt: skip
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target / "onnx" / "model.onnx")
    return target


if __name__ == "__main__":
    main()
