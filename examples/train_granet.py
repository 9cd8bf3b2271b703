"""Train a network on scikit-learn's digits, dense and with masks that move: GraNet, RigL, SET, or growth by a score of your own.

    python examples/train_granet.py
    python examples/train_granet.py --methods granet saliency --sparsity 0.95 --epochs 20

The loop is an ordinary one. ``compiled.attach(optimizer)`` lets the masks follow the optimizer's steps.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import fxsparse as fxs


class Saliency(fxs.Criterion):
    """Drop the weights whose removal changes the loss least, to first order: |weight x gradient|."""

    reads = "gradient"

    def score(self, at: fxs.Weight) -> torch.Tensor:
        return (at.weight * at.gradient).abs()


def techniques(sparsity: float, steps: int) -> dict[str, fxs.Policy | None]:
    moving = {"sparsity": sparsity, "end": int(0.75 * steps), "interval": 10}
    granet = fxs.GraNet(
        initial_sparsity=0.5, final_sparsity=sparsity, begin=0, end=int(0.6 * steps), total_steps=steps, interval=10, prune_rate=0.5
    )
    return {
        "dense": None,
        "static": fxs.Policy(fxs.StaticMask(sparsity=sparsity)),
        "set": fxs.Policy(fxs.SET(**moving)),
        "rigl": fxs.Policy(fxs.RigL(**moving)),
        "granet": fxs.Policy(granet),
        "saliency": fxs.Policy(fxs.RigL(**moving, drop=Saliency)),
    }


def network(width: int) -> nn.Module:
    def block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU())

    stages = [block(1, width, 1), block(width, width, 1), block(width, 2 * width, 2), block(2 * width, 4 * width, 2)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    methods = "of dense, static, set, rigl, granet, saliency"
    parser.add_argument("--methods", nargs="+", default=["dense", "static", "rigl", "granet"], help=methods)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=1 / 3, stratify=labels, random_state=0)
    batches = len(train_x) // 32
    known = techniques(options.sparsity, options.epochs * batches)

    for name in options.methods:
        torch.manual_seed(options.seed)
        compiled = fxs.compile(network(options.width), known[name], example_inputs=(train_x[:32],))
        optimizer = torch.optim.SGD(compiled.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=options.epochs * batches)
        compiled.attach(optimizer)

        print(f"\n{name}")
        for epoch in range(options.epochs):
            compiled.train()
            for batch in torch.randperm(len(train_x))[: batches * 32].view(batches, 32):
                optimizer.zero_grad()
                loss = F.cross_entropy(compiled(train_x[batch]), train_y[batch])
                loss.backward()
                optimizer.step()
                scheduler.step()
            kept = sum(row["weight"]["kept"] for row in compiled.sparsity().values())
            print(f"  epoch {epoch + 1:3d}  loss of the last batch {loss.item():.4f}  {kept} weights")

        compiled.eval()
        with torch.no_grad():
            correct = (compiled(test_x).argmax(1) == test_y).float().mean().item()
        print(f"  test accuracy {100 * correct:.2f} %")
        if compiled.masks:
            print(f"  the run took {compiled.run_report('rigl').training_multiplier:.3f}x the operations of a dense one")


if __name__ == "__main__":
    main()
