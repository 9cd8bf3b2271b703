"""A pre-activation ResNet-164 for images of 32x32, trained with a few bits of each activation kept; a file to copy.

He et al., "Identity mappings in deep residual networks" (2016): norm - ReLU - conv three times a block, the network of BLPA's paper.

    python examples/preact_resnet164.py --steps 20 --bits 4
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs


class Bottleneck(nn.Module):
    """norm - ReLU - 1x1, norm - ReLU - 3x3, norm - ReLU - 1x1, added to the input."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, out_channels, 1, bias=False)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.bn1(x))
        out = self.conv1(first)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        summed: Tensor = out + (x if self.shortcut is None else self.shortcut(first))
        return summed


class PreactResNet(nn.Module):
    """Three stages of ``blocks`` bottlenecks; 18 of them make 164 layers."""

    def __init__(self, blocks: int = 18, classes: int = 100) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        layers, channels = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(blocks):
                layers.append(Bottleneck(channels, width, stride if index == 0 else 1))
                channels = 4 * width
        self.layers = nn.Sequential(*layers)
        self.bn, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.layers(self.conv(x))))
        scores: Tensor = self.fc(out.mean((2, 3)))
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=18)
    settings = parser.parse_args()
    torch.manual_seed(0)
    images, labels = torch.randn(settings.batch, 3, 32, 32), torch.randint(0, 100, (settings.batch,))
    model = fxs.compile(PreactResNet(settings.blocks), fxs.BLPA(bits=settings.bits), (images,))
    print(model.report)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
    for step in range(settings.steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"step {step:3d}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
