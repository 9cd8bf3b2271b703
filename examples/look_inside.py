"""What the compiler did to a network, why, and what it costs: ``python examples/look_inside.py``."""

from __future__ import annotations

import argparse

import networkx as nx
import torch

import fxsparse as fxs
from fxsparse.digits import SmallResNet


def main() -> None:
    """Prints the report, one pass's changes, one weight's explanation and the critical path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="swat-u-90", help="a preset's name or a policy file")
    parser.add_argument("--accelerator", default="eyeriss", help="a machine's name or file")
    options = parser.parse_args()
    example = (torch.zeros(32, 1, 8, 8),)
    compiled = fxs.compile(SmallResNet(), options.policy, example, accelerator=options.accelerator, trace=True)
    print(compiled.report.table(depth=1))
    difference = compiled.diff("insert_swat")
    print(f"insert_swat added {len(difference.graphs[0].added)} nodes; the first lines of what it changed:")
    print("\n".join(difference.graphs[0].text.splitlines()[:12]), end="\n\n")
    print(compiled.why("stage2.conv1.weight"))

    network = compiled.to_networkx(options.accelerator)
    path = nx.dag_longest_path(network, weight="cycles")
    print(f"critical path: {len(path)} of {len(network)} nodes, {nx.dag_longest_path_length(network, weight='cycles'):,} cycles")
    stage = [name for name, module in network.nodes(data="module") if module.startswith("stage3")]
    print(f"stage3: {sum(flops for _, flops in network.subgraph(stage).nodes(data='flops')) / 1e6:.1f} MFLOP in a training step")


if __name__ == "__main__":
    main()
