"""Runs over several devices: what a run goes through before, between and after its rounds."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from abd_jax import synthesis
from abd_jax.synthesis.bank import BankConfig
from abd_jax.training import checkpoint, dispatch, runs, sharding, stage
from abd_jax.training.distill import Distillation, Phase
from abd_jax.training.run_directory import RunDirectory, describe
from tests import networks
from tests.training import small

pytestmark = pytest.mark.optax

BANK = BankConfig(capacity=16, crop=0, flip=False)
POOLS = {
    "deep_inversion": synthesis.DeepInversionConfig(updates=3, batch=8, bank=BANK),
    "cmi": synthesis.CMIConfig(
        latent=4, features=4, updates=3, batch=8, head=8, memory=16, negatives=8, crop=0, flip=False, bank=BANK
    ),
    "fast": synthesis.FastConfig(latent=4, features=4, updates=3, batch=8, warm_up=0, bank=BANK),
    "nayer": synthesis.NAYERConfig(noise=4, features=4, updates=3, batch=8, warm_up=0, bank=BANK),
}


class Terminating(stage.Silent):
    """Sends SIGTERM after the first round."""

    def advance(self, done, metrics):
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def short(preset, **student):
    options = dict(cycles=2, updates=1, checkpoint_every=1, attention=0.0) | student
    return dataclasses.replace(preset, student=dataclasses.replace(preset.student, **options))


@pytest.mark.slow
def test_a_saved_teacher_is_distilled_over_two_devices_and_resumed(tmp_path):
    """A network that was loaded is tied to the first device, a fresh one to none."""
    checkpoint.save_network(tmp_path / "teacher", small.teacher(), "wrn-10-1", {})
    teacher, _ = checkpoint.load_network(tmp_path / "teacher")
    retrospection = dataclasses.replace(small.INVERTED.retrospection, start_fraction=0.0, hunt=1)
    inversion = dataclasses.replace(small.INVERTED.inversion, images=3, steps=1)  # 3 cannot be split over 2
    preset = short(dataclasses.replace(small.INVERTED, retrospection=retrospection, inversion=inversion))

    def student(existing, observer=None):
        directory = RunDirectory.open(tmp_path / "run", describe(preset), existing)
        return runs.make_student(directory, preset, None, teacher, None, "abd", 5, observer, devices=2)

    with pytest.raises(stage.Interrupted, match="saved at step 1 of 2"):
        student("refuse", Terminating())
    row = student("resume")
    assert row["defense"] == "abd" and (tmp_path / "run" / "result.json").is_file()
    notes = checkpoint.load_network(tmp_path / "run" / "network")[1]
    with np.load(tmp_path / "run" / "inversion.npz") as found:
        assert notes["suspected"] == int(found["suspect"]) and notes["defended"] is True


def test_a_batch_that_three_devices_share_ends_in_a_result_though_64_pictures_cannot_be_shared(tmp_path):
    preset = short(small.PRESET, batch=126, cycles=1)
    directory = RunDirectory.open(tmp_path / "run", describe(preset), "refuse")
    runs.make_student(directory, preset, None, small.teacher(), None, "none", 5, devices=3)
    assert (tmp_path / "run" / "result.json").is_file()
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["images"].shape == (64, 8, 8, 1)


@pytest.mark.parametrize(
    "method", ["deep_inversion", "nayer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cmi", "fast"))]
)
def test_two_devices_synthesize_what_one_does_in_the_second_update_too(method):
    """A state that came out of the first update spread over the devices is none that the compiled second one takes."""
    preset = dataclasses.replace(short(small.PRESET), method=method, synthesis=POOLS[method])
    teacher = networks.tiny(0, (8, 8, 1))

    def synthesized(mesh):
        student = networks.tiny(1, (8, 8, 1))  # part of the state, which is donated
        run = Distillation.make(preset, "none", teacher, mesh and sharding.batch_sharding(mesh), ("0", "1", "2"))
        key, state, asked = small.key(3), dataclasses.replace(run.init(small.key(3), teacher), student=student), teacher
        if mesh is not None:
            key, state, asked = sharding.replicate((key, state, asked), mesh)
        arguments = (run, Phase(), key, state, asked, np.int32(0))
        update = dispatch.synthesize.lower(*arguments).compile()
        for index in (0, 1):
            state, metrics = update(key, state, asked, np.int32(index))
        return jax.tree.map(np.asarray, (state.synthesizer, metrics))

    (one, expected), (two, metrics) = synthesized(None), synthesized(sharding.data_mesh(2))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-3, atol=1e-4, err_msg=name)
    pairs = zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True)
    apart = np.concatenate([(np.abs(np.float32(a) - np.float32(b)) > 1e-3).ravel() for a, b in pairs])
    assert apart.mean() < 0.01, "but for what Adam makes of a gradient that is nothing but rounding"
