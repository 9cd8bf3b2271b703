// The page: what is shown, chosen and pressed.
FX.start = () => {
  const { el, format } = FX;
  const data = JSON.parse(document.getElementById("data").textContent);
  const TABS = [["graph", "Graph"], ["layers", "Layers"], ["roofline", "Roofline"], ["memory", "Memory"], ["densities", "Densities"], ["compare", "Compare"], ["decisions", "Decisions"]];
  const store = { get: (key) => { try { return localStorage.getItem(key); } catch { return null; } }, set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* a frame without storage */ } } };
  const root = document.documentElement;
  root.dataset.theme = store.get("fxsparse-theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

  const app = { data, modules: data.modules, which: "after", pass: "all", tab: "graph", selected: null, calm: matchMedia("(prefers-reduced-motion: reduce)").matches };
  app.views = {};
  const viewOf = (which) => (app.views[which] ||= FX.model.view(data.views[which], data.modules));
  viewOf("after");
  app.view = app.views.after;
  app.elements = new Map(data.report.sites.map((site) => [site.site, site.shape.reduce((all, size) => all * size, 1)]));
  app.names = (mode) => {
    const value = FX.colour.MODES[mode].value;
    const items = [...app.views.after.all, ...app.views.after.groups.values()];
    return [...new Set(items.map((item) => value(item, app)).filter((one) => one !== null))].sort();
  };
  const rest = () => { if (data.views.before) viewOf("before"); };

  // Head
  document.getElementById("title").textContent = data.title;
  const techniques = data.policy.techniques.map((one) => one.technique).join(" + ");
  const { cost } = app.views.after;
  document.getElementById("chips").append(...[techniques || "no policy", `batch ${cost.batch_size}`, data.dtype, data.machine ? data.machine.name : "no machine", `${cost.convention} counts`].map((text) => el("span", { class: "chip" }, text)));
  function figures() {
    const { cost: now } = app.view;
    const before = data.compared.find((one) => one.name === "dense");
    const total = (figure) => FX.model.sum(Object.keys(FX.PASSES).map((pass) => now.total[pass][figure]));
    const card = (title, figure, value, note) => el("div", { class: "figure" }, el("span", { class: "muted" }, title), FX.number(figure, value, "b"), el("small", { class: /more$/.test(note || "") ? "bad" : null }, note || " "));
    const change = (ratio) => (!ratio ? "" : Math.abs(ratio - 1) < 0.005 ? "as dense" : ratio > 1 ? `${format.ratio(ratio)} less` : `${format.ratio(1 / ratio)} more`);
    const less = (figure) => { return change(app.which === "after" && before?.total.ratios[figure]); };
    const kept = (name) => change(app.which === "after" && before && before[name][0] && before[name][1] / before[name][0]);
    document.getElementById("figures").replaceChildren(
      card("FLOPs of a step", "flops", total("flops"), now.reduction.training ? `−${format.percent(now.reduction.training)} MACs` : ""),
      card("FLOPs of inference", "flops", now.total.forward.flops, now.reduction.inference ? `−${format.percent(now.reduction.inference)} MACs` : ""),
      card("DRAM traffic", "dram_bytes", total("dram_bytes"), less("dram_bytes")),
      card("Kept for backward", "saved_bytes", now.saved_bytes, kept("saved_bytes")),
      card("Peak memory", "saved_bytes", now.peak_bytes, kept("peak_bytes")),
      ...["time_s", "cycles", "energy_pj"].filter((figure) => total(figure) !== null).map((figure) => card({ time_s: "Time of a step", cycles: "Cycles", energy_pj: "Energy" }[figure], figure, total(figure), less(figure))));
  }

  // Tabs
  const nav = document.getElementById("tabs");
  TABS.forEach(([name, title], at) => nav.append(el("button", { role: "tab", id: `tab-${name}`, "data-tab": name, "aria-controls": name, title: `${title} (${at + 1})`, onclick: () => tab(name) }, title)));
  const drawn = new Set();
  const DRAW = { layers: FX.layers.draw, roofline: FX.charts.roofline, memory: FX.charts.memory, densities: FX.charts.densities, compare: FX.compare.draw, decisions: FX.decisions.draw };
  function tab(name) {
    app.tab = name;
    for (const [one] of TABS) {
      document.getElementById(one).hidden = one !== name;
      document.getElementById(`tab-${one}`).setAttribute("aria-selected", String(one === name));
    }
    if (name !== "graph" && !drawn.has(name)) { rest(); DRAW[name](app); drawn.add(name); }
  }
  const stale = () => { drawn.clear(); if (app.tab !== "graph") tab(app.tab); };

  // Choices
  app.choose = (which) => {
    if (!data.views[which] || which === app.which) return;
    const selected = app.selected;
    app.which = which;
    app.view = viewOf(which);
    for (const button of document.querySelectorAll("#views button")) button.setAttribute("aria-checked", String(button.dataset.view === which));
    app.selected = selected && (selected.kind === "group" ? app.view.groups.get(selected.key) : app.view.rowOf.get(selected.name) || app.view.groups.get(selected.module)) || null;
    figures();
    FX.graph.draw({ keep: app.selected?.id });
    FX.details.shown(app.selected);
    stale();
  };
  app.select = (item) => { FX.graph.select(item); FX.details.shown(item); };
  app.show = (item) => {
    if (item.kind !== "group" && !item.parent) { app.select(item); return; }
    if (app.tab !== "graph") tab("graph");
    FX.graph.reveal(item);
    app.select(item);
  };
  for (const button of document.querySelectorAll("#views button")) {
    button.disabled = !data.views[button.dataset.view];
    if (button.disabled) button.title = data.without_before;
    button.setAttribute("aria-checked", String(button.dataset.view === "after"));
    button.addEventListener("click", () => app.choose(button.dataset.view));
  }
  const colours = document.getElementById("colour");
  for (const [name, mode] of Object.entries(FX.colour.MODES)) {
    const has = app.view.drawn.some((row) => mode.value(row, app) !== null);
    colours.append(el("option", { value: name, disabled: !has && name !== "technique" }, mode.title));
  }
  app.colour = app.view.drawn.some((row) => row.technique) ? "technique" : "flops";
  colours.value = app.colour;
  colours.addEventListener("change", () => { app.colour = colours.value; FX.graph.paint(); FX.graph.minimap(); });
  const passes = document.getElementById("pass");
  passes.append(el("option", { value: "all" }, "all"), ...Object.entries(FX.PASSES).map(([name, title]) => el("option", { value: name }, title)));
  passes.addEventListener("change", () => { app.pass = passes.value; FX.graph.paint(); FX.graph.minimap(); });
  const theme = () => { root.dataset.theme = FX.colour.isDark() ? "light" : "dark"; store.set("fxsparse-theme", root.dataset.theme); FX.graph.paint(); FX.graph.minimap(); stale(); };
  document.getElementById("theme").addEventListener("click", theme);
  document.getElementById("fit").addEventListener("click", () => FX.graph.fit());
  document.getElementById("fold-more").addEventListener("click", FX.graph.foldLevel);
  document.getElementById("fold-less").addEventListener("click", FX.graph.unfoldLevel);

  // Search
  const search = document.getElementById("search"), hits = document.getElementById("hits");
  let found = [], at = 0;
  function look() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (item) => (item.kind === "group" ? `${item.module} ${item.type}` : `${item.name} ${item.target} ${item.module} ${item.cost?.site || item.site} ${item.cost?.operator || ""} ${item.technique}`).toLowerCase();
    const all = words.length ? [...[...app.view.groups.values()].filter((group) => group.module), ...app.view.drawn] : [];
    found = all.filter((item) => { const own = text(item); return words.every((word) => own.includes(word)); });
    const rank = (item) => { const own = item.label.toLowerCase(), full = item.kind === "group" ? item.module.toLowerCase() : item.name.toLowerCase(); return words.includes(own) ? 0 : words.some((word) => full.endsWith(word)) ? 1 : full.startsWith(words[0]) ? 2 : 3; };
    found.sort((a, b) => rank(a) - rank(b));
    at = 0;
    list();
    document.querySelectorAll("#canvas .item").forEach((card) => card.classList.toggle("dim", Boolean(words.length) && !found.some((item) => holds(card.dataset.id, item))));
  }
  const holds = (id, item) => item.id === id || FX.model.chain(item).some((above) => above.id === id);
  function list() {
    hits.hidden = !search.value.trim();
    search.setAttribute("aria-expanded", String(!hits.hidden));
    const rows = found.slice(0, 30).map((item, index) => el("li", { "aria-selected": String(index === at), onpointerdown: (event) => { event.preventDefault(); go(item); } }, el("b", {}, item.label), " ", el("span", { class: "muted" }, item.kind === "group" ? item.module : item.name)));
    hits.replaceChildren(...rows, el("li", { class: "muted count" }, found.length > 30 ? `${found.length} found, 30 shown` : `${found.length} found`));
  }
  function go(item) { hits.hidden = true; app.show(item); look(); hits.hidden = true; }
  search.addEventListener("input", look);
  search.addEventListener("focus", () => { if (search.value) look(); });
  search.addEventListener("blur", () => { hits.hidden = true; });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { at = Math.max(0, Math.min(Math.min(found.length, 30) - 1, at + (event.key === "ArrowDown" ? 1 : -1))); list(); event.preventDefault(); }
    else if (event.key === "Enter" && found[at]) go(found[at]);
    else if (event.key === "Escape") { search.value = ""; look(); search.blur(); }
    event.stopPropagation();
  });

  // Keys
  const KEYS = [
    ["1 – 7", "graph, layers, roofline, memory, densities, compare, decisions"], ["/", "search"], ["← ↑ ↓ →", "the next node that way"], ["Enter", "unfold or fold the selected module"],
    ["[  ]", "fold or unfold one level"], ["+  −  f", "zoom, fit"], ["w a s d", "move"], ["c", "next colouring"], ["b", "before or after the passes"], ["t", "dark or light"], ["Esc", "select nothing"], ["?", "these keys"],
  ];
  const dialog = document.getElementById("keys");
  dialog.append(el("h2", {}, "Keys"), el("dl", {}, KEYS.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])), el("form", { method: "dialog" }, el("button", {}, "Close")));
  document.getElementById("help").addEventListener("click", () => dialog.showModal());
  const next = () => { const free = [...colours.options].filter((one) => !one.disabled); colours.value = free[(free.findIndex((one) => one.value === colours.value) + 1) % free.length].value; colours.dispatchEvent(new Event("change")); };
  const ACTIONS = {
    "/": () => { tab("graph"); search.focus(); search.select(); }, "?": () => dialog.showModal(), t: theme, b: () => app.choose(app.which === "after" ? "before" : "after"), c: next,
    f: () => FX.graph.fit(), "+": () => FX.graph.by(1.25), "=": () => FX.graph.by(1.25), "-": () => FX.graph.by(0.8), "[": FX.graph.foldLevel, "]": FX.graph.unfoldLevel,
    w: () => FX.graph.pan(0, 80), s: () => FX.graph.pan(0, -80), a: () => FX.graph.pan(80, 0), d: () => FX.graph.pan(-80, 0), Escape: () => app.select(null),
  };
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open || /^(input|select|textarea)$/i.test(event.target.tagName)) return;
    const number = Number(event.key);
    if (number >= 1 && number <= TABS.length) { tab(TABS[number - 1][0]); event.preventDefault(); return; }
    if (app.tab === "graph" && ARROWS[event.key]) {
      const item = FX.graph.step(...ARROWS[event.key]);
      if (item) { app.select(item); FX.graph.centre(item); }
      event.preventDefault();
    } else if (app.tab === "graph" && (event.key === "Enter" || event.key === " ") && app.selected?.kind === "group" && event.target.tagName !== "BUTTON") {
      FX.graph.toggle(app.selected);
      event.preventDefault();
    } else if (ACTIONS[event.key]) { ACTIONS[event.key](); event.preventDefault(); }
  });
  document.getElementById("canvas").addEventListener("click", () => app.select(null));
  document.getElementById("canvas").addEventListener("focusin", (event) => { const id = event.target.dataset?.id; const box = id && FX.graph.visible().find((one) => one.item.id === id); if (box && box.item !== app.selected) { FX.graph.select(box.item, { quiet: true }); FX.details.shown(box.item); } });
  let resized;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { FX.graph.minimap(); stale(); }, 150); });

  FX.app = app;
  figures();
  tab("graph");
  FX.graph.start(app);
  FX.details.start(app);
  FX.graph.draw();
  FX.graph.fit({ least: 0.85 });
  FX.details.shown(null);
  requestAnimationFrame(() => { document.body.dataset.ready = String(Math.round(performance.now())); });
};
FX.start();
