"""A round, in all its forms: dispatched from the host, as one program, and over eight devices."""

import dataclasses
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.defenses import trigger_inversion
from abd_jax.defenses.trigger_inversion import Trigger
from abd_jax.training import dispatch, sharding
from abd_jax.training.distill import Distillation, Phase
from tests import networks
from tests.training import small, waiting

pytestmark = pytest.mark.optax

TOLERANCE = {
    "atol": 1e-4,
    "rtol": 2e-4,
}  # a twentieth of Adam's step, which turns rounding of small gradients into signs


def prepared(preset, defense, mesh=None):
    teacher = small.teacher()
    run = Distillation.make(preset, defense, teacher, mesh and sharding.batch_sharding(mesh))
    state = run.init(small.key(3), teacher)
    if state.vaccine is not None:
        state = state.replace(vaccine=state.vaccine.replace(enabled=jnp.ones(())))
    if state.backdoor is not None:
        trigger = Trigger(jnp.zeros((8, 8, 1)).at[5:7, 5:7].set(0.9), jnp.ones((8, 8, 1)))
        state = state.replace(backdoor=state.backdoor.replace(target=jnp.int32(0), trigger=trigger))
    if mesh is not None:
        teacher, state = sharding.replicate((teacher, state), mesh)
    return run, state, teacher


def trained(preset, defense, platform="cpu", mesh=None):
    run, state, teacher = prepared(preset, defense, mesh)
    rounds = dispatch.compile_rounds(run, small.key(3), state, teacher, platform)
    for step in range(preset.student.cycles):
        state, metrics = rounds[run.phase(step)](small.key(3), state, teacher)
    return state, metrics


ABD = small.preset(cycles=2)
ABD = dataclasses.replace(ABD, retrospection=dataclasses.replace(ABD.retrospection, start_fraction=0.5))


INVERTED = dataclasses.replace(
    small.INVERTED,
    student=small.preset(cycles=1).student,
    retrospection=dataclasses.replace(small.INVERTED.retrospection, start_fraction=0.0),
)


@pytest.fixture(scope="module", params=[ABD, INVERTED], ids=["hypergradient", "inverted"])
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def reference(key_reuse, preset):
    with jax.numpy_dtype_promotion("standard"):
        return trained(preset, "abd")


def assert_trained_alike(preset, result, expected):
    """All but one in ten thousand parameters agree, and those differ by no more than the sign of an Adam step each.

    Adam divides a gradient that is nothing but rounding by its own size.
    """
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
    apart = np.concatenate([(np.abs(a - b) - TOLERANCE["rtol"] * np.abs(b)).ravel() for a, b in pairs])
    assert np.mean(apart > TOLERANCE["atol"]) <= 1e-4
    assert apart.max() <= 2 * preset.student.learning_rate * preset.student.cycles * preset.student.updates


def test_one_program_computes_what_the_host_dispatches(preset, reference):
    state, metrics = trained(preset, "abd", platform="tpu")  # the accelerators' form, run on CPU
    assert_trained_alike(preset, state.student.variables, reference[0].student.variables)
    chex.assert_trees_all_close(metrics, reference[1], atol=2e-5, rtol=2e-3)


def test_eight_devices_compute_what_one_does(preset, reference):
    state, _ = trained(preset, "abd", mesh=sharding.data_mesh(8))
    assert_trained_alike(preset, jax.tree.map(np.asarray, state.student.variables), reference[0].student.variables)
    assert len(jax.tree.leaves(state.student.variables)[0].sharding.device_set) == 8


def test_too_many_devices_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match=r"devices 9: allowed are 1 … 8, since 8 cpu devices are here$"):
        sharding.data_mesh(9)
    here = jax.devices()
    monkeypatch.setattr(sharding.jax, "devices", lambda: here[:1])
    with pytest.raises(ValueError, match=r"devices 8: allowed is 1, the one cpu device here$"):
        sharding.data_mesh(8)


def test_nothing_compiles_and_nothing_waits_after_the_first_round(monkeypatch, caplog):
    run, state, teacher = prepared(small.preset(cycles=3), "none")
    key = small.key(3)
    rounds = dispatch.compile_rounds(run, key, state, teacher)
    state, _ = rounds[run.phase(0)](key, state, teacher)
    jax.block_until_ready(state)
    with jax.log_compiles(), caplog.at_level(logging.WARNING), waiting.forbidden(monkeypatch):
        for step in (1, 2):
            state, metrics = rounds[run.phase(step)](key, state, teacher)
    assert not [record for record in caplog.records if "ompil" in record.getMessage()]
    with pytest.raises(AssertionError, match="waits"), waiting.forbidden(monkeypatch):
        float(metrics["student/kl"])


def test_phases_follow_the_schedule():
    preset = small.preset(cycles=10)
    settings = dataclasses.replace(preset.retrospection, start_fraction=0.5, norm="running")
    preset = dataclasses.replace(preset, retrospection=settings)
    run = Distillation.make(preset, "abd", small.teacher())
    assert [run.phase(step) for step in (0, 4)] == [Phase()] * 2
    assert [run.phase(step) for step in (5, 9)] == [Phase(retrospective=True, norm="running")] * 2
    assert Distillation.make(preset, "sv", small.teacher()).phases() == (Phase(),)


def test_defense_none_has_no_vaccine_and_unknown_ones_are_refused():
    assert prepared(small.PRESET, "none")[1].vaccine is None
    with pytest.raises(ValueError, match=r"defense 'abdd'.*did you mean 'abd'"):
        Distillation.make(small.PRESET, "abdd", small.teacher())


def test_the_teacher_is_overruled_where_it_falls_for_the_suspected_trigger():
    run, state, teacher = prepared(INVERTED, "abd")
    images = networks.images(0, 64)
    trigger = state.backdoor.trigger
    seen, hidden = teacher(images), teacher(trigger_inversion.erase(trigger, teacher.mean, images))
    decided, still = (np.argmax(forward.logits, -1) for forward in (seen, hidden))
    target = decided[decided != still][0]
    state = state.replace(backdoor=state.backdoor.replace(target=jnp.int32(target)))
    fooled = (decided == target) & (still != target)
    assert fooled.any() and (decided == target)[~fooled].any()
    answer = run.censored(state, teacher)(images)
    for got, first, second in zip(
        (answer.logits, answer.embedding, *answer.stages),
        (seen.logits, seen.embedding, *seen.stages),
        (hidden.logits, hidden.embedding, *hidden.stages),
        strict=True,
    ):
        np.testing.assert_array_equal(got[fooled], np.asarray(second)[fooled])
        np.testing.assert_array_equal(got[~fooled], np.asarray(first)[~fooled])
    chex.assert_trees_all_equal(answer.batch_norm, seen.batch_norm)
    assert Distillation.make(INVERTED, "sr", teacher).censored(state, teacher) is teacher


def test_lessons_have_the_overruled_answer_to_whole_images():
    run, state, teacher = prepared(INVERTED, "abd")
    lesson, _ = dispatch.teach(run, Phase(), small.key(3), state, teacher, np.int32(0))
    np.testing.assert_allclose(lesson.logits, run.censored(state, teacher)(lesson.images).logits, atol=1e-5)
    assert (
        np.abs(lesson.images - trigger_inversion.erase(state.backdoor.trigger, teacher.mean, lesson.images)).max()
        > 1e-3
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_round_lowers_for_accelerators(preset, platform):
    run, state, teacher = prepared(preset, "abd")
    arguments = (run, Phase(retrospective=True), dispatch.Parts(dispatch.repeat_on_device))
    lowered = dispatch.whole_round.trace(*arguments, small.key(3), state, teacher).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert "stablehlo.while" in text and "stablehlo.convolution" in text
    assert "tf.aliasing_output" in text or "jax.buffer_donor" in text  # the state is donated
