"""The HTML page in a real browser: every number is that of the report, every control does what it says, and names stay texts."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxsparse as fxs

from .browser import Tab, chromium

PASSES = ("forward", "grad_input", "grad_weight")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def compiled() -> fxs.CompiledModel:
    torchvision = pytest.importorskip("torchvision")
    policy = fxs.Policy(fxs.SWAT(weight_sparsity=0.9), fxs.BLPA(bits=4))
    return fxs.compile(torchvision.models.resnet18(), policy, (torch.randn(4, 3, 64, 64),))


@pytest.fixture(scope="module")
def file(compiled: fxs.CompiledModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchvision = pytest.importorskip("torchvision")
    other = fxs.compile(torchvision.models.resnet18(), "swat-u-80", (torch.randn(4, 3, 64, 64),))
    path = tmp_path_factory.mktemp("page") / "resnet18.html"
    compiled.save_html(path, "eyeriss", compare={"swat-u-80": other})
    return path


@pytest.fixture
def tab(browser: Any, file: Path) -> Iterator[Tab]:
    opened = Tab(browser, file)
    yield opened
    complaints, requests = opened.complaints, opened.requests
    opened.close()
    assert not complaints
    assert requests == [file.as_uri()], "the page asked for something"


def test_the_graph_is_there_within_two_seconds(tab: Tab) -> None:
    assert tab.ready_ms < 2000
    assert "m:layer1" in tab.cards() or "m:layer1.0" in tab.cards()
    box = tab.page.locator("#canvas .item").first.bounding_box()
    assert box["width"] > 20
    assert box["y"] < 768


def test_the_page_is_small(file: Path) -> None:
    assert file.stat().st_size < 1.5e6


def test_the_document_holds_the_reports_exactly(tab: Tab, compiled: fxs.CompiledModel) -> None:
    after = tab.page.evaluate("FX.model.costs(JSON.parse(document.getElementById('data').textContent).views.after.cost)")
    assert after == compiled.cost("eyeriss").to_dict()
    dense = tab.page.evaluate("FX.model.costs(JSON.parse(document.getElementById('data').textContent).views.before.cost)")
    torchvision = pytest.importorskip("torchvision")
    assert dense == fxs.estimate(torchvision.models.resnet18(), (torch.randn(4, 3, 64, 64),), "eyeriss").to_dict()


def test_every_number_of_the_table_is_the_report_s(tab: Tab, compiled: fxs.CompiledModel) -> None:
    report = {node["name"]: node for node in compiled.cost("eyeriss").to_dict()["nodes"]}
    tab.page.click("#tab-layers")
    tab.page.click('#layers [data-by="node"]')
    tab.page.get_by_label("free ones").check()
    names = tab.page.eval_on_selector_all("#layers tbody tr", "all => all.map(one => one.dataset.name)")
    assert names == list(report)
    for which in PASSES:
        assert tab.column("layers", f"flops:{which}") == [node[which]["flops"] for node in report.values()]
    assert tab.column("layers", "saved_bytes") == [node["saved_bytes"] for node in report.values()]
    for figure in ("flops", "dense_macs", "dram_bytes", "cycles", "energy_pj", "time_s"):
        wanted = [sum(node[which][figure] or 0 for which in PASSES) for node in report.values()]
        assert [value or 0 for value in tab.column("layers", figure)] == wanted


def test_a_layer_s_numbers_are_those_of_its_nodes(tab: Tab, compiled: fxs.CompiledModel) -> None:
    report = compiled.cost("eyeriss").to_dict()
    tab.page.click("#tab-layers")
    names = tab.page.eval_on_selector_all("#layers tbody tr", "all => all.map(one => one.dataset.name)")
    assert len(set(names)) == len(names) < len(report["nodes"])
    assert {"layer1.0.conv1", "layer4.1.conv2", "fc"} <= set(names)
    for figure in ("flops", "cycles", "saved_bytes"):
        shown = sum(value or 0 for value in tab.column("layers", figure))
        wanted = report["saved_bytes"] if figure == "saved_bytes" else sum(report["total"][which][figure] for which in PASSES)
        assert shown == pytest.approx(wanted, rel=1e-12)
    conv = next(node for node in report["nodes"] if node["site"] == "layer1.0.conv1.weight" and node["forward"]["macs"])
    assert tab.column("layers", "weight_density")[names.index("layer1.0.conv1")] == conv["weight_density"]


def test_totals_are_the_report_s(tab: Tab, compiled: fxs.CompiledModel) -> None:
    report = compiled.cost("eyeriss").to_dict()
    shown = tab.page.eval_on_selector_all("#figures b", "all => all.map(one => [one.dataset.figure, +one.dataset.value, one.textContent])")
    step = sum(report["total"][which]["flops"] for which in PASSES)
    cycles = sum(report["total"][which]["cycles"] for which in PASSES)
    values = [value for _, value, _ in shown]
    assert values[:2] == [step, report["total"]["forward"]["flops"]]
    assert values[3:5] == [report["saved_bytes"], report["peak_bytes"]]
    assert cycles in values
    assert shown[4][2] == f"{report['peak_bytes'] / 2**20:.4g} MiB"


def test_search_finds_and_reveals(tab: Tab) -> None:
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("layer3.1 conv2")
    hits = tab.page.locator("#hits li").all_inner_texts()
    assert "layer3.1.conv2" in " ".join(hits)
    assert tab.page.locator("#canvas .item.dim").count() > 0
    tab.page.keyboard.press("Enter")
    assert (
        "layer3.1.conv2" in tab.page.locator("#details h2").inner_text() or "layer3_1_conv2" in tab.page.locator("#details h2").inner_text()
    )
    assert tab.page.locator("#canvas .item.selected").count() == 1
    tab.page.fill("#search", "no such thing")
    assert "0 found" in tab.page.locator("#hits").inner_text()


def test_modules_fold_and_unfold(tab: Tab) -> None:
    before = tab.cards()
    folded = tab.page.locator("#canvas .item.folded").first
    name = folded.get_attribute("data-id")
    folded.dblclick()
    assert tab.card(name).get_attribute("aria-expanded") == "true"
    assert len(tab.cards()) > len(before)
    tab.card(name).locator(".chevron").first.click()
    assert tab.card(name).get_attribute("aria-expanded") == "false"
    assert sorted(tab.cards()) == sorted(before)
    for _ in range(8):
        tab.page.click("#fold-less")
    everything = tab.page.evaluate("FX.app.view.drawn.map(row => row.id)")
    assert set(everything) <= set(tab.cards()), "with all unfolded, every node is on the screen"
    for _ in range(8):
        tab.page.click("#fold-more")
    assert len(tab.cards()) < 16


def test_each_colouring_says_what_it_means(tab: Tab) -> None:
    options = tab.page.eval_on_selector_all("#colour option:not([disabled])", "all => all.map(one => one.value)")
    assert set(options) >= {
        "technique",
        "weight_density",
        "activation_density",
        "flops",
        "dram_bytes",
        "saved_bytes",
        "cycles",
        "energy_pj",
        "bits",
    }
    for mode in options:
        tab.page.select_option("#colour", mode)
        fills = set(tab.page.eval_on_selector_all("#canvas .item.folded", "all => all.map(one => one.dataset.fill)"))
        assert tab.page.locator("#legend b").inner_text() == tab.page.evaluate(f"FX.colour.MODES['{mode}'].title")
        assert len(tab.page.locator("#legend .key").all_inner_texts()) > 0
        assert fills
    tab.page.select_option("#colour", "flops")
    value = tab.page.evaluate("FX.model.figureOf(FX.app.view.groups.get('layer1'), 'flops', 'forward')")
    tab.page.select_option("#pass", "forward")
    rows = tab.page.evaluate(
        "FX.app.view.cost.nodes.filter(n => FX.app.view.rowOf.get(n.name).module.startsWith('layer1')).map(n => n.forward.flops)"
    )
    assert value == sum(rows) > 0


def test_the_table_sorts_both_ways_and_filters(tab: Tab) -> None:
    tab.page.click("#tab-layers")
    head = tab.page.locator('#layers th[data-key="flops"] button')
    head.click()
    down = tab.column("layers", "flops")
    assert down == sorted(down, reverse=True)
    assert down[0] > down[-1]
    head.click()
    assert tab.column("layers", "flops") == down[::-1] or tab.column("layers", "flops") == sorted(down)
    head.click()
    assert tab.page.locator('#layers th[data-key="flops"]').get_attribute("aria-sort") == "none"
    everything = tab.page.locator("#layers tbody tr").count()
    tab.page.fill('#layers input[type="search"]', "layer4")
    assert 0 < tab.page.locator("#layers tbody tr").count() < everything


def test_details_give_line_costs_site_and_neighbours(tab: Tab, compiled: fxs.CompiledModel) -> None:
    report = {node["name"]: node for node in compiled.cost("eyeriss").to_dict()["nodes"]}
    node = next(node for node in report.values() if node["site"] == "layer2.0.conv1.weight" and node["forward"]["macs"])
    tab.page.evaluate("name => FX.app.show(FX.app.view.rowOf.get(name))", node["name"])
    text = tab.page.locator("#details").inner_text()
    assert "resnet.py" in text
    assert "out = self.conv1(x)" in text
    assert "layer2.0.conv1.weight" in text
    assert "SWAT" in text
    for which in PASSES:
        for figure in ("flops", "macs", "dram_bytes", "cycles", "time_s"):
            cell = tab.page.locator(f'#details tr[data-row="{figure}"] td[data-pass="{which}"]')
            assert float(cell.get_attribute("data-value")) == node[which][figure]
    assert float(tab.page.locator('#details [data-figure="weight_density"]').get_attribute("data-value")) == node["weight_density"]
    tab.page.locator("#details .near .link").first.click()
    assert tab.page.locator("#details h2").inner_text() != node["name"]


def test_before_and_after(tab: Tab, compiled: fxs.CompiledModel) -> None:
    flops = "+document.querySelector('#figures b').dataset.value"
    sparse = tab.page.evaluate(flops)
    cards = tab.cards()
    tab.page.click('[data-view="before"]')
    assert tab.page.evaluate(flops) > sparse
    assert set(cards) & set(tab.cards()), "the folding stays"
    targets = tab.page.evaluate("FX.app.view.all.map(row => row.target)")
    assert not [target for target in targets if target.startswith("fxsparse::")]
    tab.page.keyboard.press("b")
    assert tab.page.evaluate(flops) == sparse
    targets = tab.page.evaluate("FX.app.view.all.map(row => row.target)")
    assert [target for target in targets if target.startswith("fxsparse::")]


def test_roofline_memory_and_densities_are_drawn(tab: Tab, compiled: fxs.CompiledModel) -> None:
    report = compiled.cost("eyeriss").to_dict()
    tab.page.click("#tab-roofline")
    views = [report, tab.page.evaluate("FX.app.views.before.cost")]
    points = [node[which] for view in views for node in view["nodes"] for which in PASSES]
    assert int(tab.page.locator("#roofline [data-points]").get_attribute("data-points")) == sum(
        1 for cost in points if cost["flops"] > 0 and cost["dram_bytes"] > 0 and (cost["time_s"] or 0) > 0
    )
    tab.page.click("#tab-memory")
    assert compiled.cost("eyeriss").timeline is not None
    assert tab.page.evaluate("FX.app.view.timeline") == compiled.cost("eyeriss").timeline.to_dict()
    assert float(tab.page.locator("#peak").get_attribute("data-value")) == report["peak_bytes"]
    assert report["peak_node"] in tab.page.locator("#memory").inner_text()
    tab.page.click("#tab-densities")
    measured = compiled.sparsity()
    assert tab.column("densities", "weight:target") == [row["weight"]["target"] for row in measured.values()]
    assert tab.column("densities", "weight:actual") == [row["weight"]["actual"] for row in measured.values()]
    assert tab.page.locator("#densities svg[data-which]").count() + tab.page.locator("#densities figure[data-which]").count() >= 2


def test_comparisons(tab: Tab, compiled: fxs.CompiledModel) -> None:
    torchvision = pytest.importorskip("torchvision")
    tab.page.click("#tab-compare")
    model = torchvision.models.resnet18()
    example = (torch.randn(4, 3, 64, 64),)
    baselines = {"swat-u-80": fxs.estimate(model, example, "eyeriss", policy="swat-u-80"), "dense": fxs.estimate(model, example, "eyeriss")}
    for name, baseline in baselines.items():
        tab.page.click(f'#compare [data-name="{name}"]')
        wanted = compiled.cost("eyeriss").compare(baseline).to_dict()
        assert tab.page.locator("#compare .verdict").inner_text() == wanted["verdict"]
        assert tab.column("compare", "macs") == [row["ratios"]["macs"] for row in wanted["nodes"]]
        sides = tab.page.eval_on_selector_all('#compare td[data-side="baseline"]', "all => all.map(one => +one.dataset.value)")
        assert sides[0] == wanted["total"]["baseline"]["macs"]
        assert sides[-1] == wanted["peak_bytes"][1]


def test_dark_and_light(browser: Any, file: Path) -> None:
    for scheme in ("dark", "light"):
        tab = Tab(browser, file, color_scheme=scheme)
        colour = "getComputedStyle(document.body).backgroundColor"
        own = tab.page.evaluate(colour)
        assert tab.page.evaluate("document.documentElement.dataset.theme") == scheme
        tab.page.keyboard.press("t")
        assert tab.page.evaluate(colour) != own
        tab.page.reload()
        tab.page.wait_for_selector("body[data-ready]")
        assert tab.page.evaluate(colour) != own, "the choice is remembered"
        assert not tab.complaints
        tab.close()


def test_the_keyboard_reaches_everything(tab: Tab) -> None:
    for number, name in enumerate(("graph", "layers", "roofline", "memory", "densities", "compare", "decisions"), start=1):
        tab.page.keyboard.press(str(number))
        assert tab.page.locator(f"#{name}").is_visible()
        assert tab.page.locator(f"#{name}").inner_text().strip()
    tab.page.keyboard.press("1")
    tab.page.keyboard.press("ArrowDown")
    first = tab.page.locator("#canvas .item.selected").get_attribute("data-id")
    tab.page.keyboard.press("ArrowDown")
    assert tab.page.locator("#canvas .item.selected").get_attribute("data-id") != first
    for _ in range(40):
        if tab.page.locator("#canvas .item.selected.folded").count():
            break
        tab.page.keyboard.press("ArrowDown")
    group = tab.page.locator("#canvas .item.selected").get_attribute("data-id")
    tab.page.keyboard.press("Enter")
    assert tab.card(group).get_attribute("aria-expanded") == "true"
    tab.page.keyboard.press("Enter")
    assert tab.card(group).get_attribute("aria-expanded") == "false"
    place = "document.querySelector('#canvas > g').getAttribute('transform')"
    for key in ("+", "-", "w", "f"):
        before = tab.page.evaluate(place)
        tab.page.keyboard.press(key)
        tab.page.wait_for_timeout(300)
        assert tab.page.evaluate(place) != before or key == "f"
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("#canvas .item.selected").count() == 0
    tab.page.keyboard.press("?")
    assert tab.page.locator("#keys").is_visible()


BAD = "</script><script>hacked=1</script><img src=x onerror=hacked=1>"


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module(BAD, nn.Linear(8, 8))
        self.last = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(getattr(self, BAD)(x))


def test_names_stay_texts(browser: Any, tmp_path: Path) -> None:
    model = Named()
    type(model).__name__ = BAD
    try:
        policy = fxs.Policy(fxs.SWAT(weight_sparsity=0.5, include=("*<script>*", "last"), exclude=()))
        compiled = fxs.compile(model, policy, (torch.randn(2, 8),))
        file = tmp_path / "named.html"
        compiled.save_html(file, "eyeriss", title=BAD, compare={BAD: fxs.compile(Named(), None, (torch.randn(2, 8),))})
    finally:
        type(model).__name__ = "Named"
    tab = Tab(browser, file)
    for name in ("layers", "roofline", "memory", "densities", "compare", "decisions", "graph"):
        tab.page.click(f"#tab-{name}")
    for _ in range(3):
        tab.page.click("#fold-less")
    for row in tab.page.evaluate("FX.app.view.drawn.map(row => row.name)"):
        tab.page.evaluate("name => FX.app.show(FX.app.view.rowOf.get(name))", row)
    tab.page.fill("#search", "<script>")
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("img").count() == 0
    assert tab.page.locator("#title").inner_text() == BAD
    assert tab.page.title() == f"{BAD} · fxsparse"
    assert BAD in tab.page.locator("#hits").inner_text()
    tab.page.click("#tab-compare")
    assert BAD in tab.page.locator("#compare").inner_text()
    assert not tab.complaints
    tab.close()


def test_a_notebook_shows_the_page_in_a_frame(browser: Any, compiled: fxs.CompiledModel, tmp_path: Path) -> None:
    shown = compiled._repr_html_()
    assert shown.startswith("<iframe")
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body data-ready=1>{shown}")
    tab = Tab(browser, file)
    frame = tab.page.frame_locator("iframe")
    frame.locator("#canvas .item").first.wait_for(timeout=10_000)
    assert frame.locator("#title").inner_text() == "ResNet"
    assert not tab.complaints
    tab.close()
    assert html.unescape(shown).count("<script>") == 4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "policy"), [("resnet50", "swat-u-90"), ("vit_b_16", "saved"), ("densenet121", "blpa")])
def test_large_models(browser: Any, tmp_path: Path, name: str, policy: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    chosen = {
        "saved": fxs.Policy(fxs.SWAT(weight_sparsity=0.9), fxs.SavedActivations(bits=4)),
        "blpa": fxs.Policy(fxs.SWAT(weight_sparsity=0.9), fxs.BLPA(bits=4)),
    }
    compiled = fxs.compile(getattr(torchvision.models, name)(), chosen.get(policy, policy), (torch.randn(8, 3, 224, 224),))
    file = tmp_path / f"{name}.html"
    compiled.save_html(file, "tpu-v1")
    tab = Tab(browser, file)
    size, ready, first = file.stat().st_size, tab.ready_ms, len(tab.cards())
    print(
        f"{name}: {size / 1e6:.2f} MB, first graph after {ready:.0f} ms, {first} cards, {tab.page.evaluate('FX.app.view.all.length')} nodes"
    )
    assert size < 3e6
    assert ready < 2000
    assert 5 < first < 80
    assert (
        tab.page.evaluate("FX.model.costs(JSON.parse(document.getElementById('data').textContent).views.after.cost)")
        == compiled.cost("tpu-v1").to_dict()
    )
    for view in ("layers", "roofline", "memory", "densities", "compare", "decisions", "graph"):
        tab.page.click(f"#tab-{view}")
        assert tab.page.locator(f"#{view}").inner_text().strip()
    for _ in range(12):
        tab.page.click("#fold-less")
    assert set(tab.page.evaluate("FX.app.view.drawn.map(row => row.id)")) <= set(tab.cards())
    tab.page.fill("#search", "conv")
    assert tab.page.locator("#hits li").count() > 0
    tab.page.keyboard.press("Escape")
    tab.page.select_option("#colour", "flops")
    tab.page.click('[data-view="before"]')
    assert tab.cards()
    assert not tab.complaints
    tab.close()
