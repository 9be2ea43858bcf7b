"""A fast BLAS for MLX on Linux CPU, put in place before MLX is imported.

The `mlx-cpu` wheel links netlib's reference BLAS, thirty times slower than the processor allows. A library loaded
with RTLD_GLOBAL first takes over the symbols `cblas_sgemm` and `sgemm_`. macOS (Accelerate, Metal) and CUDA are
never touched. `FGTUNE_BLAS=off` switches it off, `FGTUNE_BLAS=/path/to/lib.so` names one library. It stands in core,
since every module that uses MLX imports MLX through `mlx()` below.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import glob
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "FGTUNE_BLAS"
SYSTEM_FOLDERS = (
    "/usr/lib/*-linux-gnu/openblas-pthread",
    "/usr/lib/*-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)


_report: BlasReport | None = None
_compile_decided = False


@dataclass(frozen=True)
class BlasReport:
    """What multiplies MLX's matrices: `library` (path, or what MLX brings), `gflops` in float32, `reason` in a line."""

    active: bool
    library: str
    reason: str
    gflops: float | None = None
    correct: bool = True

    def __str__(self) -> str:
        speed = "" if self.gflops is None else f", {self.gflops:.0f} GFLOP/s in float32"
        return f"{self.library}{speed} ({self.reason})"


def use_fast_blas() -> BlasReport:
    """Load a fast BLAS before MLX on Linux CPU, check it against NumPy, report; never raises, acts once a process."""
    global _report
    if _report is None:
        _report = _decide()
    return _report


def mlx():
    """`mlx.core`, with the fast BLAS in place: the one way this package imports MLX.

    On Linux CPU `mx.compile` is switched off: there it builds each fused kernel with g++ when it is first used
    (minutes for mlx-lm's trainer), and one thread computes its result no faster (GELU: 33 ns an element, 31 without).
    """
    global _compile_decided
    use_fast_blas()
    import mlx.core as mx

    if not _compile_decided:
        _compile_decided = True
        if sys.platform == "linux" and mx.default_device() == mx.cpu:
            mx.disable_compile()
    return mx


def device_report() -> dict:
    """Device, dtype of training, BLAS and its GFLOP/s, cores and memory (GB), as a dict of plain values."""
    report = use_fast_blas()
    mx = mlx()
    gpu = mx.default_device() == mx.gpu
    backend = "CPU"
    if gpu:
        backend = "Metal" if mx.metal.is_available() else "CUDA"
    info = {}
    try:
        info = mx.device_info()
    except (AttributeError, RuntimeError):
        pass  # an older MLX
    return {
        "device": backend,
        "name": str(info.get("device_name") or platform.processor() or platform.machine()),
        "dtype": "bfloat16" if gpu else "float32",
        "blas": report.library,
        "gflops": report.gflops if report.gflops is not None else measure_gflops(mx)[0],
        "blas_note": report.reason,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
    }


def measure_gflops(mx, shape=(512, 640, 2048)) -> tuple[float, bool]:
    """GFLOP/s of one float32 matmul `[m, k] x [n, k]^T` on MLX's default device, and whether it agrees with NumPy."""
    import numpy as np

    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, k), dtype=np.float32) for rows in (m, n))
    x, y = mx.array(a), mx.array(b)
    mx.eval(x, y)
    small = np.array(x[:64] @ y[:96].T)
    correct = bool(np.allclose(small, a[:64].astype(np.float64) @ b[:96].T.astype(np.float64), atol=1e-3, rtol=1e-3))
    best = float("inf")
    for _ in range(4):  # the first one also starts the threads
        start = time.perf_counter()
        mx.eval(x @ y.T)
        best = min(best, time.perf_counter() - start)
        if best > 0.2:
            break  # the reference BLAS: no need to wait for more
    return 2 * m * k * n / best / 1e9, correct


def candidates() -> list[str]:
    """Libraries to try, best first: OpenBLAS of this environment, then of the system, then the one torch carries."""
    found = []
    environment = Path(sys.prefix, "lib")
    for folder in (str(environment), os.path.join(os.environ.get("CONDA_PREFIX", sys.prefix), "lib")):
        found += sorted(glob.glob(os.path.join(folder, "libopenblas.so*")))
    named = ctypes.util.find_library("openblas")
    if named:
        found.append(named)
    for folder in SYSTEM_FOLDERS:
        found += sorted(glob.glob(os.path.join(folder, "libopenblas.so*")))
        found += sorted(glob.glob(os.path.join(folder, "libopenblasp.so*")))
    torch = importlib.util.find_spec("torch")
    for folder in (torch.submodule_search_locations or []) if torch else []:
        found += glob.glob(os.path.join(folder, "lib", "libtorch_cpu.so"))
    return list(dict.fromkeys(found))


def library_works(path: str) -> bool:
    """Whether the library multiplies 2x3 by 3x2 right through Fortran's `sgemm_` with 32-bit sizes."""
    try:
        sgemm = ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL).sgemm_
    except (OSError, AttributeError):
        return False
    # Sizes are stored as 64-bit numbers, so that a library with 64-bit sizes reads the same values.
    m, n, k = (ctypes.c_int64(v) for v in (2, 2, 3))
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    a = (ctypes.c_float * 6)(1, 2, 3, 4, 5, 6)  # columns: [1 3 5; 2 4 6]
    b = (ctypes.c_float * 6)(1, 0, 2, 0, 1, 3)  # columns: [1 0; 0 1; 2 3]
    c = (ctypes.c_float * 4)()
    plain = ctypes.c_char(b"N")
    by = ctypes.byref
    sgemm(by(plain), by(plain), by(m), by(n), by(k), by(one), a, by(m), b, by(k), by(zero), c, by(m))
    return list(c) == [11, 14, 18, 22]


def _decide() -> BlasReport:
    stock = "the BLAS that MLX brings"
    if sys.platform != "linux":
        return BlasReport(False, stock, f"nothing to do on {sys.platform}")
    if _has_cuda_wheel():
        return BlasReport(False, stock, "nothing to do with CUDA")
    choice = os.environ.get(ENVIRONMENT, "").strip()
    if choice.lower() in ("off", "0", "no", "false"):
        return _measured(BlasReport(False, stock, f"switched off by {ENVIRONMENT}={choice}"))
    if "mlx.core" in sys.modules:
        return _measured(
            BlasReport(
                False, stock, "MLX was imported before the fast BLAS: call use_fast_blas() first in a new kernel"
            )
        )
    named = choice and choice.lower() not in ("auto", "on")
    for path in [choice] if named else candidates():
        if not library_works(path):
            continue
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        source = "torch's own library" if "libtorch_cpu" in path else "OpenBLAS"
        reason = f"named by {ENVIRONMENT}" if named else f"{source}, loaded first"
        report = _measured(BlasReport(True, path, reason))
        if report.active and not report.correct:
            wrong = f"{path} gives wrong products: set {ENVIRONMENT}=off and start again"
            return BlasReport(True, path, wrong, report.gflops, correct=False)
        return report
    missing = "no fast BLAS found: apt install libopenblas0-pthread"
    if named:
        missing = f"{choice} is no BLAS that can be loaded"
    return _measured(BlasReport(False, stock, missing))


def _measured(report: BlasReport) -> BlasReport:
    """The report with GFLOP/s and the comparison with NumPy filled in, or the reason why MLX cannot be used."""
    try:
        import mlx.core as mx

        gflops, correct = measure_gflops(mx)
    except Exception as error:  # a broken or missing MLX is reported here and raises where MLX is really needed
        return BlasReport(False, report.library, f"MLX cannot be used: {error}")
    return BlasReport(report.active, report.library, report.reason, round(gflops, 1), correct)


def _has_cuda_wheel() -> bool:
    for name in ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13"):
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return True
    return False


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None
