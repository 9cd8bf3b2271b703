"""Writes one HTML file about a model under two policies: its graph, its costs, its memory, and one policy beside the other.

python examples/save_html.py --model resnet50 --sparsity 0.9 --bits 4 --compare swat-erk-80 --accelerator eyeriss
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision

import fxsparse as fxs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="of torchvision")
    parser.add_argument("--sparsity", type=float, default=0.9, help="of SWAT's weights")
    parser.add_argument("--bits", type=int, default=4, help="in which BLPA keeps what it keeps for backward")
    parser.add_argument("--compare", default="swat-erk-80", help="another policy: a preset (fxsparse presets lists them), or a file")
    parser.add_argument("--accelerator", default="eyeriss", help="fxsparse accelerators lists them")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--output", type=Path, default=Path("model.html"))
    args = parser.parse_args()

    x = torch.randn(args.batch, 3, args.size, args.size)
    model = torchvision.models.get_model(args.model, weights=None)
    policy = fxs.Policy(fxs.SWAT(weight_sparsity=args.sparsity, distribution="erk"), fxs.BLPA(bits=args.bits))
    compiled = fxs.compile(model, policy, (x,))
    other = fxs.compile(model, args.compare, (x,))
    compiled.save_html(args.output, args.accelerator, compare={args.compare: other}, title=args.model)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.2f} MiB; open it in a browser")


if __name__ == "__main__":
    main()
