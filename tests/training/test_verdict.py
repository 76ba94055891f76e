"""What a defense came to: what is noted beside the student, and said."""

import dataclasses

import jax.numpy as jnp
import pytest

from abd_jax.defenses.trigger_inversion import TWO_CLASSES, Inversion, InversionConfig, Trigger, anomaly
from abd_jax.training import checks, stage
from abd_jax.training.config import MEASURED_RETROSPECTION, MEASURED_VACCINE
from abd_jax.training.distill import Distillation
from tests import networks
from tests.training import small

pytestmark = pytest.mark.optax

MEASURED = dataclasses.replace(
    small.PRESET,
    vaccine=dataclasses.replace(MEASURED_VACCINE, kernels=2),
    retrospection=MEASURED_RETROSPECTION,
)
NO_CLASS = "no class of the teacher is suspected of a backdoor"
NO_DRAW = "no draw of the shuffled teachers was accepted"
NOTHING = "with these settings no part of it reaches the student"


def ended(preset, defense, target=None, enabled=1.0):
    """The verdict on a run whose inversion and vaccine came to that."""
    run = Distillation.make(preset, defense, small.teacher())
    state = run.init(small.key(), small.teacher())
    if state.vaccine is not None:
        state = state.replace(vaccine=state.vaccine.replace(enabled=jnp.float32(enabled)))
    if target is not None:
        state = state.replace(backdoor=state.backdoor.replace(target=jnp.int32(target)))
    return run.verdict(state)


@pytest.mark.parametrize(
    ("preset", "defense", "came_to", "expected"),
    [
        (MEASURED, "abd", {"target": 3}, {"suspected": 3, "vaccine_enabled": True, "defended": True}),
        (MEASURED, "abd", {"target": -1}, {"suspected": None, "vaccine_enabled": True, "defended": False}),
        (MEASURED, "sr", {"target": -1}, {"suspected": None, "defended": False}),
        (small.PRESET, "sv", {}, {"vaccine_enabled": True, "defended": True}),
        (small.PRESET, "sv", {"enabled": 0.0}, {"vaccine_enabled": False, "defended": False}),
        (small.PRESET, "abd", {"enabled": 0.0}, {"vaccine_enabled": False, "defended": True}),
        (small.PRESET, "none", {}, {}),
        (small.PRESET, "clp", {}, {}),
    ],
)
def test_a_run_knows_whether_anything_was_defended(preset, defense, came_to, expected):
    assert ended(preset, defense, **came_to) == expected


def test_a_penalty_of_images_that_nothing_optimizes_defends_nothing():
    vaccine = dataclasses.replace(small.PRESET.vaccine, student_weights="none")
    patches = dataclasses.replace(small.PRESET.with_method("ood"), vaccine=vaccine)
    assert ended(patches, "sv") == {"vaccine_enabled": True, "defended": False}
    assert ended(dataclasses.replace(patches, vaccine=small.PRESET.vaccine), "sv")["defended"]


@pytest.mark.parametrize(
    ("notes", "reasons"),
    [
        ({"suspected": None, "vaccine_enabled": True, "defended": False}, [NO_CLASS]),
        ({"suspected": None, "vaccine_enabled": False, "defended": False}, [NO_CLASS, NO_DRAW]),
        ({"vaccine_enabled": False, "defended": False}, [NO_DRAW]),
        ({"vaccine_enabled": True, "defended": False}, [NOTHING]),
    ],
)
def test_an_undefended_student_is_one_line_that_says_why(notes, reasons):
    said = stage.warning({"defense": "abd", **notes})
    assert said.startswith("defense abd: ") and "\n" not in said and said.endswith("in effect an undefended one")
    assert [reason for reason in (NO_CLASS, NO_DRAW, NOTHING) if reason in said] == reasons


@pytest.mark.parametrize("notes", [{}, {"suspected": 3, "vaccine_enabled": True, "defended": True}])
def test_of_any_other_student_nothing_is_said(notes):
    assert stage.warning({"defense": "abd", **notes}) == ""


# --- what can come to nothing only


@pytest.mark.parametrize("sizes", [(1.0, 60.0), (50.0, 51.0)])
def test_of_two_triggers_the_smaller_never_stands_out(sizes):
    empty = Trigger(jnp.zeros((2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1)))
    assert float(anomaly(Inversion(empty, jnp.array(sizes), jnp.ones(2)))) == pytest.approx(TWO_CLASSES, rel=1e-3)


@pytest.mark.parametrize("defense", ["sv", "sr", "abd"])
def test_a_form_that_inverts_triggers_is_refused_for_two_classes(defense):
    teacher = networks.network(classes=2)
    with pytest.raises(ValueError, match=rf"defense '{defense}': of 2 classes' triggers none stands out by more than"):
        checks.check_student(MEASURED, None, teacher, defense)
    lower = dataclasses.replace(MEASURED, inversion=InversionConfig(anomaly=0.6))
    checks.check_student(lower, None, teacher, defense)
    checks.check_student(small.PRESET, None, teacher, defense)
    checks.check_student(MEASURED, None, networks.network(classes=3), defense)


@pytest.mark.parametrize("defense", ["sr", "abd"])
def test_self_retrospection_without_a_round_is_refused(defense):
    late = dataclasses.replace(small.PRESET.retrospection, start_fraction=1 - 600 / 80_000)
    preset = dataclasses.replace(small.preset(cycles=60), retrospection=late)
    with pytest.raises(ValueError, match=rf"start_fraction 0\.9925: of 60 cycles none is left for defense '{defense}'"):
        checks.check_student(preset, None, small.teacher(), defense)
    checks.check_student(preset, None, small.teacher(), "sv")
    checks.check_student(
        dataclasses.replace(preset, student=small.preset(cycles=90).student), None, small.teacher(), defense
    )
