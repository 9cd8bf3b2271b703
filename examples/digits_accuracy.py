"""Test accuracy on scikit-learn's digits over several seeds: dense, SWAT-U 90 %, SWAT-ERK 90 %, SWAT structured 70 %.

    python examples/digits_accuracy.py --seeds 5

Every method and seed gets the same network, the same initial weights, batches, epochs and learning rates.
"""

import argparse

from rich.console import Console

from fxsparse.demo import METHODS, outcome_table, run_demo

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--epochs", type=int, default=30)
options = parser.parse_args()

outcomes = run_demo(epochs=options.epochs, seeds=tuple(range(options.seeds)), methods=tuple(METHODS))
Console(width=130).print(outcome_table(outcomes))
dense = outcomes[0]
for outcome in outcomes[1:]:
    print(f"{outcome.method}: {100 * (outcome.accuracy - dense.accuracy):+.2f} points against dense")
