"""Measures this machine's CPU or GPU: peak rates, bandwidth, overhead, and an efficiency for each class of operators."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fxsparse.cost_model.accelerator import Accelerator

_CONVS = (
    # channels in, channels out, kernel, stride, padding, size
    (64, 64, 3, 1, 1, 56),
    (128, 128, 3, 1, 1, 28),
    (256, 256, 3, 1, 1, 14),
    (512, 512, 3, 1, 1, 7),
    (64, 256, 1, 1, 0, 56),
    (512, 128, 1, 1, 0, 28),
    (128, 128, 3, 2, 1, 56),
    (3, 64, 7, 2, 3, 224),
)
_DEPTHWISE = ((64, 3, 1, 1, 56), (256, 3, 1, 1, 28), (384, 7, 1, 3, 14))
_GEMMS = ((1568, 768, 3072), (1568, 3072, 768), (392, 1024, 4096), (8 * 197, 768, 2304))


@dataclass(frozen=True)
class Measured:
    """Work of one operator and the seconds that it took."""

    flops: float
    moved_bytes: float
    seconds: float


def calibrate(
    device: str = "cpu", *, batch: int = 8, repeats: int = 9, progress: Callable[[str], None] = lambda _stage: None
) -> Accelerator:
    """A roofline of the machine at hand, measured in about a minute.

    Args:
        device: "cpu" or "cuda". batch: samples of the measured operators. repeats: runs of each, whose median counts.
        progress: is told what is being measured.
    """
    bench = _Bench(torch.device(device), batch, repeats)
    progress("peak rates")
    peaks = {str(dtype).removeprefix("torch."): bench.peak(dtype) for dtype in bench.dtypes()}
    progress("memory bandwidth")
    bandwidth = bench.bandwidth()
    progress("overhead of an operator")
    overhead = bench.overhead()
    measured: dict[str, list[Measured]] = {}
    for kind, run in (
        ("gemm", bench.gemms),
        ("conv", bench.convs),
        ("conv_backward", bench.conv_backwards),
        ("depthwise", bench.depthwise),
        ("attention", bench.attention),
        ("elementwise", bench.elementwise),
    ):
        progress(f"{kind.replace('_', ' ')} operators")
        measured[kind] = run()
    peak = peaks["float32"]
    efficiency = {kind: round(_efficiency(rows, peak, bandwidth, overhead), 4) for kind, rows in measured.items()}
    efficiency["recurrent"] = efficiency["gemm"]
    name = platform.processor() or platform.machine() if device == "cpu" else torch.cuda.get_device_name()
    how = f"measured by fxsparse calibrate with torch {torch.__version__}, {torch.get_num_threads()} threads"
    return Accelerator.from_dict(
        {
            "name": device,
            "description": f"{name}, {how}",
            "memory": {
                "dram_bytes_per_s": float(f"{bandwidth:.4g}"),
                "buffer_bytes": 1048576,
                "double_buffered": False,
                "operand_bits": 32,
            },
            "roofline": {
                "peak_flops": {dtype: float(f"{rate:.4g}") for dtype, rate in peaks.items()},
                "efficiency": efficiency,
                "overhead_s": float(f"{overhead:.3g}"),
                "calibrated": True,
            },
            "sources": {
                "roofline.peak_flops": f"the fastest square product of 512 to 2048, {how}",
                "memory.dram_bytes_per_s": f"a += b on tensors larger than the caches, three transfers an element, {how}",
                "roofline.overhead_s": f"an addition of eight elements, {how}",
                "roofline.efficiency": f"median over typical layers of roofline time over measured time, {how}; recurrent as gemm",
            },
        }
    )


def _efficiency(rows: list[Measured], peak: float, bandwidth: float, overhead: float) -> float:
    """Median of ideal over measured time, overhead taken off; at most 1."""
    reached = [max(row.flops / peak, row.moved_bytes / bandwidth) / max(row.seconds - overhead, 1e-9) for row in rows]
    return min(1.0, max(1e-3, median(reached)))


class _Bench:
    def __init__(self, device: torch.device, batch: int, repeats: int) -> None:
        self.device = device
        self.batch = batch
        self.repeats = repeats

    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.float32, torch.bfloat16) if self.device.type == "cpu" else (torch.float32, torch.bfloat16, torch.float16)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median seconds of a call, after two that do not count."""
        times = []
        for index in range(self.repeats + 2):
            self._wait()
            began = time.perf_counter()
            run()
            self._wait()
            if index >= 2:
                times.append(time.perf_counter() - began)
        return median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=self.device)

    def peak(self, dtype: torch.dtype) -> float:
        rates = []
        for size in (512, 1024, 2048):
            a, b = self.tensor(size, size, dtype=dtype), self.tensor(size, size, dtype=dtype)
            rates.append(2 * size**3 / self.seconds(partial(torch.matmul, a, b)))
        return max(rates)

    def bandwidth(self) -> float:
        a, b = self.tensor(1 << 25), self.tensor(1 << 25)
        return 3 * a.numel() * 4 / self.seconds(lambda: a.add_(b))

    def overhead(self) -> float:
        a, b = self.tensor(8), self.tensor(8)

        def hundred() -> None:
            for _ in range(100):
                torch.add(a, b)

        return self.seconds(hundred) / 100

    def gemms(self) -> list[Measured]:
        rows = []
        for m, k, n in _GEMMS:
            a, b = self.tensor(m, k), self.tensor(n, k)
            seconds = self.seconds(partial(torch.nn.functional.linear, a, b))
            rows.append(Measured(2 * m * k * n, 4 * (m * k + k * n + m * n), seconds))
        return rows

    def convs(self) -> list[Measured]:
        return [self._conv(cin, cout, k, s, p, size, 1)[0] for cin, cout, k, s, p, size in _CONVS]

    def conv_backwards(self) -> list[Measured]:
        return [self._conv(cin, cout, k, s, p, size, 1)[1] for cin, cout, k, s, p, size in _CONVS[:-1]]

    def depthwise(self) -> list[Measured]:
        rows: list[Measured] = []
        for channels, k, s, p, size in _DEPTHWISE:
            rows += self._conv(channels, channels, k, s, p, size, channels)
        return rows

    def _conv(self, cin: int, cout: int, k: int, s: int, p: int, size: int, groups: int) -> tuple[Measured, Measured]:
        x, w = self.tensor(self.batch, cin, size, size), self.tensor(cout, cin // groups, k, k)
        out = torch.nn.functional.conv2d(x, w, stride=s, padding=p, groups=groups)
        forward = self.seconds(lambda: torch.nn.functional.conv2d(x, w, stride=s, padding=p, groups=groups))
        geometry = ([s, s], [p, p], [1, 1], False, [0, 0], groups)
        backward = self.seconds(lambda: torch.ops.aten.convolution_backward(out, x, w, None, *geometry, [True, True, False]))
        flops = 2 * out.numel() * (cin // groups) * k * k
        moved = 4 * (x.numel() + w.numel() + out.numel())
        return Measured(flops, moved, forward), Measured(2 * flops, 2 * moved, backward)

    def attention(self) -> list[Measured]:
        rows = []
        for heads, length, width in ((12, 197, 64), (8, 256, 64)):
            q = self.tensor(self.batch, heads, length, width)
            seconds = self.seconds(partial(torch.nn.functional.scaled_dot_product_attention, q, q, q))
            rows.append(Measured(4 * self.batch * heads * length * length * width, 4 * 4 * q.numel(), seconds))
        return rows

    def elementwise(self) -> list[Measured]:
        x = self.tensor(self.batch, 256, 56, 56)
        y, weight = torch.ones_like(x), self.tensor(256)
        size = 4 * x.numel()
        return [
            Measured(x.numel(), 2 * size, self.seconds(lambda: torch.relu(x))),
            Measured(x.numel(), 3 * size, self.seconds(lambda: torch.add(x, y))),
            Measured(x.numel(), 3 * size, self.seconds(lambda: torch.nn.functional.batch_norm(x, None, None, weight, weight, True))),
            Measured(x.numel(), 2 * size, self.seconds(lambda: torch.nn.functional.gelu(x))),
        ]
