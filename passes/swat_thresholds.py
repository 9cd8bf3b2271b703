"""Where the thresholds of SWAT's activations are kept: which call has which slot, and the shape of each."""

from __future__ import annotations

from collections.abc import Sequence

from .sites import Site


def call_slots(site: Site) -> dict[tuple[str, int], int]:
    """The number of each call of a site, given as (graph, index within the graph), among all its calls: one graph after the other.

    The variants of one graph are the same calls in another mode, and share their numbers.
    """
    graphs = dict.fromkeys(call.graph for call in site.calls)
    calls = [(path, index) for path in graphs for index in sorted({call.index for call in site.calls if call.graph == path})]
    return {call: slot for slot, call in enumerate(calls)}


def threshold_dims(operator: str, rank: int, granularity: str, equation: str = "") -> tuple[int, ...]:
    """Dimensions of an activation along which thresholds differ.

    Samples are dimension 0; a vector is one sample. Channels are dimension 1 of a convolution's input, the last dimension
    of a linear layer's, and the contracted ones of an einsum's.
    """
    channel: tuple[int, ...] = (1,) if operator in ("conv", "conv_transpose") else (rank - 1,)
    if operator == "einsum":
        first, _, rest = equation.partition(",")
        weight, _, out = rest.partition("->")
        channel = tuple(index for index, letter in enumerate(first) if letter in weight and letter not in out)
    samples = () if rank == 1 else (0,)
    dims = {"tensor": (), "sample": samples, "channel": channel, "sample_channel": (*samples, *channel)}[granularity]
    return tuple(sorted(set(dims)))


def threshold_shape(operator: str, shape: Sequence[int] | None, granularity: str, equation: str = "") -> tuple[int, ...]:
    """The shape of the buffer that keeps an activation's thresholds; scalar where nothing can be kept from step to step."""
    if shape is None or granularity != "channel":
        return ()
    dims = threshold_dims(operator, len(shape), granularity, equation)
    return tuple(size if index in dims else 1 for index, size in enumerate(shape))
