"""How fast a run was: counted operations, their share of a peak, and a trace that TensorBoard finds."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from abd_jax.training import speed
from abd_jax.training.speed import Clock, Speed, Trace


def counted(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return speed.flops(jax.make_jaxpr(function)(*arguments))


def test_products_and_convolutions_are_counted_by_their_definition():
    assert counted(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 5), (2, 5, 7)) == 2 * 2 * 3 * 5 * 7

    def convolve(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert counted(convolve, (2, 8, 8, 3), (3, 3, 3, 4)) == 2 * (2 * 8 * 8 * 4) * (3 * 3 * 3)


def test_a_loop_counts_as_often_as_it_runs_and_of_branches_the_costliest():
    def loop(x):
        return lax.scan(lambda carry, _: (jax.jit(jnp.matmul)(carry, x), None), x, length=6)[0]

    def branch(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert counted(loop, (4, 4)) == 6 * 2 * 4**3
    assert counted(branch, (4, 4)) == 2 * 2 * 4**3


def test_the_share_of_the_peak_is_of_all_devices_and_unknown_for_a_cpu(monkeypatch):
    assert Speed.of(cycles=4, seconds=2.0, images=100, operations=1e9, count=1).peak_share is None
    monkeypatch.setitem(speed.PEAKS, jax.devices()[0].device_kind, 1e9)
    found = Speed.of(cycles=4, seconds=2.0, images=100, operations=1e9, count=2)
    assert dataclasses.astuple(found)[:4] == (2.0, 50.0, 5e8, 0.25)
    assert "50 images/s, 2.00 cycles/s, 0.5 Gflop/s, 25.0% of the peak" in str(found)


def test_a_clock_that_saw_no_round_writes_nothing(tmp_path):
    clock = Clock(1)
    clock.write(tmp_path, None)
    assert speed.read(tmp_path) is None
    clock.count(images=8, operations=2.0)
    clock.write(tmp_path, jnp.zeros(()))
    found = speed.read(tmp_path)
    assert found.images_per_second == pytest.approx(8 * found.cycles_per_second)
    assert found.flops_per_second == pytest.approx(2 * found.cycles_per_second)


@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_a_trace_is_written_from_the_second_round_on_even_if_the_run_ends_in_it(tmp_path, rounds):
    state = jnp.zeros(())
    with Trace(tmp_path).watching() as trace:
        for _ in range(rounds):
            trace.round(state)
            state = state + 1
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == (rounds > 1)
