"""What pricing every node costs, and that it grows with the number of nodes. Run with ``-m benchmark -s``."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import nn
from torchvision.models import get_model

import fxsparse as fxs
from fxsparse.cost_model.accelerator import Accelerator
from fxsparse.passes.annotate_cost import annotate_cost
from fxsparse.passes.capture.before import leaving_no_trace
from fxsparse.passes.capture.capture import capture

pytestmark = pytest.mark.benchmark


def chain(layers: int) -> nn.Module:
    return nn.Sequential(*(layer for _ in range(layers // 2) for layer in (nn.Linear(64, 64), nn.ReLU())))


def seconds(model: nn.Module, x: torch.Tensor, repeats: int = 5) -> tuple[int, float, float]:
    """Nodes of the model; median seconds of annotating them after capture, and of a report on a machine."""
    machine = Accelerator.load("eyeriss")
    annotating, reporting = [], []
    nodes = 0
    for _ in range(repeats):
        captured = capture(model, ((x,), {}))
        nodes = sum(len(variant.graph_module.graph.nodes) for forward in captured.forwards.values() for variant in forward.variants)
        began = time.perf_counter()
        with leaving_no_trace():
            annotate_cost(captured, {}, ((x,), {}))
        annotating.append(time.perf_counter() - began)
        compiled = fxs.compile(model, None, (x,))
        began = time.perf_counter()
        compiled.cost(machine)
        reporting.append(time.perf_counter() - began)
    return nodes, median(annotating), median(reporting)


def test_annotating_resnet50_takes_less_than_50_ms() -> None:
    nodes, annotating, reporting = seconds(get_model("resnet50", weights=None), torch.zeros(8, 3, 224, 224), repeats=9)
    print(f"\nResNet-50, {nodes} nodes, three passes: annotated in {1e3 * annotating:.1f} ms, cost('eyeriss') in {1e3 * reporting:.1f} ms")
    assert annotating < 0.05


def test_time_and_memory_are_linear_in_the_nodes() -> None:
    print()
    models: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "chain of 100 layers": (lambda: chain(100), (4, 64)),
        "chain of 1000 layers": (lambda: chain(1000), (4, 64)),
        "chain of 4000 layers": (lambda: chain(4000), (4, 64)),
        "ResNet-50": (lambda: get_model("resnet50", weights=None), (2, 3, 224, 224)),
        "ViT-H/14": (lambda: get_model("vit_h_14", weights=None), (1, 3, 224, 224)),
    }
    each = {}
    for name, (make, shape) in models.items():
        model, x = make(), torch.zeros(shape)
        nodes, annotating, reporting = seconds(model, x, repeats=3)
        captured = capture(model, ((x,), {}))
        tracemalloc.start()
        with leaving_no_trace():
            annotate_cost(captured, {}, ((x,), {}))
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        each[name] = (annotating / nodes, memory / nodes)
        print(
            f"  {name:<22} {nodes:5d} nodes   annotated {1e3 * annotating:7.1f} ms ({1e6 * annotating / nodes:4.0f} µs a node)   "
            f"report {1e3 * reporting:7.1f} ms   memory {memory / 2**20:6.2f} MiB ({memory / nodes / 1024:.1f} KiB a node)"
        )
    for index in range(2):
        assert each["chain of 4000 layers"][index] < 1.5 * each["chain of 1000 layers"][index]
