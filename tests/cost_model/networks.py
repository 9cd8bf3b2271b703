"""The contractions of a few published networks, written out by hand from their papers' tables."""

from __future__ import annotations

from fxsparse.cost_model import Contraction


def conv(
    batch: int, size: int, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, needs_grad: bool = True
) -> Contraction:
    """A square convolution with "same" padding."""
    return Contraction.conv(
        batch=batch,
        in_channels=inputs,
        out_channels=outputs,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
        input_size=(size, size),
        groups=groups,
        input_needs_grad=needs_grad,
    )


def bottleneck_resnet(batch: int = 1, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> list[Contraction]:
    """ResNet-50 (width 64) or WRN-50-2 (width 128) on 224 x 224 images: 54 layers, the stride in the 3x3."""
    layers = [conv(batch, 224, 3, 64, 7, 2, needs_grad=False)]
    channels, size = 64, 56
    for stage, count in enumerate(blocks):
        inner, outer = width << stage, 256 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(conv(batch, size, channels, inner, 1))
            layers.append(conv(batch, size, inner, inner, 3, stride))
            layers.append(conv(batch, size // stride, inner, outer, 1))
            if not block:
                layers.append(conv(batch, size, channels, outer, 1, stride))
            channels, size = outer, size // stride
    layers.append(Contraction.linear(batch=batch, in_features=channels, out_features=1000))
    return layers


def resnet18_cifar(batch: int = 1, classes: int = 10) -> list[Contraction]:
    """ResNet-18 with a 3x3 stem on 32 x 32 images."""
    layers = [conv(batch, 32, 3, 64, 3, needs_grad=False)]
    channels, size = 64, 32
    for stage in range(4):
        outer = 64 << stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            layers.append(conv(batch, size, channels, outer, 3, stride))
            size //= stride
            layers.append(conv(batch, size, outer, outer, 3))
            if stride == 2:
                layers.append(conv(batch, size * 2, channels, outer, 1, 2))
            channels = outer
    layers.append(Contraction.linear(batch=batch, in_features=channels, out_features=classes))
    return layers


def erk_densities(layers: list[Contraction], sparsity: float) -> list[float]:
    """Erdos-Renyi-Kernel densities at a global sparsity, unrounded; layers above 1 become dense and the rest is solved again."""
    sizes = [layer.weight_elements for layer in layers]
    raw = [(layer.in_channels + layer.out_channels + sum(layer.kernel)) / layer.weight_elements for layer in layers]
    dense: set[int] = set()
    while True:
        budget = (1 - sparsity) * sum(sizes) - sum(sizes[index] for index in dense)
        scale = budget / sum(sizes[index] * raw[index] for index in range(len(layers)) if index not in dense)
        worst = max((scale * raw[index], index) for index in range(len(layers)) if index not in dense)[0]
        if worst <= 1:
            return [1.0 if index in dense else scale * raw[index] for index in range(len(layers))]
        dense |= {index for index in range(len(layers)) if index not in dense and scale * raw[index] >= worst - 1e-12}
