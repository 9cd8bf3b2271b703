"""Exports a sparse model as ONNX, runs it in ONNX Runtime, and makes a model from the file again.

python examples/export_onnx.py --model resnet18 --policy swat-u-90
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxruntime
import torch
import torchvision

import fxsparse as fxs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="of torchvision")
    parser.add_argument("--policy", default="swat-u-90", help="a preset (fxsparse presets lists them), or a policy's file")
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--output", type=Path, default=Path("model.onnx"))
    args = parser.parse_args()

    x = torch.randn(2, 3, args.size, args.size)
    model = torchvision.models.get_model(args.model, weights=None)
    compiled = fxs.compile(model, args.policy, (x,))

    written = compiled.export_onnx(args.output)
    dense = compiled.export_onnx(args.output.with_suffix(".dense.onnx"), sparse=False)
    print(f"{written.path}: {written.size_bytes:,} bytes, {written.size_bytes / dense.size_bytes:.2f}x of the dense file")

    session = onnxruntime.InferenceSession(args.output, providers=["CPUExecutionProvider"])
    [out] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        wanted = compiled.eval()(x)
    error = float((torch.from_numpy(out) - wanted).abs().max() / wanted.abs().max())
    print(f"largest difference of ONNX Runtime's outputs from the model's: {error:.1e} of the largest output")

    restored = fxs.from_onnx(args.output, torchvision.models.get_model(args.model, weights=None))
    with torch.no_grad():
        same = torch.equal(restored.eval()(x), wanted)
    print(f"policy, weights and masks from the file: outputs {'bit-equal' if same else 'differ'}")

    plain = compiled.finalize()
    print(f"finalised: a plain {type(plain).__name__}, {sum(int((p == 0).sum()) for p in plain.parameters()):,} of its weights are zero")


if __name__ == "__main__":
    main()
