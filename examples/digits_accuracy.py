"""Test accuracy on scikit-learn's digits over several seeds: dense, SWAT-U 90 %, SWAT-ERK 90 %, SWAT structured 70 %.

    python examples/digits_accuracy.py --seeds 5

Every method gets the same network, initial weights, order and shifts of the images, epochs and learning rates, seed by seed. The
images of the test set are the same for all seeds, and are looked at once, after training; the recipe was chosen on a part of the
training set. Ends with status 1 if a mean is further below the dense one than its margin.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from fxsparse.demo import demo_table, run_demo
from fxsparse.digits import Recipe
from fxsparse.errors import FxSparseError

POINTS_BELOW_DENSE = {"SWAT-U 90 %": 1.0, "structured 70 %": 0.7}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--width", type=int, default=Recipe.width, help="channels of the network's first stage")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    options = parser.parse_args()
    try:
        results = run_demo(Recipe(epochs=options.epochs, width=options.width), range(options.seeds))
    except FxSparseError as error:
        print(f"digits_accuracy: {error}", file=sys.stderr)
        return 2

    Console(width=130).print(demo_table(results))
    if options.json:
        options.json.write_text(json.dumps([result.to_dict() for result in results], indent=2) + "\n")
    dense, *others = results
    status = 0
    for result in others:
        below = 100 * (dense.mean - result.mean)
        margin = POINTS_BELOW_DENSE.get(result.method)
        verdict = "" if margin is None else f", margin {margin} points: {'kept' if below <= margin else 'MISSED'}"
        print(f"{result.method}: {-below:+.2f} points against dense{verdict}")
        status |= margin is not None and below > margin
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
