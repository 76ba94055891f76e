"""The process-wide settings, each in a process of its own."""

import itertools
import os
import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
from experiments import process
if sys.argv[1] == "tuned":
    process.tune()
import jax, jax.numpy as jnp
images, kernel = jnp.ones((32, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
def step(images, kernel):
    y = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y, y.sum((0, 1, 2))
compiled = jax.jit(step).lower(images, kernel).compile()
big = jax.jit(lambda x: jnp.sin(x)).lower(jnp.ones(2**24)).compile()
x = jnp.ones(2**24)
for _ in range(20):  # results are freed a little later than they are replaced: until there is room for all of them
    big(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    big(x).block_until_ready()
print("convolution(" in compiled.as_text().split("ENTRY")[1], "ynn" in compiled.as_text().split("ENTRY")[1],
      resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def measure(how, **variables):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **variables}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, how], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    convolution, ynn, faults = done.stdout.split()
    return convolution == "True", ynn == "True", int(faults)


def test_untuned_is_what_the_docstring_says():
    """If this fails, jaxlib has changed: measure anew whether `tune` still pays."""
    convolution, ynn, faults = measure("plain")
    assert not convolution and ynn
    if sys.platform == "linux":
        assert faults > 40_000  # three times 64 MiB, in pages of 4 KiB


def test_tuned():
    """Convolutions stay XLA's, reductions go to YNNPACK, and memory that was touched once stays."""
    convolution, ynn, faults = measure("tuned")
    assert convolution and ynn
    if sys.platform == "linux":
        assert faults < 5_000


@pytest.mark.parametrize("flags", ["--xla_cpu_experimental_ynn_fusion_type="])
def test_a_users_flag_wins(flags):
    convolution, ynn, _ = measure("tuned", XLA_FLAGS=flags)
    assert convolution and not ynn


def test_small_programs_go_into_the_cache_unless_somebody_said_otherwise():
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    orders = itertools.product(((None, "0"), ("3", "3")), ("import jax; process.tune()", "process.tune(); import jax"))
    for (given, expected), order in orders:
        environment = {key: value for key, value in os.environ.items() if key != name}
        code = f"from experiments import process; {order}; print(jax.config.{name.lower()})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | ({name: given} if given else {}),
            capture_output=True,
            text=True,
            check=True,
        )
        assert float(done.stdout) == float(expected)
