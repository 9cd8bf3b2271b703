"""The contractions of a few published networks, written out by hand from their papers' tables."""

from __future__ import annotations

from itertools import pairwise

from fxsparse.cost_model import Attention, Contraction, Workload


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


def vgg16(batch: int = 1) -> list[Contraction]:
    """VGG-16 on 224 x 224 images."""
    layers: list[Contraction] = []
    channels, size = 3, 224
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers.append(conv(batch, size, channels, outputs, 3, needs_grad=bool(layers)))
            channels = outputs
        size //= 2
    sizes = (channels * size * size, 4096, 4096, 1000)
    return layers + [Contraction.linear(batch=batch, in_features=inputs, out_features=outputs) for inputs, outputs in pairwise(sizes)]


def vit_b_16(batch: int = 1) -> list[Workload]:
    """ViT-B/16 on 224 x 224 images: 196 patches and a class token."""
    tokens, width = 197, 768
    patches = Contraction.conv(
        batch=batch, in_channels=3, out_channels=width, kernel=(16, 16), stride=(16, 16), input_size=(224, 224), input_needs_grad=False
    )
    layers: list[Workload] = [patches]
    for _ in range(12):
        layers.append(Contraction.linear(batch=batch, rows=tokens, in_features=width, out_features=3 * width))
        layers.append(
            Attention(batch=batch, heads=12, query_length=tokens, key_length=tokens, head_size=64, value_size=64, backward="math")
        )
        for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
            layers.append(Contraction.linear(batch=batch, rows=tokens, in_features=inputs, out_features=outputs))
    return [*layers, Contraction.linear(batch=batch, in_features=width, out_features=1000)]


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
