// A table that sorts by its columns. columns: {key, title, figure?, value(row)}.
FX.table = (columns, rows, { sort = null, descending = true, click = null, filter = true } = {}) => {
  const { el } = FX;
  let key = sort, down = descending, text = "";
  const body = el("tbody");
  const status = el("span", { class: "muted" });
  const heads = columns.map((column) => el("th", { class: column.figure ? "n" : null, "aria-sort": "none", "data-key": column.key }, el("button", { onclick: () => by(column.key), title: column.hint }, column.title)));
  const box = el("input", { type: "search", placeholder: "Filter", "aria-label": "Filter rows", oninput: () => { text = box.value.toLowerCase(); draw(); } });
  const table = el("table", { class: "sorted" }, el("thead", {}, el("tr", {}, heads)), body);

  function by(next) {
    const column = columns.find((one) => one.key === next);
    if (key === next) { if (down === Boolean(column.figure)) down = !down; else { key = null; down = true; } } else { key = next; down = Boolean(column.figure); }
    draw();
  }
  function draw() {
    let shown = text ? rows.filter((row) => columns.some((column) => !column.figure && String(column.value(row) ?? "").toLowerCase().includes(text))) : [...rows];
    const column = columns.find((one) => one.key === key);
    if (column) {
      const sign = down ? -1 : 1;
      const rank = (row) => column.value(row);
      shown.sort((a, b) => {
        const [x, y] = [rank(a), rank(b)];
        if (x === null || x === undefined || x === "") return y === null || y === undefined || y === "" ? 0 : 1;
        if (y === null || y === undefined || y === "") return -1;
        return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true }));
      });
    }
    for (const [index, head] of heads.entries()) head.setAttribute("aria-sort", columns[index].key === key ? (down ? "descending" : "ascending") : "none");
    body.replaceChildren(...shown.map((row) => {
      const cells = columns.map((one) => one.cell ? one.cell(row) : one.figure ? FX.number(one.figure, one.value(row), "td", { "data-key": one.key }) : el("td", { title: String(one.value(row) ?? "") }, one.value(row) ?? ""));
      const line = el("tr", { "data-name": row.name, tabindex: click ? "0" : null, class: click ? "click" : null }, cells);
      if (click) {
        line.addEventListener("click", () => click(row));
        line.addEventListener("keydown", (event) => { if (event.key === "Enter") click(row); });
      }
      return line;
    }));
    status.textContent = `${shown.length} of ${rows.length} rows`;
  }
  draw();
  return { element: el("div", { class: "tabled" }, filter ? el("div", { class: "toolbar" }, box, status) : null, el("div", { class: "scroll" }, table)), box };
};

FX.layers = (() => {
  const { el, model } = FX;
  let everything = false;
  function draw(app) {
    const panel = document.getElementById("layers");
    const timed = app.view.cost.accelerator !== null;
    const total = (figure) => (row) => model.figureOf(row, figure, "all");
    const some = (figure) => app.view.cost.nodes.some((node) => node.forward[figure] !== null);
    const isSite = (row) => row.cost.site && row.cost.forward.dense_macs > 0;
    const density = (which) => (row) => (isSite(row) ? row.cost[which] : null);
    const columns = [
      { key: "name", title: "node", value: (row) => (isSite(row) ? row.cost.site.replace(/\.weight$/, "") : row.name) },
      { key: "operator", title: "operator", value: (row) => row.cost.operator },
      { key: "technique", title: "technique", value: (row) => row.technique },
      { key: "weight_density", title: "weights", hint: "density of the weight", figure: "weight_density", value: density("weight_density") },
      { key: "activation_density", title: "activations", hint: "density of the activation that grad-weight sees", figure: "activation_density", value: density("activation_density") },
      ...Object.keys(FX.PASSES).map((pass) => ({ key: `flops:${pass}`, title: `FLOPs ${FX.PASSES[pass]}`, figure: "flops", value: (row) => row.cost[pass].flops })),
      { key: "flops", title: "FLOPs", figure: "flops", value: total("flops") },
      { key: "dense_macs", title: "dense MACs", figure: "dense_macs", value: total("dense_macs") },
      { key: "dram_bytes", title: "DRAM", figure: "dram_bytes", value: total("dram_bytes") },
      { key: "saved_bytes", title: "kept", hint: "bytes kept for backward", figure: "saved_bytes", value: (row) => row.cost.saved_bytes },
      ...["cycles", "energy_pj", "time_s"].filter(some).map((figure) => ({ key: figure, title: FX.FIGURES[figure].title, figure, value: total(figure) })),
      ...(timed ? [{ key: "bound", title: "bound by", value: (row) => bound(row.cost) }] : []),
    ];
    const rows = app.view.cost.nodes.map((node) => app.view.rowOf.get(node.name)).filter(Boolean);
    const weighs = (row) => row.cost.saved_bytes > 0 || Object.keys(FX.PASSES).some((pass) => row.cost[pass].flops > 0 || row.cost[pass].dram_bytes > 0);
    const { element } = FX.table(columns, everything ? rows : rows.filter(weighs), { click: (row) => app.show(row) });
    const toggle = el("label", {}, el("input", { type: "checkbox", checked: everything, onchange: (event) => { everything = event.target.checked; draw(app); } }), " free nodes, too");
    element.querySelector(".toolbar").append(el("span", { class: "spacer" }), toggle);
    panel.replaceChildren(element);
  }
  function bound(cost) {
    const passes = Object.keys(FX.PASSES);
    return passes.reduce((best, pass) => ((cost[pass].time_s || 0) > (cost[best].time_s || 0) ? pass : best), passes[0]) && cost[passes.reduce((best, pass) => ((cost[pass].time_s || 0) > (cost[best].time_s || 0) ? pass : best), passes[0])].bound;
  }
  return { draw };
})();
