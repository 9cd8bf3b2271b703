"""The face of the cost model: what it exports, and that it needs no torch."""

from __future__ import annotations

import subprocess
import sys

import fxsparse.cost_model as cost_model


def test_every_exported_name_exists_and_is_documented() -> None:
    assert len(set(cost_model.__all__)) == len(cost_model.__all__)
    for name in cost_model.__all__:
        value = getattr(cost_model, name)
        if callable(value) and getattr(value, "__module__", "").startswith("fxsparse"):
            assert value.__doc__, name


def test_the_cost_model_works_where_torch_cannot_be_imported() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from fxsparse.cost_model import Accelerator, Contraction, estimate\n"
        "layer = Contraction.linear(batch=2, in_features=8, out_features=4)\n"
        "print(estimate(layer, Accelerator.load('eyeriss')).total.macs)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "192"
