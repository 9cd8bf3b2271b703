"""Policies: what they refuse when written down, their files, and their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxsparse as fxs
from fxsparse.policy import as_policy
from fxsparse.preset_policies import preset_policy
from fxsparse.techniques import Technique

FRACTIONS = st.floats(0.0, 1.0, exclude_max=True)
PATTERNS = st.lists(st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=8), max_size=3).map(tuple)
SWATS = st.builds(
    fxs.SWAT,
    weight_sparsity=FRACTIONS,
    activation_sparsity=st.none() | FRACTIONS,
    distribution=st.sampled_from(["uniform", "er", "erk"]),
    structure=st.sampled_from(["element", "kernel", "filter"]),
    granularity=st.sampled_from(["tensor", "sample", "channel", "sample_channel"]),
    period=st.integers(1, 10_000),
    linear_period=st.integers(1, 10_000),
    dense_first=st.booleans(),
    include=PATTERNS.filter(bool),
    exclude=PATTERNS,
)
POLICIES = st.lists(SWATS, max_size=3).map(lambda techniques: fxs.Policy(*techniques))


@given(POLICIES)
def test_policies_come_back_from_plain_data(policy: fxs.Policy) -> None:
    data = policy.to_dict()
    for read in (data, json.loads(json.dumps(data)), yaml.safe_load(yaml.safe_dump(data))):
        assert fxs.Policy.from_dict(read) == policy
    assert hash(fxs.Policy.from_dict(data)) == hash(policy)


@pytest.mark.parametrize("name", ["policy.yaml", "policy.yml", "policy.json"])
@given(policy=POLICIES)
def test_policies_come_back_from_files(tmp_path_factory: pytest.TempPathFactory, name: str, policy: fxs.Policy) -> None:
    path = tmp_path_factory.mktemp("policies") / name
    policy.save(path)
    assert fxs.Policy.load(path) == policy
    assert fxs.Policy.load(str(path)) == policy
    if name.endswith("json"):
        json.loads(path.read_text())


def test_defaults_are_left_out_of_files() -> None:
    assert fxs.Policy(fxs.SWAT(weight_sparsity=0.9)).to_dict() == {"techniques": [{"technique": "SWAT", "weight_sparsity": 0.9}]}


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    policy = fxs.Policy(fxs.SWAT(weight_sparsity=np.float64(0.9), activation_sparsity=np.float64(0.5)))
    policy.save(tmp_path / "policy.yaml")
    assert fxs.Policy.load(tmp_path / "policy.yaml") == fxs.Policy(fxs.SWAT(weight_sparsity=0.9, activation_sparsity=0.5))


def entry(**settings: Any) -> dict[str, Any]:
    return {"techniques": [{"technique": "SWAT", "weight_sparsity": 0.5, **settings}]}


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ({"technics": []}, ["expected one key 'techniques'", "did you mean 'techniques'?"]),
        ({"techniques": [], "more": 1}, ["expected one key 'techniques'"]),
        ({"techniques": {"technique": "SWAT"}}, ["with a list"]),
        ([], ["expected one key 'techniques' with a list, got list"]),
        (None, ["got NoneType"]),
        ({"techniques": ["SWAT"]}, ["technique 1", "a mapping with a key 'technique', got 'SWAT'"]),
        ({"techniques": [{"technique": "SWATT"}]}, ["technique 1", "unknown technique 'SWATT' (did you mean 'SWAT'"]),
        ({"techniques": [{"technique": ["SWAT"]}]}, ["unknown technique ['SWAT']"]),
        ({"techniques": [{"technique": None}]}, ["unknown technique None"]),
        ({"techniques": [{"technique": "SWAT"}]}, ["technique 1 (SWAT)", "weight_sparsity is missing"]),
        (entry(weight_sparsty=0.5), ["unknown key 'weight_sparsty'", "did you mean 'weight_sparsity'"]),
        (entry(perod=3), ["unknown key 'perod'", "did you mean 'period'"]),
        (
            entry(distribution="erkk"),
            ["SWAT.distribution is 'erkk'", "did you mean 'erk' or 'er'?", "one of 'uniform', 'er', 'erk', 'momentum'"],
        ),
        (entry(structure=["element"]), ["SWAT.structure is"]),
        (entry(granularity=3), ["SWAT.granularity is 3"]),
        (entry(weight_sparsity="0.9"), ["SWAT.weight_sparsity is '0.9'", "[0, 1)"]),
        (entry(weight_sparsity=True), ["SWAT.weight_sparsity is True"]),
        (entry(weight_sparsity=None), ["SWAT.weight_sparsity is None"]),
        (entry(period=2.5), ["SWAT.period is 2.5", "whole number"]),
        (entry(period=True), ["SWAT.period is True"]),
        (entry(linear_period=0), ["SWAT.linear_period is 0"]),
        (entry(dense_first="no"), ["SWAT.dense_first is 'no'", "True or False"]),
        (entry(include=5), ["SWAT.include is 5"]),
        (entry(include=[]), ["SWAT.include is empty"]),
        (entry(include=["fc", ""]), ["non-empty glob patterns"]),
        (entry(exclude=[1]), ["SWAT.exclude is (1,)"]),
        (entry(exclude={"fc": 1}), ["SWAT.exclude is"]),
        (entry(distribution="momentum", structure="kernel"), ["'momentum' counts elements"]),
    ],
)
def test_what_a_policy_file_may_not_say(tmp_path: Path, data: Any, texts: list[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(fxs.PolicyError) as caught:
        fxs.Policy.load(path)
    for text in texts:
        assert text in str(caught.value)
    assert str(path) in str(caught.value) or "SWAT." in str(caught.value)


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, float("nan"), float("inf"), "0.5", True, None, 1j, [0.5], torch.tensor(0.5)])
@pytest.mark.parametrize("name", ["weight_sparsity", "activation_sparsity"])
def test_a_sparsity_is_a_fraction(name: str, sparsity: Any) -> None:
    if name == "activation_sparsity" and sparsity is None:
        return
    with pytest.raises(fxs.PolicyError) as caught:
        fxs.SWAT(**{"weight_sparsity": 0.5, name: sparsity})
    assert f"SWAT.{name} is {sparsity!r}; expected a fraction of zeros in [0, 1)" in str(caught.value)


def test_zero_is_a_sparsity() -> None:
    technique = fxs.SWAT(weight_sparsity=0)
    assert technique.weight_sparsity == 0.0
    assert technique.is_neutral
    assert not fxs.SWAT(weight_sparsity=0, activation_sparsity=0.5).is_neutral


def test_one_pattern_may_be_written_alone() -> None:
    assert fxs.SWAT(weight_sparsity=0.5, include="fc", exclude="conv*").exclude == ("conv*",)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, text in (
        ("broken.yaml", b"techniques: [", "is not valid YAML"),
        ("broken.json", b"techniques: []", "is not valid JSON"),
        ("binary.yaml", b"\xff\xfe\x00", "cannot be read"),
        ("empty.yaml", b"", "got NoneType"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(fxs.PolicyError, match=text) as caught:
            fxs.Policy.load(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(fxs.PolicyError, match="there is no policy file"):
        fxs.Policy.load(tmp_path / "none.yaml")
    with pytest.raises(fxs.PolicyError, match="cannot be read"):
        fxs.Policy.load(tmp_path)


def test_a_policy_is_made_of_techniques() -> None:
    with pytest.raises(fxs.PolicyError, match="made of techniques"):
        fxs.Policy("swat-u-90")  # type: ignore[arg-type]


def test_techniques_are_frozen() -> None:
    with pytest.raises(AttributeError):
        fxs.SWAT(weight_sparsity=0.5).weight_sparsity = 0.9  # type: ignore[misc]
    assert isinstance(fxs.SWAT(weight_sparsity=0.5), Technique)


# Names


def test_every_preset_compiles_and_says_what_its_name_says() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 10)), torch.randn(2, 3, 6, 6)
    assert fxs.presets()
    for name in fxs.presets():
        policy = preset_policy(name)
        (technique,) = policy
        if not isinstance(technique, fxs.SWAT):
            if isinstance(technique, fxs.NM):
                assert name == f"nm-{technique.n}-{technique.m}"
            else:
                sparsity = technique.final_sparsity if isinstance(technique, fxs.GraNet) else technique.to_dict()["sparsity"]
                assert sparsity == pytest.approx(int(name.rpartition("-")[2]) / 100)
            assert fxs.compile(model, name, (x,)).masks
            continue
        assert technique.weight_sparsity == pytest.approx(int(name.rpartition("-")[2]) / 100)
        compiled = fxs.compile(model, name, (x,))
        assert compiled.policy == policy
        kept = sum(spec.weight_density * compiled.get_parameter(site).numel() for site, spec in compiled.plan.items())
        total = sum(compiled.get_parameter(site).numel() for site in compiled.plan)
        assert kept / total == pytest.approx(1 - technique.weight_sparsity, abs=0.01)
        assert len(compiled.plan) == (2 if technique.dense_first else 3)


def test_presets_are_the_authors_settings() -> None:
    (unstructured,), (erk,), (structured,), (momentum,) = (preset_policy(f"swat-{kind}-90") for kind in ("u", "erk", "structured", "m"))
    assert unstructured == fxs.SWAT(weight_sparsity=0.9)
    assert erk == fxs.SWAT(weight_sparsity=0.9, distribution="erk", dense_first=False)
    assert structured == fxs.SWAT(weight_sparsity=0.9, structure="kernel")
    assert momentum == fxs.SWAT(weight_sparsity=0.9, distribution="momentum", dense_first=False)


def test_what_compile_takes_for_a_policy(tmp_path: Path) -> None:
    technique = fxs.SWAT(weight_sparsity=0.5)
    fxs.Policy(technique).save(tmp_path / "mine.yaml")
    assert as_policy(None) == fxs.Policy()
    for given_policy in (technique, fxs.Policy(technique), tmp_path / "mine.yaml", str(tmp_path / "mine.yaml"), "swat-u-50"):
        assert as_policy(given_policy) == fxs.Policy(technique)
    with pytest.raises(fxs.PolicyError, match=r"'swat-u-9' is neither a preset nor a policy file .did you mean 'swat-u-9"):
        as_policy("swat-u-9")
    with pytest.raises(fxs.PolicyError, match=r"there is no policy file 'nowhere\.yaml'"):
        as_policy("nowhere.yaml")
    with pytest.raises(fxs.PolicyError, match="got dict"):
        as_policy({"techniques": []})  # type: ignore[arg-type]
    with pytest.raises(fxs.PolicyError, match="no preset"):
        preset_policy("swat")
