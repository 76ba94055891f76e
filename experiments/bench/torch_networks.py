"""Networks in PyTorch: what the bench times and the parity tests compare with. Needs the extra `torch`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """BN, ReLU, 3×3, BN, ReLU, 3×3, plus the input (through a 1×1 where the width changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(h)
        h = functional.relu(self.bn2(self.conv1(h)))
        return self.conv2(h) + shortcut


class Stage(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko & Komodakis, 2016), pre-activation; returns logits and the three stage activations."""

    def __init__(self, depth: int, width: int, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1, self.block2, self.block3 = (
            Stage(blocks, widths[index], widths[index + 1], stride) for index, stride in enumerate((1, 2, 2))
        )
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        first = self.block1(self.conv1(images))
        second = self.block2(first)
        third = self.block3(second)
        embedding = functional.relu(self.bn1(third)).mean((2, 3))
        return self.fc(embedding), (first, second, third)


class Generator(nn.Module):
    """Latent vectors → images: ZSKT's, which ends in a batch normalization, or CMI's, which ends in a sigmoid."""

    def __init__(self, latent: int, side: int, *, sigmoid: bool, features: int = 128, channels: int = 3) -> None:
        super().__init__()
        self.shape = features, side // 4, side // 4
        self.linear = nn.Linear(latent, features * (side // 4) ** 2)
        self.bn = nn.BatchNorm2d(features)
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features // 2)
        self.conv3 = nn.Conv2d(features // 2, channels, 3, padding=1, bias=False)
        self.last = nn.Sigmoid() if sigmoid else nn.BatchNorm2d(channels)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.bn(self.linear(latent).view(-1, *self.shape))
        for convolution, normalization in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            h = functional.interpolate(h, scale_factor=2)
            h = functional.leaky_relu(normalization(convolution(h)), 0.2)
        return self.last(self.conv3(h))
