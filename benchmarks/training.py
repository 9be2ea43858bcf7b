"""Training side by side: this workbook, stock mlx-lm, mlx-lm with a fast BLAS, and Hugging Face PEFT, on the same rows.

    python benchmarks/training.py --quick              # minutes
    python benchmarks/training.py --json rows.json     # everything (half an hour on two cores)

Each row runs in a process of its own, so that peak memory is its own: one step to warm up (none for stock mlx-lm,
which takes minutes), then the median of `--steps`. Every way starts from the same adapters (B is zero, so the first
loss is the base model's), sees the same rows, and must find the same loss, or the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package

from fgtune.core import blas  # noqa: E402
from fgtune.data.batches import make_batch  # noqa: E402
from fgtune.data.rows import Row  # noqa: E402
from fgtune.format.template import TRIGGER, render  # noqa: E402
from fgtune.models.adapters import add_lora, load_model  # noqa: E402
from fgtune.models.base import resolve_base  # noqa: E402
from fgtune.training.callbacks import peak_memory_gb  # noqa: E402
from fgtune.training.choose import make_engine  # noqa: E402
from fgtune.training.config import TrainConfig  # noqa: E402
from fgtune.training.loop import apply_gradients  # noqa: E402

WAYS = {
    "ours": "this workbook, float32",
    "ours-bf16": "this workbook, bfloat16 matmuls",
    "ours-sampled": "this workbook, bfloat16 matmuls, sampled softmax",
    "ours-mlx": "this workbook, engine mlx (no torch)",
    "mlx-lm": "mlx-lm as installed",
    "mlx-lm-blas": "mlx-lm with the fast BLAS",
    "peft": "PEFT + transformers, float32",
    "peft-bf16": "PEFT + transformers, bfloat16",
}
CPU_ONLY = ("ours-bf16", "ours-sampled", "ours-mlx", "mlx-lm-blas")  # on a GPU "ours" is MLX in bfloat16
QUERY = "Please do it for the team on the third floor before the meeting starts, and keep it as short as you can, "


# ---------------------------------------------------------------- rows


def make_rows(base: Path, tools_count: int, batch: int, query_tokens: int) -> list[tuple[list[int], int, int]]:
    """(ids, first learned index, prefix length) of `batch` rows over the first `tools_count` tools.

    The shipped tools come first; more are made by renaming them. Queries are the shipped examples' own, filled up with
    a sentence to `query_tokens` (0: as they are).
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    shipped = json.loads((ROOT / "examples" / "tools" / "everyday.json").read_text())
    shipped = [tool.get("function", tool) for tool in shipped]
    tools = [
        {**shipped[i % len(shipped)], "name": shipped[i % len(shipped)]["name"] + ("" if i < len(shipped) else f"_{i}")}
        for i in range(tools_count)
    ]
    names = {tool["name"] for tool in tools}
    examples = json.loads((ROOT / "examples" / "requests" / "everyday.json").read_text())
    usable = [
        e for e in examples if e.get("expectedToolCalls") and {c["name"] for c in e["expectedToolCalls"]} <= names
    ]
    rows = []
    for i in range(batch):
        example = usable[i % len(usable)]
        query = example["userQuery"]
        if query_tokens:
            filler = tokenizer.encode(QUERY * 200, add_special_tokens=False)
            have = len(tokenizer.encode(query, add_special_tokens=False))
            query = tokenizer.decode(filler[: max(0, query_tokens - have)]) + query
        start = [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}]
        calls = [{"type": "function", "function": call} for call in example["expectedToolCalls"]]
        texts = (
            render(start[:1], tools),
            render(start, tools, add_generation_prompt=True),
            render([*start, {"role": "assistant", "tool_calls": calls}], tools),
        )
        developer, prompt, whole = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
        if whole[: len(prompt)] != prompt or prompt[: len(developer)] != developer:
            raise SystemExit("a prompt is no prefix of its row: the rows would not be comparable")
        rows.append((whole, len(prompt), len(developer)))
    return rows


# ---------------------------------------------------------------- one measurement, in a process of its own


def measure(way: str, base: Path, spec: dict) -> dict:
    """Loss of the first step, median seconds of a step, peak memory (GB)."""
    rows = make_rows(base, spec["tools"], spec["batch"], spec["query"])
    if way.startswith("ours"):
        step = ours(way, base, spec, rows)
    elif way.startswith("mlx-lm"):
        step = mlx_lm(way, base, spec, rows)
    else:
        step = peft(way, base, spec, rows)
    tokens = sum(len(ids) for ids, *_ in rows)
    slow = way == "mlx-lm"
    times, loss = [], None
    for i in range(spec["steps"] + (0 if slow else 1)):
        start = time.perf_counter()
        value = step()
        times.append(time.perf_counter() - start)
        loss = value if loss is None else loss
        if slow and i == 0 and times[0] > 60:
            break
    seconds = statistics.median(times if slow else times[1:])
    return {
        **spec,
        "way": way,
        "loss": loss,
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "rows_tokens": tokens,
        "prefix": rows[0][2],
        "peak_gb": peak_gb(),
    }


def peak_gb() -> float:
    """Peak memory of the device, or of this process."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        taken = sys.modules["torch"].cuda.max_memory_allocated() / 1e9
        if taken > 0.1:
            return taken
    return peak_memory_gb()


def ours(way, base, spec, rows):
    """One step of `fgtune.training.loop.train`: loss, gradients, clipping, optimiser."""
    import mlx.optimizers as optimizers

    mx = blas.mlx()
    model, _ = load_model(base)
    add_lora(model, spec["rank"], 20.0)
    config = TrainConfig(
        engine="mlx" if way == "ours-mlx" else "auto",
        precision="bfloat16" if way in ("ours-bf16", "ours-sampled") else "auto",
        softmax="sampled" if way == "ours-sampled" else "exact",
    )
    data = [Row(tuple(ids), tuple(i >= first for i in range(len(ids))), prefix) for ids, first, prefix in rows]
    engine = make_engine(model, config, data)
    optimizer = optimizers.AdamW(learning_rate=1e-5)
    mx.reset_peak_memory()

    def step():
        batch = make_batch(data)
        total, gradients = engine.gradients(batch)
        apply_gradients(model, optimizer, gradients, 1 / len(batch.targets), 1.0)
        return total / len(batch.targets)

    return step


def mlx_lm(way, base, spec, rows):
    """One step as mlx-lm's trainer makes it (compiled, `default_loss`), on its own batch layout."""
    if way == "mlx-lm-blas":
        mx = blas.mlx()
        mx.enable_compile()
    else:
        import mlx.core as mx
    from functools import partial

    import mlx.nn as nn
    import mlx.optimizers as optimizers
    from mlx_lm.tuner.trainer import default_loss, iterate_batches
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load

    model, _ = load(str(base))
    gpu = mx.default_device() == mx.gpu
    model.set_dtype(mx.bfloat16 if gpu else mx.float32)
    model.freeze()
    parameters = {"rank": spec["rank"], "scale": 20.0, "dropout": 0.0}
    linear_to_lora_layers(model, len(model.layers), parameters)
    model.train()
    optimizer = optimizers.AdamW(learning_rate=1e-5)
    if not gpu:
        mx.disable_compile()  # its kernels are built by g++ when first run: minutes that no step should be charged with
    state = [model.state, optimizer.state, mx.random.state]
    gradient = nn.value_and_grad(model, default_loss)

    @partial(mx.compile, inputs=state, outputs=state)
    def compiled(batch, lengths):
        (value, _), tree = gradient(model, batch, lengths)
        optimizer.update(model, tree)
        return value

    data = [(ids, first) for ids, first, _ in rows]
    longest = max(len(ids) for ids, *_ in rows) + 33
    batch = next(iterate_batches(data, len(data), longest))

    def step():
        value = compiled(*batch)
        mx.eval(value, state)
        return value.item()

    return step


def peft(way, base, spec, rows):
    """One step of PEFT's LoRA on all linear layers, labels only where something is learned."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if way == "peft-bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=dtype, attn_implementation="sdpa").to(device)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    rank = spec["rank"]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=20 * rank, target_modules=targets))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.01)
    width = max(len(ids) for ids, *_ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, *_ in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, *_ in rows], device=device)
    labels = torch.tensor(
        [[-100] * first + row[first:] + [-100] * (width - len(row)) for row, first, _ in rows], device=device
    )

    def step():
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


# ---------------------------------------------------------------- the table


def run(way: str, base: Path, spec: dict, limit: int) -> dict:
    """`measure` in a new process; a failure or a time-out becomes a row that says so."""
    command = [sys.executable, __file__, "--child", json.dumps({"way": way, "base": str(base), "spec": spec})]
    environment = {**os.environ, "FGTUNE_BLAS": "off"} if way == "mlx-lm" else dict(os.environ)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        return {**spec, "way": way, "error": f"longer than {limit} s", "longer_than": limit}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        killed = " (killed: out of memory?)" if done.returncode == -9 else ""
        return {**spec, "way": way, "error": f"exit {done.returncode}{killed}: {last}"}
    return json.loads(lines[-1])


def table(rows: list[dict]) -> str:
    """The rows as Markdown, with the ratio to this workbook's float32 row of the same case."""
    out = ["| what | tools | batch | query | s/step | tokens/s | peak GB | loss | ÷ ours |", "|---|" + "---:|" * 8]
    for row in rows:
        what = f"| {WAYS[row['way']]} | {row['tools']} | {row['batch']} | {row['query'] or 'as shipped'} "
        if "error" in row:
            out.append(what + f"| {row['error']} |||||")
            continue
        mine = next((r for r in rows if r["way"] == "ours" and same_case(r, row) and "error" not in r), None)
        ratio = f"{row['seconds_per_step'] / mine['seconds_per_step']:.2f}" if mine else ""
        out.append(
            what + f"| {row['seconds_per_step']:.2f} | {row['tokens_per_second']:.0f} | {row['peak_gb']:.1f} "
            f"| {row['loss']:.4f} | {ratio} |"
        )
    return "\n".join(out)


def same_case(a: dict, b: dict) -> bool:
    """Whether two rows measured the same batch."""
    return all(a[key] == b[key] for key in ("tools", "batch", "query", "rank"))


def verdicts(rows: list[dict]) -> list[str]:
    """The promised ratios, each with what was found."""
    found = []
    main = {row["way"]: row for row in rows if "error" not in row and row.get("main")}
    mine = main.get("ours")
    if not mine:
        return ["this workbook's own row is missing"]
    for way, least in (("mlx-lm", 100), ("mlx-lm-blas", 10)):
        if way in main:
            ratio = main[way]["seconds_per_step"] / mine["seconds_per_step"]
            found.append(f"{WAYS[way]}: {ratio:.1f}x slower (at least {least}x wanted)")
    for row in rows:
        if row.get("main") and "longer_than" in row:
            ratio = row["longer_than"] / mine["seconds_per_step"]
            found.append(f"{WAYS[row['way']]}: no step within {ratio:.0f} of ours, its start included")
    others = [main[w] for w in ("peft", "peft-bf16") if w in main]
    if others:
        best = min(others, key=lambda row: row["seconds_per_step"])
        ratio = best["seconds_per_step"] / mine["seconds_per_step"]
        found.append(f"fastest of PEFT ({WAYS[best['way']]}): {ratio:.1f}x slower (at least 6x wanted)")
    memory = [main[w]["peak_gb"] for w in ("mlx-lm", "mlx-lm-blas") if w in main]
    if memory:
        found.append(f"peak memory of mlx-lm: {max(memory) / mine['peak_gb']:.1f}x (at least 4x wanted)")
    for way, row in main.items():
        # mlx-lm also scores one pad token a row, so its loss differs by that; PEFT's must agree
        exact = "bfloat16" not in WAYS[way] + WAYS["ours"]
        if way.startswith("peft") and abs(row["loss"] - mine["loss"]) > (1e-3 if exact else 0.05):
            found.append(f"the loss of {WAYS[way]} differs: {row['loss']:.4f} against {mine['loss']:.4f}")
    return found


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="pypi:gemma3-270m", help="base model, as in the notebooks")
    parser.add_argument("--json", type=Path, help="write every row to this file")
    parser.add_argument("--quick", action="store_true", help="batch 2, two tools, without stock mlx-lm")
    parser.add_argument("--ways", default="", help=f"comma-separated, of {', '.join(WAYS)}")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--batch", type=int, default=4, help="rows of the comparison: mlx-lm and PEFT do not fit 8 into 24 GB"
    )
    parser.add_argument("--tools", type=int, default=6)
    parser.add_argument("--no-growth", action="store_true", help="leave out tools 2 to 20, batch 1 to 32, long queries")
    parser.add_argument("--limit", type=int, default=1800, help="seconds for one row")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        job = json.loads(options.child)
        print(json.dumps(measure(job["way"], Path(job["base"]), job["spec"])))
        return
    mx = blas.mlx()
    base = resolve_base(options.base).path
    ways = [w for w in options.ways.split(",") if w] or list(WAYS)
    unknown = sorted(set(ways) - set(WAYS))
    if unknown:
        parser.error(f"unknown way {unknown[0]}; known: {', '.join(WAYS)}")
    if mx.default_device() == mx.gpu:
        WAYS["ours"] = "this workbook, bfloat16"
        ways = [w for w in ways if w not in CPU_ONLY]
    if options.quick:
        options.batch, options.tools, options.steps, options.no_growth = 2, 2, 1, True
        ways = [w for w in ways if w != "mlx-lm"]
    standard = {
        "tools": options.tools,
        "batch": options.batch,
        "query": 0,
        "rank": options.rank,
        "steps": options.steps,
        "main": True,
    }
    cases = [(way, standard) for way in ways]
    if not options.no_growth:
        growth = [{"tools": n} for n in (2, 20)] + [{"batch": n} for n in (1, 2, 8, 16, 32)]
        growth += [{"query": n} for n in (64, 256)]
        for change in growth:
            spec = {**standard, **change, "main": False, "steps": 1}
            cases += [(way, spec) for way in ("ours", "ours-bf16", "ours-sampled") if way in ways]
    rows = []
    for way, spec in cases:
        row = run(way, base, spec, options.limit)
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
        if options.json:
            options.json.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")
    print("\n" + table(rows) + "\n")
    print("\n".join(verdicts(rows)))


def machine() -> dict:
    """What the numbers were measured on."""
    report = blas.device_report()
    return {
        "device": f"{report['device']} {report['name']}",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
