"""Every preset is listed, explained, and as reviewed."""

import dataclasses
import json

import jax
import pytest

from experiments import console, presets
from experiments.__main__ import COMMANDS


def test_presets_are_listed_and_explained(capsys):
    assert console.run(COMMANDS, ["presets"]) == 0
    listed = capsys.readouterr().out
    for name, module in presets.modules().items():
        assert name in listed
        assert console.run(COMMANDS, ["presets", name]) == 0
        explained = capsys.readouterr().out
        assert f"python -m experiments reproduce {name}" in " ".join(explained.split())
        assert module.__doc__


@pytest.mark.parametrize("name", presets.presets())
def test_every_field_of_a_preset_is_as_reviewed(name, golden):
    golden(f"preset_{name}.json", json.dumps(dataclasses.asdict(presets.presets()[name]), indent=2) + "\n")


def test_the_parameters_of_every_preset_are_as_reviewed(golden):
    from flax.traverse_util import flatten_dict

    from abd_jax import data, models

    lines = []
    networks = {
        (preset.dataset, getattr(preset, role).architecture, preset.dtype)
        for preset in presets.presets().values()
        for role in ("teacher", "student")
    }
    for dataset, architecture, dtype in sorted(networks):
        info = data.info(dataset)
        network = models.abstract(
            architecture,
            num_classes=len(info.classes),
            input_shape=info.image_shape,
            mean=(0.0,) * info.image_shape[2],
            std=(1.0,) * info.image_shape[2],
            dtype=dtype,
        )
        leaves = flatten_dict(dict(network.variables), sep="/")
        lines.append(f"{dataset} {architecture}: {sum(leaf.size for leaf in jax.tree.leaves(leaves))}")
        lines += [f"  {path} {leaf.dtype}{list(leaf.shape)}" for path, leaf in sorted(leaves.items())]
    golden("parameters.txt", "\n".join(lines) + "\n")
