"""How a round reaches the device: the one place that asks what the backend is.

On TPU and GPU a round is one compiled program with `lax.scan` inside. On CPU, XLA runs convolutions inside loops
several times slower, so the same functions are compiled as two programs and the loop is Python's; nothing waits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from abd_jax.models import Network
from abd_jax.training import distill
from abd_jax.training.distill import Distillation, DistillState, Metrics, Phase

Round = Callable[[PRNGKeyArray, DistillState, Network], tuple[DistillState, Metrics]]


def repeat_on_device(step: Callable[..., Any], state: Any, times: int) -> Any:
    """`times` steps in one `lax.scan`; metrics are the last step's."""
    state, metrics = jax.lax.scan(step, state, jnp.arange(times))
    return state, jax.tree.map(lambda values: values[-1], metrics)


def repeat_from_host(step: Callable[..., Any], state: Any, times: int) -> Any:
    """`times` dispatches; metrics are the last step's."""
    for index in range(times):
        state, metrics = step(state, np.int32(index))
    return state, metrics


synthesize = jax.jit(distill.synthesize, static_argnums=0, donate_argnums=2)
study = jax.jit(distill.study, static_argnums=(0, 1), donate_argnums=3)
whole_round = jax.jit(
    functools.partial(distill.distill_round, repeat=repeat_on_device), static_argnums=(0, 1), donate_argnums=3
)
"""`distill_round` as one program; the single source of its donation, for running and for compiling ahead of time."""


def compile_rounds(
    run: Distillation, key: PRNGKeyArray, state: DistillState, teacher: Network, platform: str | None = None
) -> dict[Phase, Round]:
    """Compiles every kind of round that the run will have, before the first: none compiles later.

    Args:
        run: the static part.
        key, state, teacher: as the rounds will get them (shapes and placement count).
        platform: default: the current backend.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {
            phase: whole_round.lower(run, phase, key, state, teacher).compile() for phase in run.phases()
        }
    first_half = synthesize.lower(run, key, state, teacher).compile()
    _, lesson, _ = jax.eval_shape(functools.partial(distill.synthesize, run), key, state, teacher)
    lesson = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lesson)
    rounds = {}
    for phase in run.phases():
        second_half = study.lower(run, phase, key, state, lesson, teacher, np.int32(0)).compile()
        rounds[phase] = functools.partial(
            distill.distill_round,
            run,
            phase,
            first_half=lambda _, *arguments: first_half(*arguments),
            second_half=lambda _, __, *arguments, compiled=second_half: compiled(*arguments),
            repeat=repeat_from_host,
        )
    return rounds
