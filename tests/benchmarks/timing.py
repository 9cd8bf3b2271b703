"""Timing that can be trusted on a noisy machine: contenders take turns in one run, and medians are compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int = 15, warmup: int = 3, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The median seconds of each contender; in every round all of them run once, each round begun by another.

    Args:
        clock: ``time.process_time`` counts the processor's time alone, which others on the machine change less.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-warmup, rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            began = clock()
            contenders[name]()
            if index >= 0:
                times[name].append(clock() - began)
    return {name: median(values) for name, values in times.items()}


def table(title: str, medians: Mapping[str, float], against: str) -> str:
    """The medians and their ratios to one of them, as text."""
    rows = [f"  {name:<42} {1e3 * seconds:9.2f} ms   {seconds / medians[against]:6.3f}x" for name, seconds in medians.items()]
    return "\n".join([f"{title} (ratios of medians against {against!r})", *rows])
