"""Files that PyTorch itself wrote, of torchvision's, timm's and this literature's networks: the same logits."""

import unittest.mock

import jax
import numpy as np
import pytest

from abd_jax.interop import read_teacher
from abd_jax.interop.architectures import variables_to_torch
from tests.networks import MEAN, STD, images

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


with unittest.mock.patch("torch.library.register_fake", lambda *_, **__: lambda function: function):
    # A torchvision that is built for another PyTorch (PyPI's beside a CPU build) has no operators, and its import
    # fails where it describes them; the networks need none.
    vision = pytest.importorskip("torchvision")
    models = pytest.importorskip("timm")


def torchvision(name):
    return lambda classes, side: getattr(vision.models, name)(num_classes=classes)


def timm(name, **options):
    def make(classes, side):
        sized = {"img_size": side} if name.startswith("vit") else {}
        return models.create_model(name, num_classes=classes, **sized, **options)

    return make


def wide(depth, width):
    from experiments.bench.torch_networks import WideResNet

    return lambda classes, side: WideResNet(depth, width, classes, 3)


class Logits(torch.nn.Module):
    """The bench's Wide ResNet gives (logits, stages)."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        result = self.inner(x)
        return result[0] if isinstance(result, tuple) else result


class CifarBlock(torch.nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.conv1, self.bn1 = conv(inputs, features, 3, stride, 1, bias=False), norm(features)
        self.conv2, self.bn2 = conv(features, features, 3, 1, 1, bias=False), norm(features)
        self.shortcut = torch.nn.Sequential()
        if stride != 1 or inputs != features:
            self.shortcut = torch.nn.Sequential(conv(inputs, features, 1, stride, bias=False), norm(features))

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class CifarResNet(torch.nn.Module):
    """The names that networks for CIFAR have: `shortcut` and `linear`."""

    def __init__(self, counts, classes):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(counts):
            blocks = []
            for index in range(count):
                features = 64 * 2**stage
                blocks.append(CifarBlock(inputs, features, 2 if stage and not index else 1))
                inputs = features
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))
        self.linear = torch.nn.Linear(512, classes)

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            h = stage(h)
        return self.linear(h.mean((2, 3)))


def cifar_form(classes, side):
    """torchvision's network with the stem for small images, as many training scripts make it."""
    network = torchvision("resnet18")(classes, side)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = torch.nn.Identity()
    return network


class CifarVGG(torch.nn.Module):
    """Convolutions with biases, in one list."""

    def __init__(self, plan, classes):
        super().__init__()
        layers, inputs = [], 3
        for features in plan:
            if features == "M":
                layers.append(torch.nn.MaxPool2d(2, 2))
            else:
                norm = torch.nn.BatchNorm2d(features)
                layers += [torch.nn.Conv2d(inputs, features, 3, padding=1), norm, torch.nn.ReLU()]
                inputs = features
        self.features, self.classifier = torch.nn.Sequential(*layers), torch.nn.Linear(512, classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


VGG_11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
VGG_16 = (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M")
NETWORKS = {
    "wrn-16-1": (wide(16, 1), 16),
    "wrn-10-2": (wide(10, 2), 16),
    "resnet-18": (lambda classes, side: CifarResNet((2, 2, 2, 2), classes), 16),
    "resnet-34": (lambda classes, side: CifarResNet((3, 4, 6, 3), classes), 16),
    "resnet-18 torchvision": (cifar_form, 16),
    "resnet-18-imagenet torchvision": (torchvision("resnet18"), 64),
    "resnet-34-imagenet torchvision": (torchvision("resnet34"), 32),
    "resnet-50-imagenet torchvision": (torchvision("resnet50"), 64),
    "resnet-18-imagenet timm": (timm("resnet18"), 33),
    "resnet-50-imagenet timm": (timm("resnet50"), 32),
    "mobilenet-v2-imagenet torchvision": (torchvision("mobilenet_v2"), 64),
    "vgg-11": (lambda classes, side: CifarVGG(VGG_11, classes), 32),
    "vgg-16": (lambda classes, side: CifarVGG(VGG_16, classes), 48),
    "vit-tiny-16": (timm("vit_tiny_patch16_224"), 64),
    "vit-small-16": (timm("vit_small_patch16_224"), 32),
    "vit-tiny-4": (timm("vit_tiny_patch16_224", patch_size=4), 16),
}


def torch_network(case, classes=7):
    """Random weights, and statistics, scales, biases and tokens away from their start."""
    make, side = NETWORKS[case]
    torch.manual_seed(0)
    network = make(classes, side).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.3)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.3)
    for name in ("cls_token", "pos_embed"):
        if hasattr(network, name):
            torch.nn.init.normal_(getattr(network, name), 0.0, 0.3)
    return network, side


def logits_of(network, batch):
    normalized = (np.asarray(batch) - np.asarray(MEAN[3])) / np.asarray(STD[3])
    with torch.no_grad():
        return Logits(network)(torch.tensor(normalized, dtype=torch.float32).permute(0, 3, 1, 2)).numpy()


def read(path, side, **options):
    return read_teacher(path, input_shape=(side, side, 3), mean=MEAN[3], std=STD[3], **options)


@pytest.mark.parametrize("case", NETWORKS)
def test_logits(case, tmp_path):
    network, side = torch_network(case)
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    name = case.split()[0]
    told = {"architecture": name} if name.startswith("mobilenet") else {}
    ours = read(tmp_path / "teacher.pth", side, **told)
    assert ours.module.num_classes == 7
    batch = images(batch=3, shape=(side, side, 3))
    expected = logits_of(network, batch)
    np.testing.assert_allclose(
        jax.jit(lambda network, batch: network(batch).logits)(ours, batch),
        expected,
        rtol=1e-4,
        atol=1e-4 * max(1, np.abs(expected).max()),
    )
    back = variables_to_torch(ours.module, ours.variables)
    if "vgg" not in case:  # whose biases went into running means
        own = {"linear.weight": "fc.weight", "linear.bias": "fc.bias"}
        state = network.state_dict()
        names = {own.get(key, key).replace(".shortcut.", ".downsample."): key for key in state if "batches" not in key}
        assert set(back) == set(names)
        for key, value in back.items():
            np.testing.assert_array_equal(value, state[names[key]].numpy())


WRAPPED = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_acc1": 0.5, "optimizer": {"lr": [0.1]}},
    "model": lambda state: {"model": state, "acc": np.float64(0.5)},
    "module.": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "lightning": lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}, "loops": {}},
    "compiled": lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    "parameters": lambda state: {
        name: torch.nn.Parameter(value) if value.is_floating_point() else value for name, value in state.items()
    },
    "half": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
    "bfloat16": lambda state: {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()
    },
    "transposed": lambda state: {
        name: value.transpose(0, 1).contiguous().transpose(0, 1) if value.ndim == 4 else value
        for name, value in state.items()
    },
}


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("format", ["zip", "legacy", "protocol 4"])
def test_wrappings(wrapping, format, tmp_path):
    network, side = torch_network("wrn-10-2")
    options = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}
    torch.save(WRAPPED[wrapping](network.state_dict()), tmp_path / "teacher.ckpt", **options[format])
    back = variables_to_torch((ours := read(tmp_path / "teacher.ckpt", side)).module, ours.variables)
    for name, value in network.state_dict().items():
        if "num_batches" not in name:
            kind = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(wrapping, torch.float32)
            np.testing.assert_array_equal(back[name], value.to(kind).float().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_from_pytorch(dtype, tmp_path):
    from safetensors.torch import save_file

    network, side = torch_network("wrn-10-2")
    state = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    save_file(state, tmp_path / "teacher.safetensors")
    ours = read(tmp_path / "teacher.safetensors", side)
    back = variables_to_torch(ours.module, ours.variables)
    np.testing.assert_array_equal(back["fc.weight"], state["fc.weight"].float().numpy())


@pytest.mark.parametrize("format", ["zip", "legacy"])
def test_a_whole_module_is_refused_and_the_way_out_is_named(format, tmp_path):
    network, side = torch_network("wrn-10-2")
    torch.save(network, tmp_path / "teacher.pth", _use_new_zipfile_serialization=format == "zip")
    with pytest.raises(ValueError, match=r"WideResNet'.*nothing was run; .* save `model.state_dict\(\)` alone"):
        read(tmp_path / "teacher.pth", side)


def test_other_heads_and_sizes_are_refused(tmp_path):
    network, side = torch_network("vit-tiny-16")
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    with pytest.raises(
        ValueError, match=r"pos_embed has shape \(1, 17, 192\): vit-tiny-16 .* 32×32×3 .* \(1, 5, 192\)"
    ):
        read(tmp_path / "teacher.pth", 32)
    with pytest.raises(ValueError, match=r"head.bias has shape \(7,\): .*with 8 classes"):
        read(tmp_path / "teacher.pth", side, num_classes=8)
    torch.save(torchvision("vgg11_bn")(7, 32).state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match=r"vgg-11 .*: (missing|left over) classifier"):
        read(tmp_path / "vgg.pth", 32, num_classes=7)
