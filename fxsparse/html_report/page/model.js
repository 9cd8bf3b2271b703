// The document as objects: costs at their nodes, nodes in the tree of modules.
FX.model = (() => {
  const column = (data) => (Array.isArray(data) ? data : data.words ? data.at.map((at) => data.words[at]) : rows(data.rows));
  function rows(table) {
    const names = Object.keys(table.columns);
    const columns = names.map((name) => column(table.columns[name]));
    return Array.from({ length: table.length }, (_, at) => Object.fromEntries(names.map((name, index) => [name, columns[index][at]])));
  }

  // What CostReport.to_dict() is.
  function costs(data) {
    const { tags, ...report } = data;
    const nodes = rows(data.nodes).map((node) => {
      for (const pass of Object.keys(FX.PASSES)) node[pass] = { ...node[pass], tags: tags[node[pass].tags] };
      return node;
    });
    return { ...report, nodes };
  }

  const HIDDEN = (row) => row.kind === "get_attr" || /(^|\.)is_grad_enabled$/.test(row.target);

  function sum(values) {
    const known = values.filter((value) => value !== null && value !== undefined);
    return known.length ? known.reduce((all, value) => all + value, 0) : null;
  }
  // A figure of a row or a module: over all passes, or of one.
  function figureOf(item, figure, pass) {
    item.figures ||= {};
    const key = `${figure}|${pass}`;
    if (!(key in item.figures)) {
      const passes = pass === "all" ? Object.keys(FX.PASSES) : [pass];
      item.figures[key] = figure === "saved_bytes"
        ? sum(item.costs.map((cost) => cost.saved_bytes))
        : sum(item.costs.flatMap((cost) => passes.map((one) => cost[one][figure])));
    }
    return item.figures[key];
  }

  function group(id, parent, modules) {
    const parts = id.split(".");
    const last = parts[parts.length - 1];
    const label = /^\d+$/.test(last) && parts.length > 1 ? parts.slice(-2).join(".") : last;
    return { id: `m:${id}`, module: id, label, kind: "group", type: modules[id] || "", children: [], parent, rows: [], costs: [], depth: parent ? parent.depth + 1 : 0 };
  }

  function tree(all, modules) {
    const drawn = all.filter((row) => !HIDDEN(row));
    const inner = new Set([""]);
    const members = new Map();
    for (const row of drawn) {
      const parts = row.module.split(".");
      for (let size = 1; size < parts.length; size++) inner.add(parts.slice(0, size).join("."));
      members.set(row.module, [...(members.get(row.module) || []), row]);
    }
    const main = (row) => row.kind === "call_module" || row.role === "contraction";
    const isLeafGroup = (module) => members.get(module).length > 1 && members.get(module).filter(main).length <= 1;
    const root = group("", null, modules);
    const groups = new Map([["", root]]);
    function at(module) {
      if (!groups.has(module)) {
        const parent = at(module.includes(".") ? module.slice(0, module.lastIndexOf(".")) : "");
        const made = group(module, parent, modules);
        parent.children.push(made);
        groups.set(module, made);
      }
      return groups.get(module);
    }
    for (const row of drawn) {
      const grouped = inner.has(row.module) || isLeafGroup(row.module);
      const parent = grouped ? at(row.module) : at(row.module.includes(".") ? row.module.slice(0, row.module.lastIndexOf(".")) : "");
      row.parent = parent;
      row.isLeafModule = !grouped;
      parent.children.push(row);
      for (let above = parent; above; above = above.parent) {
        above.rows.push(row);
        above.costs.push(...row.costs);
      }
    }
    for (const one of groups.values()) one.isLeaf = one.module !== "" && !inner.has(one.module);
    return { root, groups, drawn };
  }

  function view(data, modules) {
    const cost = costs(data.cost);
    const byName = new Map(cost.nodes.map((node) => [node.name, node]));
    const all = rows(data.rows);
    for (const row of all) {
      row.id = `n:${row.name}`;
      row.cost = byName.get(row.name) || null;
      row.costs = row.cost ? [row.cost] : [];
      row.rows = [row];
      row.label = label(row);
    }
    const rowOf = new Map(all.map((row) => [row.name, row]));
    for (const row of all) {
      row.sources = row.inputs.map((name) => rowOf.get(name)).filter(Boolean);
      row.users ||= [];
      for (const source of row.sources) (source.users ||= []).push(row);
    }
    return { cost, all, rowOf, timeline: data.timeline, ...tree(all, modules) };
  }

  function label(row) {
    if (row.kind === "placeholder") return row.name;
    if (row.kind === "output") return "output";
    const name = row.kind === "call_module" ? row.module : row.target;
    const parts = name.split(/::|\./);
    const last = parts[parts.length - 1];
    return /^\d+$/.test(last) && parts.length > 1 ? parts.slice(-2).join(".") : last;
  }

  // The nodes above a row in the tree, itself included, from the root's child on.
  function chain(item) {
    const found = [];
    for (let one = item; one.parent; one = one.parent) found.unshift(one);
    return found;
  }
  return { costs, rows, view, figureOf, chain, sum };
})();
