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

// A row for each layer (a module with what the passes put around it), or for each node.
FX.layers = (() => {
  const { el, model } = FX;
  let by = "layer", everything = false;
  const isSite = (cost) => cost.site && cost.forward.dense_macs > 0;

  // The passes' parts of a layer are added up; of a node's they are the report's own.
  function columnsOf(app) {
    const of = (figure, pass) => (item) => model.figureOf(item, figure, pass);
    const some = (figure) => app.view.cost.nodes.some((node) => node.forward[figure] !== null);
    const only = (item) => item.costs.find(isSite);
    const density = (which) => (item) => (only(item) ? only(item)[which] : null);
    const longest = (item) => {
      const passes = item.costs.flatMap((cost) => Object.keys(FX.PASSES).map((pass) => cost[pass]));
      return d3.greatest(passes, (cost) => cost.time_s || 0)?.bound || "";
    };
    const inner = (row) => !isSite(row.cost) && row.module && !row.isLeafModule;
    const name = by === "layer"
      ? { key: "name", title: "layer", value: (item) => layerName(item) }
      : { key: "name", title: "module and node", value: (row) => `${row.module} ${row.name}`, cell: (row) => el("td", { title: row.name }, row.module || row.name, inner(row) ? el("small", {}, row.label) : "") };
    return [
      name,
      { key: "operator", title: "operator", value: (item) => (only(item) || item.costs[0]).operator },
      { key: "technique", title: "technique", value: (item) => FX.colour.MODES.technique.value(item, app) || "" },
      { key: "weight_density", title: "weights", hint: "density of the weight", figure: "weight_density", value: density("weight_density") },
      { key: "activation_density", title: "activations", hint: "density of the activation that grad-weight sees", figure: "activation_density", value: density("activation_density") },
      ...Object.keys(FX.PASSES).map((pass) => ({ key: `flops:${pass}`, title: `FLOPs ${FX.PASSES[pass]}`, figure: "flops", value: of("flops", pass) })),
      { key: "flops", title: "FLOPs", figure: "flops", value: of("flops", "all") },
      { key: "dense_macs", title: "dense MACs", figure: "dense_macs", value: of("dense_macs", "all") },
      { key: "dram_bytes", title: "DRAM", figure: "dram_bytes", value: of("dram_bytes", "all") },
      { key: "saved_bytes", title: "kept", hint: "bytes kept for backward", figure: "saved_bytes", value: of("saved_bytes", "all") },
      ...["cycles", "energy_pj", "time_s"].filter(some).map((figure) => ({ key: figure, title: FX.FIGURES[figure].title, figure, value: of(figure, "all") })),
      ...(app.view.cost.accelerator ? [{ key: "bound", title: "bound by", value: longest }] : []),
    ];
  }
  const layerName = (item) => (item.kind === "group" || item.isLeafModule ? item.module : item.module ? `${item.module}.${item.label}` : item.label);

  function itemsOf(app) {
    const rows = app.view.cost.nodes.map((node) => app.view.rowOf.get(node.name)).filter(Boolean);
    const items = by === "node" ? rows : [...new Set(rows.map((row) => (row.parent?.isLeaf ? row.parent : row)))];
    const weighs = (item) => item.costs.some((cost) => cost.saved_bytes > 0 || Object.keys(FX.PASSES).some((pass) => cost[pass].flops > 0 || cost[pass].dram_bytes > 0));
    for (const item of items) item.name ||= item.key;
    return everything ? items : items.filter(weighs);
  }

  function draw(app) {
    const panel = document.getElementById("layers");
    const { element } = FX.table(columnsOf(app), itemsOf(app), { click: (item) => app.show(item) });
    const choice = el("div", { class: "switch", role: "radiogroup", "aria-label": "Rows" }, ["layer", "node"].map((one) => el("button", { role: "radio", "aria-checked": String(by === one), "data-by": one, onclick: () => { by = one; draw(app); } }, one === "layer" ? "Layers" : "Nodes")));
    const toggle = el("label", {}, el("input", { type: "checkbox", checked: everything, onchange: (event) => { everything = event.target.checked; draw(app); } }), " free ones, too");
    element.querySelector(".toolbar").append(el("span", { class: "spacer" }), toggle, choice);
    panel.replaceChildren(element);
  }
  return { draw };
})();
