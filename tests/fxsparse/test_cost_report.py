"""CostReport and CostComparison: figures, texts, files and refusals."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import fxsparse as fxs
from fxsparse.cost_model import Accelerator, workload_from_dict
from fxsparse.cost_model.cost import TAGS
from fxsparse.cost_model.formulas import FORMULAS
from fxsparse.cost_model.gemm import PASSES
from fxsparse.cost_text import FIGURES

X = torch.zeros(4, 3, 32, 32)


def net() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def sparse(sparsity: float, accelerator: str | None = None, convention: str = "exact") -> fxs.CostReport:
    return fxs.estimate(net(), (X,), accelerator, policy=fxs.SWAT(weight_sparsity=sparsity), convention=convention)


def test_estimate_is_compile_and_cost() -> None:
    policy = fxs.SWAT(weight_sparsity=0.5)
    direct = fxs.compile(net(), policy, (X,)).cost("eyeriss", "swat", 8)
    assert fxs.estimate(net(), (X,), "eyeriss", policy=policy, convention="swat", batch_size=8).to_dict() == direct.to_dict()
    compiled = fxs.compile(net(), policy, (X,))
    assert fxs.estimate(compiled, (), "eyeriss", convention="swat", batch_size=8).to_dict() == direct.to_dict()
    with pytest.raises(fxs.CostError, match="compiled already"):
        fxs.estimate(compiled, policy=policy)


def test_machine_free_report_has_counts_and_bytes_only() -> None:
    total = sparse(0.5).total.total
    assert total.macs > 0
    assert total.dram_bytes > 0
    assert total.cycles is None
    assert total.energy_pj is None
    assert total.time_s is None


def test_nodes_add_up_to_the_total() -> None:
    report = sparse(0.5, "eyeriss")
    for which in PASSES:
        for figure in ("macs", "dense_macs", "flops", "dram_bytes", "sram_bytes", "cycles", "energy_pj"):
            parts = sum(getattr(getattr(node, which), figure) or 0 for node in report.nodes)
            assert getattr(report.total.of(which), figure) == pytest.approx(parts)
    assert report.saved_bytes == sum(node.saved_bytes for node in report.nodes)
    assert len({node.name for node in report.nodes}) == len(report.nodes)


def test_sparser_is_fewer_macs_and_dense_macs_stay() -> None:
    reports = [sparse(sparsity) for sparsity in (0.0, 0.5, 0.9)]
    for which in PASSES:
        macs = [report.total.of(which).macs for report in reports]
        assert macs == sorted(macs, reverse=True)
        assert macs[0] > macs[-1]
        assert len({report.total.of(which).dense_macs for report in reports}) == 1
    assert [report.reduction["training"] for report in reports] == sorted(report.reduction["training"] for report in reports)
    assert reports[0].reduction == {"training": 0.0, "inference": 0.0}


def test_more_samples_are_more_of_everything() -> None:
    small, large = (fxs.estimate(net(), (X,), "eyeriss", batch_size=batch) for batch in (2, 4))
    for which in PASSES:
        assert large.total.of(which).macs == 2 * small.total.of(which).macs
        assert small.total.of(which).dram_bytes < large.total.of(which).dram_bytes <= 2 * small.total.of(which).dram_bytes
    assert small.saved_bytes < large.saved_bytes < 2 * small.saved_bytes
    assert small.peak_bytes < large.peak_bytes


def test_peak_holds_at_least_what_is_resident_and_saved() -> None:
    report = fxs.estimate(net(), (X,))
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in (*net().parameters(), *net().buffers()))
    assert 0 <= report.resident_bytes - parameters - X.numel() * 4 <= 32  # the clock
    assert report.peak_bytes >= parameters + report.saved_bytes - 2 * 4 * (32 + 64) - X.numel() * 4
    assert report.peak_node


def test_measured_densities_are_counts_of_the_present_weights() -> None:
    compiled = fxs.compile(net(), fxs.SWAT(weight_sparsity=0.9), (X,))
    compiled(torch.randn(4, 3, 32, 32)).sum().backward()
    measured, target = compiled.cost(density="measured"), compiled.cost()
    assert measured.density == "measured"
    rows = compiled.sparsity()
    for node in measured.nodes:
        if node.contractions:
            assert node.weight_density == rows[node.site]["weight"]["actual"]
            assert node.forward.macs == pytest.approx(node.forward.dense_macs * node.weight_density)
    assert measured.total.forward.macs == pytest.approx(target.total.forward.macs, rel=0.05)


def test_report_is_plain_data_and_files(tmp_path: Path) -> None:
    report = sparse(0.5, "eyeriss")
    report.save(tmp_path / "cost.json")
    assert json.loads((tmp_path / "cost.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    report.save(tmp_path / "cost.csv")
    rows = list(csv.DictReader((tmp_path / "cost.csv").read_text().splitlines()))
    assert len(rows) == len(report.nodes)
    assert sum(float(row["forward_macs"]) for row in rows) == pytest.approx(report.total.forward.macs)


def test_interchange_files_hold_every_contraction_and_pass(tmp_path: Path) -> None:
    report = sparse(0.5)
    report.save(tmp_path / "all")
    products = [product for node in report.nodes for product, _ in node.contractions]
    passes = sum(1 for product in products for which in PASSES if product.macs(which))
    assert passes == 3 * 4 - 1  # the first layer's input needs no gradient
    assert len(list((tmp_path / "all" / "timeloop").glob("*.yaml"))) == passes
    assert len((tmp_path / "all" / "scalesim_gemm.csv").read_text().splitlines()) == passes + 1
    report.save(tmp_path / "step.timeloop.yaml")
    problems = list(yaml.safe_load_all((tmp_path / "step.timeloop.yaml").read_text()))
    assert len(problems) == passes
    assert any("densities" in problem["problem"]["instance"] for problem in problems)
    report.save(tmp_path / "step.scalesim.csv")
    assert (tmp_path / "step.scalesim.csv").read_text() == (tmp_path / "all" / "scalesim_gemm.csv").read_text()
    assert (tmp_path / "all" / "scalesim_conv_left_out.txt").read_text().splitlines()  # the grouped one and the linear layer


def test_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(fxs.CostError, match=r"\.json, \.csv, \.scalesim\.csv or \.timeloop\.yaml"):
        sparse(0.5).save(tmp_path / "cost.xml")


def test_table_says_what_is_needed() -> None:
    text = str(sparse(0.9, "eyeriss"))
    for words in ("4 samples on eyeriss", "convention 'exact'", "saved for backward", "peak", "known operators", "bound", "how sure"):
        assert words in text
    assert len(sparse(0.9).table(rows=3).splitlines()) < len(sparse(0.9).table(rows=None).splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"convention": "exakt"}, "exact"),
        ({"batch_size": 0}, "whole number"),
        ({"density": "real"}, "target"),
        ({"accelerator": "eyeris"}, "eyeriss"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(fxs.CostError, match=message):
        fxs.estimate(net(), (X,), **arguments)  # type: ignore[arg-type]


def test_it_pays_on_an_array_that_skips_and_not_on_one_that_does_not() -> None:
    gain = sparse(0.9, "swat-array").compare(fxs.estimate(net(), (X,), "swat-array"))
    assert gain.pays
    assert gain.speedup is not None
    assert gain.speedup > 1
    assert "it pays" in gain.verdict
    loss = sparse(0.9, "tpu-v1").compare(fxs.estimate(net(), (X,), "tpu-v1"))
    assert loss.pays is False
    assert "sparsity does not pay" in loss.verdict
    assert "zeros are computed or moved" in loss.verdict
    assert str(loss).endswith(f"{loss.verdict}\n")
    json.dumps(loss.to_dict())


def test_comparison_rows_are_the_contractions_and_the_rest() -> None:
    own, dense = sparse(0.9, "swat-array"), fxs.estimate(net(), (X,), "swat-array")
    rows = {row.name: row for row in own.compare(dense).nodes}
    assert list(rows) == ["0.weight", "3.weight", "6.weight", "9.weight", "(all other nodes)"]
    assert rows["0.weight"].ratio("macs") == 1.0
    assert rows["6.weight"].ratio("macs") == pytest.approx(10, rel=1e-3)
    time = sum(row.cost.time_s or 0.0 for row in rows.values() if row.cost is not None)
    assert time == pytest.approx(own.total.total.time_s)
    for row in rows.values():
        assert row.bound in ("compute", "imbalance", "dram", "metadata", "sram")


def test_comparison_with_itself_is_one_everywhere() -> None:
    report = fxs.estimate(net(), (X,), "eyeriss")
    comparison = report.compare(report)
    assert {row.ratio(figure) for row in comparison.nodes for figure in ("macs", "flops", "dram_bytes", "cycles", "energy_pj")} == {1.0}
    assert comparison.pays is False
    assert "Hardly a multiplication is saved" in comparison.verdict


def test_without_a_machine_nothing_is_said_about_time() -> None:
    comparison = sparse(0.9).compare(fxs.estimate(net(), (X,)))
    assert comparison.pays is None
    assert "Without an accelerator" in comparison.verdict


@pytest.mark.parametrize("other", [{"accelerator": "tpu-v1"}, {"convention": "swat"}, {"batch_size": 2}])
def test_reports_that_differ_are_not_compared(other: dict[str, object]) -> None:
    arguments: dict[str, object] = {"accelerator": "eyeriss", **other}
    with pytest.raises(fxs.CostError, match=next(iter(other))):
        fxs.estimate(net(), (X,), "eyeriss").compare(fxs.estimate(net(), (X,), **arguments))  # type: ignore[arg-type]


def test_public_names_load_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import fxsparse as fxs; "
        "print(len(fxs.accelerators()), fxs.Accelerator.load('eyeriss').name, fxs.cost_model.Density.__name__ if 0 else '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "eyeriss" in done.stdout
    assert fxs.Accelerator is Accelerator


def test_workloads_in_the_metadata_are_the_cost_models_own() -> None:
    compiled = fxs.compile(net(), None, (X,))
    costs = [item.meta["custom"]["fxsparse"]["cost"] for item in compiled.graphs[""].graph.nodes]
    works = [work for cost in costs for work in cost.get("work", ())]
    assert works
    for work in works:
        workload_from_dict({key: value for key, value in work.items() if key not in ("scales", "site")})


@pytest.mark.parametrize("machine", [None, "eyeriss", "swat-array", "a100-80g"])
def test_every_figure_has_a_tag_and_a_formula(machine: str | None) -> None:
    report = fxs.compile(net(), fxs.SWAT(weight_sparsity=0.5, dense_first=False), (X,)).cost(machine)
    total = report.total.total
    shown = [figure for figure in FIGURES if getattr(total, figure) is not None]
    assert {figure: total.tags.get(figure) in TAGS for figure in shown} == dict.fromkeys(shown, True)
    text = report.formulas()
    for figure in (*shown, "saved_bytes", "peak_bytes"):
        [line] = [line for line in text.splitlines() if line.startswith(f"{figure} ")]
        assert total.tags.get(figure, "ex") in line


def test_every_formula_names_a_file_of_the_cost_model() -> None:
    folder = Path(fxs.__file__).resolve().parent.parent / "cost_model"
    for formula in FORMULAS:
        assert formula.formula
        assert formula.source
        for name in formula.where.split(", "):
            assert (folder / name).is_file(), name


def test_nodes_carry_their_figures_for_the_machine_that_compile_is_given() -> None:
    compiled = fxs.compile(net(), fxs.SWAT(weight_sparsity=0.5), (X,), accelerator="eyeriss")
    report = compiled.cost("eyeriss")
    facts = {node.name: node.meta["custom"]["fxsparse"]["cost"] for node in compiled.graphs[""].graph.nodes}
    for node in report.nodes:
        found = facts[node.node]
        assert {which: found[which] for which in PASSES} == {which: getattr(node, which).to_dict() for which in PASSES}
        assert (found["saved_bytes"], found["batch_size"]) == (node.saved_bytes, len(X))
    assert sum(node.total.cycles or 0 for node in report.nodes) > 0
    plain = fxs.compile(net(), None, (X,))
    conv = next(node for node in plain.graphs[""].graph.nodes if node.op == "call_module").meta["custom"]["fxsparse"]["cost"]
    assert conv["forward"]["macs"] == 4 * 32 * 32 * 32 * 27
    assert conv["forward"]["cycles"] is None
    with pytest.raises(fxs.CostError, match="'eyeriss'"):
        fxs.compile(net(), None, (X,), accelerator="eyeris")


def test_values_beside_kept_codes_do_not_live_on() -> None:
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
    x = (torch.randn(4, 16, 32, 32),)
    dense = fxs.compile(nn.Sequential(*layers), None, x).cost()
    coded = fxs.compile(nn.Sequential(*layers), fxs.BLPA(bits=4), x).cost()
    assert coded.timeline is not None
    assert max(coded.timeline.step_bytes) == coded.peak_bytes
    assert coded.peak_bytes < 0.6 * dense.peak_bytes
