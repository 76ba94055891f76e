"""The presets of published runs: teacher, student and baseline have the numbers of the papers and their codes."""

import pytest

from experiments.presets import presets

ADAM = {"optimizer": "adam", "learning_rate": 2e-3, "clip": 5, "batch": 128, "updates": 10, "reduction": "class_mean"}
SGD = {"optimizer": "sgd", "weight_decay": 1e-4, "temperature": 20, "temperature_squared": True, "reduction": "sum"}
STUDENTS = {  # SPEC §2 and PEERS §5
    "cifar10": {**ADAM, "architecture": "wrn-16-1", "cycles": 80_000, "temperature": 1, "attention": 250},
    "gtsrb": {**ADAM, "cycles": 10_000, "temperature": 0.5, "attention": 0},
    "cifar10-cmi": {**SGD, "cycles": 200, "updates": 400, "batch": 128, "learning_rate": 0.1, "attention": 0},
    "cifar10-fast": {**SGD, "cycles": 220, "updates": 400, "batch": 256, "learning_rate": 0.2},
    "cifar10-nayer": {**SGD, "batch": 512, "learning_rate": 0.2},
    "cifar10-ood": {
        **{"optimizer": "adam", "cycles": 300, "batch": 512, "learning_rate": 1e-3, "temperature": 8},
        "temperature_squared": False,
    },
    "cifar10-dfad": {"loss": "l1"},
}
TEACHER = {
    **{"architecture": "wrn-16-2", "epochs": 200, "batch": 128, "learning_rate": 0.1, "momentum": 0.9},
    **{"weight_decay": 5e-4, "crop": 4, "poison_rate": 0.1},
}
CLEAN_KD = {"share": 0.2, "epochs": 170, "learning_rate": 0.1, "temperature": 6, "soft": 0.95}


def said(settings, names):
    return {name: getattr(settings, name) for name in names}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_preset_of_a_published_run_has_its_numbers(name):
    preset = presets()[name]
    assert said(preset.student, STUDENTS[name]) == STUDENTS[name]
    target = 1 if name == "gtsrb" else 0
    assert said(preset.teacher, [*TEACHER, "target"]) == {**TEACHER, "target": target}
    assert said(preset.clean_kd, CLEAN_KD) == CLEAN_KD


def test_nayers_student_learns_as_long_as_published():
    """320 epochs of 400 updates."""
    student = presets()["cifar10-nayer"].student
    assert student.cycles * student.updates == 320 * 400


def test_the_published_forms_of_the_defense():
    """SPEC §3 and §4, columns "paper" and "released code"."""
    paper, released = presets()["digits-paper"], presets()["digits-released"]
    vaccine = {"copies": 3, "kernels": 5, "alpha": 0.1, "suspicion": "argmax", "tail": 0.02, "trials": 8}
    for preset, own in ((paper, {"normalize": "batch", "select": True}), (released, {"normalize": "masked"})):
        assert said(preset.vaccine, [*vaccine, *own]) == {**vaccine, **own}
    assert released.vaccine.reduction == "class_mean" and not released.vaccine.select
    retrospection = {"iterations": 5, "fixed_point_rate": 0.1, "decay": 1e-3, "weight": 1}
    perturbed = {"perturb": "student", "start": "noise", "ascent": "sgd", "portion": 1, "clean_gradient": True}
    assert said(paper.retrospection, [*retrospection, *perturbed]) == {**retrospection, **perturbed}
    perturbed = {"perturb": "teacher", "start": "zeros", "ascent": "adam", "ascent_rate": 0.1, "portion": 0.02}
    assert said(released.retrospection, [*retrospection, *perturbed]) == {**retrospection, **perturbed}
    assert [released.retrospection.perturbed(batch) for batch in (49, 128)] == [0, 2]
    assert not released.retrospection.clean_gradient and released.retrospection.epsilon == 0
    weights = [presets()[f"digits-ood-{form}"].vaccine.student_weights for form in ("paper", "released")]
    assert weights == ["paper", "released"]
