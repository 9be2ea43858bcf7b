"""Compile decoder.c to the WebAssembly files beside it, by clang and wasm-ld of the PyPI package `ziglang`.

    pip install -e ".[kernels]" && python web/kernels/build.py [--out FOLDER]

The files are committed, since nobody needs a compiler to use the page; `build.json` says of which source they are. The
same version of the package gives the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE, RECORD = HERE / "decoder.c", HERE / "build.json"
# fmt: off
COMPILE = ("--target=wasm32-freestanding", "-std=c11", "-O3", "-ffreestanding", "-nostdlibinc", "-ffp-contract=off",
           "-Wall", "-Wextra", "-Werror", "-msimd128", "-mbulk-memory", "-mnontrapping-fptoint", "-msign-ext",
           "-mmutable-globals",
           "-mllvm", "-disable-lsr")  # LLVM's loop strength reduction turns offsets of loads into additions
LINK = ("--no-entry", "--import-memory", "--export=__stack_pointer", "--stack-first", "-z", "stack-size=32768",
        "--strip-all")
# fmt: on
THREADS, SHARED = ("-matomics",), ("--shared-memory", f"--max-memory={1 << 32}")
RELAXED = ("-mrelaxed-simd",)
#: file -> flags of the compiler, flags of the linker
BUILDS = {
    "single.simd.wasm": ((), ()),
    "single.relaxed.wasm": (RELAXED, ()),
    "threads.simd.wasm": (THREADS, SHARED),
    "threads.relaxed.wasm": (THREADS + RELAXED, SHARED),
}


def compiler() -> str:
    """`ziglang` and its version. Raises PackageNotFoundError where it is not installed."""
    return f"ziglang {importlib.metadata.version('ziglang')}"


def build(out: Path) -> dict:
    """Write the four files to `out`; returns the record: the compiler, and SHA-256 of the source and of each file."""
    files = {}
    headers = Path(importlib.util.find_spec("ziglang").origin).parent / "lib" / "include"
    with tempfile.TemporaryDirectory() as folder:
        for name, (compile_flags, link_flags) in BUILDS.items():
            made = Path(folder) / "decoder.o"
            zig("clang", *COMPILE, *compile_flags, "-isystem", headers, "-c", SOURCE.name, "-o", made)
            zig("wasm-ld", *LINK, *link_flags, made, "-o", out / name)
            (out / name).chmod(0o644)
            files[name] = sha256(out / name)
    return {"compiler": compiler(), "source": sha256(SOURCE), "files": files}


def zig(*command) -> None:
    """Run one of the package's programs; its messages go to the terminal."""
    subprocess.run([sys.executable, "-m", "ziglang", *map(str, command)], check=True, cwd=HERE)


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the files (default: here)")
    options = parser.parse_args()
    out = options.out.resolve()
    record = build(out)
    (out / RECORD.name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name in record["files"]:
        print(f"{name}: {(out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
