// Roofline, memory over a step, densities: drawn by Observable Plot.
FX.charts = (() => {
  const { el, format, model } = FX;
  const INK = { after: "var(--accent)", before: "var(--muted-ink)" };
  const wide = (panel) => Math.max(520, Math.min(1320, panel.clientWidth - 48));
  const words = (...texts) => el("p", { class: "muted lead" }, ...texts);
  const base = { style: { background: "transparent", fontSize: "12px", overflow: "visible" }, marginLeft: 70 };

  function roofline(app) {
    const panel = document.getElementById("roofline");
    const { machine } = app.data;
    if (!machine) { panel.replaceChildren(el("div", { class: "empty" }, el("h2", {}, "No machine"), words("A roofline needs a machine: save_html(path, \"eyeriss\"), or the path of an accelerator file."))); return; }
    const points = Object.entries(app.views).flatMap(([which, view]) => view.cost.nodes.flatMap((node) => Object.keys(FX.PASSES).map((pass) => ({ which, pass: FX.PASSES[pass], node, cost: node[pass] }))))
      .filter(({ cost }) => cost.flops > 0 && cost.dram_bytes > 0 && cost.time_s > 0)
      .map((point) => ({ ...point, intensity: point.cost.flops / point.cost.dram_bytes, rate: point.cost.flops / point.cost.time_s }));
    if (!points.length) { panel.replaceChildren(words("No operator of this model has a time on this machine.")); return; }
    const { roofs } = machine;
    const low = d3.min(points, (point) => point.intensity) / 2, high = Math.max(d3.max(points, (point) => point.intensity) * 2, (4 * d3.max(Object.values(roofs.flops_per_s))) / roofs.dram_bytes_per_s);
    const lines = Object.entries(roofs.flops_per_s).flatMap(([name, peak]) => {
      const ridge = peak / roofs.dram_bytes_per_s;
      return [low, Math.max(low, ridge), high].map((at) => ({ name, at, rate: Math.min(peak, at * roofs.dram_bytes_per_s), own: name === roofs.own }));
    });
    const label = (point) => `${point.node.site || point.node.name}\n${point.pass}, ${point.which === "after" ? "after the passes" : "before"}\n${format.quantity(point.rate, "FLOP/s")} at ${Number(point.intensity.toPrecision(3))} FLOP/B\nbound by ${point.cost.bound}`;
    const several = Object.keys(app.views).length > 1;
    const plot = Plot.plot({
      ...base, width: wide(panel), height: Math.max(360, Math.min(640, innerHeight - 365)), marginBottom: 46, marginRight: 210,
      x: { type: "log", label: "FLOPs for each byte of DRAM →", grid: true, tickFormat: "~s", ticks: 8 },
      y: { type: "log", label: "↑ FLOP/s", grid: true, tickFormat: "~s", ticks: 6 },
      symbol: { domain: Object.values(FX.PASSES), legend: true },
      color: { domain: ["after", "before"], range: [INK.after, INK.before] },
      marks: [
        Plot.line(lines, { x: "at", y: "rate", z: "name", stroke: "currentColor", strokeOpacity: (one) => (one.own ? 0.9 : 0.3), strokeWidth: (one) => (one.own ? 2 : 1) }),
        Plot.text(lines.filter((one) => one.at === high), { x: "at", y: "rate", text: (one) => `${one.name}: ${format.quantity(one.rate, "FLOP/s")}`, textAnchor: "start", dx: 6, fillOpacity: 0.8 }),
        Plot.dot(points, { x: "intensity", y: "rate", symbol: "pass", r: 4.2, stroke: "which", fill: "which", fillOpacity: (point) => (point.which === "after" ? 0.5 : 0.08), strokeOpacity: (point) => (point.which === "after" ? 0.95 : 0.5), title: label, tip: true }),
      ],
    });
    plot.setAttribute("data-points", points.length);
    panel.replaceChildren(el("h2", {}, `Roofline of ${machine.name}`), words(machine.description ? `${machine.description}. ` : "", `Each node has a point for each pass${several ? ", grey before the passes" : ""}. The roof is ${format.quantity(roofs.flops_per_s[roofs.own] ?? 0, "FLOP/s")} and ${format.quantity(roofs.dram_bytes_per_s, "B")}/s.`), el("div", { class: "chart" }, plot));
    plot.addEventListener("click", () => { const point = plot.value; const row = point?.node && app.view.rowOf.get(point.node.name); if (row) app.show(row); });
  }

  const MEMORY = ["resident", "activations", "gradients", "parameter gradients", "work space"];
  const MEMORY_NAMES = ["parameters, buffers, inputs", "activations", "gradients of activations", "gradients of parameters", "work space"];
  function memory(app) {
    const panel = document.getElementById("memory");
    const { timeline, cost } = app.view;
    if (!timeline) { panel.replaceChildren(words("The report holds no timeline.")); return; }
    const { steps, kinds } = timeline;
    const turn = steps.findIndex((step) => step.name.startsWith("backward of "));
    const areas = steps.flatMap((step, at) => kinds.map((kind, index) => ({ at, kind: MEMORY_NAMES[MEMORY.indexOf(kind)], bytes: step.by_kind[index] / 2 ** 20 })));
    const peak = steps.findIndex((step) => step.name === timeline.peak_step && step.bytes === timeline.peak_bytes);
    const other = Object.entries(app.views).find(([, view]) => view !== app.view && view.timeline);
    // The other graph has another number of steps: its forward lies over this one's, and so does its backward.
    const there = other ? other[1].timeline.steps : [];
    const back = there.findIndex((step) => step.name.startsWith("backward of "));
    const moved = (at) => (at < back ? (at * turn) / back : turn + ((at - back) * (steps.length - 1 - turn)) / Math.max(1, there.length - 1 - back));
    const ghost = turn > 0 && back > 0 ? there.map((step, at) => ({ at: moved(at), bytes: step.bytes / 2 ** 20 })) : [];
    const plot = Plot.plot({
      ...base, width: wide(panel), height: Math.max(330, Math.min(520, innerHeight - 400)), marginBottom: 42,
      x: { label: "step →", ticks: [] }, y: { label: "↑ MiB alive", grid: true },
      color: { domain: MEMORY_NAMES, range: ["#8c96a8", "#4c8eda", "#e6954a", "#b07cc6", "#5fb49c"], legend: true },
      marks: [
        Plot.areaY(areas, { x: "at", y: "bytes", fill: "kind", curve: "step", fillOpacity: 0.85 }),
        ghost.length ? Plot.line(ghost, { x: "at", y: "bytes", stroke: "currentColor", strokeOpacity: 0.55, strokeDasharray: "4 3", curve: "step" }) : null,
        turn > 0 ? Plot.ruleX([turn], { stroke: "currentColor", strokeOpacity: 0.4 }) : null,
        turn > 0 ? Plot.text([{ at: turn }], { x: "at", frameAnchor: "bottom", dy: 16, text: () => "forward | backward" }) : null,
        peak >= 0 ? Plot.dot([{ at: peak }], { x: "at", y: () => timeline.peak_bytes / 2 ** 20, r: 4, fill: "var(--alarm)" }) : null,
        peak >= 0 ? Plot.text([{ at: peak }], { x: "at", y: () => timeline.peak_bytes / 2 ** 20, dy: -12, textAnchor: peak > 0.85 * steps.length ? "end" : "middle", text: () => `peak ${format.quantity(timeline.peak_bytes, "B")}`, fontWeight: 600 }) : null,
        Plot.ruleX(steps, Plot.pointerX({ x: (_, at) => at, stroke: "currentColor", strokeOpacity: 0.5 })),
        Plot.tip(steps, Plot.pointerX({ x: (_, at) => at, y: (step) => step.bytes / 2 ** 20, title: (step) => `${step.name}\n${format.quantity(step.bytes, "B")}\n${kinds.map((kind, index) => `${MEMORY_NAMES[MEMORY.indexOf(kind)]} ${format.quantity(step.by_kind[index], "B")}`).join("\n")}` })),
      ].filter(Boolean),
    });
    const alive = FX.table([{ key: "name", title: "alive at the peak", value: (row) => row.name }, { key: "bytes", title: "bytes", figure: "saved_bytes", value: (row) => row.bytes }], timeline.peak_storages.map(([name, bytes]) => ({ name, bytes })).slice(0, 40), { filter: false, sort: "bytes" });
    panel.replaceChildren(
      el("h2", {}, "Memory over a training step"),
      words("The peak is ", FX.number("saved_bytes", cost.peak_bytes, "b", { id: "peak" }), " at ", el("code", {}, cost.peak_node || "rest"), "; ", FX.number("saved_bytes", cost.resident_bytes, "b"), " are there throughout, and ", FX.number("saved_bytes", cost.saved_bytes, "b"), " are kept for backward.", ghost.length ? ` Dashed: ${app.which === "after" ? "before" : "after"} the passes.` : ""),
      el("div", { class: "chart" }, plot), alive.element);
  }

  function densities(app) {
    const panel = document.getElementById("densities");
    const rows = app.data.densities;
    if (!rows.length) { panel.replaceChildren(words("No contraction with a parameter.")); return; }
    const others = app.data.compared.filter((one) => one.densities);
    const chart = (which, title) => {
      const own = rows.map((row) => ({ site: row.site, ...row[which] }));
      const there = others.flatMap((one) => one.densities.map((row) => ({ site: row.site, name: one.name, ...row[which] }))).filter((row) => row.actual !== null && own.some((mine) => mine.site === row.site));
      const sites = own.map((row) => row.site);
      const label = (row) => `${row.site}\ntarget ${format.percent(row.target)}, actual ${row.actual === null ? "not seen yet" : format.percent(row.actual)}${row.kept === null ? "" : `\n${row.kept} of ${row.total}`}`;
      const plot = Plot.plot({
        ...base, width: Math.max(420, wide(panel) / 2 - 12), height: Math.max(160, sites.length * 19 + 70), marginLeft: Math.min(240, 7 * d3.max(sites, (site) => site.length) + 12), marginRight: 16,
        x: { domain: [0, 1], grid: true, label: "kept →", tickFormat: "%", axis: "both" }, y: { domain: sites, label: null, tickSize: 0 },
        marks: [
          Plot.ruleY(own, { y: "site", x1: 0, x2: (row) => row.actual ?? row.target, stroke: "var(--accent)", strokeOpacity: 0.35, strokeWidth: 6 }),
          there.length ? Plot.dot(there, { y: "site", x: "actual", r: 4, stroke: "#e6954a", title: (row) => `${row.name}: ${label(row)}` }) : null,
          Plot.tickX(own, { y: "site", x: "target", stroke: "currentColor", strokeWidth: 2 }),
          Plot.dot(own.filter((row) => row.actual !== null), { y: "site", x: "actual", r: 4, fill: "var(--accent)", title: label, tip: true }),
        ].filter(Boolean),
      });
      plot.setAttribute("data-which", which);
      return el("figure", {}, el("h3", {}, title), plot);
    };
    const columns = ["weight", "activation"].flatMap((which) => ["target", "actual"].map((kind) => ({ key: `${which}:${kind}`, title: `${which}s, ${kind}`, figure: "weight_density", value: (row) => row[which][kind] })));
    const table = FX.table([{ key: "site", title: "site", value: (row) => row.site }, ...columns], rows.map((row) => ({ ...row, name: row.site })), {});
    panel.replaceChildren(
      el("h2", {}, "Densities"),
      words("Dots are what is kept now, strokes what was asked for. Activations are counted when their threshold is selected: before the first step there is nothing to count.", others.length ? ` Orange rings: ${others.map((one) => one.name).join(", ")}.` : ""),
      el("div", { class: "pair" }, chart("weight", "Weights"), chart("activation", "Activations that grad-weight sees")), table.element);
  }
  return { roofline, memory, densities };
})();
