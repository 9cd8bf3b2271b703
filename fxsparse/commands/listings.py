"""``fxsparse presets`` and ``fxsparse accelerators``."""

from __future__ import annotations

from typing import Any

from .output import print_table


def presets() -> None:
    """List the policies that have a name."""
    from ..preset_policies import preset_policy
    from ..preset_policies import presets as names

    _print_names({name: " + ".join(describe(technique.to_dict()) for technique in preset_policy(name)) for name in names()})


def accelerators() -> None:
    """List the machines that costs can be computed for."""
    from fxsparse.cost_model.accelerator import Accelerator
    from fxsparse.cost_model.accelerator import accelerators as names

    _print_names({name: getattr(Accelerator.load(name), "description", "") for name in names()})


def describe(technique: dict[str, Any]) -> str:
    """A technique's plain data as one line: its name, then each setting that is not the default, sparsities in per cent."""
    settings = []
    for name, setting in technique.items():
        if name != "technique":
            shown = f"{100 * setting:g} %" if name.endswith("sparsity") else str(setting)
            settings.append(f"{name.replace('_', ' ')} {shown}")
    return f"{technique['technique']}: {', '.join(settings)}" if settings else str(technique["technique"])


def _print_names(described: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name, text in described.items():
        table.add_row(name, text)
    print_table(table)
