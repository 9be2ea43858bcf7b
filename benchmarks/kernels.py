"""The WebAssembly kernels under Node beside onnxruntime in Python: tokens per second, memory, the same tokens.

    python benchmarks/kernels.py --run runs/quickstart --json rows.json
    python benchmarks/kernels.py --run runs/quickstart --ways simd1,relaxed1,ort1 --rounds 5

`--run` is a finished run: its prompts and recorded answers of stage 08 are fed, so every way does the same work, and
the likeliest token is compared with the recorded one at each place. A way is a build (`relaxed`, `simd`) or `ort`, and
its threads. Ways take turns, one prompt each; medians with the least and the most. `cpu` columns are processor time:
on a busy machine they tell more than the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package

from fgtune.core.files import write_json  # noqa: E402
from fgtune.engines.ort import OrtModel  # noqa: E402
from fgtune.export.layout import model_file  # noqa: E402
from fgtune.runtimes.node import NodeProcess  # noqa: E402
from fgtune.site.kernel_layout import kernel_layout  # noqa: E402

CAPACITY = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--variants", default="q4")
    parser.add_argument("--ways", default="relaxed1,relaxed2,ort1,ort2")
    parser.add_argument("--answers", type=int, default=2, help="prompts in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every row here")
    options = parser.parse_args()
    rows = []
    for variant in options.variants.split(","):
        rows += compare(options.run, variant, options.ways.split(","), options.answers, options.rounds)
    if options.json:
        write_json(options.json, rows)


def compare(run: Path, variant: str, names: list[str], answers: int, rounds: int) -> list[dict]:
    """Rows of one variant: one a way."""
    model = run / "07_quantize"
    prompts = json.loads((run / "08_test_onnx" / "prompts.json").read_text(encoding="utf-8"))
    recorded = json.loads((run / "08_test_onnx" / f"tokens_{variant}.json").read_text(encoding="utf-8"))
    ways = {name: (Onnxruntime if name.startswith("ort") else Kernels)(model, variant, name) for name in names}
    found: dict[str, list[dict]] = {name: [] for name in names}
    for way in ways.values():
        way.answer(prompts[0], recorded[0][:2])  # compiled and in memory
    for _ in range(rounds):
        for prompt, answer in list(zip(prompts, recorded, strict=True))[:answers]:
            for name, way in ways.items():
                result = way.answer(prompt, answer)
                same = sum(a == b for a, b in zip(result.pop("chosen"), answer, strict=False))
                found[name].append(result | {"prompt": len(prompt), "tokens": len(answer), "same": same})
    rows = [summary(variant, name, ways[name], results) for name, results in found.items()]
    for way in ways.values():
        way.close()
    return rows


def summary(variant: str, name: str, way, results: list[dict]) -> dict:
    """Medians of one way, printed."""

    def spread(values: list[float]) -> list[float]:
        return [round(value, 1) for value in (statistics.median(values), min(values), max(values))]

    row = {"variant": variant, "way": name, "load_s": round(way.load, 2), "mb": round(way.megabytes())}
    row["same"] = f"{sum(r['same'] for r in results)} of {sum(r['tokens'] for r in results)}"
    row["prefill_per_s"] = spread([r["prompt"] / r["prefill"] for r in results])
    row["decode_per_s"] = spread([r["tokens"] / r["decode"] for r in results])
    row["prefill_cpu_ms_a_token"] = spread([1000 * r["prefill_cpu"] / r["prompt"] for r in results])
    row["decode_cpu_ms_a_token"] = spread([1000 * r["decode_cpu"] / r["tokens"] for r in results])
    print(json.dumps(row), flush=True)
    return row


class Kernels:
    """The kernels in a Node process of their own."""

    def __init__(self, model: Path, variant: str, name: str):
        self.node = NodeProcess(ROOT / "benchmarks" / "kernels.mjs")
        job = {"layout": kernel_layout(model, variant), "folder": str((model / "onnx").resolve())}
        build, threads = name[:-1], int(name[-1])
        loaded = next(self.node.ask(job | {"op": "load", "build": build, "threads": threads, "capacity": CAPACITY}))
        self.load = loaded["seconds"]
        if build == "relaxed" and not loaded["relaxed"]:
            print("this Node has no relaxed SIMD: the plain build runs")

    def answer(self, prompt: list[int], answer: list[int]) -> dict:
        result = next(self.node.ask({"op": "answer", "prompt": prompt, "answer": answer}))
        self.rss = result.pop("rss")
        return result

    def megabytes(self) -> float:
        return self.rss / 1e6

    def close(self) -> None:
        self.node.close()


class Onnxruntime:
    """The same graph on onnxruntime, in this process."""

    def __init__(self, model: Path, variant: str, name: str):
        begin = time.perf_counter()
        self.model = OrtModel(model / "onnx" / model_file(variant), int(name[-1]))
        self.load = time.perf_counter() - begin

    def answer(self, prompt: list[int], answer: list[int]) -> dict:
        cpu, begin = time.process_time(), time.perf_counter()
        logits, past = self.model.run(np.array([prompt]), self.model.stack(self.model.empty(), 1, CAPACITY), [0])
        chosen = [int(logits[0, -1].argmax())]
        middle, read = time.perf_counter(), time.process_time()
        for i, token in enumerate(answer):
            logits, past = self.model.run(np.array([[token]]), past, [len(prompt) + i])
            chosen.append(int(logits[0, -1].argmax()))
        return {"prefill": middle - begin, "decode": time.perf_counter() - middle, "chosen": chosen,
                "prefill_cpu": read - cpu, "decode_cpu": time.process_time() - read}  # fmt: skip

    def megabytes(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def close(self) -> None:
        pass


if __name__ == "__main__":
    main()
