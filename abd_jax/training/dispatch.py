"""How a round reaches the device: the one place that asks what the backend is.

On TPU and GPU a round is one compiled program with `lax.scan` inside. On CPU, XLA runs convolutions inside loops
several times slower, so the same functions are compiled one by one and the loop is Python's; nothing waits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from abd_jax.defenses import trigger_inversion
from abd_jax.defenses.trigger_inversion import Inversion, InversionConfig
from abd_jax.models import Network
from abd_jax.training import distill, speed
from abd_jax.training.distill import Distillation, DistillState, Metrics, Parts, Phase


@dataclasses.dataclass(frozen=True)
class Round:
    """A compiled round: (key, state, teacher) → (state, metrics).

    Attributes:
        run: what it calls.
        flops: of its products and convolutions, as `speed.flops` counts them.
    """

    run: Callable[[PRNGKeyArray, DistillState, Network], tuple[DistillState, Metrics]]
    flops: float

    def __call__(self, key: PRNGKeyArray, state: DistillState, teacher: Network) -> tuple[DistillState, Metrics]:
        return self.run(key, state, teacher)


CompileRounds = Callable[[Distillation, PRNGKeyArray, DistillState, Network], dict[Phase, Round]]
"""(run, key, state, teacher) → its rounds; the last three as the rounds will get them."""


def repeat_on_device(step: Callable[..., Any], state: Any, times: int) -> Any:
    """`times` steps in one `lax.scan`; metrics are the last step's."""
    state, metrics = jax.lax.scan(step, state, jnp.arange(times))
    return state, jax.tree.map(lambda values: values[-1], metrics)


def repeat_from_host(step: Callable[..., Any], state: Any, times: int) -> Any:
    """`times` dispatches; metrics are the last step's."""
    for index in range(times):
        state, metrics = step(state, np.int32(index))
    return state, metrics


synthesize = jax.jit(distill.synthesize, static_argnums=(0, 1), donate_argnums=3)
teach = jax.jit(distill.teach, static_argnums=(0, 1))
begin_ascent = jax.jit(distill.begin_ascent, static_argnums=0)
ascend = jax.jit(distill.ascend, static_argnums=0, donate_argnums=1)
hunt = jax.jit(distill.hunt, static_argnums=0, donate_argnums=2)
study = jax.jit(distill.study, static_argnums=(0, 1), donate_argnums=3)
whole_round = jax.jit(distill.distill_round, static_argnums=(0, 1, 2), donate_argnums=4)
"""`distill_round` as one program: the single source of its donation, for running and for compiling ahead of time."""


advance_search = jax.jit(trigger_inversion.advance, static_argnums=0, donate_argnums=1)
judge_search = jax.jit(trigger_inversion.judge)


def _search(
    config: InversionConfig,
    repeat: Callable[..., Any],
    key: PRNGKeyArray,
    teacher: Network,
    images: Array,
    target: Array,
) -> Any:
    search, _ = repeat(
        lambda search, step: (
            advance_search(config, search, teacher, images, target, jax.random.fold_in(key, step)),
            {},
        ),
        trigger_inversion.begin(config, teacher.input_shape),
        config.steps,
    )
    return judge_search(search, teacher, images, target)


whole_search = jax.jit(_search, static_argnums=(0, 1))


def invert_triggers(config: InversionConfig, key: PRNGKeyArray, teacher: Network, images: Array) -> Inversion:
    """A trigger for each class of the teacher, found on these images, one class after the other."""
    on_host = jax.default_backend() == "cpu"
    search = (
        functools.partial(_search, config, repeat_from_host)
        if on_host
        else functools.partial(whole_search, config, repeat_on_device)
    )
    found = [search(key, teacher, images, jnp.int32(target)) for target in range(teacher.module.num_classes)]
    return Inversion(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *found))


def compile_rounds(
    run: Distillation, key: PRNGKeyArray, state: DistillState, teacher: Network, platform: str | None = None
) -> dict[Phase, Round]:
    """Compiles every kind of round that the run will have, before the first: none compiles later.

    Args:
        run: the static part.
        key, state, teacher: as the rounds will get them (shapes and placement count).
        platform: default: the current backend.
    """
    rounds: dict[Phase, Round] = {}
    if (platform or jax.default_backend()) != "cpu":
        parts = Parts(repeat_on_device)
        for phase in run.phases():
            traced = whole_round.trace(run, phase, parts, key, state, teacher)
            rounds[phase] = Round(traced.lower().compile(), speed.flops(traced.jaxpr))
        return rounds
    work: list[float] = []

    def compiled(times: int, function: Any, static: tuple[Any, ...], *arguments: Any) -> tuple[Callable[..., Any], Any]:
        """An executable that is called with the static arguments too, and its outputs' shapes and placement.

        A round calls it `times` times.
        """
        traced = function.trace(*static, *arguments)
        work.append(times * speed.flops(traced.jaxpr))
        lowered = traced.lower()
        executable = lowered.compile()
        outputs = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            lowered.out_info,
            executable.output_shardings,
        )
        return lambda *all_arguments: executable(*all_arguments[len(static) :]), outputs

    index, preset, settings = np.int32(0), run.preset, run.preset.retrospection
    updates = preset.student.updates
    for phase in run.phases():
        work.clear()
        synthesis, _ = compiled(preset.synthesis.updates, synthesize, (run, phase), key, state, teacher, index)
        teaching, (lesson, _) = compiled(run.lessons(phase), teach, (run, phase), key, state, teacher, index)
        parts, delta = Parts(repeat_from_host, synthesis, teaching), []
        if phase.retrospective and not run.pastes:
            last = np.zeros(run.synthesizer.task.image_shape, np.float32)
            begin, ascent = compiled(updates, begin_ascent, (run,), key, state, teacher, lesson, index, last)
            step, ascent = compiled(updates * settings.ascent_steps, ascend, (run,), ascent, state, teacher)
            parts = dataclasses.replace(parts, begin_ascent=begin, ascend=step)
            delta = [ascent.delta]
        if run.hunts_in(phase):
            hunting, _ = compiled(settings.hunt, hunt, (run,), key, state, lesson, index)
            parts = dataclasses.replace(parts, hunt=hunting)
        second_half, _ = compiled(updates, study, (run, phase), key, state, lesson, index, *delta)
        whole = functools.partial(distill.distill_round, run, phase, dataclasses.replace(parts, study=second_half))
        rounds[phase] = Round(whole, sum(work))
    return rounds
