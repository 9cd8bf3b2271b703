"""Test accuracy on scikit-learn's digits over several seeds: activations kept exactly, and in 4 and 8 bits.

    python examples/saved_accuracy.py --seeds 5

Two networks: a small residual network on the images, and a small transformer on their eight rows. Every method gets the same first
weights, order and shifts of the images, epochs and learning rates, seed by seed; the test images are looked at once, after training.
Ends with status 1 if a mean is further below that of exact training than its margin: 0.5 points for 4 bits, 0.3 points for 8.
"""

import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.digits import CLASSES, Digits, Recipe, SmallResNet, accuracy, load_digits, one_thread, rate, shifted

POINTS_BELOW_EXACT = {4: 0.5, 8: 0.3}


class Layer(nn.Module):
    """A transformer's layer: attention and two linear layers, each after its norm and added to what it read."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_NLD: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x_NLD)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2)
        x_NLD = x_NLD + self.out(attended)
        return x_NLD + self.down(F.gelu(self.up(self.norm2(x_NLD))))


class SmallTransformer(nn.Module):
    """Reads an image as eight tokens, its rows."""

    def __init__(self, width: int, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(8, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NLD = self.layers(self.embed(x_NCHW.squeeze(1)) + self.place)
        return self.fc(self.norm(x_NLD).mean(1))


def methods(network: str) -> dict[str, tuple[fxs.Policy | None, int]]:
    """Policies and their bits, by the names in the table; a transformer has no batch normalisation for BLPA to start from."""
    found: dict[str, tuple[fxs.Policy | None, int]] = {"exact": (None, 32)}
    for bits in (4, 8):
        if network == "ResNet":
            found[f"BLPA-{bits}"] = fxs.Policy(fxs.BLPA(bits=bits)), bits
        found[f"SavedActivations-{bits}"] = fxs.Policy(fxs.SavedActivations(bits=bits)), bits
    return found


def train(network: str, policy: fxs.Policy | None, data: Digits, recipe: Recipe, seed: int) -> nn.Module:
    """A trained network. SGD with momentum for the residual network, AdamW for the transformer."""
    torch.manual_seed(seed)
    model = SmallResNet(recipe.width) if network == "ResNet" else SmallTransformer(2 * recipe.width)
    generator = torch.Generator().manual_seed(seed)
    steps = len(data.train_labels) // recipe.batch_size
    compiled = fxs.compile(model, policy, example_inputs=(data.train_images[: recipe.batch_size],))
    if network == "ResNet":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            compiled.parameters(), recipe.learning_rate, recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(compiled.parameters(), 2e-3, weight_decay=0.01)
    compiled.attach(optimizer)
    warmup = min(recipe.warmup_epochs, recipe.epochs - 1) * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe.epochs * steps, warmup))
    compiled.train()
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(data.train_labels), generator=generator)[: steps * recipe.batch_size].view(steps, -1):
            images = shifted(data.train_images[chosen], data.black, generator)
            optimizer.zero_grad()
            F.cross_entropy(compiled(images), data.train_labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return compiled


@one_thread()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument(
        "--width", type=int, default=Recipe.width, help="channels of the ResNet's first stage, half the transformer's width"
    )
    parser.add_argument("--networks", nargs="+", default=["ResNet", "transformer"], choices=["ResNet", "transformer"])
    options = parser.parse_args()
    try:
        data, recipe = load_digits(), Recipe(epochs=options.epochs, width=options.width)
    except fxs.FxSparseError as error:
        print(f"saved_accuracy: {error}", file=sys.stderr)
        return 2

    status = 0
    print(f"{'network':12} {'method':20} {'mean %':>7} {'std':>5} {'seconds':>8}  each seed")
    for network in options.networks:
        exact = 0.0
        for name, (policy, bits) in methods(network).items():
            start = time.perf_counter()
            found = [
                100 * accuracy(train(network, policy, data, recipe, seed), data.test_images, data.test_labels)
                for seed in range(options.seeds)
            ]
            mean, std = statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0
            seconds, each = time.perf_counter() - start, " ".join(f"{item:.2f}" for item in found)
            row = f"{network:12} {name:20} {mean:7.2f} {std:5.2f} {seconds:8.1f}  {each}"
            if policy is None:
                exact = mean
                print(row, flush=True)
                continue
            margin = POINTS_BELOW_EXACT[bits]
            kept = exact - mean <= margin
            print(f"{row}  {mean - exact:+.2f} points, margin {margin}: {'kept' if kept else 'MISSED'}", flush=True)
            status |= not kept
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
