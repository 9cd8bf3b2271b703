"""The demo's data, network and training: scikit-learn's digits, a small residual network, one schedule for every policy.

Shapes: N images, C channels, H and W the image's sides (8 and 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .compiled_model import CompiledModel
from .compiler import compile
from .errors import FxSparseError

CLASSES = 10
SHIFT = 1
SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Images (N, 1, 8, 8) of mean 0 and variance 1 over the training set, and labels (N,). ``black`` is the background's value."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    black: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every network of a comparison is trained: SGD with Nesterov momentum, warm-up and a cosine to zero, shifted images.

    Attributes:
        network: one of ``NETWORKS``. width: its channels or units.
    """

    network: str = "residual"
    width: int = 32
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 2

    def __post_init__(self) -> None:
        for name in ("width", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise FxSparseError(f"{name} is {getattr(self, name)}; expected a whole number, at least 1")
        if self.network not in NETWORKS:
            raise FxSparseError(f"there is no network {self.network!r}; expected one of {', '.join(map(repr, NETWORKS))}")


def load_digits() -> Digits:
    """The 1797 digits of scikit-learn, two thirds to train and one third to test; each digit has its share in both.

    Raises:
        FxSparseError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise FxSparseError(f"the digits come with scikit-learn; {error.name!r} is not installed: pip install 'fxsparse[all]'") from None
    bunch = load()
    train, test = train_test_split(range(len(bunch.target)), test_size=1 / 3, stratify=bunch.target, random_state=SPLIT_SEED)
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    mean, std = images[train].mean(), images[train].std()
    scaled = (images - mean) / std
    return Digits(
        train_images=scaled[train],
        train_labels=labels[train],
        test_images=scaled[test],
        test_labels=labels[test],
        black=float(-mean / std),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        y_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        return F.relu(self.bn2(self.conv2(y_NCHW)) + self.shortcut(x_NCHW))


class SmallResNet(nn.Module):
    """A stem and three residual stages, at 8x8 with ``width`` channels, at 4x4 with twice and at 2x2 with four times as many."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stage1 = ResidualBlock(width, width, stride=1)
        self.stage2 = ResidualBlock(width, 2 * width, stride=2)
        self.stage3 = ResidualBlock(2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, CLASSES)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        y_NCHW = self.stage3(self.stage2(self.stage1(F.relu(self.bn1(self.conv1(x_NCHW))))))
        out: torch.Tensor = self.fc(y_NCHW.mean((2, 3)))
        return out


def perceptron(width: int) -> nn.Module:
    """Two hidden layers of ``width`` units, without norms."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"residual": SmallResNet, "perceptron": perceptron}


def shifted(images: torch.Tensor, black: float, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixels along each side, the rim filled with ``black``."""
    count, _, height, width = images.shape
    padded = F.pad(images, (SHIFT,) * 4, value=black)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = torch.randint(2 * SHIFT + 1, (2, count), generator=generator)
    return windows[torch.arange(count), :, rows, columns]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread inside.

    A network this small gains little from a second one, threads that wait for a busy core lose much, and sums do not depend on
    the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rate(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at a step: a line up over the warm-up, then half a cosine down."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizer_steps(data: Digits, recipe: Recipe) -> int:
    """How many optimizer steps a training takes."""
    return recipe.epochs * (len(data.train_labels) // min(recipe.batch_size, len(data.train_labels)))


@one_thread()
def train(
    policy: Any,
    data: Digits,
    recipe: Recipe,
    seed: int,
    after_epoch: Callable[[float], None] = lambda loss: None,
    watch: Callable[[CompiledModel, torch.optim.Optimizer], AbstractContextManager[Any]] | None = None,
) -> CompiledModel:
    """A trained network. The seed decides its first weights, the order of the images and their shifts; no other random state changes.

    Args:
        policy: what ``fxs.compile`` takes; None trains the dense network.
        after_epoch: called after each epoch with its mean loss. watch: makes what is open during the training, such as a log.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[recipe.network](recipe.width)
    generator = torch.Generator().manual_seed(seed)
    count, batch = len(data.train_labels), min(recipe.batch_size, len(data.train_labels))
    compiled = compile(model, policy, example_inputs=(data.train_images[:batch],))
    optimizer = torch.optim.SGD(
        compiled.parameters(), recipe.learning_rate, momentum=recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay
    )
    compiled.attach(optimizer)
    steps = count // batch
    warmup = min(recipe.warmup_epochs, recipe.epochs - 1) * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe.epochs * steps, warmup))
    compiled.train()
    with watch(compiled, optimizer) if watch is not None else nullcontext():
        for _ in range(recipe.epochs):
            total = 0.0
            for chosen in torch.randperm(count, generator=generator)[: steps * batch].view(steps, batch):
                images = shifted(data.train_images[chosen], data.black, generator)
                optimizer.zero_grad()
                loss = F.cross_entropy(compiled(images), data.train_labels[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.item()
            after_epoch(total / steps)
    return compiled


@one_thread()
@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of the images that the model, in eval mode, labels correctly."""
    was_training = model.training
    model.eval()
    correct = (model(images).argmax(1) == labels).sum()
    model.train(was_training)
    return int(correct) / len(labels)
