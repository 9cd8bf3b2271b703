// Where everything stands: dagre lays out each unfolded module by itself, from the innermost outwards, and the modules become boxes
// of the layout around them. So only what is visible is laid out, and a module looks the same wherever it is unfolded.
FX.layout = (() => {
  const HEAD = 30, PAD = 16, CARD = 46, MOST_PORTS = 3;
  const pen = document.createElement("canvas").getContext("2d");
  const width = (text, font) => { pen.font = font; return pen.measureText(text).width; };
  const SANS = "system-ui, -apple-system, 'Segoe UI', sans-serif";

  function size(item) {
    const titles = width(item.label, `600 13px ${SANS}`) + (item.kind === "group" ? 26 : 0);
    return { width: Math.min(340, Math.max(132, titles + 28, width(FX.graph.subtitle(item), `11px ${SANS}`) + 92)), height: CARD };
  }

  // For each unfolded module the edges between what stands in it, and between that and its own border.
  function edges(view, isOpen) {
    const found = new Map();
    const paths = new Map();
    const visible = (row) => {
      if (!paths.has(row)) {
        const path = FX.model.chain(row);
        const end = path.findIndex((one) => one.kind === "group" && !isOpen(one));
        paths.set(row, end < 0 ? path : path.slice(0, end + 1));
      }
      return paths.get(row);
    };
    const note = (container, from, to, row) => {
      if (!found.has(container)) found.set(container, new Map());
      const key = `${from}\n${to}`;
      const inside = found.get(container);
      if (!inside.has(key)) inside.set(key, { from, to, shape: row.shape, count: 0 });
      inside.get(key).count += 1;
    };
    for (const row of view.drawn) {
      for (const source of row.sources) {
        if (!source.parent) continue;
        const up = visible(source), down = visible(row);
        let at = 0;
        while (at < up.length && at < down.length && up[at] === down[at]) at++;
        if (at === up.length || at === down.length) continue;
        const container = at ? up[at - 1] : view.root;
        note(container, up[at].id, down[at].id, source);
        for (let level = at; level + 1 < up.length; level++) note(up[level], up[level + 1].id, "out", source);
        for (let level = at; level + 1 < down.length; level++) note(down[level], `in ${up[at].id}`, down[level + 1].id, source);
      }
    }
    return found;
  }

  // Without edges that a longer way replaces, where there are so many that nobody could follow them.
  function thinned(list, count) {
    if (list.length <= 2.2 * count || count < 6) return { list, left: 0 };
    const next = new Map();
    for (const edge of list) next.set(edge.from, [...(next.get(edge.from) || []), edge.to]);
    const order = [], state = new Map();
    let cyclic = false;
    const visit = (id) => {
      if (state.get(id) === 2) return;
      if (state.get(id) === 1) { cyclic = true; return; }
      state.set(id, 1);
      for (const other of next.get(id) || []) visit(other);
      state.set(id, 2);
      order.push(id);
    };
    for (const id of next.keys()) visit(id);
    if (cyclic) return { list, left: 0 };
    const reach = new Map();
    for (const id of order) {
      const all = new Set();
      for (const other of next.get(id) || []) { all.add(other); for (const far of reach.get(other) || []) all.add(far); }
      reach.set(id, all);
    }
    const kept = list.filter((edge) => !(next.get(edge.from) || []).some((other) => other !== edge.to && reach.get(other)?.has(edge.to)));
    return { list: kept, left: list.length - kept.length };
  }

  function layout(view, isOpen) {
    const all = edges(view, isOpen);

    function box(container) {
      const isRoot = container === view.root;
      const items = container.children;
      const sizes = new Map(items.map((item) => [item.id, item.kind === "group" && isOpen(item) ? box(item) : { ...size(item), item }]));
      let list = [...(all.get(container) || new Map()).values()];
      const ports = [...new Set(list.filter((edge) => edge.from.startsWith("in ")).map((edge) => edge.from))];
      const merged = ports.length > MOST_PORTS;
      if (merged) {
        const known = new Map();
        for (const edge of list) {
          const from = edge.from.startsWith("in ") ? "in *" : edge.from;
          const key = `${from}\n${edge.to}`;
          if (!known.has(key)) known.set(key, { ...edge, from });
        }
        list = [...known.values()];
      }
      const thin = thinned(list, items.length);
      list = thin.list;
      const graph = new dagre.graphlib.Graph();
      graph.setGraph({ rankdir: "TB", nodesep: 26, ranksep: 30, edgesep: 12, marginx: isRoot ? 24 : PAD, marginy: isRoot ? 24 : PAD, ranker: items.length > 60 ? "longest-path" : "network-simplex" });
      graph.setDefaultEdgeLabel(() => ({}));
      for (const [id, one] of sizes) graph.setNode(id, { width: one.width, height: one.height });
      for (const edge of list) for (const end of [edge.from, edge.to]) if (!graph.hasNode(end)) graph.setNode(end, { width: 2, height: 2 });
      for (const edge of list) graph.setEdge(edge.from, edge.to, { weight: edge.from.startsWith("in ") || edge.to === "out" ? 1 : 3 });
      dagre.layout(graph);
      const head = isRoot ? 0 : HEAD;
      const { width: wide, height: high } = graph.graph();
      const least = isRoot ? 0 : width(container.label, `600 13px ${SANS}`) + width(FX.graph.subtitle(container), `11px ${SANS}`) + 90;
      const shift = Math.max(0, (least - wide) / 2);
      const placed = { item: container, width: Math.max(wide, least), height: high + head, children: [], edges: [], inAt: {}, outAt: null, left: thin.left };
      for (const [id, one] of sizes) {
        const node = graph.node(id);
        placed.children.push({ ...one, x: node.x - one.width / 2 + shift, y: node.y - one.height / 2 + head });
      }
      const at = new Map(placed.children.map((child) => [child.item.id, child]));
      for (const edge of list) {
        const points = graph.edge(edge.from, edge.to).points.map(({ x, y }) => ({ x: x + shift, y: y + head }));
        const from = at.get(edge.from), to = at.get(edge.to);
        const first = points[0], last = points[points.length - 1];
        if (from) { first.y = from.y + from.height; if (from.outAt != null) first.x = from.x + from.outAt; }
        else { const x = graph.node(edge.from).x + shift; placed.inAt[edge.from] = x; first.x = x; first.y = graph.node(edge.from).y + head; points.unshift({ x, y: 0 }); }
        if (to) { last.y = to.y; const port = to.inAt && (to.inAt[`in ${edge.from}`] ?? to.inAt["in *"]); if (port != null) last.x = to.x + port; }
        else { const x = graph.node("out").x + shift; placed.outAt = x; last.x = x; last.y = graph.node("out").y + head; points.push({ x, y: placed.height }); }
        placed.edges.push({ ...edge, points });
      }
      return placed;
    }
    return box(view.root);
  }
  return { layout, HEAD };
})();
