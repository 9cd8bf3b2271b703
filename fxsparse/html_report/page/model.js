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

  // Reads of parameters, and numbers that are computed from shapes, would hide what is computed from tensors.
  const HIDDEN = (row) => row.kind === "get_attr" || (row.cost === null && !["placeholder", "output", "python"].includes(row.kind));

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

  function group(key, parent, modules) {
    const id = key.replace(/#\d+$/, "");
    const parts = id.split(".");
    const last = parts[parts.length - 1];
    const label = /^\d+$/.test(last) && parts.length > 1 ? parts.slice(-2).join(".") : last;
    return { id: `m:${key}`, key, module: id, label, kind: "group", type: modules[id] || "", children: [], parent, rows: [], costs: [], depth: parent ? parent.depth + 1 : 0 };
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
    // A leaf module's nodes that hang together are one call of it: a group if they are several, else the node itself.
    const keyOf = new Map();
    for (const [module, rows] of members) {
      if (inner.has(module)) continue;
      const own = new Set(rows), seen = new Set();
      let calls = 0;
      for (const first of rows) {
        if (seen.has(first)) continue;
        const call = [], open = [first];
        seen.add(first);
        while (open.length) {
          const row = open.pop();
          call.push(row);
          for (const other of [...row.sources, ...row.users]) if (own.has(other) && !seen.has(other)) { seen.add(other); open.push(other); }
        }
        if (call.length > 1) { calls += 1; for (const row of call) keyOf.set(row, calls > 1 ? `${module}#${calls}` : module); }
      }
    }
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
      const key = inner.has(row.module) ? row.module : keyOf.get(row);
      const parent = key !== undefined ? at(key) : at(row.module.includes(".") ? row.module.slice(0, row.module.lastIndexOf(".")) : "");
      row.parent = parent;
      row.isLeafModule = key === undefined;
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
    for (const row of all) row.users = [];
    for (const row of all) {
      row.sources = row.inputs.map((at) => all[at]);
      for (const source of row.sources) source.users.push(row);
    }
    return { cost, all, rowOf, timeline: data.timeline && timeline(data.timeline), ...tree(all, modules) };
  }

  // What MemoryTimeline.to_dict() is.
  function timeline(data) {
    const { name, by_kind: kinds } = data.steps;
    const steps = name.map((one, at) => {
      const own = kinds.map((kind) => kind[at]);
      return { name: one, by_kind: own, bytes: own.reduce((all, size) => all + size, 0) };
    });
    return { ...data, steps };
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
  return { costs, rows, timeline, view, figureOf, chain, sum };
})();
