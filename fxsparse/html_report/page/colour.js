// What the cards are coloured by.
FX.colour = (() => {
  const isDark = () => document.documentElement.dataset.theme === "dark";
  const CATEGORIES = { light: d3.schemeTableau10, dark: d3.schemeTableau10 };
  const blank = () => (isDark() ? "#232a36" : "#ffffff");
  const ramp = (share) => d3.interpolateRgbBasis(isDark() ? ["#232a36", "#1f4a63", "#1f7a86", "#58b887"] : ["#ffffff", "#cfe6f2", "#6fb1d6", "#1f6aa8"])(share);
  const sparse = (share) => d3.interpolateRgbBasis(isDark() ? ["#232a36", "#5a4320", "#a8741f", "#f0b044"] : ["#ffffff", "#fde7c2", "#f6b961", "#d77a12"])(share);

  const figure = (name) => ({
    title: FX.FIGURES[name].title,
    value: (item, app) => FX.model.figureOf(item, name, name === "saved_bytes" ? "all" : app.pass),
    text: (value) => FX.format.figure(name, value),
    scale: "amount",
  });
  // Mean over the sites of an item, each weighted by its elements or its MACs.
  function density(which) {
    return (item, app) => {
      let kept = 0, whole = 0;
      const seen = new Set();
      for (const row of item.rows) {
        const isSite = row.cost && row.cost.site && row.cost.forward.dense_macs > 0;
        if (!isSite || (which === "weight_density" && seen.has(row.cost.site))) continue;
        seen.add(row.cost.site);
        const share = which === "weight_density" ? app.elements.get(row.cost.site) || 1 : row.cost.forward.dense_macs;
        kept += share * row.cost[which];
        whole += share;
      }
      return whole ? kept / whole : null;
    };
  }
  function bits(item) {
    const found = item.rows.map((row) => row.bits).filter((value) => value !== null);
    return found.length ? d3.max(found) : null;
  }
  function technique(item) {
    const found = new Set(item.rows.flatMap((row) => (row.technique ? row.technique.split(" + ") : [])));
    return found.size ? [...found].sort().join(" + ") : null;
  }

  const MODES = {
    technique: { title: "technique", value: technique, text: (value) => value || "", scale: "name" },
    weight_density: { title: "weight density", value: density("weight_density"), text: (value) => `${Number(value.toPrecision(3))}`, scale: "sparse" },
    activation_density: { title: "activation density", value: density("activation_density"), text: (value) => `${Number(value.toPrecision(3))}`, scale: "sparse" },
    flops: figure("flops"),
    macs: figure("macs"),
    dram_bytes: { ...figure("dram_bytes"), title: "bytes moved (DRAM)" },
    saved_bytes: { ...figure("saved_bytes"), title: "bytes kept for backward" },
    cycles: figure("cycles"),
    energy_pj: figure("energy_pj"),
    time_s: figure("time_s"),
    bits: { title: "bits kept", value: bits, text: (value) => `${value} bit${value > 1 ? "s" : ""}`, scale: "name" },
  };

  // Colours for the items that are visible now: {of(item) -> [fill, text], legend}.
  function paint(items, mode, app) {
    const { value, text, scale } = MODES[mode];
    const values = new Map(items.map((item) => [item, value(item, app)]));
    const known = [...values.values()].filter((one) => one !== null && one !== undefined);
    if (scale === "name") {
      const names = app.names(mode);
      const palette = CATEGORIES[isDark() ? "dark" : "light"];
      const colour = new Map(names.map((name, index) => [name, palette[index % palette.length]]));
      const of = (item) => (values.get(item) === null ? blank() : d3.interpolateRgb(blank(), colour.get(values.get(item)) || "#888")(isDark() ? 0.62 : 0.55));
      const shown = new Set(known);
      return { of, text: (item) => (values.get(item) === null ? "" : text(values.get(item))), legend: { title: MODES[mode].title, names: names.filter((name) => shown.has(name)).map((name) => [text(name), d3.interpolateRgb(blank(), colour.get(name))(isDark() ? 0.62 : 0.55)]) } };
    }
    const most = scale === "sparse" ? 1 : d3.max(known) || 1;
    const share = scale === "sparse" ? (one) => 1 - one : (one) => Math.sqrt(Math.max(0, one) / most);
    const ink = scale === "sparse" ? sparse : ramp;
    const of = (item) => { const one = values.get(item); return one === null || one === undefined ? blank() : ink(share(one)); };
    const ends = scale === "sparse" ? ["1 (dense)", "0"] : ["0", text(most)];
    return { of, text: (item) => { const one = values.get(item); return one === null || one === undefined || (scale === "amount" && !one) ? "" : text(one); }, legend: { title: MODES[mode].title, ramp: d3.range(0, 1.01, 0.1).map((at) => ink(at)), ends } };
  }
  const onto = (fill) => { const { l } = d3.lab(fill); return l > 58 ? "#10151f" : "#f5f7fb"; };
  return { MODES, paint, onto, isDark };
})();
