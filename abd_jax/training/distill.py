"""The data-free loop: one round is a cycle of synthesis updates, then student updates on the cycle's images.

`distill_round` is the one function that is compiled, donated, sharded and exported. With ZSKT a round's images and
teacher outputs are computed once, after the generator's update, and shared by all student updates; with the other
methods, which are `fresh`, every student update has its own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from abd_jax import losses, models, synthesis
from abd_jax.defenses import inverted_retrospection, rivals, self_retrospection, shuffling_vaccine, trigger_inversion
from abd_jax.defenses.base import Rival
from abd_jax.defenses.self_retrospection import Ascent
from abd_jax.defenses.trigger_inversion import Backdoor
from abd_jax.models import Forward, Leaf, Network
from abd_jax.screening import Screen, accept_all
from abd_jax.settings import one_of
from abd_jax.synthesis import Synthesizer, Task
from abd_jax.training import config as configs
from abd_jax.training import keys

Metrics = dict[str, Array]
Index = int | np.integer | Array
Screens = Callable[[Network], tuple[Screen, Screen]]
"""A defense from outside: teacher → its screens of the synthesizer and of the student; hashable, as functions are."""


@struct.dataclass
class DistillState:
    """A whole run in one pytree.

    Attributes:
        step: finished rounds.
        student: the student.
        optimizer: its optimizer's state.
        synthesizer: the synthesizer's state.
        vaccine: T~ with its verdict; None without a vaccine.
        backdoor: the suspected one, if the defense asks for it.
        rival: state of a rival defense that has one.
    """

    step: Leaf
    student: Network
    optimizer: optax.OptState
    synthesizer: PyTree
    vaccine: shuffling_vaccine.Vaccine | None
    backdoor: Backdoor | None
    rival: PyTree = None


@struct.dataclass
class Lesson:
    """What the student learns from in one update, or in all of a round if they share it.

    Attributes:
        images: from the synthesizer, `[batch, height, width, channels]`.
        logits: the teacher's.
        attention: the teacher's attention maps.
        weights: per image, from the defense.
    """

    images: Leaf
    logits: Leaf
    attention: tuple[Leaf, ...]
    weights: Leaf


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The static part of a run: settings, defense and synthesizer. Hashable, so it can be static under `jit`."""

    preset: configs.Preset
    defense: str
    synthesizer: Synthesizer
    custom: Screens | None = None

    @classmethod
    def make(
        cls,
        preset: configs.Preset,
        defense: str,
        teacher: Network,
        sharding: jax.sharding.NamedSharding | None = None,
        classes: tuple[str, ...] = (),
        custom: Screens | None = None,
    ) -> Distillation:
        """Binds a preset to a teacher's shapes, and to a mesh if a batch's sharding over it is given.

        Args:
            preset: the settings.
            defense: name of the defense.
            teacher: the network to distil.
            sharding: of a batch.
            classes: names of the teacher's classes, for methods that read them.
            custom: a defense from outside, beside which the named one has no vaccine.

        Raises:
            ValueError: unknown defense, or a teacher that the method cannot use.
        """
        one_of("defense", defense, [name for name in configs.DEFENSES if name != "clean_kd"])
        if preset.student.attention:
            student = jax.eval_shape(lambda key: fresh_student(key, preset, teacher), jax.random.key(0))
            losses.check_attention_transfer(student, teacher)
        task = Task.of(
            teacher,
            batch=preset.student.batch,
            cycles=preset.student.cycles,
            classes=classes,
            dtype=preset.dtype,
            sharding=sharding,
        )
        return cls(preset, defense, synthesis.create(preset.synthesis, task), custom)

    @property
    def rival(self) -> Rival:
        """The rival defense, or one that does nothing."""
        return rivals.lookup(self.preset.rivals, self.defense) or Rival()

    @property
    def censors(self) -> bool:
        """Whether the suspected trigger is hidden from the teacher."""
        return configs.uses_vaccine(self.defense) and self.preset.vaccine.censor

    @property
    def pastes(self) -> bool:
        """Whether the inverted trigger is what Self-Retrospection unlearns."""
        return configs.uses_retrospection(self.defense) and self.preset.retrospection.perturb == "inverted"

    @property
    def hunts(self) -> bool:
        """Whether a trigger is sought in the student too."""
        return self.pastes and self.preset.retrospection.hunt > 0

    def hunts_in(self, phase: Phase) -> bool:
        """Whether it is sought in this kind of round."""
        return phase.retrospective and self.hunts

    def lessons(self, phase: Phase) -> int:
        """How many a round has: one that all updates share; or one for each, and one more to hunt on."""
        return self.preset.student.updates + self.hunts_in(phase) if self.synthesizer.fresh else 1

    @property
    def rule(self) -> optax.GradientTransformation:
        student = self.preset.student
        schedule = optax.cosine_decay_schedule(student.learning_rate, student.cycles * student.updates)
        clip = optax.clip_by_global_norm(student.clip)
        if student.optimizer == "sgd":
            decay = optax.add_decayed_weights(student.weight_decay)
            return optax.chain(clip, decay, optax.sgd(schedule, momentum=0.9))
        return optax.chain(clip, optax.adam(schedule))

    def phase(self, step: int) -> Phase:
        """What kind of round the one at `step` is."""
        settings = self.preset.retrospection
        first = round(settings.start_fraction * self.preset.student.cycles)
        if configs.uses_retrospection(self.defense) and step >= first:
            return Phase(retrospective=True, norm=settings.norm)
        return Phase()

    def phases(self) -> tuple[Phase, ...]:
        """Every kind of round that the run will have, in order."""
        return tuple(dict.fromkeys(map(self.phase, (0, self.preset.student.cycles - 1))))

    def verdict(self, state: DistillState) -> dict[str, Any]:
        """What the defense came to in a run that ended there; empty if it has neither vaccine nor Self-Retrospection.

        `suspected`, if a trigger was inverted: the class that it leads to, or None. `vaccine_enabled`, if there is a
        vaccine: whether a T~ was accepted. `defended`: whether anything of it reached the student; class balance alone
        is no defense.
        """
        found: dict[str, Any] = {}
        defended = []
        if state.backdoor is not None:
            target = int(state.backdoor.target)
            found["suspected"] = target if target >= 0 else None
            defended.append(target >= 0)
        if state.vaccine is not None:
            vaccine, found["vaccine_enabled"] = self.preset.vaccine, bool(state.vaccine.enabled)
            generated = self.preset.synthesis.updates and (vaccine.alpha or vaccine.generator_weights)
            shuffled = bool(generated) or vaccine.student_weights != "none"
            defended.append(found["vaccine_enabled"] and shuffled)
        if configs.uses_retrospection(self.defense) and not self.pastes:
            defended.append(self.retrospective)
        return {**found, "defended": any(defended)} if defended else {}

    @property
    def retrospective(self) -> bool:
        """Whether any round of the run is."""
        return self.phase(self.preset.student.cycles - 1).retrospective

    def init(self, root: PRNGKeyArray, teacher: Network) -> DistillState:
        """A fresh student and synthesizer; the vaccine, if the defense has one, is drawn but not yet selected."""
        student = fresh_student(keys.stream(root, "init", 0), self.preset, teacher)
        return DistillState(
            step=jnp.zeros((), jnp.int32),
            student=student,
            optimizer=self.rule.init(student.params),
            synthesizer=self.synthesizer.init(keys.stream(root, "init", 1)),
            vaccine=shuffling_vaccine.undecided(keys.stream(root, "vaccine"), teacher, self.preset.vaccine)
            if configs.uses_vaccine(self.defense)
            else None,
            backdoor=trigger_inversion.unknown(self.preset.inversion, teacher.input_shape)
            if self.censors or self.pastes
            else None,
            rival=self.rival.init(keys.stream(root, "rival"), teacher.input_shape),
        )

    def censored(self, state: DistillState, teacher: Network) -> Callable[[Array], Forward]:
        """The teacher as the defense asks it.

        An image that it gives to the suspected class only as long as it sees the place of the suspected trigger is
        answered as if that place were hidden, per image: logits, embedding, stages and entries, not BN's statistics.
        """
        backdoor, fill = state.backdoor, self.synthesizer.task.mean
        if backdoor is None or not self.censors:
            return teacher

        def answer(images: Array) -> Forward:
            seen, hidden = teacher(images), teacher(trigger_inversion.erase(backdoor.trigger, fill, images))
            suspected, still = (jnp.argmax(forward.logits, -1) == backdoor.target for forward in (seen, hidden))
            fooled = suspected & ~still

            def chosen(first: PyTree, second: PyTree) -> PyTree:
                return jax.tree.map(
                    lambda a, b: jnp.where(fooled.reshape(-1, *(1,) * (a.ndim - 1)), b, a), first, second
                )

            return dataclasses.replace(
                seen,
                logits=chosen(seen.logits, hidden.logits),
                embedding=chosen(seen.embedding, hidden.embedding),
                stages=chosen(seen.stages, hidden.stages),
                entries=chosen(seen.entries, hidden.entries),
            )

        return answer

    def screens(self, vaccine: shuffling_vaccine.Vaccine | None, teacher: Network) -> tuple[Screen, Screen]:
        """The defense as the synthesizer and as the student see it."""
        if self.custom is not None:
            return self.custom(teacher)
        if vaccine is None:
            return accept_all, accept_all
        config = self.preset.vaccine
        return (
            shuffling_vaccine.generator_screen(config, vaccine, teacher),
            shuffling_vaccine.student_screen(config, vaccine, teacher),
        )


def fresh_student(key: PRNGKeyArray, preset: configs.Preset, teacher: Network) -> Network:
    """A student with the teacher's classes, image shape and normalization."""
    return models.create(
        key,
        preset.student.architecture,
        num_classes=teacher.module.num_classes,
        input_shape=teacher.input_shape,
        mean=teacher.mean,
        std=teacher.std,
        dtype=preset.dtype,
    )


@dataclasses.dataclass(frozen=True)
class Phase:
    """A kind of round.

    Attributes:
        retrospective: whether Self-Retrospection is on.
        norm: whose statistics the student normalizes by: with Self-Retrospection on running statistics, all of the
            round does, lest the two gradients pull at two different functions.
    """

    retrospective: bool = False
    norm: models.Norm = "batch"


def synthesize(
    run: Distillation, phase: Phase, key: PRNGKeyArray, state: DistillState, teacher: Network, update: Index
) -> tuple[DistillState, Metrics]:
    """One synthesis update."""
    generator_screen, _ = run.screens(state.vaccine, teacher)
    norm = "running" if phase.norm == "running" else run.synthesizer.student_norm
    synthesizer, metrics = run.synthesizer.update(
        keys.stream(key, "synthesis", state.step * run.preset.synthesis.updates + update),
        state.synthesizer,
        run.censored(state, teacher),
        functools.partial(state.student, norm=norm),
        generator_screen,
    )
    return dataclasses.replace(state, synthesizer=run.synthesizer.task.replicate(synthesizer)), metrics


def teach(
    run: Distillation, phase: Phase, key: PRNGKeyArray, state: DistillState, teacher: Network, update: Index
) -> tuple[Lesson, Metrics]:
    """Images, and all that the teacher says of them: for one student update, or for all of a round.

    A batch that a whole round shares is that of the last synthesis update, seen by the updated synthesizer.
    """
    del phase
    if run.synthesizer.fresh:
        own = keys.stream(key, "lessons", state.step * run.preset.student.updates + update)
    else:
        own = keys.stream(key, "synthesis", (state.step + 1) * run.preset.synthesis.updates - 1)
    images = run.synthesizer.sample(own, state.synthesizer, run.preset.student.batch)
    forward = run.censored(state, teacher)(images)
    _, student_screen = run.screens(state.vaccine, teacher)
    screening = student_screen(images, forward)
    lesson = Lesson(
        images=images,
        logits=forward.logits,
        attention=tuple(map(losses.attention_map, forward.stages)),
        weights=screening.weights,
    )
    shares = jax.nn.one_hot(jnp.argmax(forward.logits, -1), forward.logits.shape[-1]).mean(axis=0)
    metrics = {f"student/{name}": value for name, value in screening.metrics.items()}
    metrics |= {"synthesis/largest_class": shares.max(), "synthesis/target_class": shares[run.preset.teacher.target]}
    return jax.lax.stop_gradient(lesson), metrics


def distance(
    config: configs.StudentConfig, teacher: Float[Array, "batch classes"], student: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """What the student minimizes per image, from both networks' logits: KL(T ‖ S), or the mean of |T − S|."""
    if config.loss == "l1":
        return jnp.abs(teacher - student).mean(axis=-1)
    kl = losses.kl_divergence(teacher, student, config.temperature)
    classes = teacher.shape[-1] if config.reduction == "class_mean" else 1
    return kl * (config.temperature**2 if config.temperature_squared else 1) / classes


def study(
    run: Distillation,
    phase: Phase,
    key: PRNGKeyArray,
    state: DistillState,
    lesson: Lesson,
    update: Index,
    delta: Array | None = None,
) -> tuple[DistillState, Metrics]:
    """One student update: weighted KL plus attention transfer, and with δ Self-Retrospection's hypergradient at it."""
    config = run.preset.student
    images = lesson.images
    if phase.retrospective and run.pastes and state.backdoor is not None:
        step_key = keys.stream(key, "portion", state.step * config.updates + update)
        images = inverted_retrospection.paste_some(run.preset.retrospection, step_key, state.backdoor, images)

    def loss(params):
        forward = state.student.with_params(params)(images, phase.norm)
        apart = distance(config, lesson.logits, forward.logits)
        maps = tuple(map(losses.attention_map, forward.stages))
        attention = losses.attention_transfer(maps, lesson.attention) if config.attention else jnp.zeros_like(apart)
        weights = run.rival.weigh(apart, lesson.weights, state.step / run.preset.student.cycles)
        apart, attention = (jnp.mean(weights * apart), jnp.mean(weights * attention))
        metrics = {f"student/{config.loss}": apart, "student/attention": attention}
        return apart + config.attention * attention, (forward, metrics)

    gradient, (forward, metrics) = jax.grad(loss, has_aux=True)(state.student.params)
    if delta is not None:
        extra, more = self_retrospection.unlearn(
            run.preset.retrospection,
            keys.stream(key, "portion", state.step * config.updates + update),
            delta,
            state.student,
            lesson.images,
            lesson.logits,
        )
        gradient = jax.tree.map(jnp.add, gradient, extra)
        metrics |= more
    rival_key = keys.stream(key, "rival", 1 + state.step * config.updates + update)
    rival, extra, more = run.rival.regularize(rival_key, state.rival, state.student, lesson.images, phase.norm)
    if extra is not None:
        gradient = jax.tree.map(jnp.add, gradient, extra)
    metrics |= more
    metrics["student/gradient_norm"] = optax.tree.norm(gradient)
    updates, optimizer = run.rule.update(gradient, state.optimizer, state.student.params)
    student = state.student.absorb(forward).with_params(optax.apply_updates(state.student.params, updates))
    return dataclasses.replace(state, student=student, optimizer=optimizer, rival=rival), metrics


def begin_ascent(
    run: Distillation,
    key: PRNGKeyArray,
    state: DistillState,
    teacher: Network,
    lesson: Lesson,
    update: Index,
    last: Array | np.ndarray,
) -> Ascent:
    """δ for one student update, before its first step; `last` is that of the update before."""
    step_key = keys.stream(key, "perturbation", state.step * run.preset.student.updates + update)
    return self_retrospection.begin_ascent(
        run.preset.retrospection, step_key, state.student, teacher, lesson.images, jnp.asarray(last), update
    )


def ascend(run: Distillation, ascent: Ascent, state: DistillState, teacher: Network) -> Ascent:
    """One step of δ."""
    return self_retrospection.ascend(run.preset.retrospection, ascent, state.student, teacher)


def hunt(run: Distillation, key: PRNGKeyArray, state: DistillState, lesson: Lesson, update: Index) -> DistillState:
    """One step towards a trigger that the student, as it is deployed, still follows."""
    if state.backdoor is None:
        return state
    settings, inversion = run.preset.retrospection, run.preset.inversion
    step = state.step * settings.hunt + update
    step_key = keys.stream(key, "hunt", step)
    found = inverted_retrospection.hunt(
        settings, inversion, step_key, step, state.backdoor, state.student, lesson.images
    )
    return dataclasses.replace(state, backdoor=found)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The six functions that a round is made of, and how one is repeated: `training.dispatch` gives compiled forms.

    `repeat(step, carry, times)` calls `step(carry, index) → (carry, metrics)` and returns the last of both.
    """

    repeat: Callable[..., Any]
    synthesize: Callable[..., Any] = synthesize
    teach: Callable[..., Any] = teach
    begin_ascent: Callable[..., Any] = begin_ascent
    ascend: Callable[..., Any] = ascend
    hunt: Callable[..., Any] = hunt
    study: Callable[..., Any] = study


def distill_round(
    run: Distillation,
    phase: Phase,
    parts: Parts,
    key: PRNGKeyArray,
    state: DistillState,
    teacher: Network,
) -> tuple[DistillState, Metrics]:
    """A whole round.

    Args:
        run: what stays the same.
        phase: the kind of round.
        parts: the functions it calls.
        key: root key of the run; the round folds its streams and its step into it.
        state: donated by whoever compiles this.
        teacher: frozen.
    """
    metrics: Metrics = {}
    if run.preset.synthesis.updates:
        state, metrics = parts.repeat(
            lambda state, update: parts.synthesize(run, phase, key, state, teacher, update),
            state,
            run.preset.synthesis.updates,
        )
    hunts = run.hunts_in(phase)
    if hunts or not run.synthesizer.fresh:
        shared = parts.teach(run, phase, key, state, teacher, np.int32(0))
    if hunts:
        state, _ = parts.repeat(
            lambda state, step: (parts.hunt(run, key, state, shared[0], step), {}),
            state,
            run.preset.retrospection.hunt,
        )

    def update_student(carry: tuple[DistillState, Any], update: Index) -> tuple[tuple[DistillState, Any], Metrics]:
        state, delta = carry
        lesson, taught = parts.teach(run, phase, key, state, teacher, update) if run.synthesizer.fresh else shared
        if delta is None:
            state, metrics = parts.study(run, phase, key, state, lesson, update)
            return (state, delta), taught | metrics
        ascent, _ = parts.repeat(
            lambda ascent, _: (parts.ascend(run, ascent, state, teacher), {}),
            parts.begin_ascent(run, key, state, teacher, lesson, update, delta),
            run.preset.retrospection.ascent_steps,
        )
        state, metrics = parts.study(run, phase, key, state, lesson, update, ascent.delta)
        return (state, ascent.delta), taught | metrics

    ascends = phase.retrospective and not run.pastes
    delta = np.zeros(run.synthesizer.task.image_shape, np.float32) if ascends else None
    (state, _), more = parts.repeat(update_student, (state, delta), run.preset.student.updates)
    return dataclasses.replace(state, step=state.step + 1), metrics | more
