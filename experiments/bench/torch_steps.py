"""Steps of data-free distillation in eager PyTorch, as the released code of ABD makes them (SPEC §4 and §5).

Its redundant passes are made too: the student's updates of a cycle generate the same images and ask the teacher anew,
the shuffled teachers are whole copies, every step waits for its loss, `random.sample` draws from CMI's memory on the
host. Where it is not known what that code does, the cheaper way stands here: networks that a step does not train need
no gradient, δ's clean branch is computed once, the fixed-point map is built once. Images are standardized. Needs the
extra `torch`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.bench.torch_networks import Generator, WideResNet

Step = Callable[[], float]
CLASSES = 10
MEAN, STD = 0.5, 0.25


def _network(architecture: str) -> WideResNet:
    depth, width = map(int, architecture.split("-")[1:])
    return WideResNet(depth, width, CLASSES)


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def training_step(architecture: str, batch: int, side: int) -> Step:
    """One supervised update: SGD with momentum and weight decay."""
    torch.manual_seed(0)
    network = _network(architecture).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images, labels = torch.rand(batch, 3, side, side), torch.arange(batch) % CLASSES

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images)[0], labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of two sets of logits, image by image and class by class, `[batch, classes]`."""
    return functional.kl_div(q.log_softmax(1), p.softmax(1), reduction="none")


def generator_loss(
    images: Tensor, teacher: nn.Module, student: nn.Module, copies: Sequence[nn.Module], alpha: float = 0.1
) -> Tensor:
    """ZSKT's generator loss, with the vaccine's penalty if there are shuffled copies of the teacher."""
    logits = teacher(images)[0]
    loss = -divergence(logits, student(images)[0]).mean()
    if copies:
        shuffled = torch.stack([copy(images)[0] for copy in copies]).mean(0)
        suspicious = (shuffled.argmax(1) == logits.argmax(1)).float()
        agreement = (suspicious * divergence(logits, shuffled).mean(1)).sum() / suspicious.sum().clamp(min=1)
        loss = loss - alpha * agreement
    return loss


def attention(activation: Tensor) -> Tensor:
    """Channel-mean of squares, flattened and scaled to unit L2 norm per image."""
    return functional.normalize(activation.pow(2).mean(1).flatten(1))


def student_loss(images: Tensor, teacher: nn.Module, student: nn.Module, beta: float = 250.0) -> Tensor:
    """ZSKT's student loss: KL averaged over batch and classes, and attention transfer."""
    with torch.no_grad():
        logits, stages = teacher(images)
    own, own_stages = student(images)
    transfer = sum((attention(a) - attention(b)).pow(2).mean() for a, b in zip(own_stages, stages, strict=True))
    return divergence(logits, own).mean() + beta * transfer


def shuffled_copies(teacher: WideResNet, count: int = 3, kernels: int = 5) -> list[WideResNet]:
    """Whole copies of the teacher; in each the input channels of the last kernels are permuted."""
    copies = [copy.deepcopy(teacher) for _ in range(count)]
    for network in copies:
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        for convolution in convolutions[-kernels:]:
            order = torch.randperm(convolution.in_channels)
            convolution.weight.data = convolution.weight.data[:, order]
    return copies


def ascend(
    network: nn.Module, images: Tensor, delta: Tensor, steps: int = 10, rate: float = 0.1, decay: float = 1e-3
) -> Tensor:
    """δ after so many steps of Adam towards argmax KL(f(x) ‖ f(x + δ)) − decay·‖δ‖²."""
    delta = delta.clone().requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=rate)
    with torch.no_grad():
        clean = network(images)[0]
    for _ in range(steps):
        optimizer.zero_grad()
        loss = decay * delta.pow(2).sum() - divergence(clean, network(images + delta)[0]).mean()
        loss.backward()
        optimizer.step()
    return delta.detach()


def hypergradient(
    student: nn.Module, images: Tensor, delta: Tensor, iterations: int = 5, rate: float = 0.1, decay: float = 1e-3
) -> tuple[float, list[Tensor]]:
    """Outer loss KL(S(x) ‖ S(x + δ)), and its implicit gradient in the student's parameters; K = `iterations`."""
    params = list(student.parameters())
    delta = delta.clone().requires_grad_()
    outer = divergence(student(images)[0], student(images + delta)[0]).mean()
    outer_delta, *outer_params = torch.autograd.grad(outer, [delta, *params])
    inner = decay * delta.pow(2).sum() - divergence(student(images)[0], student(images + delta)[0]).mean()
    mapped = delta - rate * torch.autograd.grad(inner, delta, create_graph=True)[0]
    v = torch.zeros_like(delta)
    for _ in range(iterations):
        v = torch.autograd.grad(mapped, delta, grad_outputs=v, retain_graph=True)[0] + outer_delta
    through_delta = torch.autograd.grad(mapped, params, grad_outputs=v)
    return outer.item(), [a + b for a, b in zip(outer_params, through_delta, strict=True)]


def zskt_cycle(defense: str, teacher: str, student: str, batch: int, side: int, updates: int) -> Step:
    """One generator update and `updates` of the student: `none`, `sv` (k = 3) or `abd` (with δ on the teacher)."""
    torch.manual_seed(0)
    knowing = _frozen(_network(teacher))
    learning, generator = _network(student).train(), Generator(100, side, sigmoid=False).train()
    copies = shuffled_copies(knowing) if defense in ("sv", "abd") else []
    of_student = torch.optim.Adam(learning.parameters(), lr=2e-3)
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3)

    def step() -> float:
        latent = torch.randn(batch, 100)
        learning.requires_grad_(False)
        of_generator.zero_grad()
        loss = generator_loss(generator(latent), knowing, learning, copies)
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 5.0)
        of_generator.step()
        loss.item()
        learning.requires_grad_(True)
        for _ in range(updates):
            with torch.no_grad():
                images = generator(latent)
            of_student.zero_grad()
            loss = student_loss(images, knowing, learning)
            loss.backward()
            if defense == "abd":
                delta = ascend(knowing, images, 1e-3 * torch.randn(3, side, side))
                for param, extra in zip(learning.parameters(), hypergradient(learning, images, delta)[1], strict=True):
                    param.grad += extra
            nn.utils.clip_grad_norm_(learning.parameters(), 5.0)
            of_student.step()
            last = loss.item()
        return last

    return step


class Tap:
    """A hook on a batch normalization: how far its input's statistics are from the stored ones, and image means."""

    distance: Tensor
    image_mean: Tensor

    def __init__(self, module: nn.BatchNorm2d) -> None:
        module.register_forward_hook(self._read)

    def _read(self, module: nn.BatchNorm2d, inputs: tuple[Tensor], _: Tensor) -> None:
        x = inputs[0]
        mean, variance = x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1, unbiased=False)
        self.distance = (module.running_var - variance).norm() + (module.running_mean - mean).norm()
        self.image_mean = x.mean((2, 3))


def taps(network: nn.Module) -> list[Tap]:
    """One for each batch normalization, in forward order."""
    return [Tap(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def total_variation(images: Tensor) -> Tensor:
    """Σ of the L2 norms of a batch's differences between neighbors: across, down and along both diagonals."""
    across, down = images[..., 1:] - images[..., :-1], images[:, :, 1:] - images[:, :, :-1]
    falling = images[:, :, 1:, 1:] - images[:, :, :-1, :-1]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    return across.norm() + down.norm() + falling.norm() + rising.norm()


def deep_inversion_loss(images: Tensor, labels: Tensor, teacher: nn.Module, read: Sequence[Tap]) -> Tensor:
    """10 · distance of statistics + cross-entropy + 0.001 · total variation."""
    logits = teacher(images)[0]
    distance = sum(tap.distance for tap in read)
    return 10 * distance + functional.cross_entropy(logits, labels) + 1e-3 * total_variation(images)


def deep_inversion_iteration(teacher: str, batch: int, side: int) -> Step:
    """One update of a batch's pixels, on rolled and mirrored images."""
    torch.manual_seed(0)
    knowing = _frozen(_network(teacher))
    read, labels = taps(knowing), torch.arange(batch) % CLASSES
    pixels = torch.randn(batch, 3, side, side, requires_grad=True)
    optimizer = torch.optim.Adam([pixels], lr=0.1, betas=(0.5, 0.99))
    best = float("inf")

    def step() -> float:
        nonlocal best
        down, right = random.randint(-2, 2), random.randint(-2, 2)
        moved = torch.roll(pixels, (down, right), (2, 3))
        if random.random() < 0.5:
            moved = moved.flip(3)
        optimizer.zero_grad()
        loss = deep_inversion_loss(moved, labels, knowing, read)
        best = min(best, loss.item())
        loss.backward()
        optimizer.step()
        pixels.data.clamp_(-MEAN / STD, (1 - MEAN) / STD)
        return loss.item()

    return step


class Head(nn.Sequential):
    """Linear, ReLU, linear; its outputs are scaled to unit L2 norm."""

    def __init__(self, inputs: int, features: int = 128) -> None:
        super().__init__(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, features))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(super().forward(x))


def cmi_loss(
    whole: Tensor,
    local: Tensor,
    labels: Tensor,
    negatives: Tensor,
    teacher: nn.Module,
    student: nn.Module,
    head: nn.Module,
    read: Sequence[Tap],
) -> Tensor:
    """CMI's loss of a batch's two views: statistics + cross-entropy − 0.5 · adversarial + 0.8 · contrastive, τ = 0.1.

    Args:
        whole, local: the views.
        labels: classes that the teacher shall see.
        negatives: features of past images, the local view's and then the global one's, `[count, 2 · features]`.
        teacher, student, head: the networks.
        read: the teacher's taps.
    """
    batch = len(whole)
    logits = teacher(whole)[0]
    distance, whole_features = sum(tap.distance for tap in read), torch.cat([tap.image_mean for tap in read], 1)
    own = student(whole)[0]
    agreed = (logits.argmax(1) == own.argmax(1)).float()
    adversarial = (agreed * divergence(logits, own).sum(1)).mean()
    teacher(local)
    local_features = torch.cat([tap.image_mean for tap in read], 1)
    past_local, past_whole = negatives.chunk(2, 1)
    projected = head(torch.cat([local_features, past_local, whole_features, past_whole]))
    queries, keys = projected.chunk(2)
    similarity = queries @ keys.detach().T / 0.1
    contrast = functional.cross_entropy(similarity, torch.arange(len(similarity)), reduction="none")
    contrast = contrast[:batch].mean() + contrast[batch:].mean()
    return distance + functional.cross_entropy(logits, labels) - 0.5 * adversarial + 0.8 * contrast


def _crop_and_flip(images: Tensor, pad: int = 4) -> Tensor:
    """Zero-pads, cuts the original size at a random place of each image, mirrors half of them."""
    batch, _, height, width = images.shape
    padded = functional.pad(images, (pad,) * 4).permute(0, 2, 3, 1)
    rows = torch.randint(0, 2 * pad + 1, (batch, 1)) + torch.arange(height)
    columns = torch.randint(0, 2 * pad + 1, (batch, 1)) + torch.arange(width)
    cut = padded[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return torch.where((torch.rand(batch) < 0.5)[:, None, None, None], cut.flip(3), cut)


def _local_view(images: Tensor, least: float = 0.25) -> Tensor:
    """A random rectangle of each image, resized to the whole; half of them mirrored."""
    batch = len(images)
    area, ratio = torch.empty(batch).uniform_(least, 1), torch.empty(batch).uniform_(3 / 4, 4 / 3)
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    transform = torch.zeros(batch, 2, 3)
    transform[:, 0, 0] = width * torch.where(torch.rand(batch) < 0.5, -1.0, 1.0)
    transform[:, 1, 1] = height
    transform[:, 0, 2] = (1 - width) * torch.empty(batch).uniform_(-1, 1)
    transform[:, 1, 2] = (1 - height) * torch.empty(batch).uniform_(-1, 1)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def cmi_iteration(teacher: str, student: str, batch: int, side: int) -> Step:
    """One update of generator, latent vectors and head against 4 096 of 40 960 negatives."""
    torch.manual_seed(0)
    knowing, learning = _frozen(_network(teacher)), _frozen(_network(student))
    read = taps(knowing)
    features = sum(module.num_features for module in knowing.modules() if isinstance(module, nn.BatchNorm2d))
    generator, head = Generator(256, side, sigmoid=True).train(), Head(features)
    latent = torch.randn(batch, 256, requires_grad=True)
    optimizer = torch.optim.Adam([*generator.parameters(), latent], lr=1e-3, betas=(0.5, 0.999))
    of_head = torch.optim.Adam(head.parameters(), lr=1e-3)
    memory = torch.randn(40_960, 2 * features)
    labels = torch.randint(0, CLASSES, (batch,)).sort()[0]
    best = float("inf")

    def step() -> float:
        nonlocal best
        images = generator(latent)
        whole, local = ((view - MEAN) / STD for view in (_crop_and_flip(images), _local_view(images)))
        negatives = memory[random.sample(range(len(memory)), 4_096)]
        optimizer.zero_grad()
        of_head.zero_grad()
        loss = cmi_loss(whole, local, labels, negatives, knowing, learning, head, read)
        best = min(best, loss.item())
        loss.backward()
        optimizer.step()
        of_head.step()
        return loss.item()

    return step
