"""Peak memory of small programs, counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsparse.cost_model import NodeMemory, SavedTensor, Step, peak_memory, saved_bytes, training_peak, training_steps
from fxsparse.errors import CostError


def test_a_storage_lives_from_its_maker_to_its_last_reader() -> None:
    steps = [
        Step(name="a", allocates=(("a", 10),)),
        Step(name="b", allocates=(("b", 20),), reads=("a",)),
        Step(name="c", allocates=(("c", 5),), reads=("b",), transient_bytes=100),
        Step(name="d", reads=("c",)),
    ]
    found = peak_memory(steps)
    assert found.step_bytes == (10, 30, 125, 5)
    assert (found.peak_bytes, found.peak_step) == (125, "c")
    assert found.peak_storages == (("b", 20), ("c", 5))


def test_residents_and_kept_storages_stay() -> None:
    steps = [Step(name="a", allocates=(("a", 10),), reads=("weights",)), Step(name="b", allocates=(("b", 1),))]
    assert peak_memory(steps, resident={"weights": 7}).step_bytes == (17, 8)
    assert peak_memory(steps, resident={"weights": 7}, kept=["a"]).step_bytes == (17, 18)
    assert peak_memory([], resident={"weights": 7}).peak_bytes == 7


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step(name="a", reads=("x",))], "step 'a' reads storage 'x', which is not alive"),
        ([Step(name="a", allocates=(("x", 1),)), Step(name="b", allocates=(("x", 1),), reads=("x",))], "makes storage 'x', which is alive"),
        ([Step(name="a", allocates=(("x", -1),))], "bytes of 'x' in step 'a' is -1"),
    ],
)
def test_impossible_programs_are_refused(steps: list[Step], message: str) -> None:
    with pytest.raises(CostError, match=message):
        peak_memory(steps)


CHAIN = (
    NodeMemory(name="conv", inputs=("x",), output_bytes=100, saved=(SavedTensor(storage="x"),), parameter_gradient_bytes=8),
    NodeMemory(name="relu", inputs=("conv",), output_bytes=100, alias_of="conv", saved=(SavedTensor(storage="relu"),)),
    NodeMemory(name="fc", inputs=("relu",), output_bytes=4, saved=(SavedTensor(storage="relu"),), parameter_gradient_bytes=16),
    NodeMemory(name="loss", inputs=("fc",), output_bytes=1, saved=(SavedTensor(storage="fc"),)),
)


def test_saved_storages_count_once() -> None:
    assert saved_bytes(CHAIN) == 100 + 4 + 0  # the conv's and relu's one storage, the logits; the input is resident


def test_a_chain_by_hand() -> None:
    found = training_peak(CHAIN, resident={"x": 50})
    #   conv  relu  fc   loss  backward: loss        fc (grad 100, params 16)  relu(in place)  conv
    assert found.step_bytes == (
        150,
        150,
        154,
        155,
        50 + 100 + 4 + 1 + 1 + 4,  # seed 1, gradient of the logits 4
        50 + 100 + 1 + 4 + 100 + 16,
        50 + 100 + 1 + 100 + 16,
        50 + 1 + 100 + 16 + 8,
    )
    assert (found.peak_bytes, found.peak_step) == (271, "backward of fc")


def test_packing_trades_kept_bytes_for_transients() -> None:
    plain = NodeMemory(name="a", inputs=("x",), output_bytes=64, saved=(SavedTensor(storage="x"),))
    packed = SavedTensor(storage="codes", stored_bytes=8, unpacked_bytes=64)
    small = NodeMemory(name="a", inputs=("x",), output_bytes=64, saved=(packed,), forward_transient_bytes=3)
    loss = NodeMemory(name="loss", inputs=("a",), output_bytes=1)
    assert saved_bytes([small, loss]) == 8
    steps = training_steps([small, loss])
    assert steps[0].allocates == (("a", 64), ("codes", 8))
    assert steps[0].transient_bytes == 3
    assert steps[-1].transient_bytes == 64
    assert training_peak([plain, loss], resident={"x": 64}).step_bytes[-1] == 64 + 64 + 1
    assert training_peak([small, loss], resident={"x": 64}).step_bytes[-1] == 64 + 64 + 1 + 8 + 64


def test_gradients_that_meet_are_added() -> None:
    nodes = [
        NodeMemory(name="a", inputs=("x",), output_bytes=10),
        NodeMemory(name="b", inputs=("a",), output_bytes=10),
        NodeMemory(name="sum", inputs=("b", "a"), output_bytes=10, passes_gradient=True),
        NodeMemory(name="loss", inputs=("sum",), output_bytes=1),
    ]
    steps = {step.name: step for step in training_steps(nodes)}
    assert steps["backward of sum"].allocates == ()  # both inputs share the gradient that comes in
    assert steps["backward of b"].allocates == (("gradient:a:b", 10),)
    assert steps["backward of b"].transient_bytes == 10
    # while b's backward runs: its incoming gradient, the sum it makes, the addend before it is added, and the loss
    assert training_peak(nodes, resident={"x": 0}).peak_bytes == 31


def test_backward_stops_where_nothing_needs_a_gradient() -> None:
    nodes = [
        NodeMemory(name="frozen", inputs=("x",), output_bytes=10, needs_grad=False),
        NodeMemory(name="fc", inputs=("frozen",), output_bytes=10, parameter_gradient_bytes=5),
        NodeMemory(name="loss", inputs=("fc",), output_bytes=1),
    ]
    names = [step.name for step in training_steps(nodes)]
    assert names == ["frozen", "fc", "loss", "backward of loss", "backward of fc"]


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=20), saved=st.lists(st.booleans(), min_size=20, max_size=20))
def test_the_peak_is_at_least_the_saved_bytes_and_at_most_everything(sizes: list[int], saved: list[bool]) -> None:
    nodes = [
        NodeMemory(
            name=f"n{i}",
            inputs=(f"n{i - 1}",) if i else (),
            output_bytes=size,
            saved=(SavedTensor(storage=f"n{i}"),) if saved[i] else (),
        )
        for i, size in enumerate(sizes)
    ]
    peak = training_peak(nodes).peak_bytes
    assert saved_bytes(nodes) <= peak <= 2 * sum(sizes)


def test_the_walk_is_linear_in_the_nodes() -> None:
    nodes = [NodeMemory(name=f"n{i}", inputs=(f"n{i - 1}",) if i else (), output_bytes=1) for i in range(20_000)]
    assert training_peak(nodes).peak_bytes <= 4


def test_kinds_by_hand() -> None:
    steps = [
        Step(name="a", allocates=(("a", 10),), reads=("weights",)),
        Step(name="b", allocates=(("b", 20),), reads=("a",), transient_bytes=5),
        Step(name="backward of b", allocates=(("gradient:a", 3), ("parameters:b", 4)), reads=("b",)),
        Step(name="backward of a", reads=("gradient:a",)),
    ]
    found = peak_memory(steps, resident={"weights": 7}, kept=["parameters:b"])
    #                            resident, activations, gradients, parameter gradients, work space
    assert found.step_kinds == ((7, 10, 0, 0, 0), (7, 30, 0, 0, 5), (7, 20, 3, 4, 0), (7, 0, 3, 4, 0))
    assert found.step_names == ("a", "b", "backward of b", "backward of a")
    data = found.to_dict()
    assert data["steps"][1] == {"name": "b", "bytes": 42, "by_kind": [7, 30, 0, 0, 5]}
    assert (data["peak_bytes"], data["peak_step"], data["peak_storages"]) == (42, "b", [["b", 20], ["a", 10], ["weights", 7]])


def test_kinds_sum_up_to_the_bytes() -> None:
    found = training_peak(CHAIN, resident={"x": 50})
    assert tuple(sum(kinds) for kinds in found.step_kinds) == found.step_bytes
    assert len(found.step_names) == len(found.step_bytes)
