"""Several runs of one shape as one program: a round of one waits for a round of each, and one call computes them all.

A small network leaves most of an accelerator idle; as many as fit fill it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from abd_jax.models import Network
from abd_jax.training import speed
from abd_jax.training.dispatch import Round, repeat_on_device
from abd_jax.training.distill import Distillation, DistillState, Metrics, Parts, Phase, distill_round

Result = tuple[DistillState, Metrics]


def rounds(
    run: Distillation,
    phase: Phase,
    keys: Sequence[PRNGKeyArray],
    states: Sequence[DistillState],
    teachers: Sequence[Network],
) -> tuple[Result, ...]:
    """A `distill_round` of each run, mapped over them.

    Args:
        run, phase: what all have in common.
        keys, states, teachers: one per run.
    """
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (keys, states, teachers)]
    results = jax.vmap(functools.partial(distill_round, run, phase, Parts(repeat_on_device)))(*stacked)
    return tuple(jax.tree.map(lambda leaf, index=index: leaf[index], results) for index in range(len(keys)))


whole_rounds = jax.jit(rounds, static_argnums=(0, 1), donate_argnums=3)
"""`rounds` as one program, for running and for compiling ahead of time."""


@dataclasses.dataclass
class _Call:
    """One run's wish for a round, and what became of it."""

    key: PRNGKeyArray
    state: DistillState
    teacher: Network
    result: Result | None = None
    error: Exception | None = None

    @property
    def answered(self) -> bool:
        return self.result is not None or self.error is not None

    def copy(self) -> _Call:
        """With a state that can be donated beside this one's."""
        return dataclasses.replace(self, state=jax.tree.map(jnp.copy, self.state))


class Lockstep:
    """Where the threads of a lot meet, one for each run.

    The program is compiled once, for all: when some have left, or are in a round of another kind, copies of the others
    fill their places. Until its first round a member has the device for itself: what one compiles, the next one finds.
    """

    def __init__(self, members: int) -> None:
        self._members = self._present = members
        self._turn = threading.Condition()
        self._preparation = threading.Lock()
        self._own = threading.local()
        self._waiting: dict[tuple[Distillation, Phase], list[_Call]] = defaultdict(list)
        self._programs: dict[tuple[Distillation, Phase], tuple[Any, float]] = {}

    @contextlib.contextmanager
    def member(self) -> Iterator[None]:
        """A run's stay, which it must enter before its first round: nobody waits for it after."""
        self._preparation.acquire()
        self._own.prepares = True
        try:
            yield
        finally:
            self._end_preparation()
            with self._turn:
                self._present -= 1
                self._compute_if_all_wait()

    def compile_rounds(
        self, run: Distillation, key: PRNGKeyArray, state: DistillState, teacher: Network
    ) -> dict[Phase, Round]:
        """As `dispatch.compile_rounds`; a round is computed when all members have asked for theirs."""
        given = [(argument,) * self._members for argument in (key, state, teacher)]
        with self._turn:
            for phase in run.phases():
                if (run, phase) not in self._programs:
                    traced = whole_rounds.trace(run, phase, *given)
                    self._programs[run, phase] = traced.lower().compile(), speed.flops(traced.jaxpr) / self._members
            return {
                phase: Round(functools.partial(self._ask, run, phase), self._programs[run, phase][1])
                for phase in run.phases()
            }

    def _ask(self, run: Distillation, phase: Phase, key: PRNGKeyArray, state: DistillState, teacher: Network) -> Result:
        self._end_preparation()
        call = _Call(key, state, teacher)
        with self._turn:
            self._waiting[run, phase].append(call)
            self._compute_if_all_wait()
            self._turn.wait_for(lambda: call.answered)
        if call.error is not None:
            raise RuntimeError(f"{type(call.error).__name__}: {call.error}") from call.error
        assert call.result is not None
        return call.result

    def _end_preparation(self) -> None:
        if self._own.prepares:
            self._own.prepares = False
            self._preparation.release()

    def _compute_if_all_wait(self) -> None:
        """Called with the lock held; answers every call that it takes, with an error if need be."""
        if sum(map(len, self._waiting.values())) < self._present:
            return
        waiting, self._waiting = self._waiting, defaultdict(list)
        for kind, calls in waiting.items():
            try:
                places = [*calls, *(calls[0].copy() for _ in range(self._members - len(calls)))]
                program, _ = self._programs[kind]
                results = program(*zip(*((call.key, call.state, call.teacher) for call in places), strict=True))
                for call, result in zip(calls, results, strict=False):
                    call.result = result
            except Exception as error:
                for call in calls:
                    call.error = error
        self._turn.notify_all()
