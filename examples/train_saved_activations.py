"""Train networks on scikit-learn's digits with activations kept in few bits: bytes kept for backward, and accuracy.

python examples/train_saved_activations.py
python examples/train_saved_activations.py --bits 2 --epochs 20
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import fxsparse as fxs


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


def resnet(width: int) -> nn.Module:
    stem = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*stem, Residual(width), Residual(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def mlp(width: int) -> nn.Module:
    wide = 8 * width
    hidden = nn.Linear(64, wide), nn.LayerNorm(wide), nn.GELU(), nn.Linear(wide, wide), nn.LayerNorm(wide), nn.GELU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(wide, 10))


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the unique storages that a forward pass keeps for backward, parameters and buffers left out."""
    own = {item.untyped_storage().data_ptr() for item in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)  # alive until the storages are counted
    del out
    return sum(storage.nbytes() for storage in seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=4, choices=[1, 2, 4, 8])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=16)
    options = parser.parse_args()

    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(digits.target)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=1 / 3, stratify=labels, random_state=0)
    runs: list[tuple[str, Callable[[int], nn.Module], fxs.Policy | None]] = [
        ("ResNet, exact", resnet, None),
        (f"ResNet, BLPA-{options.bits}", resnet, fxs.Policy(fxs.BLPA(bits=options.bits))),
        ("MLP, exact", mlp, None),
        (f"MLP, SavedActivations-{options.bits}", mlp, fxs.Policy(fxs.SavedActivations(bits=options.bits))),
    ]
    for name, make, policy in runs:
        torch.manual_seed(0)
        compiled = fxs.compile(make(options.width), policy, example_inputs=(train_x[:32],))
        optimizer = torch.optim.AdamW(compiled.parameters(), lr=3e-3)
        compiled.attach(optimizer)
        kept = kept_bytes(compiled, train_x[:32].clone())
        for _ in range(options.epochs):
            for batch in torch.randperm(len(train_x)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(compiled(train_x[batch]), train_y[batch]).backward()
                optimizer.step()
        compiled.eval()
        with torch.no_grad():
            correct = (compiled(test_x).argmax(1) == test_y).float().mean().item()
        print(f"{name:26} {kept / 1024:7.1f} KiB kept for backward, test accuracy {100 * correct:.2f} %")


if __name__ == "__main__":
    main()
