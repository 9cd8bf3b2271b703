"""Models that keep codes live through what people do with models: torch.compile, autocast, ranks, layouts, accumulation, resuming."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

import fxsparse as fxs


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.drop = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


def transformer() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), Layer(32, 4), Layer(32, 4), nn.LayerNorm(32), nn.Flatten(), nn.Linear(32 * 8, 5))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
        nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def resnet() -> nn.Module:
    return get_model("resnet18", weights=None, num_classes=5)


SWAT = fxs.SWAT(weight_sparsity=0.6, period=2, dense_first=False)
POLICIES = {
    "BLPA": fxs.Policy(fxs.BLPA(bits=4)),
    "SavedActivations": fxs.Policy(fxs.SavedActivations(bits=4, group_size=64)),
    "both": fxs.Policy(fxs.BLPA(bits=4), fxs.SavedActivations(bits=4, group_size=64)),
    "SWAT": fxs.Policy(SWAT),
    "SWAT, BLPA": fxs.Policy(SWAT, fxs.BLPA(bits=4)),
    "SWAT, SavedActivations": fxs.Policy(SWAT, fxs.SavedActivations(bits=4, group_size=64)),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (convolutional, (3, 8, 8)),
    "transformer": (transformer, (8, 6)),
    "resnet18": (resnet, (3, 32, 32)),
}
CELLS = [
    *(("conv", policy) for policy in POLICIES),
    *(("transformer", policy) for policy in POLICIES if "BLPA" not in policy and policy != "both"),
]

FIRST = (("conv", "both"), ("conv", "SWAT, BLPA"), ("transformer", "SavedActivations"), ("transformer", "SWAT"))


def make(model: str, policy: str) -> tuple[fxs.CompiledModel, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = MODELS[model]
    return fxs.compile(build().train(), POLICIES[policy], (torch.randn(4, *shape),)), shape


def batches(shape: tuple[int, ...], sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, *shape, generator=generator), torch.randint(5, (size,), generator=generator)) for size in sizes]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def train(model: Any, owner: nn.Module, data: list[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer | None = None) -> list[Tensor]:
    optimizer = optimizer or optimizer_of(owner)
    losses = []
    for index, (x, y) in enumerate(data):
        torch.manual_seed(index)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.fixture
def _no_recompile() -> Iterator[None]:
    torch._dynamo.reset()
    # Inductor's own random numbers would drop other elements than eager's
    with torch._dynamo.config.patch(error_on_recompile=True), torch._inductor.config.patch(fallback_random=True):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_no_recompile")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("model", "policy"),
    [
        *(cell if cell in FIRST else pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS),
        *(pytest.param("resnet18", policy, marks=pytest.mark.slow) for policy in POLICIES),
    ],
)
def test_torch_compile_takes_one_graph_and_gives_the_same_numbers(model: str, policy: str, backend: str) -> None:
    compiled, shape = make(model, policy)
    eager = copy.deepcopy(compiled)
    fast = torch.compile(compiled, fullgraph=True, backend=backend)
    data = batches(shape, [4] * 4)
    found, wanted = train(fast, compiled, data), train(eager, eager, data)
    # A plain ResNet-18 on four small images parts from itself under Inductor, by 3e-4 at the second step and 5 % at the third
    compared, tolerance = (2, 1e-3) if (model, backend) == ("resnet18", "inductor") else (4, 2e-4)
    torch.testing.assert_close(torch.stack(found)[:compared], torch.stack(wanted)[:compared], rtol=tolerance, atol=tolerance)
    assert int(compiled.get_buffer("fxsparse.clock.steps")) == 4


@pytest.mark.parametrize(("model", "policy"), CELLS)
def test_autocast_runs_in_bf16_as_the_plain_model_does(model: str, policy: str) -> None:
    compiled, shape = make(model, policy)
    ((x, y),) = batches(shape, [4])
    eager = MODELS[model][0]()
    eager.load_state_dict({name: item for name, item in compiled.state_dict().items() if not name.startswith("fxsparse.")})
    outs = []
    for each in (compiled, eager):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outs.append(each.train()(x))
        F.cross_entropy(outs[-1].float(), y).backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in each.parameters())
    assert outs[0].dtype == torch.bfloat16
    if "SWAT" not in policy:
        assert torch.equal(outs[0], outs[1])
        gradients = [torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (compiled, eager)]
        assert F.cosine_similarity(*gradients, dim=0) > 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("model", "policy"), [cell for cell in CELLS if "SWAT" not in cell[1]])
def test_models_in_half_precision_keep_their_outputs(model: str, policy: str, dtype: torch.dtype) -> None:
    build, shape = MODELS[model]
    torch.manual_seed(0)
    eager = build().to(dtype).train()
    x = torch.randn(4, *shape).to(dtype)
    compiled = fxs.compile(copy.deepcopy(eager), POLICIES[policy], (x,))
    torch.manual_seed(0)
    found = compiled(x)
    torch.manual_seed(0)
    assert torch.equal(found, eager(x))
    found.float().square().mean().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in compiled.parameters())


@pytest.mark.parametrize("policy", ["BLPA", "SavedActivations", "both"])
def test_channels_last_keeps_outputs_and_layout(policy: str) -> None:
    compiled, shape = make("conv", policy)
    eager = MODELS["conv"][0]()
    eager.load_state_dict({name: item for name, item in compiled.state_dict().items() if not name.startswith("fxsparse.")})
    ((x, y),) = batches(shape, [4])
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    compiled, eager = compiled.to(memory_format=torch.channels_last), eager.to(memory_format=torch.channels_last)
    found, wanted = compiled(last), eager.train()(last)
    assert torch.equal(found, wanted)
    gradients = [
        torch.autograd.grad(F.cross_entropy(out, y), list(each.parameters())) for out, each in ((found, compiled), (wanted, eager))
    ]
    flat = [torch.cat([grad.flatten() for grad in group]) for group in gradients]
    assert F.cosine_similarity(flat[0], flat[1], dim=0) > 0.97


@pytest.mark.parametrize(("model", "policy"), CELLS)
def test_gradients_accumulate(model: str, policy: str) -> None:
    compiled, shape = make(model, policy)
    compiled.eval()  # running statistics and no dropout, so that halves are independent
    (x, _), (u, _) = batches(shape, [4, 4])
    if model == "conv":
        compiled(x)

    def grads(*inputs: Tensor) -> list[Tensor]:
        each = copy.deepcopy(compiled)
        for item in inputs:
            each(item).square().sum().backward()
        return [p.grad for p in each.parameters()]

    together, first, second = grads(x, u), grads(x), grads(u)
    if "SWAT" in policy:
        assert all(grad.isfinite().all() for grad in together)
        return
    for a, b, c in zip(together, first, second, strict=True):
        torch.testing.assert_close(a, b + c, rtol=1e-4, atol=1e-5)


def kept_floats(model: nn.Module, x: Tensor) -> int:
    """How many tensors a forward pass keeps for backward."""
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, lambda tensor: tensor):
        model(x)
    return len(seen)


@pytest.mark.parametrize(("model", "policy"), CELLS)
def test_inference_keeps_nothing_and_equals_the_model(model: str, policy: str) -> None:
    compiled, shape = make(model, policy)
    ((x, _),) = batches(shape, [4])
    assert kept_floats(compiled, x) > 0
    eager = MODELS[model][0]()
    eager.load_state_dict({name: item for name, item in compiled.state_dict().items() if not name.startswith("fxsparse.")})
    for training in (True, False):
        compiled.train(training)
        eager.train(training)
        with torch.no_grad():
            assert kept_floats(compiled, x) == 0
            torch.manual_seed(0)
            eager.load_state_dict({name: item for name, item in compiled.state_dict().items() if not name.startswith("fxsparse.")})
            found = compiled(x)
            torch.manual_seed(0)
            assert "SWAT" in policy or torch.equal(found, eager(x))


@pytest.mark.parametrize(("model", "policy"), CELLS)
def test_the_batch_size_may_change(model: str, policy: str) -> None:
    compiled, shape = make(model, policy)
    assert all(loss.isfinite() for loss in train(compiled, compiled, batches(shape, [4, 1 if model == "transformer" else 2, 7, 4])))
    out = compiled.eval()(torch.randn(1, *shape))
    assert out.shape == (1, 5)


@pytest.mark.parametrize(("model", "policy"), CELLS)
def test_training_goes_on_from_a_state_dict_to_the_bit(model: str, policy: str) -> None:
    compiled, shape = make(model, policy)
    data = batches(shape, [4] * 6)
    optimizer = optimizer_of(compiled)
    compiled.attach(optimizer)
    train(compiled, compiled, data[:3], optimizer)
    state, moments = copy.deepcopy(compiled.state_dict()), copy.deepcopy(optimizer.state_dict())
    wanted = train(compiled, compiled, data[3:], optimizer)
    fresh, _ = make(model, policy)
    fresh.load_state_dict(state, strict=True)
    resumed = optimizer_of(fresh)
    fresh.attach(resumed)
    resumed.load_state_dict(moments)
    found = train(fresh, fresh, data[3:], resumed)
    assert torch.equal(torch.stack(found), torch.stack(wanted))
    for (name, p), q in zip(compiled.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_each_training_forward_has_noise_of_its_own() -> None:
    compiled, shape = make("transformer", "SavedActivations")
    ((x, _),) = batches(shape, [4])

    def grads(model: nn.Module) -> Tensor:
        torch.manual_seed(0)  # the same dropout
        model.zero_grad()
        model(x).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    other = copy.deepcopy(compiled)
    first, second = grads(compiled), grads(compiled)
    assert not torch.equal(first, second)
    assert torch.equal(first, grads(other))


def test_dropout_probabilities_are_read_when_the_model_runs() -> None:
    compiled, shape = make("transformer", "SavedActivations")
    ((x, _),) = batches(shape, [4])
    model = copy.deepcopy(compiled).finalize().train()
    for probability in (0.0, 0.5, 1.0):
        for module in (*compiled.modules(), *model.modules()):
            if isinstance(module, nn.Dropout):
                module.p = probability
        outputs = []
        for contender in (model, compiled):
            torch.manual_seed(0)
            outputs.append(contender(x))
        assert torch.equal(*outputs), probability


def codes_alive() -> int:
    gc.collect()
    return sum(1 for item in gc.get_objects() if type(item) is Tensor and item.dtype == torch.uint8)


@pytest.mark.parametrize(("model", "policy"), CELLS[1::3])
def test_no_code_outlives_backward(model: str, policy: str) -> None:
    compiled, shape = make(model, policy)
    ((x, y),) = batches(shape, [4])
    before = codes_alive()
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(torch.multiprocessing.reductions.StorageWeakRef(t.untyped_storage())), t)[1], lambda t: t
    ):
        loss = F.cross_entropy(compiled(x), y)
    codes = [ref for ref in kept if not ref.expired()]
    assert codes
    loss.backward()
    del loss
    gc.collect()
    own = {item.untyped_storage()._cdata for item in (*compiled.parameters(), *compiled.buffers(), x, y)}
    assert not [ref for ref in codes if not ref.expired() and ref.cdata not in own]
    assert codes_alive() == before


MEMORY = """
import gc, resource, sys, torch
import torch.nn.functional as F
from torch import nn
import fxsparse as fxs

torch.set_num_threads(1)
torch.manual_seed(0)
policy = {"BLPA": fxs.Policy(fxs.BLPA(bits=4)), "SavedActivations": fxs.Policy(fxs.SavedActivations(bits=4))}[sys.argv[1]]
layers = [layer for _ in range(3) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
head = nn.Conv2d(16, 16, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
model = nn.Sequential(nn.Conv2d(3, 16, 1), *layers, *head)
x, y = torch.randn(12, 3, 32, 32), torch.randint(5, (12,))
compiled = fxs.compile(model, policy, (x,))
optimizer = torch.optim.SGD(compiled.parameters(), lr=0.01)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

for step in range(130):
    if step == 30:
        gc.collect()
        start = resident()
    optimizer.zero_grad()
    F.cross_entropy(compiled(x), y).backward()
    optimizer.step()
gc.collect()
grown = (resident() - start) / 2**20
print(f"grew by {grown:.2f} MiB")
sys.exit(grown > 8)  # a step keeps 0.9 MiB of codes, which would come to 90
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("policy", ["BLPA", "SavedActivations"])
def test_memory_is_where_it_was_after_100_steps(tmp_path: Path, policy: str) -> None:
    script = tmp_path / "steps.py"
    script.write_text(MEMORY)
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, str(script), policy], capture_output=True, text=True, timeout=250, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


WORKER = """
import os, sys, torch, torch.distributed as dist
import fxsparse as fxs
from torch import nn

rank, folder, policy = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(32, 4))
techniques = {"BLPA": [fxs.BLPA(bits=4)], "both": [fxs.BLPA(bits=4), fxs.SavedActivations(bits=4)],
              "SWAT": [fxs.SWAT(weight_sparsity=0.5, period=2), fxs.BLPA(bits=4)]}[policy]
compiled = fxs.compile(model, fxs.Policy(*techniques), (torch.randn(4, 3, 6, 6),))
parallel = nn.parallel.DistributedDataParallel(compiled)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1, momentum=0.9)
torch.manual_seed(rank + 1)
for _ in range(5):
    optimizer.zero_grad()
    parallel(torch.randn(4, 3, 6, 6)).square().mean().backward()
    optimizer.step()
own = {name: tensor for name, tensor in compiled.state_dict().items() if "running" not in name and "activation" not in name}
other = {name: tensor.clone() for name, tensor in own.items()}
for tensor in other.values():
    dist.broadcast(tensor, 0)
different = [name for name in own if not torch.equal(own[name], other[name])]
assert not different, different
print("same on both ranks", flush=True)
dist.barrier()
os._exit(0)  # gloo's threads now and then abort an interpreter that shuts down
"""


@pytest.mark.parametrize("policy", ["both", *(pytest.param(name, marks=pytest.mark.slow) for name in ("BLPA", "SWAT"))])
def test_ranks_train_the_same_weights(tmp_path: Path, policy: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": root}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path), policy], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        for rank in range(2)
    ]
    ended = [worker.communicate(timeout=120) for worker in workers]
    for worker, (out, error) in zip(workers, ended, strict=True):
        assert worker.returncode == 0, error.decode()[-2000:]
        assert b"same on both ranks" in out


@pytest.mark.parametrize(("model", "policy"), CELLS)
def test_the_report_says_of_each_site_what_it_keeps_and_why(model: str, policy: str) -> None:
    compiled, _ = make(model, policy)
    changes = [change for change in compiled.report.changes if "keeps" in change.what]
    if policy == "SWAT":
        return
    assert changes
    assert all(change.site and change.why.strip() for change in changes)
    assert all(skip.reason for skip in compiled.report.skips)
    assert fxs.compile(MODELS[model][0](), None, (torch.randn(4, *MODELS[model][1]),)).report.changes == ()
