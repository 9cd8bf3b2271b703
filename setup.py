"""Maps the three floors of the repository to the packages fxsparse, fxsparse.passes and fxsparse.cost_model."""

from setuptools import find_packages, setup

FLOORS = {"fxsparse": "fxsparse", "fxsparse.passes": "passes", "fxsparse.cost_model": "cost_model"}


def packages() -> list[str]:
    found = []
    for name, folder in FLOORS.items():
        inner = find_packages(folder, exclude=["passes", "passes.*", "cost_model", "cost_model.*"] if name == "fxsparse" else [])
        found += [name, *(f"{name}.{package}" for package in inner)]
    return found


setup(packages=packages(), package_dir=FLOORS)
