"""`distill` from a stranger's file."""

import json

import pytest
import safetensors.numpy

from abd_jax.interop.architectures import variables_to_torch
from experiments import console
from experiments.__main__ import COMMANDS
from tests.networks import network


@pytest.mark.parametrize(("side", "measured"), [("8", False), ("16", True)])
def test_a_strangers_file_is_distilled_and_measured_only_on_data_that_fits(
    side, measured, tmp_path, capsys, monkeypatch
):
    from abd_jax.training import checkpoint, runs

    seen = {}

    def make_student(directory, preset, dataset, teacher, trigger, *others):
        seen.update(preset=preset, dataset=dataset, teacher=teacher, trigger=trigger, path=directory.path)
        seen["classes"] = others[-1]
        (directory.path / "network").mkdir()
        verdict = {"suspected": None, "vaccine_enabled": True, "defended": False}
        (directory.path / "network" / "network.json").write_text(json.dumps({"defense": "abd", **verdict}))
        return dict.fromkeys(("acc", "asr", "ra"), 0.5 if measured else None)

    monkeypatch.setattr(runs, "make_student", make_student)
    out, file = tmp_path / "run", tmp_path / "bare.bin"
    stranger = network(classes=10)
    file.write_bytes(safetensors.numpy.save(variables_to_torch(stranger.module, stranger.variables)))
    file.with_name("bare.bin.yaml").write_text("classes: [a, b, c, d, e, f, g, h, i, j]\n")
    argv = ["distill", "digits", "--teacher", str(file), "--out", str(out), "--image-size", side]
    argv += ["--mean", "0.5", "--std", "0.5"]
    assert console.run(COMMANDS, argv) == 0
    assert seen["classes"] == (tuple("0123456789") if measured else tuple("abcdefghij"))
    assert seen["teacher"].input_shape == (int(side), int(side), 1) and seen["teacher"].std == (0.5,)
    assert seen["preset"].teacher.architecture == "wrn-10-1"
    said = " ".join(capsys.readouterr().out.split())
    if measured:
        assert seen["dataset"].name == "digits" and seen["trigger"] == "badnet_sq"
        assert "ASR 50.00 %" in said and "ASR and RA are of badnet_sq towards class 0, the preset's own" in said
    else:
        assert seen["dataset"] is None and seen["trigger"] is None
        assert "are not known: the teacher is for 8×8×1 images of 10 classes, data set digits has 16×16×1" in said
    assert "defense abd: no class of the teacher is suspected of a backdoor" in said
    stored = json.loads((out / "config.json").read_text())
    assert stored["teacher"]["digest"] == checkpoint.digest(stranger.variables)
