// Everything about the selected node or module.
FX.details = (() => {
  const { el } = FX;
  let app;
  const start = (shared) => { app = shared; };

  const section = (title, ...children) => el("section", {}, el("h3", {}, title), ...children);
  const pairs = (entries) => el("dl", {}, entries.filter(([, value]) => value !== "" && value !== null && value !== undefined).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value instanceof Node ? value : String(value))]));
  const link = (item, text) => el("button", { class: "link", onclick: () => app.show(item) }, text);

  function shown(item) {
    const aside = document.getElementById("details");
    if (!item) { aside.replaceChildren(...overview()); return; }
    aside.replaceChildren(...(item.kind === "group" ? ofGroup(item) : ofRow(item)));
    aside.scrollTop = 0;
  }

  function overview() {
    const { report } = app.data;
    const heavy = [...app.view.cost.nodes].map((cost) => app.view.rowOf.get(cost.name)).filter((row) => row?.parent);
    const by = app.view.cost.accelerator ? "time_s" : "flops";
    heavy.sort((a, b) => (FX.model.figureOf(b, by, "all") || 0) - (FX.model.figureOf(a, by, "all") || 0));
    return [
      el("h2", {}, app.data.model),
      el("p", { class: "muted" }, `${Object.keys(report.graphs).length} graph${Object.keys(report.graphs).length === 1 ? "" : "s"}, ${app.view.all.length} nodes; ${report.sites.filter((site) => site.technique).length} of ${report.sites.length} contractions rewritten, ${Object.keys(report.left).length} modules keep their Python.`),
      el("p", { class: "muted" }, "Click a node for its details; double-click a module, or press Enter, to unfold it. Press ? for all keys."),
      section(by === "time_s" ? "Longest" : "Most FLOPs", el("ol", { class: "ranks" }, heavy.slice(0, 8).map((row) => el("li", {}, link(row, row.cost.site ? row.cost.site.replace(/\.weight$/, "") : row.name), FX.number(by, FX.model.figureOf(row, by, "all"), "span"))))),
    ];
  }

  function costTable(item, exact) {
    const figures = Object.keys(FX.FIGURES).filter((name) => name !== "saved_bytes" && FX.model.figureOf(item, name, "all") !== null);
    const passes = Object.keys(FX.PASSES);
    const head = el("tr", {}, el("th", {}), passes.map((pass) => el("th", { class: "n" }, FX.PASSES[pass])), el("th", { class: "n" }, "all"));
    const rows = figures.map((name) => el("tr", { "data-row": name },
      el("th", {}, FX.FIGURES[name].title),
      passes.map((pass) => FX.number(name, exact ? exact[pass][name] : FX.model.figureOf(item, name, pass), "td", { "data-pass": pass })),
      FX.number(name, FX.model.figureOf(item, name, "all"), "td", { "data-pass": "all" })));
    const bounds = exact && passes.some((pass) => exact[pass].bound) ? [el("tr", {}, el("th", {}, "bound by"), passes.map((pass) => el("td", { class: "n" }, exact[pass].bound || "–")), el("td"))] : [];
    const sure = exact ? [el("tr", { class: "muted" }, el("th", {}, "how sure"), passes.map((pass) => el("td", { class: "n" }, exact[pass].tags[app.view.cost.accelerator ? "time_s" : "macs"] || "–")), el("td"))] : [];
    return el("table", { class: "costs" }, el("thead", {}, head), el("tbody", {}, rows, bounds, sure));
  }

  function ofGroup(group) {
    const heads = [...group.children].sort((a, b) => (FX.model.figureOf(b, "flops", "all") || 0) - (FX.model.figureOf(a, "flops", "all") || 0));
    return [
      el("h2", {}, group.module),
      pairs([["class", group.type], ["nodes", group.rows.length], ["techniques", [...new Set(group.rows.map((row) => row.technique).filter(Boolean))].join(", ")]]),
      ...(group.isLeaf ? lines(group.rows) : []),
      section("Costs of the module", costTable(group, null), pairs([["kept for backward", FX.number("saved_bytes", FX.model.figureOf(group, "saved_bytes", "all"), "span")]])),
      ...siteSections(new Set(group.rows.map((row) => row.cost?.site || row.site).filter((site) => group.isLeaf && site))),
      section("In it", el("ol", { class: "ranks" }, heads.slice(0, 40).map((item) => el("li", {}, link(item, item.label), FX.number("flops", FX.model.figureOf(item, "flops", "all"), "span"))))),
    ];
  }

  function ofRow(row) {
    const { cost } = row;
    const site = cost?.site || row.site;
    return [
      el("h2", {}, row.name),
      pairs([
        ["operator", cost?.operator], [row.kind, row.target], ["module", row.module || "(the model)"], ["class", app.modules[row.module]],
        ["technique", row.technique], ["bits kept", row.bits], ["result", row.shape.replace(/(?<=\d)x(?=\d)/g, "×")], ["put there by", row.made_by], ["role", row.role.replaceAll("_", " ")],
      ]),
      ...lines([row]),
      ...(cost ? [section("Costs", costTable(row, cost), pairs([
        ["kept for backward", FX.number("saved_bytes", cost.saved_bytes, "span")],
        ["weight density", site ? FX.number("weight_density", cost.weight_density, "span") : ""],
        ["activation density", site ? FX.number("activation_density", cost.activation_density, "span") : ""],
        ["not known", cost.known ? "" : cost.note || FX.format.quantity(cost.unknown_bytes, "B")],
      ]))] : []),
      ...siteSections(new Set(site ? [site] : [])),
      ...changes(row),
      section("Reads", neighbours(row.sources)),
      section("Read by", neighbours(row.users || [])),
    ];
  }

  const neighbours = (rows) => rows.length ? el("ul", { class: "near" }, rows.slice(0, 60).map((row) => el("li", {}, row.parent ? link(row, row.name) : el("code", {}, row.target), " ", el("span", { class: "muted" }, row.shape.split(" ")[0].replaceAll("x", "×"))))) : el("p", { class: "muted" }, "nothing");

  // The lines of the model that made the rows.
  function lines(rows) {
    const found = [...new Set(rows.map((row) => row.line).filter(Boolean))];
    if (!found.length) return [];
    return [section("Line of the model", ...found.slice(0, 4).map((text) => {
      const [, file, number, code] = text.match(/^(.*):(\d+): (.*)$/s) || [null, text, "", ""];
      return el("figure", { class: "line" }, el("pre", {}, el("code", {}, code)), el("figcaption", {}, `${file}:${number}`));
    }))];
  }

  function siteSections(sites) {
    const { report, densities } = app.data;
    return [...sites].flatMap((site) => {
      const spec = report.plan[site] || report.kept[site];
      const found = densities.find((one) => one.site === site);
      const skips = report.skips.filter((skip) => skip.site === site);
      const entries = spec ? Object.entries(spec.specs ? Object.assign({}, ...spec.specs) : spec).filter(([name, value]) => name !== "site" && value !== null && typeof value !== "object") : [];
      const of = (which) => found?.[which] && found[which].target !== 1 ? found[which].actual === null ? `not counted yet, target ${FX.format.percent(found[which].target)}` : `${FX.format.percent(found[which].actual)} kept, target ${FX.format.percent(found[which].target)}` : "";
      return [section("Site", pairs([["weight", site], ["weights now", of("weight")], ["activations now", of("activation")], ...entries.map(([name, value]) => [name.replaceAll("_", " "), value]), ...skips.map((skip) => ["left exact", skip.reason])]))];
    });
  }

  function changes(row) {
    const name = row.name.split("/").pop();
    const found = app.data.report.changes.filter((change) => change.graph === row.graph && (change.node === name || change.added.includes(name)));
    return found.length ? [section("Why it is there", ...found.slice(0, 4).map((change) => el("p", {}, `${change.what} — ${change.why}`)))] : [];
  }
  return { start, shown };
})();
