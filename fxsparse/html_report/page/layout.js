// Where everything stands: dagre lays out each unfolded module by itself, from the innermost outwards, and the modules become boxes
// of the layout around them. So only what is visible is laid out, and a module looks the same wherever it is unfolded.
FX.layout = (() => {
  const HEAD = 30, PAD = 16, CARD = 46, MOST_PORTS = 3;
  const pen = document.createElement("canvas").getContext("2d");
  const width = (text, font) => { pen.font = font; return pen.measureText(text).width; };
  const SANS = "system-ui, -apple-system, 'Segoe UI', sans-serif";

  function size(item) {
    const titles = width(item.label, `600 13px ${SANS}`) + (item.kind === "group" ? 26 : 0);
    return { width: Math.min(340, Math.max(164, titles + 28, width(FX.graph.subtitle(item), `11px ${SANS}`) + 92)), height: CARD };
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
      const head = isRoot ? 0 : HEAD, rim = isRoot ? 24 : PAD;
      const nodes = new Map([...sizes.keys()].map((id) => [id, graph.node(id)]));
      const top = d3.min(sizes, ([id, one]) => nodes.get(id).y - one.height / 2), bottom = d3.max(sizes, ([id, one]) => nodes.get(id).y + one.height / 2);
      const wide = graph.graph().width;
      const least = isRoot ? 0 : width(container.label, `600 13px ${SANS}`) + width(FX.graph.subtitle(container), `11px ${SANS}`) + 90;
      const right = Math.max(0, (least - wide) / 2), down = head + rim - top;
      const placed = { item: container, width: Math.max(wide, least), height: bottom - top + head + 2 * rim, children: [], edges: [], inAt: {}, outAt: null, left: thin.left };
      for (const [id, one] of sizes) placed.children.push({ ...one, x: nodes.get(id).x - one.width / 2 + right, y: nodes.get(id).y - one.height / 2 + down });
      const at = new Map(placed.children.map((child) => [child.item.id, child]));
      for (const edge of list) {
        const points = graph.edge(edge.from, edge.to).points.map(({ x, y }) => ({ x: x + right, y: y + down }));
        const from = at.get(edge.from), to = at.get(edge.to);
        // Ports stand on the border: what dagre drew beyond it is cut off.
        if (from) { points[0].y = from.y + from.height; if (from.outAt != null) points[0].x = from.x + from.outAt; }
        else { const x = graph.node(edge.from).x + right; placed.inAt[edge.from] = x; while (points.length > 1 && points[0].y <= head + 2) points.shift(); points.unshift({ x, y: 0 }, { x, y: head }); }
        const last = points[points.length - 1];
        if (to) { last.y = to.y; const port = to.inAt && (to.inAt[`in ${edge.from}`] ?? to.inAt["in *"]); if (port != null) last.x = to.x + port; }
        else { const x = graph.node("out").x + right; placed.outAt = x; while (points.length > 2 && points[points.length - 1].y >= placed.height - 2) points.pop(); points.push({ x, y: placed.height }); }
        placed.edges.push({ ...edge, points });
      }
      return placed;
    }
    return box(view.root);
  }
  return { layout, HEAD };
})();
