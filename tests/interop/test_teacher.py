"""`read_teacher` on every kind of file that needs no PyTorch: what is told by the content, and what is refused."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from abd_jax.interop import architectures, export, read_teacher
from abd_jax.interop.stored import Stored
from abd_jax.training import checkpoint
from tests import networks
from tests.interop import torch_files
from tests.interop.wide_resnets import with_one

NAMES = [
    *("wrn-10-1", "wrn-16-2", "resnet-18", "resnet-34", "resnet-50", "resnet-18-imagenet", "resnet-50-imagenet"),
    *("vgg-11", "vgg-16", "vit-nano-4", "vit-tiny-8", "vit-small-8"),
]


def options(network):
    return dict(input_shape=network.input_shape, mean=network.mean, std=network.std)


def same(one, other):
    assert one.module == other.module
    assert (one.mean, one.std, one.input_shape) == (other.mean, other.std, other.input_shape)
    assert jax.tree.structure(dict(one.variables)) == jax.tree.structure(dict(other.variables))
    jax.tree.map(np.testing.assert_array_equal, dict(one.variables), dict(other.variables))


@pytest.mark.parametrize("name", [*NAMES, "mobilenet-v2"])
def test_names_and_layouts_there_and_back(name):
    """Every variable has a name of its own in PyTorch, and comes back from it as it was."""
    network = networks.network(name, shape=(16, 16, 3))
    state = architectures.variables_to_torch(network.module, network.variables)
    assert len(state) == len(jax.tree.leaves(network.variables))
    stored = {path: Stored.of(value) for path, value in state.items()}
    back = architectures.variables_from_torch(network.module, network.variables, stored, name)
    assert jax.tree.structure(back) == jax.tree.structure(dict(network.variables))
    jax.tree.map(np.testing.assert_array_equal, back, dict(network.variables))
    expected = (name, "mobilenet-v2-imagenet") if name == "mobilenet-v2" else (name,)
    assert architectures.infer(stored) == expected
    ours = jax.tree_util.tree_leaves_with_path(dict(network.variables))
    flat = {"/".join(key.key for key in path): Stored.of(leaf) for path, leaf in ours}
    assert architectures.infer(flat) == expected


@pytest.fixture(scope="module")
def wide():
    return networks.network("wrn-10-2", classes=5, shape=(8, 8, 3))


@pytest.fixture(scope="module")
def state(wide):
    return architectures.variables_to_torch(wide.module, wide.variables)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda items: items,
        lambda items: {f"module.{name}": value for name, value in items.items()},
        lambda items: {"state_dict": torch_files.mapping(items), "epoch": torch_files.number(3)},
        lambda items: {"model": torch_files.mapping({f"module.{name}": value for name, value in items.items()})},
        lambda items: {  # the other spelling of this network's shortcut and classifier
            name.replace("convShortcut", "shortcut.0").replace("fc.", "linear."): value for name, value in items.items()
        },
    ],
    ids=["plain", "module", "state_dict", "model", "spelling"],
)
def test_pytorch_files(tmp_path, wide, state, wrap, legacy):
    path = torch_files.save(tmp_path / "teacher.anything", state, legacy, wrap)
    same(read_teacher(path, **options(wide)), wide)


def test_other_precisions(tmp_path, wide, state):
    for kind in ("float64", "float16"):
        path = torch_files.save_as(tmp_path / "teacher.pth", state, kind)
        read = read_teacher(str(path), **options(wide))
        expected = np.asarray(wide.params["fc"]["kernel"]).astype(kind).astype(np.float32)
        np.testing.assert_array_equal(read.params["fc"]["kernel"], expected)


def test_safetensors_and_flax(tmp_path, wide):
    for format in ("safetensors", "flax"):
        path = tmp_path / f"student.{format}"
        path.write_bytes(export.FORMATS[format](wide, "wrn-10-2"))
        same(read_teacher(path, **options(wide)), wide)


def test_safetensors_carry_the_name_that_weights_leave_open(tmp_path):
    network = networks.network("mobilenet-v2", shape=(8, 8, 3))
    path = tmp_path / "student.safetensors"
    path.write_bytes(export.to_safetensors(network, "mobilenet-v2"))
    assert read_teacher(path, **options(network)).module == network.module
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(safetensors.numpy.save(architectures.variables_to_torch(network.module, network.variables)))
    with pytest.raises(ValueError, match="fit mobilenet-v2 and mobilenet-v2-imagenet alike: say which with archi"):
        read_teacher(plain, **options(network))
    told = read_teacher(plain, architecture="MobileNet-v2-ImageNet", **options(network))
    assert told.module.imagenet and not network.module.imagenet


def test_half_precision_safetensors(tmp_path, wide, state):
    import ml_dtypes

    path = tmp_path / "teacher.safetensors"
    path.write_bytes(safetensors.numpy.save({name: x.astype(ml_dtypes.bfloat16) for name, x in state.items()}))
    read = read_teacher(path, **options(wide))
    expected = state["fc.weight"].T.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(read.params["fc"]["kernel"], expected)


def test_our_own_directories(tmp_path, wide):
    checkpoint.save_network(tmp_path / "run" / "network", wide, "wrn-10-2", {})
    for place in ("run", "run/network"):
        same(read_teacher(tmp_path / place, input_shape=(9, 9, 1), mean=(0.0,), std=(1.0,)), wide)


@pytest.mark.parametrize(("asked", "computed"), [("bfloat16", "bfloat16"), ("float32", "float32"), (None, "bfloat16")])
def test_a_directory_of_ours_computes_in_the_dtype_that_is_asked_for(tmp_path, asked, computed):
    checkpoint.save_network(tmp_path, networks.network(dtype="bfloat16"), "wrn-10-1", {})
    read = read_teacher(tmp_path, dtype=asked)
    assert jax.eval_shape(lambda images: read(images).stages[0], networks.images()).dtype == computed
    assert read.params["fc"]["kernel"].dtype == "float32"


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        ({"fc.bias": with_one(np.nan)}, {}, r"fc.bias has 1 value\(s\) that are not finite"),
        ({"bn1.running_mean": with_one(-np.inf)}, {}, r"bn1.running_mean has 1 value\(s\) that are not finite"),
        ({"bn1.running_var": with_one(-1)}, {}, "bn1.running_var has negative values"),
        (
            {"conv1.weight": lambda x: x[:, :, :1]},
            {},
            r"conv1.weight has shape \(16, 3, 1, 3\): wrn-10-2 with 5 .*needs",
        ),
        (
            {"bn1.weight": None},
            {},
            "the state dict is no wrn-10-2 with 5 classes for 8×8×3 images: missing bn1.weight$",
        ),
        ({"extra": lambda _: np.zeros(3, np.float32)}, {}, "left over extra$"),
        ({}, {"num_classes": 4}, r"fc.bias has shape \(5,\): wrn-10-2 with 4 classes"),
        ({}, {"num_classes": 1}, "num_classes 1: allowed are 2 … 100000"),
        ({}, {"architecture": "wrn-16-2"}, "no wrn-16-2 .*: missing .*; its entries look like those of wrn-10-2$"),
        ({}, {"architecture": "resnet-18"}, "no resnet-18 .*: missing"),
        ({}, {"architecture": "alexnet"}, "unknown architecture 'alexnet': allowed are"),
        ({}, {"input_shape": (8, 8, 1), "mean": (0.5,), "std": (0.5,)}, r"conv1.weight has shape \(16, 3, 3, 3\)"),
        ({}, {"mean": (0.5,)}, r"mean: 1 number\(s\) for images of 3 channel\(s\)"),
        ({}, {"std": (0.5, 0.5, 0.0)}, "std 0.5 0.5 0.0: allowed are numbers above 0"),
        ({}, {"mean": (), "std": ()}, "nothing says its mean and std: say it as an option or in a YAML file beside it"),
        ({"fc.bias": None, "fc.weight": None}, {}, "say it with num_classes"),
        ({"block1.layer.0.conv1.weight": None}, {"num_classes": 5}, "no architecture known has its entries"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, wide, state, change, told, message):
    state = dict(state)
    for name, by in change.items():
        if by is None:
            del state[name]
        else:
            state[name] = by(state.get(name))
    path = torch_files.save(tmp_path / "teacher.pth", state)
    with pytest.raises(ValueError, match=message) as error:
        read_teacher(path, **(options(wide) | told))
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_flax_files_that_do_not_fit(tmp_path, wide):
    tree = jax.tree.map(np.asarray, dict(wide.variables))
    path = tmp_path / "teacher.msgpack"
    del tree["params"]["fc"]["kernel"]
    path.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(ValueError, match="missing params/fc/kernel"):
        read_teacher(path, **options(wide))


def test_a_vgg_with_biases_in_front_of_its_normalization(tmp_path):
    """(x + b − mean) / σ = (x − (mean − b)) / σ."""
    network = networks.network("vgg-11", shape=(8, 8, 3))
    state = architectures.variables_to_torch(network.module, network.variables)
    rng = np.random.default_rng(0)
    for kernel in [name for name in state if state[name].ndim == 4]:
        bias = rng.normal(size=len(state[kernel])).astype(np.float32)
        state[kernel.replace("weight", "bias")] = bias
        at = int(kernel.split(".")[1])
        state[f"features.{at + 1}.running_mean"] = state[f"features.{at + 1}.running_mean"] + bias
    read = read_teacher(torch_files.save(tmp_path / "teacher.pth", state), **options(network))
    jax.tree.map(
        lambda own, other: np.testing.assert_allclose(own, other, atol=1e-6), read.variables, dict(network.variables)
    )
