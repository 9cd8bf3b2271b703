// This model beside others: the dense one, another policy, another run.
FX.compare = (() => {
  const { el, format } = FX;
  const FIGURES = ["macs", "flops", "dram_bytes", "cycles", "energy_pj", "time_s"];
  let chosen = null;

  function draw(app) {
    const panel = document.getElementById("compare");
    const all = app.data.compared;
    if (!all.length) { panel.replaceChildren(el("div", { class: "empty" }, el("h2", {}, "Nothing to compare with"), el("p", { class: "muted" }, `${app.data.without_before || ""}. Pass compare= to save_html: another compiled model, or a cost report.`))); return; }
    if (!all.some((one) => one.name === chosen)) chosen = all[all.length - 1].name;
    const other = all.find((one) => one.name === chosen);
    const own = app.views.after.cost;
    const rows = other.rows || (other.rows = FX.model.rows(other.nodes));
    const known = FIGURES.filter((figure) => other.total.ratios[figure] !== null);
    const pick = el("div", { class: "switch", role: "radiogroup", "aria-label": "Compared with" }, all.map((one) => el("button", { role: "radio", "aria-checked": String(one.name === chosen), "data-name": one.name, onclick: () => { chosen = one.name; draw(app); } }, one.name)));
    const side = (title, cost, memory, which) => el("tr", {}, el("th", {}, title), known.map((figure) => FX.number(figure, cost[figure], "td", { "data-side": which })), memory.map((value) => FX.number("saved_bytes", value, "td", { "data-side": which })));
    const totals = el("table", { class: "costs" },
      el("thead", {}, el("tr", {}, el("th"), known.map((figure) => el("th", { class: "n" }, FX.FIGURES[figure].title)), el("th", { class: "n" }, "kept for backward"), el("th", { class: "n" }, "peak"))),
      el("tbody", {},
        side("this model", other.total.cost, [other.saved_bytes[0], other.peak_bytes[0]], "cost"),
        side(other.name, other.total.baseline, [other.saved_bytes[1], other.peak_bytes[1]], "baseline"),
        el("tr", { class: "strong" }, el("th", {}, "gain"), known.map((figure) => el("td", { class: "n" }, format.ratio(other.total.ratios[figure]))), ["saved_bytes", "peak_bytes"].map((name) => el("td", { class: "n" }, other[name][0] ? format.ratio(other[name][1] / other[name][0]) : "–")))));
    const figure = own.accelerator ? "time_s" : "macs";
    const bars = rows.filter((row) => row.name !== "(all other nodes)" && row.cost && row.baseline && row.ratios[figure] !== null).map((row) => ({ name: row.name, mine: row.cost[figure], theirs: row.baseline[figure] }));
    const scale = FX.FIGURES[figure].scale || 1;
    const plot = Plot.plot({
      width: Math.max(520, Math.min(1320, panel.clientWidth - 48)), height: Math.max(160, bars.length * 18 + 84), marginLeft: Math.min(260, 7 * d3.max(bars, (bar) => bar.name.length) + 12), marginRight: 30, marginTop: 52, style: { background: "transparent", fontSize: "12px" },
      x: { grid: true, label: `${FX.FIGURES[figure].title} of a training step →`, tickFormat: "~s", axis: "top", labelOffset: 36 }, y: { domain: bars.map((bar) => bar.name), label: null, tickSize: 0 },
      marks: [
        Plot.barX(bars, { y: "name", x: (bar) => bar.theirs * scale, fill: "var(--muted-ink)", fillOpacity: 0.28, insetTop: 1, insetBottom: 1 }),
        Plot.barX(bars, { y: "name", x: (bar) => bar.mine * scale, fill: "var(--accent)", fillOpacity: 0.85, insetTop: 4, insetBottom: 4, title: (bar) => `${bar.name}\n${format.figure(figure, bar.mine)} instead of ${format.figure(figure, bar.theirs)}`, tip: true }),
      ],
    });
    const columns = [{ key: "name", title: "node", value: (row) => row.name },
      ...known.map((one) => ({ key: one, title: FX.FIGURES[one].title, figure: one, value: (row) => row.ratios[one], cell: (row) => el("td", { class: `n${row.ratios[one] > 1.005 ? " good" : row.ratios[one] !== null && row.ratios[one] < 0.995 ? " bad" : ""}`, "data-value": row.ratios[one], "data-key": one }, format.ratio(row.ratios[one])) })),
      { key: "bound", title: "bound by", value: (row) => row.bound || "" }, { key: "baseline_bound", title: `${other.name} bound by`, value: (row) => row.baseline_bound || "" }];
    const table = FX.table(columns, rows, { sort: null });
    panel.replaceChildren(
      el("div", { class: "toolbar" }, el("span", {}, "This model against"), pick),
      el("p", { class: `verdict ${other.pays === true ? "good" : other.pays === false ? "bad" : ""}` }, other.verdict), totals,
      el("h3", {}, `${FX.FIGURES[figure].title} by contraction (grey: ${other.name})`), el("div", { class: "chart" }, plot),
      el("h3", {}, `How many times less than ${other.name}`), table.element,
      ...(other.policy ? [el("h3", {}, `Policy of ${other.name}`), el("pre", { class: "policy" }, JSON.stringify(other.policy, null, 2))] : []));
  }
  return { draw };
})();
