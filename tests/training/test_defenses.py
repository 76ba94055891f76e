"""Every method under every defense: a round of each phase runs, the student learns, and the defense's weights act."""

import dataclasses
import functools
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import losses, models, synthesis
from abd_jax.defenses import rivals, shuffling_vaccine
from abd_jax.defenses.base import Rival
from abd_jax.defenses.i_bau import IBAU
from abd_jax.defenses.rivals import Rivals
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from abd_jax.synthesis.bank import BankConfig
from abd_jax.training import config as configs
from abd_jax.training import dispatch, distill, evidence, keys, runs
from abd_jax.training.config import StudentConfig
from abd_jax.training.distill import Distillation, Parts
from abd_jax.training.run_directory import RunDirectory, describe
from experiments import presets
from tests import networks
from tests.training import small, waiting

pytestmark = pytest.mark.optax

CLASSES = tuple("0123456789")
BATCH = 8
INVERSION = {"batch": BATCH, "updates": 1, "bank": BankConfig(capacity=16, crop=0, flip=False)}
METHODS = {
    "zskt": synthesis.ZSKTConfig(latent=4, features=4),
    "deep_inversion": synthesis.DeepInversionConfig(**INVERSION),
    "cmi": synthesis.CMIConfig(latent=4, features=4, head=4, memory=16, negatives=4, crop=0, flip=False, **INVERSION),
    "ood": synthesis.OODConfig(),
    "dafl": synthesis.DAFLConfig(latent=4, features=4),
    "dfq": synthesis.DFQConfig(latent=4, features=4),
    "dfad": synthesis.DFADConfig(latent=4, features=4),
    "fast": synthesis.FastConfig(latent=4, features=4, warm_up=0, **INVERSION),
    "nayer": synthesis.NAYERConfig(noise=4, features=4, warm_up=0, **INVERSION),
}
TINY_RIVALS = Rivals(
    fine_pruning=rivals.FinePruning(batches=2, steps=1),
    nad=rivals.NAD(tuning_steps=1, steps=1),
    i_bau=IBAU(rounds=1, batches=1, iterations=1),
    dhbe=rivals.DHBE(latent=2, features=2),
    abl=rivals.ABL(start=0.0, share=0.25),
)


def preset(method="zskt", cycles=2):
    return dataclasses.replace(
        small.PRESET,
        method=method,
        synthesis=METHODS[method],
        student=StudentConfig(
            "wrn-10-1", cycles, updates=1, batch=BATCH, attention=0.0, evaluate_every=1, checkpoint_every=1
        ),
        vaccine=VaccineConfig(copies=2, kernels=1, student_weights="paper", generator_weights=True, select=False),
        rivals=TINY_RIVALS,
    )


def teacher():
    return networks.pair(0, (8, 8, 1), num_classes=10)


@pytest.fixture(autouse=True)
def tiny_student(monkeypatch):
    """A student that compiles quickly."""

    def create(key, name, *, num_classes, input_shape, **_):
        return networks.tiny(5, input_shape, num_classes=num_classes)

    monkeypatch.setattr(distill, "models", types.SimpleNamespace(create=create, Norm=models.Norm))


def begun(method, defense):
    run = Distillation.make(preset(method), defense, teacher(), classes=CLASSES)
    return run, run.init(small.key(1), run.rival.harden(teacher()))


@functools.cache
def vaccine():
    return shuffling_vaccine.undecided(small.key(2), teacher(), preset().vaccine)


def sketched(method, defense):
    """As `begun`, in shapes alone; only what cannot be traced is computed: the vaccine's draw, OOD's patches."""
    run = Distillation.make(preset(method), defense, teacher(), classes=CLASSES)
    unvaccinated = dataclasses.replace(
        run, defense="sr" if defense == "abd" else "none" if defense == "sv" else defense
    )
    init = functools.partial(jax.eval_shape, unvaccinated.init) if method != "ood" else unvaccinated.init
    state = init(small.key(1), teacher())
    return run, state.replace(vaccine=vaccine()) if defense in ("sv", "abd") else state


def rounds(run, state, teacher):
    """Both rounds, as the host dispatches them."""
    parts = Parts(
        dispatch.repeat_from_host,
        dispatch.synthesize,
        dispatch.teach,
        dispatch.begin_ascent,
        dispatch.ascend,
        dispatch.hunt,
        dispatch.study,
    )
    for step in range(2):
        state, metrics = distill.distill_round(run, run.phase(step), parts, small.key(1), state, teacher)
        assert all(np.isfinite(value) for value in metrics.values()), metrics
    return state, metrics


@pytest.mark.parametrize("method", synthesis.METHODS)
@pytest.mark.parametrize("defense", ["none", "sv", "sr", "abd"])
def test_a_method_runs_under_a_defense(method, defense):
    """Both rounds, traced as one program each: the state keeps its structure, and each part of the defense is there."""
    run, state = sketched(method, defense)
    for phase in run.phases():
        after, metrics = jax.eval_shape(
            lambda key, state, teacher, phase=phase: distill.distill_round(
                run, phase, Parts(dispatch.repeat_on_device), key, state, teacher
            ),
            small.key(1),
            state,
            teacher(),
        )
        assert jax.tree.structure(after) == jax.tree.structure(state)
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
        assert all((old.shape, old.dtype) == (new.shape, new.dtype) for old, new in pairs)
        assert ("student/suspicious" in metrics) == (defense in ("sv", "abd"))
        if method != "ood":
            assert ("generator/suspicious" in metrics) == (defense in ("sv", "abd"))
        assert ("retrospection/divergence" in metrics) == phase.retrospective
    assert any(phase.retrospective for phase in run.phases()) == (defense in ("sr", "abd"))


@pytest.mark.parametrize(
    "method", [name if name == "ood" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_student_learns_under_abd(method):
    run, state = begun(method, "abd")
    before = jax.tree.map(np.asarray, state.student.params)
    state, _ = rounds(run, state, teacher())
    moved = jax.tree.map(lambda old, new: np.abs(new - old).max(), before, state.student.params)
    assert min(jax.tree.leaves(moved)) > 0 and state.step == 2


PUBLISHED = ("digits-paper", "digits-released")
AFTER = ("clp", "fine_pruning", "nad", "i_bau")


@functools.cache
def form(name):
    """A preset's form of the defense, small enough to compile in a second."""
    whole = presets.presets()[name]
    hunt = min(whole.retrospection.hunt, 2)
    return dataclasses.replace(
        preset(cycles=4),
        vaccine=dataclasses.replace(whole.vaccine, copies=2, kernels=1),
        retrospection=dataclasses.replace(whole.retrospection, start_fraction=0.5, ascent_steps=2, hunt=hunt),
    )


@pytest.mark.parametrize(
    ("name", "defense"),
    [
        *(("digits", defense) for defense in ("none", "sv", "sr", "abd", "dhbe", "abl")),
        *((name, "abd") for name in PUBLISHED),
        # those that act after the last round, and what is a part of the two above
        *(pytest.param("digits", defense, marks=pytest.mark.slow) for defense in AFTER),
        *(pytest.param(name, part, marks=pytest.mark.slow) for name in PUBLISHED for part in ("sv", "sr")),
    ],
)
def test_nothing_compiles_and_nothing_waits_after_the_first_round(name, defense, monkeypatch, caplog):
    """Under every defense, in each of its three forms; Self-Retrospection begins at the third round."""
    run = Distillation.make(form(name), defense, teacher(), classes=CLASSES)
    network, key = run.rival.harden(teacher()), small.key(1)
    state = run.init(key, network)
    compiled = dispatch.compile_rounds(run, key, state, network)
    state, _ = compiled[run.phase(0)](key, state, network)
    jax.block_until_ready(state)
    with jax.log_compiles(), caplog.at_level(logging.WARNING), waiting.forbidden(monkeypatch):
        for step in (1, 2, 3):
            state, metrics = compiled[run.phase(step)](key, state, network)
    assert not [record for record in caplog.records if "ompil" in record.getMessage()]
    assert int(state.step) == 4
    assert ("retrospection/divergence" in metrics) == (run.phase(3).retrospective and not run.pastes)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(("name", "passes"), [("digits", 2), ("digits-paper", 1)])
def test_a_round_asks_the_teacher_once_for_each_batch(name, passes, monkeypatch):
    """ZSKT: once for the generator's batch and once for the student's, however many updates learn from that; twice
    where an answer is compared with that to the image without the suspected trigger."""
    asked = []
    call = models.Network.__call__

    def counting(network, *arguments, **options):
        asked.append(type(network.module).__name__)
        return call(network, *arguments, **options)

    monkeypatch.setattr(models.Network, "__call__", counting)
    for updates in (1, 3):
        settings = dataclasses.replace(form(name), student=dataclasses.replace(form(name).student, updates=updates))
        run = Distillation.make(settings, "abd", teacher())
        state = dataclasses.replace(run, defense="sr").init(small.key(1), teacher()).replace(vaccine=vaccine())
        asked.clear()
        for phase in run.phases():
            jax.eval_shape(
                lambda state, teacher, run=run, phase=phase: distill.distill_round(
                    run, phase, Parts(dispatch.repeat_from_host), small.key(1), state, teacher
                ),
                state,
                teacher(),
            )
        assert asked.count("Pair") == len(run.phases()) * 2 * passes, asked


def test_a_method_with_new_images_for_each_update_is_taught_once_an_update():
    run, state = sketched("ood", "sv")
    settings = dataclasses.replace(run.preset, student=dataclasses.replace(run.preset.student, updates=3))
    run, taught = dataclasses.replace(run, preset=settings), []

    def teach(*arguments):
        taught.append(int(arguments[-1]))
        return distill.teach(*arguments)

    parts = Parts(dispatch.repeat_from_host, teach=teach)
    _, metrics = jax.eval_shape(
        lambda state, teacher: distill.distill_round(run, run.phase(0), parts, small.key(1), state, teacher),
        state,
        teacher(),
    )
    assert taught == [0, 1, 2] and "synthesis/target_class" in metrics and "student/suspicious" in metrics


def test_every_method_and_every_defense_is_tried_here():
    assert set(METHODS) == set(synthesis.METHODS)
    assert {"none", "sv", "sr", "abd", "dhbe", "abl", *AFTER} == set(configs.DEFENSES) - {"clean_kd"}


def lesson(run, state):
    return dispatch.teach(run, run.phase(0), small.key(1), state, teacher(), np.int32(0))[0]


def copied(tree):
    return jax.tree.map(jnp.copy, tree)


@pytest.mark.parametrize("method", ["ood", pytest.param("cmi", marks=pytest.mark.slow)])
def test_the_vaccines_weights_reach_the_student(method):
    """Of images that weigh nothing nothing is learned; suspicious ones weigh w, the others 1."""
    run, state = begun(method, "sv")
    told = lesson(run, state)
    assert set(np.asarray(told.weights).tolist()) <= {1.0, np.float32(run.preset.vaccine.suspicious_weight)}
    _, full = dispatch.study(run, run.phase(0), small.key(1), copied(state), told, np.int32(0))
    nothing = told.replace(weights=jnp.zeros(BATCH))
    _, none = dispatch.study(run, run.phase(0), small.key(1), copied(state), nothing, np.int32(0))
    assert none["student/gradient_norm"] == 0 < full["student/gradient_norm"]


def test_dhbe_and_abl_act_on_a_round():
    run, plain = begun("zskt", "none")
    told = lesson(run, plain)
    _, vanilla = dispatch.study(run, run.phase(0), small.key(1), copied(plain), told, np.int32(0))
    run, state = begun("zskt", "abl")
    _, filtered = dispatch.study(run, run.phase(0), small.key(1), copied(state), told, np.int32(0))
    student = np.asarray(plain.student(told.images, "batch").logits)
    apart = np.sort(np.asarray(losses.kl_divergence(told.logits, jnp.asarray(student))) / 10)
    np.testing.assert_allclose(vanilla["student/kl"], apart.mean(), rtol=1e-4)
    np.testing.assert_allclose(filtered["student/kl"], apart[2:].sum() / BATCH, rtol=1e-4)
    run, state = begun("zskt", "dhbe")
    before = jax.tree.map(np.asarray, state.rival.params)
    after, regularized = dispatch.study(run, run.phase(0), small.key(1), copied(state), told, np.int32(0))
    assert regularized["dhbe/distance"] > 0 and regularized["student/kl"] == vanilla["student/kl"]
    assert regularized["student/gradient_norm"] != vanilla["student/gradient_norm"]
    assert (
        max(
            np.abs(new - old).max()
            for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after.rival.params), strict=True)
        )
        > 5e-4
    )


@pytest.mark.parametrize(
    "defense",
    ["clp", "fine_pruning", pytest.param("nad", marks=pytest.mark.slow), pytest.param("i_bau", marks=pytest.mark.slow)],
)
def test_a_run_with_a_rival_leaves_its_row_and_notes(defense, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.checkpoint, "save_network", lambda *_: "digest")  # a tiny network has no name to load by
    settings = preset(cycles=1)
    directory = RunDirectory.open(tmp_path / "run", describe(settings, defense=defense), "refuse")
    row = runs.make_student(directory, settings, small.dataset(), teacher(), "badnet_sq", defense, seed=0)
    assert row["defense"] == defense and 0 <= row["acc"] <= 1
    assert (tmp_path / "run" / "rival.json").exists() == (defense != "clp")


def test_repair_draws_from_the_final_synthesizer_and_is_repeatable(tmp_path):
    run, state = begun("zskt", "none")
    seen = []

    class Watching(Rival):
        def repair(self, key, student, teacher, sample):
            seen.append([np.asarray(sample(index)) for index in (0, 1, 0)])
            return student, {}

    class Watched(Distillation):
        rival = property(lambda self: Watching())

    evidence.repair(
        RunDirectory(tmp_path), Watched(run.preset, run.defense, run.synthesizer), small.key(1), state, teacher()
    )
    first, second, again = seen[0]
    assert first.shape == (BATCH, 8, 8, 1) and (first == again).all() and np.abs(first - second).max() > 1e-3
    expected = run.synthesizer.sample(keys.stream(small.key(1), "samples", 1), state.synthesizer, BATCH)
    np.testing.assert_allclose(first, expected, atol=1e-4)
