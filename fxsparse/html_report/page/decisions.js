// What the passes did, what they left, and the policy that asked for it.
FX.decisions = {
  draw(app) {
    const { el } = FX;
    const { report, policy, versions } = app.data;
    const panel = document.getElementById("decisions");
    const shown = (title, count, ...children) => el("section", {}, el("h2", {}, title, " ", el("span", { class: "muted" }, String(count))), ...children);
    const find = (change) => app.views.after.all.find((row) => row.graph === change.graph && row.name.split("/").pop() === change.node && row.parent);
    const changes = FX.table([
      { key: "site", title: "site", value: (row) => row.site }, { key: "what", title: "what was done", value: (row) => row.what }, { key: "why", title: "why", value: (row) => row.why },
      { key: "added", title: "nodes added", value: (row) => row.added.length }, { key: "removed", title: "removed", value: (row) => row.removed.length },
    ], report.changes.map((change) => ({ ...change, name: change.node })), { click: (change) => { const row = find(change); if (row) { app.choose("after"); app.show(row); } } });
    const skips = FX.table([{ key: "site", title: "left exact", value: (row) => row.site }, { key: "reason", title: "reason", value: (row) => row.reason }], report.skips.map((skip) => ({ ...skip, name: skip.site })), {});
    const left = Object.entries(report.left);
    panel.replaceChildren(
      shown("Changes", report.changes.length, report.changes.length ? changes.element : null),
      report.skips.length ? shown("Left exact", report.skips.length, skips.element) : "",
      left.length ? shown("Keeps its Python", left.length, el("dl", {}, left.flatMap(([path, why]) => [el("dt", {}, path || "(root)"), el("dd", {}, why)]))) : "",
      shown("Policy", policy.techniques.length, el("pre", { class: "policy" }, JSON.stringify(policy, null, 2))),
      el("p", { class: "muted" }, `fxsparse ${versions.fxsparse}, torch ${versions.torch}. This page is drawn with d3 and Observable Plot (ISC) and dagre (MIT); their licences are in its source.`));
  },
};
