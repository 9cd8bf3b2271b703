"""Models of other libraries, trained sparse and with few-bit activations: a ViT of timm, a BERT and a GPT-2 of transformers.

    python examples/train_libraries.py --model gpt2 --steps 60

The ViT and the BERT (which reads an image as its eight rows) learn scikit-learn's digits, the GPT-2 learns the letters of this
project's licence. All start from random weights, and train under SWAT at 80 % and with their activations kept in 4 bits.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsparse as fxs
from fxsparse.digits import load_digits, one_thread

Batch = tuple[dict[str, Tensor], Tensor]
TEXT = Path(__file__).resolve().parents[1] / "LICENSE"
LETTERS, BATCH, LENGTH = 128, 32, 48


def digits(rows: bool) -> Iterator[Batch]:
    """Batches of digits, as images or as sequences of eight rows."""
    found = load_digits()
    images, labels = found.train_images, found.train_labels
    generator = torch.Generator().manual_seed(0)
    while True:
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        x = images[chosen]
        yield ({"inputs_embeds": x.squeeze(1).repeat(1, 1, 4)} if rows else {"x": F.interpolate(x, size=32)}), labels[chosen]


def letters() -> Iterator[Batch]:
    """Pieces of the licence's text."""
    text = torch.tensor([min(byte, LETTERS - 1) for byte in TEXT.read_bytes()])
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=generator).tolist()
        tokens = torch.stack([text[start : start + LENGTH] for start in starts])
        yield {"input_ids": tokens}, tokens


def vit() -> tuple[nn.Module, Iterator[Batch]]:
    import timm

    options = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "in_chans": 1, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **options), digits(rows=False)


def bert() -> tuple[nn.Module, Iterator[Batch]]:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 10}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=10)), digits(rows=True)


def gpt2() -> tuple[nn.Module, Iterator[Batch]]:
    import transformers

    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "vocab_size": LETTERS, "bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)), letters()


MODELS = {"vit": vit, "bert": bert, "gpt2": gpt2}


def loss_of(output: object, target: Tensor) -> Tensor:
    """Cross entropy of the classes, or of each letter given those before it."""
    scores: Tensor = output if isinstance(output, Tensor) else output.logits  # type: ignore[attr-defined]
    if scores.dim() == 3:
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), target[:, 1:].flatten())
    return F.cross_entropy(scores, target)


def train(name: str, steps: int) -> None:
    """Trains a model, and prints its report's first line and how the loss falls."""
    torch.manual_seed(0)
    model, batches = MODELS[name]()
    inputs, _ = next(batches)
    policy = fxs.Policy(fxs.SWAT(weight_sparsity=0.8), fxs.SavedActivations(bits=4))
    compiled = fxs.compile(model, policy, example_kwargs=inputs)
    print(str(compiled.report).splitlines()[0])
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=3e-3)
    handle = compiled.attach(optimizer)
    losses = []
    for _, (given, target) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        loss = loss_of(compiled(**given), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    handle.remove()
    few = max(1, steps // 10)
    print(f"{name}: loss {sum(losses[:few]) / few:.3f} in the first {few} steps, {sum(losses[-few:]) / few:.3f} in the last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2", help="which one (default: gpt2)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps (default: 60)")
    arguments = parser.parse_args()
    one_thread()
    train(arguments.model, arguments.steps)


if __name__ == "__main__":
    main()
