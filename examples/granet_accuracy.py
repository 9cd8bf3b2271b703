"""Test accuracy on scikit-learn's digits over several seeds: dense, static random masks, SET, RigL and GraNet.

    python examples/granet_accuracy.py --seeds 5

Every method gets the same network, initial weights, order and shifts of the images, epochs and learning rates, seed by seed. The
network is a perceptron of two hidden layers: a residual one does so well on digits at 95 % of zeros that the methods cannot be told
apart. Its width, the epochs and the number of updates were chosen on a part of the training set. The images of the test set are looked
at once, after training. Ends with status 1 if the methods are not in the order that is expected of them, mean by mean.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from fxsparse.demo import demo_table, run_demo
from fxsparse.digits import NETWORKS, Recipe
from fxsparse.errors import FxSparseError

RECIPE = Recipe(network="perceptron", width=512, epochs=60)
POINTS_BELOW_DENSE = 0.8
ORDER_AT_95 = ("GraNet 95 %", "RigL 95 %", "SET 95 %", "static 95 %")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--network", choices=NETWORKS, default=RECIPE.network)
    parser.add_argument("--width", type=int, default=RECIPE.width, help="units of a hidden layer, or channels of the first stage")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    options = parser.parse_args()
    try:
        recipe = Recipe(network=options.network, epochs=options.epochs, width=options.width)
        results = run_demo(recipe, range(options.seeds), technique="granet")
    except FxSparseError as error:
        print(f"granet_accuracy: {error}", file=sys.stderr)
        return 2

    Console(width=130).print(demo_table(results))
    if options.json:
        options.json.write_text(json.dumps([result.to_dict() for result in results], indent=2) + "\n")
    mean = {result.method: 100 * result.mean for result in results}
    claims = {
        f"GraNet 90 % within {POINTS_BELOW_DENSE} points of dense": mean["GraNet 90 %"] >= mean["dense"] - POINTS_BELOW_DENSE,
        "GraNet 90 % not below static 90 %": mean["GraNet 90 %"] >= mean["static 90 %"],
        **{f"{better} not below {worse}": mean[better] >= mean[worse] for better, worse in pairwise(ORDER_AT_95)},
    }
    for claim, holds in claims.items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    return int(not all(claims.values()))


if __name__ == "__main__":
    sys.exit(main())
