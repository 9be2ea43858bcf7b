"""What stage 01 costs: the seconds of each cell of its notebook, and the peak of its memory.

    python benchmarks/data.py --rows 100000 --json rows.json
    python benchmarks/data.py --tools snips/tools.json --examples snips --max-seq-length 4096

The code cells of 00_setup and of 01_data run one after the other in this process, as Jupyter would run them, on a run
in a temporary folder. `--rows` takes so many of the examples; where it asks for more than there are, the rest are
variants of them: what stands word for word in the request and in the call becomes a made-up name in both, so that no
row is an exact repeat. `--hashes` also writes the SHA-256 of each file that the stage made.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import multiprocessing
import os
import platform
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package
SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", type=Path, default=ROOT / "examples" / "tools" / "everyday.json")
    parser.add_argument("--examples", type=Path, default=ROOT / "examples" / "requests" / "everyday.json")
    parser.add_argument("--rows", type=int, default=0, help="examples to read; 0: the file or folder as it is")
    parser.add_argument("--base", default="pypi:gemma3-270m", help="base model, as in the notebooks")
    parser.add_argument("--max-seq-length", type=int, default=4096)
    parser.add_argument("--show", action="store_true", help="print what the cells print")
    parser.add_argument("--hashes", action="store_true", help="the SHA-256 of each file that the stage wrote")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        examples = options.examples.resolve()
        if options.rows:
            examples = folder / "rows.jsonl"
            write_rows(examples, options.tools, options.examples, options.rows)
        given = {"run_dir": str(folder / "run")}
        setup = multiprocessing.get_context("spawn").Process(  # not here: it converts a model, which takes memory
            target=run_notebook, args=("00_setup", {**given, "base_model": options.base}, options.show)
        )
        setup.start()
        setup.join()
        given |= {"tools_file": str(options.tools.resolve()), "examples_file": str(examples)}
        before = time.perf_counter()
        steps, names = run_notebook("01_data", {**given, "max_seq_length": options.max_seq_length}, options.show)
        seconds = time.perf_counter() - before
        written = json.loads((folder / "run" / "01_data" / "stage.json").read_text(encoding="utf-8"))["outputs"]
    result = {
        "rows": len(names["examples"]), "training_rows": len(names["rows"]), "seconds": round(seconds, 1),
        "peak_gb": round(peak_gb(), 2), "steps": steps,
        "bytes": {name: each["bytes"] for name, each in written.items()},
        "processor_seconds": round(time.process_time(), 1),
        "cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version(),
    }  # fmt: skip
    if options.hashes:
        result["hashes"] = {name: each["sha256"] for name, each in written.items()}
    print("   clock  processor    peak   step")
    for step in steps:
        print(
            f"{step['seconds']:>8.1f} s {step['processor_seconds']:>8.1f} s {step['peak_gb']:>6.2f} GB  {step['step']}"
        )
    whole = f"{seconds:>8.1f} s {result['processor_seconds']:>8.1f} s {result['peak_gb']:>6.2f} GB"
    print(f"{whole}  {result['rows']:,} rows, {result['training_rows']:,} trained")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def run_notebook(name: str, given: dict, show: bool) -> tuple[list[dict], dict]:
    """Run the code cells of a notebook with these parameters; seconds and peak memory of each, and what they named."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    names, steps, heading, last = {"__name__": "__main__"}, [], "", ""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            heading = next((line.lstrip("# ") for line in source.splitlines() if line.startswith("#")), heading)
            continue
        begin, used = time.perf_counter(), time.process_time()
        with contextlib.nullcontext() if show else contextlib.redirect_stdout(io.StringIO()):
            run_cell(source, names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(given)
        label = heading if heading != last else f"{heading} (more)"
        last, seconds = heading, round(time.perf_counter() - begin, 2)
        used = round(time.process_time() - used, 2)
        steps.append({"step": label, "seconds": seconds, "processor_seconds": used, "peak_gb": round(peak_gb(), 2)})
    return steps, names


def run_cell(source: str, names: dict) -> None:
    """Run a cell; its last expression is shown in the forms that Jupyter asks for."""
    tree = ast.parse(source)
    shown = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if shown:
        value = eval(compile(ast.Expression(shown.value), "<cell>", "eval"), names)
        if value is not None:
            for kind in ("_repr_html_", "_repr_png_"):
                getattr(value, kind, lambda: None)()
            print(repr(value))


def write_rows(path: Path, tools: Path, examples: Path, count: int) -> None:
    """Write `count` chat rows in the order of the examples, with variants of them where there are too few."""
    from fgtune.data.readers.examples import read_examples
    from fgtune.data.readers.tools import read_tools

    rng, rows = random.Random(7), read_examples(examples.resolve(), read_tools(tools.resolve()))
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {key: value for key, value in rows[number % len(rows)].items() if key != "tools"}
            if number >= len(rows):
                row = vary(row, rng)
                row["id"] = f"{row['id']}-{number // len(rows)}"
                row.pop("split", None)  # held-out examples stay as many as they are
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def vary(row: dict, rng: random.Random) -> dict:
    """A chat row with a made-up name for each text that stands in the request and in a call; a name at its end if none
    does."""
    text = json.dumps(row["messages"], ensure_ascii=False)
    messages = json.loads(text)
    request = next(message for message in messages if message["role"] == "user")
    made = lambda: "".join(rng.choices(SYLLABLES, k=3))
    found = [v for m in messages for c in m.get("tool_calls", []) for v in c["function"]["arguments"].values()]
    said = {v: made() for v in found if isinstance(v, str) and len(v) > 2 and v in request["content"]}
    for message in messages:
        for call in message.get("tool_calls", []):
            arguments = call["function"]["arguments"]
            arguments |= {key: said[v] for key, v in arguments.items() if isinstance(v, str) and v in said}
    for value in sorted(said, key=len, reverse=True):
        request["content"] = request["content"].replace(value, said[value])
    if not said:
        request["content"] += f" {made()} {made()}"
    return {**row, "messages": messages}


def peak_gb() -> float:
    """The most memory that this process has held, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    sys.exit(main())
