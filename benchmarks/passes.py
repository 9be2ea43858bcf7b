"""Passes, speed and answers of constrained decoding on onnxruntime: plain, with drafts, and in batches.

    python benchmarks/passes.py --data runs/quickstart/01_data --onnx runs/quickstart/07_quantize --variant q4
    python benchmarks/passes.py --data ... --onnx ... --variant int8 --rounds 1 --json rows.json

`--data` is the folder of stage 01, `--onnx` one of stage 06 or 07. Answers one by one: `plain`, `jump-forward` (what
the grammar forces), `+ lookup` (what followed the same tokens in the dialogue), `+ n-gram` (what followed them in the
training answers). Answers in batches, as `score` asks for them: `mask a token` with the mask over the vocabulary made
and applied at every token, `batches` as it is. The rounds go through all of them in turn. Tokens a second (the stop
token is one) and seconds are medians with least and most, and include the passes over the prompts behind their shared
prefix, as `passes` does. `cpu_s` is processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--data", type=Path, required=True, help="folder of stage 01")
    parser.add_argument("--variant", default="q4")
    parser.add_argument("--only", default="", help="ways to decode, separated by commas (default: all)")
    parser.add_argument("--cases", type=int, help="the first so many held-out cases (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--threads", type=int, help="of onnxruntime (default: one per core)")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--json", type=Path, help="write every row here")
    options = parser.parse_args()
    rows = Bench(options).rows()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


class Bench:
    """One model, all ways to decode with it."""

    def __init__(self, options: argparse.Namespace):
        from fgtune.data.readers.files import read_json
        from fgtune.data.rows import load_cases, load_rows
        from fgtune.models.tokenizer_files import load_tokenizer
        from fgtune.runtimes.constrained import Grammar
        from fgtune.runtimes.drafts import Drafts, NgramTable
        from fgtune.runtimes.onnxruntime import OrtGenerator

        self.options = options
        self.cases = load_cases(options.data, "test")[: options.cases]
        self.grammar = Grammar(options.onnx, read_json(options.data / "verbatim_arguments.json"))
        self.grammar.tokens  # noqa: B018  seconds, once for all answers
        self.generator = OrtGenerator(options.onnx, options.variant, options.max_tokens, threads=options.threads)
        begin = time.perf_counter()
        table = NgramTable.of_rows(load_rows(options.data, "train", load_tokenizer(options.onnx)))
        print(f"n-gram table: {len(table)} entries, {time.perf_counter() - begin:.1f} s with reading the rows")
        ways = {
            "plain": (1, None, False),
            "jump-forward": (1, Drafts(lookup=False), False),
            "+ lookup": (1, Drafts(), False),
            "+ n-gram": (1, Drafts(table), False),
            "mask a token": (self.generator.batch_size, None, True),
            "batches": (self.generator.batch_size, None, False),
        }
        self.ways = {name: ways[name] for name in (options.only.split(",") if options.only else ways)}
        self.passes: list[tuple[int, int]] = []  # (rows, tokens of a row) of each run of the model
        run = self.generator.model.run
        self.generator.model.run = lambda ids, *a, **k: self.passes.append(ids.shape) or run(ids, *a, **k)

    def measure(self, way: str) -> dict:
        """Answers to all cases, and what they took."""
        generator, (batch_size, drafts, masked) = self.generator, self.ways[way]
        generator.batch_size, generator.drafts = batch_size, drafts
        prompts = [case.prompt for case in self.cases]
        constraints = [self.grammar.constraint(case.tools, case.prompt) for case in self.cases]
        for constraint in constraints if masked else ():
            constraint.choose = lambda scores, constraint=constraint: choose_by_mask(constraint, scores)
        self.passes.clear()
        begin, cpu = time.perf_counter(), time.process_time()
        ids = [list(answer) for answer in generator.generate_ids(prompts, constraints)]
        return {"ids": ids, "seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu,
                "passes": len(self.passes), "run": sum(batch * count for batch, count in self.passes)}  # fmt: skip

    def rows(self) -> list[dict]:
        """A row for each way, printed as well."""
        self.generator.max_tokens = 0  # the shared prefix, and no answer
        self.generator.generate_ids([case.prompt for case in self.cases])
        self.generator.max_tokens = self.options.max_tokens
        found = {way: [] for way in self.ways}
        for number in range(self.options.rounds):
            for way in self.ways:
                found[way].append(self.measure(way))
                took = found[way][-1]
                print(f"round {number + 1}  {way:<13} {took['seconds']:.2f} s, cpu {took['cpu']:.2f} s", flush=True)
        reference, rows = next(iter(found.values()))[0]["ids"], []
        for way, rounds in found.items():
            last, count = rounds[-1], len(self.cases)
            tokens = sum(len(ids) + 1 for ids in last["ids"])  # and the stop token
            seconds = [each["seconds"] for each in rounds]
            row = {
                "variant": self.options.variant,
                "way": way,
                "answers": count,
                "same": sum(ids == other for ids, other in zip(last["ids"], reference)),
                "tokens": tokens / count,
                "passes": last["passes"] / count,
                "tokens_run": last["run"] / count,
                "tokens_per_pass": tokens / last["passes"],
                "tokens_per_s": tokens / statistics.median(seconds),
                "tokens_per_s_range": [tokens / max(seconds), tokens / min(seconds)],
                "seconds": statistics.median(seconds),
                "seconds_range": [min(seconds), max(seconds)],
                "cpu_s": statistics.median(each["cpu"] for each in rounds),
            }
            rows.append(row)
            rates, spread = row["tokens_per_s_range"], f"({min(seconds):.1f}–{max(seconds):.1f})"
            print(f"{row['variant']:<5} {way:<13} {row['same']} of {count} the same  passes {row['passes']:.1f}  "
                  f"tokens a pass {row['tokens_per_pass']:.2f}  tokens/s {row['tokens_per_s']:.0f} "
                  f"({rates[0]:.0f}–{rates[1]:.0f})  seconds {row['seconds']:.1f} {spread}  cpu {row['cpu_s']:.1f}",
                  flush=True)  # fmt: skip
        return rows


def choose_by_mask(constraint, scores) -> int:
    """The likeliest token that is allowed, by a mask over the whole vocabulary."""
    import numpy as np

    token = int(np.where(constraint.allowed(), scores, -np.inf).argmax())
    constraint.advance(token)
    return token


if __name__ == "__main__":
    main()
