"""Measures this machine's CPU or GPU: peak rates, bandwidth, overhead, and an efficiency for each class of operators.

The efficiency of a class is the time that a roofline without losses gives to training steps of small networks of that class,
over the time that they take. So it holds for whatever makes real operators slower: layouts, allocation, caches, threads.
"""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from fxsparse.cost_model.accelerator import Accelerator
from fxsparse.cost_model.gemm import Pass

from .calibration_chains import CHAINS, Chain
from .errors import CostError
from .estimator import estimate

STAGES = 4 + len(CHAINS)
_LEAST_SECONDS = 1e-6
_LEAST_SHARE = 0.2  # of a measured time that is the operators' own
_HALVES: tuple[tuple[str, tuple[Pass, ...]], ...] = (("", ("forward",)), ("_backward", ("grad_input", "grad_weight")))


def calibrate(
    device: str = "cpu", *, batch: int = 8, repeats: int = 7, progress: Callable[[str], None] = lambda _stage: None
) -> Accelerator:
    """A roofline of the machine at hand, measured in about a minute. Use it for steps of a like batch size.

    Args:
        device: "cpu" or "cuda". batch: samples of the measured steps. repeats: runs of each, whose median counts.
        progress: is told what is being measured, STAGES times.

    Raises:
        CostError: there is no such device, or a number is not positive.
    """
    require_device(device)
    if batch < 1 or repeats < 1:
        raise CostError(f"batch is {batch} and repeats is {repeats}; expected whole numbers from 1")
    bench = _Bench(torch.device(device), batch, repeats)
    progress("peak rates")
    peaks = {str(dtype).removeprefix("torch."): bench.peak(dtype) for dtype in bench.dtypes()}
    progress("memory bandwidth")
    bandwidth = bench.bandwidth()
    progress("overhead of an operator")
    overhead = bench.overhead()
    progress("new pages")
    new_rate = bench.new_rate()
    ideal, made_anew = (_accelerator(device, peaks, bandwidth, overhead, rate, {}, "") for rate in (None, new_rate))
    reached: dict[str, list[float]] = defaultdict(list)
    for chain in CHAINS:
        progress(f"{chain.kind.replace('_', ' ')} {'x'.join(map(str, chain.shape))}")
        for name, expected, measured in bench.chain(chain, ideal, made_anew):
            reached[name].append(expected / measured)
    efficiency = {name: _efficiency(shares) for name, shares in reached.items()}
    processor = platform.processor() or platform.machine() if device == "cpu" else torch.cuda.get_device_name()
    how = f"measured by fxsparse calibrate on {processor} with torch {torch.__version__}, {torch.get_num_threads()} threads"
    return _accelerator(device, peaks, bandwidth, overhead, new_rate, efficiency, how)


def require_device(device: str) -> None:
    """Raises CostError if there is no such device here."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise CostError(
            f"device is {device!r}; expected 'cpu'" + (" or 'cuda'" if torch.cuda.is_available() else ": torch sees no GPU here")
        )


def _accelerator(
    device: str,
    peaks: dict[str, float],
    bandwidth: float,
    overhead: float,
    new_rate: float | None,
    efficiency: dict[str, float],
    how: str,
) -> Accelerator:
    new_pages = {} if new_rate is None else {"new_bytes_per_s": float(f"{new_rate:.4g}")}
    return Accelerator.from_dict(
        {
            "name": device,
            "description": how,
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
                **new_pages,
                "calibrated": True,
            },
            "sources": {
                "roofline.peak_flops": f"the fastest of square products of 512 to 2048 and two 3x3 convolutions, {how}",
                "memory.dram_bytes_per_s": f"a += b on tensors larger than the caches, three transfers an element, {how}",
                "roofline.overhead_s": f"an addition of eight elements, {how}",
                "roofline.new_bytes_per_s": f"filling a new tensor of 64 MiB, less filling it again, {how}",
                "roofline.efficiency": f"roofline time over measured time of training steps, the median of a class, {how}",
            },
        }
    )


def _efficiency(shares: list[float]) -> float:
    """The median of ideal over measured time, at most 1: one network whose tensors just miss a cache does not speak for its class."""
    return round(min(1.0, max(1e-3, median(shares))), 4)


class _Bench:
    def __init__(self, device: torch.device, batch: int, repeats: int) -> None:
        self.device = device
        self.batch = batch
        self.repeats = repeats

    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.float32, torch.bfloat16) if self.device.type == "cpu" else (torch.float32, torch.bfloat16, torch.float16)

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median seconds of a call, after two that do not count."""
        times = []
        for index in range(self.repeats + 2):
            began = self.clock()
            run()
            if index >= 2:
                times.append(self.clock() - began)
        return median(times)

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=self.device)

    def peak(self, dtype: torch.dtype) -> float:
        """FLOP/s of the fastest square product or 3x3 convolution, whose kernels multiply less than they count."""
        rates = []
        for size in (512, 1024, 2048):
            a, b = self.tensor(size, size, dtype=dtype), self.tensor(size, size, dtype=dtype)
            rates.append(2 * size**3 / self.seconds(partial(torch.matmul, a, b)))
        for channels, size in ((128, 28), (256, 14)):
            x, weight = self.tensor(self.batch, channels, size, size, dtype=dtype), self.tensor(channels, channels, 3, 3, dtype=dtype)
            seconds = self.seconds(partial(torch.nn.functional.conv2d, x, weight, padding=1))
            rates.append(2 * 9 * channels * x.numel() / seconds)
        return max(rates)

    def bandwidth(self) -> float:
        """Bytes/s of a sum in place on tensors of 128 MiB."""
        a, b = self.tensor(1 << 25), self.tensor(1 << 25)
        return 3 * a.numel() * 4 / self.seconds(lambda: a.add_(b))

    def new_rate(self) -> float | None:
        """Bytes/s at which the system hands out pages for a tensor of 64 MiB; None where torch keeps memory for the next tensor."""
        if self.device.type != "cpu":
            return None
        again, size = self.tensor(1 << 24), 1 << 26
        more = self.seconds(lambda: torch.empty(1 << 24).fill_(1.0)) - self.seconds(lambda: again.fill_(1.0))
        return size / more if more > _LEAST_SECONDS else None

    def overhead(self) -> float:
        """Seconds of an operator that does nothing."""
        a, b = self.tensor(8), self.tensor(8)

        def hundred() -> None:
            for _ in range(100):
                torch.add(a, b)

        return self.seconds(hundred) / 100

    def chain(self, chain: Chain, ideal: Accelerator, made_anew: Accelerator) -> list[tuple[str, float, float]]:
        """The class, the roofline's seconds and the measured ones less new pages', of a network's forward and of its backward pass."""
        network = chain.make().to(self.device).train()
        x = torch.rand(self.batch, *chain.shape, device=self.device, requires_grad=True)
        total, with_pages = (estimate(network, (x,), machine).total for machine in (ideal, made_anew))
        rows: list[tuple[str, float, float]] = []
        for (ending, passes), measured in zip(_HALVES, self._step(network, x), strict=True):
            expected, slower = (sum(cost.of(which).time_s or 0.0 for which in passes) for cost in (total, with_pages))
            if expected:
                rows.append((f"{chain.kind}{ending}", expected, max(measured - (slower - expected), _LEAST_SHARE * measured)))
        return rows

    def _step(self, network: nn.Module, x: Tensor) -> tuple[float, float]:
        """Median seconds of the forward and of the backward pass."""
        forward, backward = [], []
        for index in range(self.repeats + 2):
            network.zero_grad(set_to_none=True)
            x.grad = None
            began = self.clock()
            y = network(x)
            between = self.clock()
            gradient = torch.ones_like(y)
            start = self.clock()
            y.backward(gradient)
            ended = self.clock()
            if index >= 2:
                forward.append(between - began)
                backward.append(ended - start)
        return median(forward), median(backward)
