"""Settings of the whole process that make JAX faster. The library itself sets none: a script may call `tune`."""

from __future__ import annotations

import ctypes
import os
import sys

YNN_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_SMALLEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_ONLY_REDUCTIONS = f"{YNN_FLAG}=reduce"
# Numbers of mallopt's parameters in glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def tune() -> None:
    """Has effect only before JAX compiles anything. The first two are for CPU, the second on Linux's glibc alone.

    1. XLA runs a convolution that it hands to YNNPACK on one core, and on all cores otherwise: jaxlib 0.10.2, two
       cores, batch 128, 32 → 32 channels, 15.6 against 7.4 ms at 32×32 and 2.7 against 1.8 ms at 16×16. So YNNPACK
       keeps reductions only, for which it is the faster. Whoever names that flag in XLA_FLAGS is left alone.
    2. XLA allocates a step's intermediate values anew in each step, and glibc by default returns them to the system in
       between: 34 800 page faults, 67 ms of system time in WRN-16-1's step of 450. Freed memory is kept instead.
    3. JAX's compilation cache, if there is one (JAX_COMPILATION_CACHE_DIR), takes small programs too: by default it
       leaves out what compiles in less than a second.
    """
    if _SMALLEST not in os.environ:
        os.environ[_SMALLEST] = "0"
        if "jax" in sys.modules:  # which has read it already
            sys.modules["jax"].config.update(_SMALLEST.lower(), 0.0)
    flags = os.environ.get("XLA_FLAGS", "")
    if YNN_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_ONLY_REDUCTIONS}".strip()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in (
            (_ARENA_MAX, 1),  # threads' own arenas map large blocks whatever the next line says
            (_MMAP_MAX, 0),
            (_TRIM_THRESHOLD, 2**31 - 1),
            (_TOP_PAD, 2**26),
        ):
            libc.mallopt(parameter, value)
