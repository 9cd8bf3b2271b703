"""Train a network with SWAT on scikit-learn's digits: an ordinary loop around a compiled model.

    python examples/train_swat.py --policy swat-u-90 --epochs 20
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import fxsparse as fxs


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="swat-u-90", help="a preset's name (fxsparse presets) or a policy file")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, torch.tensor(digits.target), test_size=1 / 3, stratify=digits.target, random_state=0
    )

    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), Block(32, 64, 2), Block(64, 128, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)
    )
    compiled = fxs.compile(model, options.policy, example_inputs=(train_x[: options.batch_size],))
    print(compiled.report)

    steps = options.epochs * (len(train_x) // options.batch_size)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
    compiled.attach(optimizer)

    for epoch in range(options.epochs):
        compiled.train()
        for batch in torch.randperm(len(train_x)).split(options.batch_size):
            if len(batch) < options.batch_size:
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(compiled(train_x[batch]), train_y[batch])
            loss.backward()
            optimizer.step()
            scheduler.step()
        compiled.eval()
        with torch.no_grad():
            right = (compiled(test_x).argmax(1) == test_y).float().mean()
        print(f"epoch {epoch + 1:3d}   loss {loss.item():.4f}   test accuracy {100 * right.item():.2f} %")

    for site, row in compiled.sparsity().items():
        weight, activation = row["weight"], row["activation"]["actual"]
        print(f"{site:28s} {weight['kept']:6d} of {weight['total']:6d} weights kept, activations {activation or 1.0:.3f}")
    saved = compiled.cost(convention="swat").reduction
    print(f"FLOPs saved: {100 * saved['training']:.1f} % of training, {100 * saved['inference']:.1f} % of inference")


if __name__ == "__main__":
    main()
