"""Train a network on scikit-learn's digits, dense and with SWAT: an ordinary loop around a compiled model.

python examples/train_swat.py
python examples/train_swat.py --policies dense swat-u-80 my_policy.yaml --epochs 20
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


def network(width: int) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    stages = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
    return nn.Sequential(stem, stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["dense", "swat-u-90", "swat-erk-90", "swat-structured-70"]
    parser.add_argument("--policies", nargs="+", default=names, help="dense, names of presets (see fxsparse presets), policy files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=1 / 3, stratify=labels, random_state=0)
    batches = len(train_x) // 32

    for name in options.policies:
        torch.manual_seed(options.seed)
        policy = None if name == "dense" else name
        compiled = fxs.compile(network(options.width), policy, example_inputs=(train_x[:32],))
        optimizer = torch.optim.SGD(compiled.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=options.epochs * batches)
        compiled.attach(optimizer)  # only distribution="momentum" and schedules need it; it never hurts

        print(f"\n{name}")
        for epoch in range(options.epochs):
            compiled.train()
            for batch in torch.randperm(len(train_x))[: batches * 32].view(batches, 32):
                optimizer.zero_grad()
                loss = F.cross_entropy(compiled(train_x[batch]), train_y[batch])
                loss.backward()
                optimizer.step()
                scheduler.step()
            print(f"  epoch {epoch + 1:3d}  loss of the last batch {loss.item():.4f}")

        compiled.eval()
        with torch.no_grad():
            correct = (compiled(test_x).argmax(1) == test_y).float().mean().item()
        weights = [row["weight"] for row in compiled.sparsity().values()]
        kept = sum(weight["kept"] for weight in weights) / sum(weight["total"] for weight in weights)
        saved = compiled.cost(convention="swat").reduction
        print(f"  test accuracy {100 * correct:.2f} %, {100 * kept:.1f} % of the weights kept")
        print(f"  FLOPs saved: {100 * saved['training']:.1f} % of training, {100 * saved['inference']:.1f} % of inference")


if __name__ == "__main__":
    main()
