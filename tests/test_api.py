"""`import abd_jax as abd`: README's lines run, and what stands outside the package plugs in."""

import dataclasses
import functools
import re
import sys
import tomllib
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest

import abd_jax as abd
from abd_jax import synthesis
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from abd_jax.defenses.trigger_inversion import InversionConfig
from abd_jax.interop import export
from abd_jax.synthesis import METHODS
from abd_jax.synthesis.cmi import CMIConfig
from abd_jax.training import checkpoint, runs
from abd_jax.training.config import StudentConfig
from experiments import presets
from experiments.commands import _common
from tests import networks

TOP = Path(__file__).parents[1]
SMALL = abd.Preset(
    name="small", dataset="digits", student=StudentConfig(cycles=4, updates=2, batch=8, architecture="wrn-10-1")
)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The test package as pip leaves it: its module and its entry points on the path."""
    described = tomllib.loads((TOP / "tests/plugin/pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "abd_noise-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: abd-noise\nVersion: 0.1.0\n")
    ((group, points),) = described["entry-points"].items()
    (info / "entry_points.txt").write_text(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
    )
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.syspath_prepend(str(TOP / "tests/plugin"))
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
    sys.modules.pop("abd_noise", None)


def model(architecture="wrn-10-1", **options) -> abd.Model:
    return abd.Model(networks.network(architecture, **options), architecture)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.optax
def test_readmes_lines_run(tmp_path, monkeypatch, capsys):
    (snippet,) = re.findall(r"```python\n(import abd_jax as abd.*?)```", (TOP / "README.md").read_text(), re.DOTALL)
    assert len([line for line in snippet.splitlines() if line]) <= 10
    quicker = snippet.replace("image_size=32", "image_size=8").replace("cycles=400", "cycles=2")
    assert quicker.count("=8,") == quicker.count("cycles=2,") == 1
    monkeypatch.chdir(tmp_path)
    teacher = networks.network("wrn-16-1", classes=3, shape=(8, 8, 3))
    Path("teacher.pth").write_bytes(export.to_flax(teacher, "wrn-16-1"))
    small = {"inversion": InversionConfig(images=4, steps=2), "vaccine": VaccineConfig(trials=2)}
    monkeypatch.setattr("abd_jax.api.AuditConfig", functools.partial(abd.AuditConfig, batches=1, batch=8, **small))
    exec(compile(quicker, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "calibrated signs speak for a backdoor" in said and "2 2" in said and "'transfer'" in said
    assert Path("audit/report.html").is_file()
    assert abd.load("student.safetensors").network.module.num_classes == 3
    card = Path("student.safetensors.md").read_text()
    for part in ("SHA-256", "| teacher.digest | ", "| method | zskt |", "| defense | abd |", "| student.cycles | 2 |"):
        assert part in card
    assert re.search(r"\| anomaly \| [\d.e+-]+, .*; on the zoo: missed \d+ of \d+", card)


@pytest.mark.optax
def test_a_method_and_a_defense_from_outside_the_package(plugin, tmp_path):
    import abd_noise

    seen = []
    teacher = model(classes=3)
    student = abd.distill(
        teacher, "wrn-10-1", method="noise", defense=abd_noise.trust_the_dark, preset=SMALL, out=tmp_path / "run",
        progress=lambda done, total, metrics: seen.append((done, total, dict(metrics))),
    )  # fmt: skip
    assert [(done, total) for done, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [metrics["noise/updates"] for *_, metrics in seen] == [1, 2, 3, 4]
    assert 0 < seen[-1][2]["student/trusted"] < 1
    assert student.notes["method"] == "noise" and student.notes["defense"] == "trust_the_dark"
    assert abd.load(tmp_path / "run").notes["digest"] == student.notes["digest"]
    images = networks.images(0, 4)
    np.testing.assert_allclose(student(images), abd.load(tmp_path / "run")(np.asarray(images)), atol=1e-6)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            jax.tree.leaves(student.network.params), jax.tree.leaves(teacher.network.params), strict=True
        )
    ]  # fmt: skip
    assert max(moved) > 0


def test_an_installed_method_is_an_option_of_the_command(plugin):
    @dataclasses.dataclass(frozen=True)
    class Options:
        preset: _common.PresetFields

    argv = ["digits", "--method", "noise", "--synthesis.brightness", "0.25"]
    options = _common.with_preset(Options, argv, prog="x", description="y")
    assert options.preset.method == "noise" and options.preset.synthesis.brightness == 0.25
    with pytest.raises(ValueError, match=r"method 'nois' \(did you mean 'noise'\?\): allowed are zskt, .*, noise"):
        presets.presets()["digits"].with_method("nois")


def test_a_name_is_given_once(plugin):
    import abd_noise

    abd.register("hiss", abd_noise.METHOD)
    abd.register("hiss", abd_noise.METHOD)
    assert synthesis.lookup("hiss") is abd_noise.METHOD
    with pytest.raises(ValueError, match="method 'zskt': the name is taken"):
        abd.register("zskt", abd_noise.METHOD)
    with pytest.raises(ValueError, match="method 'other': its settings NoiseConfig are another method's"):
        abd.register("other", abd_noise.METHOD)


@pytest.fixture
def distilled(monkeypatch):
    """What `distill` asks for, in place of a run; the student is the teacher, and no class was suspected."""
    asked = {}

    def distill_student(directory, preset, dataset, teacher, trigger, defense, seed, observer, screens, classes):
        asked.update(preset=preset, defense=defense, classes=classes)
        verdict = {"defense": defense, "suspected": None, "defended": False, "classes": list(classes)}
        checkpoint.save_network(directory.path / "network", teacher, "wrn-10-1", verdict)

    monkeypatch.setattr(runs, "distill_student", distill_student)
    return asked


def test_without_a_preset_the_defense_has_the_form_that_was_measured(distilled, caplog):
    student = abd.distill(model(), "wrn-10-1", cycles=7)
    measured, asked = presets.presets()["digits"], distilled["preset"]
    assert (distilled["defense"], asked.method, asked.student.cycles) == ("abd", "zskt", 7)
    assert (asked.vaccine, asked.retrospection, asked.inversion) == (
        measured.vaccine,
        measured.retrospection,
        measured.inversion,
    )
    assert asked.synthesis.batch_norm == measured.synthesis.batch_norm > 0
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("defense abd: no class of the teacher is suspected") and student.notes["defended"] is False


def test_a_preset_keeps_its_method_and_its_form_of_the_defense(distilled):
    paper = dataclasses.replace(presets.presets()["digits-paper"], method="cmi", synthesis=CMIConfig(updates=50))
    abd.distill(model(classes=10), "wrn-10-1", preset=paper)
    asked = distilled["preset"]
    assert (asked.method, asked.synthesis) == ("cmi", CMIConfig(updates=50))
    assert (asked.vaccine, asked.retrospection) == (paper.vaccine, paper.retrospection)
    assert asked.student.cycles == paper.student.cycles
    abd.distill(model(classes=10), "wrn-10-1", preset=paper, method="dfad")
    assert distilled["preset"].method == "dfad"


@pytest.mark.usefixtures("distilled")
def test_a_place_that_is_taken_is_told_in_the_librarys_words(tmp_path):
    (tmp_path / "run").mkdir()
    abd.distill(model(), "wrn-10-1", cycles=7, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"^out .*run: exists already; name a new or an empty one$"):
        abd.distill(model(), "wrn-10-1", cycles=7, out=tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^out .*file: is a file; allowed is a new or empty directory$"):
        abd.distill(model(), "wrn-10-1", cycles=7, out=tmp_path / "file")


def test_the_names_of_a_teachers_classes_reach_the_method_and_the_student(distilled):
    named = dataclasses.replace(model(classes=3), notes={"classes": ["cat", "dog", "ship"]})
    student = abd.distill(named, "wrn-10-1", preset=SMALL, method="nayer")
    assert distilled["classes"] == ("cat", "dog", "ship") and student.notes["classes"] == ["cat", "dog", "ship"]


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        abd.distil  # noqa: B018
    assert all(getattr(abd, name) is not None for name in abd.__all__)


def test_the_package_offers_what_its_module_does():
    from abd_jax import api

    assert abd.__all__ == api.__all__


def test_importing_the_package_imports_nothing_of_it():
    import subprocess

    code = "import sys, abd_jax; print([name for name in sys.modules if name.startswith(('abd_jax.', 'jax'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TOP)
    assert done.stdout.strip() == "[]"


def test_bad_formats_and_settings_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="no audit of this network"):
        abd.export(model(), tmp_path / "x.flax", "flax", audit={"teacher": {"digest": "another's"}})
    with pytest.raises(ValueError, match=r"format '\.bin': allowed are safetensors, stablehlo, onnx, flax"):
        abd.export(model(), tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"student\.attention above 0 needs stages of equal resolution"):
        abd.distill(model(), "resnet-18", preset=SMALL)
    with pytest.raises(ValueError, match=r"student\.cycles 0: allowed are whole numbers from 1"):
        abd.distill(model(), "wrn-10-1", cycles=0)
    with pytest.raises(ValueError, match="of 2 classes' triggers none stands out"):
        abd.distill(model(classes=2), "wrn-10-1", out=tmp_path / "run")
    with pytest.raises(ValueError, match="learns from a data set"):
        abd.distill(model(), "wrn-10-1", defense="clean_kd", preset=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def unchecked():
    """As outside the tests, where nothing checks annotations at run time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_facts_of_a_file_may_be_numbers_lists_and_arrays(tmp_path):
    gray, rgb = tmp_path / "gray.bin", tmp_path / "rgb.bin"
    gray.write_bytes(export.to_flax(networks.network("wrn-10-1"), "wrn-10-1"))
    rgb.write_bytes(export.to_flax(networks.network("wrn-10-1", shape=(8, 8, 3)), "wrn-10-1"))
    loaded = abd.load(gray, image_size=8, mean=0.5, std=np.float32(0.25)).network
    assert (loaded.input_shape, loaded.mean, loaded.std) == ((8, 8, 1), (0.5,), (0.25,))
    loaded = abd.load(rgb, image_size=[8, 8], mean=np.full(3, 0.5), std=[0.25, 0.25, 1]).network
    assert (loaded.input_shape, loaded.mean, loaded.std) == ((8, 8, 3), (0.5,) * 3, (0.25, 0.25, 1.0))
    for wrong, message in (
        ({"mean": "0.5"}, "mean: expected a number, found str"),
        ({"mean": [[0.5]]}, "mean: expected a number, found list"),
        ({"image_size": 8.5}, "image_size: expected a whole number, found float"),
        ({"num_classes": "ten"}, "num_classes: expected a whole number, found str"),
        ({"architecture": 3}, "architecture: expected text, found int"),
        ({"mean": 0.5, "std": 0.5}, r"rgb.bin: params/conv1/kernel has shape \(3, 3, 3, 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            abd.load(rgb, **({"image_size": 8} | wrong))


@pytest.mark.usefixtures("unchecked")
def test_arguments_of_another_kind_are_one_line(tmp_path):
    load = "expected a Model, which abd_jax.load makes of a file or a directory, found"
    for call, message in (
        (lambda: abd.load(None), "path: expected a path, found NoneType"),
        (lambda: abd.distill("teacher.pth", "wrn-10-1"), f"teacher: {load} str"),
        (lambda: abd.distill(model().network, "wrn-10-1"), f"teacher: {load} Network"),
        (lambda: abd.distill(model(), model()), "student: expected the name of an architecture, found Model"),
        (lambda: abd.distill(model(), "wrn-10-1", preset="digits"), "preset: expected a Preset, found str"),
        (lambda: abd.distill(model(), "wrn-10-1", cycles=1.5), "cycles: expected a whole number, found float"),
        (lambda: abd.distill(model(), "wrn-10-1", seed="0"), "seed: expected a whole number, found str"),
        (lambda: abd.distill(model(), "wrn-10-1", defense=None), "defense: expected a name or a function, found None"),
        (lambda: abd.audit("teacher.pth"), f"teacher: {load} str"),
        (lambda: abd.audit(model(), "student.pth"), f"student: {load} str"),
        (lambda: abd.audit(model(), settings={}), "settings: expected an AuditConfig, found dict"),
        (lambda: abd.export("teacher.pth", tmp_path / "x.flax", "flax"), f"model: {load} str"),
    ):
        with pytest.raises(TypeError, match=re.escape(message)):
            call()


def test_an_exported_file_is_replaced_only_where_that_is_asked_for(tmp_path):
    path = abd.export(model(), tmp_path / "x.safetensors")
    before = path.read_bytes()
    other = model(classes=5)
    with pytest.raises(ValueError, match=r"path .*x\.safetensors: exists already; use overwrite=True to replace it"):
        abd.export(other, path)
    assert path.read_bytes() == before
    abd.export(other, path, overwrite=True)
    assert path.read_bytes() != before
    path.unlink()
    with pytest.raises(ValueError, match=r"x\.safetensors\.md: exists already"):
        abd.export(other, path)
    with pytest.raises(ValueError, match="there is no directory"):
        abd.export(other, tmp_path / "nowhere" / "x.safetensors")
