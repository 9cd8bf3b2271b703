// The graph on the screen: cards, boxes, edges; pan and zoom; what is folded; what is selected.
FX.graph = (() => {
  const FIRST_CARDS = 46;
  const line = d3.line((point) => point.x, (point) => point.y).curve(d3.curveBasis);
  let app, canvas, stage, zoom, placed = new Map(), cards = new Map();

  const isOpen = (group) => app.open.has(group.key);

  function subtitle(item) {
    if (item.kind === "group") {
      const parts = [item.type];
      if (!item.isLeaf) parts.push(`${item.rows.length} nodes`);
      return parts.filter(Boolean).join(" · ");
    }
    const operator = item.kind === "call_module" ? app.modules[item.module] || "" : item.cost ? item.cost.operator : "";
    const shape = item.shape.split(" ")[0].replaceAll("x", "×");
    return [operator === item.label ? "" : operator, shape].filter(Boolean).join(" · ");
  }

  // Level by level, as long as not more cards than can be taken in at a glance are on the screen.
  function firstOpen(view) {
    const open = new Set();
    let level = [view.root];
    let count = view.root.children.length;
    while (level.length) {
      const below = level.flatMap((group) => group.children.filter((item) => item.kind === "group" && !item.isLeaf));
      if (!below.length) break;
      const more = below.reduce((all, group) => all + group.children.length - 1, 0);
      if (count + more > FIRST_CARDS) {
        let rest = below.filter((group) => count + group.children.length - 1 <= FIRST_CARDS && group.children.length <= 6 && below.length <= 2);
        for (const group of rest) { open.add(group.key); count += group.children.length - 1; }
        if (!rest.length) break;
        level = rest;
        continue;
      }
      for (const group of below) open.add(group.key);
      count += more;
      level = below;
    }
    return open;
  }

  function start(shared) {
    app = shared;
    canvas = d3.select("#canvas");
    stage = canvas.append("g");
    canvas.append("defs").append("marker").attr("id", "arrow").attr("viewBox", "0 0 8 8").attr("refX", 7).attr("refY", 4).attr("markerWidth", 9).attr("markerHeight", 9).attr("markerUnits", "userSpaceOnUse").attr("orient", "auto")
      .append("path").attr("d", "M0,0.8L7.2,4L0,7.2Z");
    zoom = d3.zoom().scaleExtent([0.04, 3]).on("zoom", ({ transform }) => { stage.attr("transform", transform); window(transform); });
    canvas.call(zoom).on("dblclick.zoom", null);
    app.open = firstOpen(app.view);
  }

  function draw({ keep } = {}) {
    const was = keep && placed.get(keep);
    const before = d3.zoomTransform(canvas.node());
    const layout = FX.layout.layout(app.view, isOpen);
    placed = new Map();
    cards = new Map();
    app.size = [layout.width, layout.height];
    const content = FX.svg("g");
    let hidden = 0;
    const put = (box, x, y, onto) => {
      placed.set(box.item.id, { x, y, width: box.width, height: box.height, item: box.item, open: Boolean(box.children) });
      const isRoot = box.item === app.view.root;
      const group = FX.svg("g", { transform: isRoot ? null : `translate(${box.px},${box.py})` });
      onto.append(group);
      if (!isRoot) group.append(opened(box));
      hidden += box.left;
      const layer = FX.svg("g", { class: "edges" });
      for (const edge of box.edges) {
        const path = FX.svg("path", { d: line(edge.points), "marker-end": edge.to === "out" ? null : placedBox(box, edge.to) ? null : "url(#arrow)", "data-from": edge.from, "data-to": edge.to });
        path.append(FX.svg("title", {}, `${edge.shape || ""}${edge.count > 1 ? ` (${edge.count} values)` : ""}`));
        layer.append(path);
      }
      group.append(layer);
      for (const child of box.children) {
        if (child.children) put({ ...child, px: child.x, py: child.y }, x + child.x, y + child.y, group);
        else {
          placed.set(child.item.id, { x: x + child.x, y: y + child.y, width: child.width, height: child.height, item: child.item, open: false });
          group.append(card(child));
        }
      }
    };
    const placedBox = (box, id) => box.children.some((child) => child.item.id === id && child.children);
    put(layout, 0, 0, content);
    stage.node().replaceChildren(content);
    paint();
    select(app.selected, { quiet: true });
    document.getElementById("hint").textContent = hidden ? `${hidden} more edges skip over modules; select a node to see them` : "";
    if (was && placed.get(keep)) {
      const now = placed.get(keep);
      const { k } = before;
      canvas.call(zoom.transform, d3.zoomIdentity.translate(before.x + k * (was.x + was.width / 2 - now.x - now.width / 2), before.y + k * (was.y - now.y)).scale(k));
    }
    minimap();
  }

  function frame(box, kind) {
    const { item } = box;
    const what = item.kind === "group" ? `module ${item.module}, ${kind === "open" ? "unfolded" : "folded"}` : `node ${item.name}`;
    return FX.svg("g", { class: `item ${kind}`, tabindex: "0", role: "button", "aria-label": what, "aria-expanded": item.kind === "group" ? String(kind === "open") : null, "data-id": item.id });
  }
  function listen(element, item) {
    element.addEventListener("click", (event) => { event.stopPropagation(); app.select(item); });
    element.addEventListener("dblclick", (event) => { event.stopPropagation(); if (item.kind === "group") toggle(item); });
    return element;
  }
  function chevron(item, x, y, sign) {
    const button = FX.svg("g", { class: "chevron", transform: `translate(${x},${y})` }, FX.svg("rect", { x: -11, y: -11, width: 22, height: 22, rx: 6 }), FX.svg("text", { "text-anchor": "middle", dy: "0.35em" }, sign));
    button.addEventListener("click", (event) => { event.stopPropagation(); toggle(item); });
    return button;
  }
  function opened(box) {
    const { item } = box;
    const element = frame(box, "open");
    element.append(FX.svg("rect", { width: box.width, height: box.height, rx: 12 }));
    element.append(chevron(item, 19, 18, "−"));
    element.append(FX.svg("text", { class: "title", x: 36, y: 22 }, item.label, FX.svg("tspan", { class: "sub", dx: 8 }, subtitle(item))));
    cards.set(item.id, element);
    return listen(element, item);
  }
  function card(box) {
    const { item, width, height } = box;
    const element = frame(box, item.kind === "group" ? "folded" : "leaf");
    element.setAttribute("transform", `translate(${box.x},${box.y})`);
    const isStack = item.kind === "group" && !item.isLeaf;
    if (isStack) element.append(FX.svg("rect", { class: "stack", x: 5, y: 5, width, height, rx: 9 }));
    element.append(FX.svg("rect", { class: "face", width, height, rx: 9 }));
    if (item.kind === "placeholder" || item.kind === "output") element.classList.add("end");
    if (item.kind === "group") element.append(chevron(item, 18, 16, "+"));
    const clip = Math.floor((width - (item.kind === "group" ? 44 : 24)) / 6.6);
    element.append(FX.svg("text", { class: "title", x: item.kind === "group" ? 34 : 12, y: 20 }, short(item.label, clip)));
    element.append(FX.svg("text", { class: "sub", x: 12, y: 36 }, short(subtitle(item), Math.floor((width - 78) / 5.4))));
    element.append(FX.svg("text", { class: "value", x: width - 10, y: 36, "text-anchor": "end" }));
    element.append(FX.svg("title", {}, `${item.kind === "group" ? item.module : item.name}`));
    cards.set(item.id, element);
    return listen(element, item);
  }
  const short = (text, most) => (text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text);

  function paint() {
    const faces = [...cards.entries()].map(([id, element]) => [placed.get(id).item, element]).filter(([, element]) => !element.classList.contains("open"));
    const coat = FX.colour.paint(faces.map(([item]) => item), app.colour, app);
    for (const [item, element] of faces) {
      const fill = coat.of(item);
      element.querySelector(".face").style.fill = fill;
      element.querySelector(".stack")?.style.setProperty("fill", fill);
      element.style.setProperty("--face-ink", FX.colour.onto(fill));
      const value = coat.text(item);
      element.querySelector(".value").textContent = app.colour === "technique" ? "" : value;
      element.dataset.fill = d3.color(fill).formatHex();
    }
    legend(coat.legend);
  }
  function legend({ title, names, ramp, ends }) {
    const box = document.getElementById("legend");
    box.replaceChildren(FX.el("b", {}, title));
    if (names && names.length) for (const [name, colour] of names) box.append(FX.el("span", { class: "key" }, FX.el("i", { style: `background:${colour}` }), name));
    else if (names) box.append(FX.el("span", { class: "key" }, app.colour === "technique" ? "no technique" : "nothing"));
    else box.append(FX.el("span", { class: "key" }, ends[0], FX.el("i", { class: "ramp", style: `background:linear-gradient(90deg,${ramp.join(",")})` }), ends[1]));
  }

  // Folding
  function toggle(group) {
    if (app.open.has(group.key)) app.open.delete(group.key);
    else {
      app.open.add(group.key);
      for (let one = group; one.children.length === 1 && one.children[0].kind === "group" && !one.children[0].isLeaf; ) { one = one.children[0]; app.open.add(one.key); }
    }
    draw({ keep: group.id });
    focus(group);
  }
  function unfoldLevel() {
    const below = [...placed.values()].filter((box) => box.item.kind === "group" && !box.open && !box.item.isLeaf);
    const leaves = below.length ? below : [...placed.values()].filter((box) => box.item.kind === "group" && !box.open);
    for (const { item } of leaves) app.open.add(item.key);
    draw({ keep: app.selected?.id });
    if (!app.selected) fit();
  }
  function foldLevel() {
    const groups = [...placed.values()].filter((box) => box.open && box.item !== app.view.root);
    const deepest = d3.max(groups, (box) => box.item.depth);
    for (const { item } of groups) if (item.depth === deepest) app.open.delete(item.key);
    draw({ keep: app.selected && placed.has(app.selected.id) ? app.selected.id : undefined });
    fit();
  }
  function reveal(item) {
    for (const one of FX.model.chain(item)) if (one !== item && one.kind === "group") app.open.add(one.key);
    if (!placed.has(item.id)) draw();
    centre(item);
  }

  // Looking
  const room = () => { const { width, height } = canvas.node().getBoundingClientRect(); return { width, height }; };
  function fit({ least = 0 } = {}) {
    const { width, height } = room();
    const [wide, high] = app.size;
    const scale = Math.min(1.15, Math.max(least, Math.min(width / wide, height / high)));
    const isTall = high * scale > height;
    canvas.call(zoom.transform, d3.zoomIdentity.translate((width - wide * scale) / 2, isTall ? 0 : (height - high * scale) / 2).scale(scale));
  }
  function centre(item) {
    const box = placed.get(item.id);
    if (!box) return;
    const { width, height } = room();
    const { k } = d3.zoomTransform(canvas.node());
    const scale = Math.max(k, 0.7);
    canvas.transition().duration(app.calm ? 0 : 250).call(zoom.transform, d3.zoomIdentity.translate(width / 2 - scale * (box.x + box.width / 2), height / 2 - scale * (box.y + Math.min(box.height, height / scale) / 2)).scale(scale));
  }
  const focus = (item) => cards.get(item.id)?.focus({ preventScroll: true });
  const by = (factor) => canvas.transition().duration(app.calm ? 0 : 150).call(zoom.scaleBy, factor);
  const pan = (dx, dy) => canvas.call(zoom.translateBy, dx / d3.zoomTransform(canvas.node()).k, dy / d3.zoomTransform(canvas.node()).k);

  function select(item, { quiet = false } = {}) {
    app.selected = item;
    stage.selectAll(".selected, .near, .lit").classed("selected near lit", false);
    stage.selectAll(".skip").remove();
    if (!item) return;
    const visible = (one) => FX.model.chain(one).find((above) => placed.has(above.id) && !placed.get(above.id).open) || one;
    cards.get(item.id)?.classList.add("selected");
    const inside = new Set(item.rows);
    const ends = new Map();
    for (const row of item.rows) {
      for (const source of row.sources) if (source.parent && !inside.has(source)) ends.set(visible(source).id, "in");
      for (const user of row.users || []) if (user.parent && !inside.has(user)) ends.set(visible(user).id, "out");
    }
    const own = placed.get(item.id);
    const drawn = new Map([...stage.node().querySelectorAll(".edges path")].map((path) => [`${path.dataset.from}\n${path.dataset.to}`, path]));
    for (const [id, way] of ends) {
      cards.get(id)?.classList.add("near");
      const other = placed.get(id);
      if (!own || !other || id === item.id) continue;
      const [from, to] = way === "in" ? [other, own] : [own, other];
      const edge = drawn.get(`${from.item.id}\n${to.item.id}`);
      if (edge) { edge.classList.add("lit"); continue; }
      const path = d3.linkVertical()({ source: [from.x + from.width / 2, from.y + from.height], target: [to.x + to.width / 2, to.y] });
      stage.append("path").attr("class", "skip").attr("d", path).attr("marker-end", "url(#arrow)");
    }
    if (!quiet) focus(item);
  }

  // The nearest card in a direction, for the arrow keys.
  function step(dx, dy) {
    const own = app.selected && placed.get(app.selected.id);
    const all = [...placed.values()].filter((box) => !box.open);
    if (!own) return all.length ? d3.least(all, (box) => box.y)?.item : null;
    const middle = (box) => [box.x + box.width / 2, box.y + box.height / 2];
    const [x, y] = middle(own);
    const score = (box) => {
      const [bx, byy] = middle(box);
      const along = dx ? (bx - x) * dx : (byy - y) * dy, across = dx ? byy - y : bx - x;
      return along > 4 ? along + 2 * Math.abs(across) : Infinity;
    };
    const best = d3.least(all.filter((box) => box.item !== app.selected), score);
    return best && score(best) < Infinity ? best.item : null;
  }

  function minimap() {
    const map = document.getElementById("minimap");
    const [wide, high] = app.size;
    const scale = Math.min(150 / wide, 210 / high);
    map.setAttribute("width", wide * scale);
    map.setAttribute("height", high * scale);
    map.setAttribute("viewBox", `0 0 ${wide} ${high}`);
    const marks = [...placed.values()].filter((box) => !box.open).map((box) => FX.svg("rect", { x: box.x, y: box.y, width: box.width, height: box.height, style: `fill:${cards.get(box.item.id)?.querySelector(".face")?.style.fill || "none"}` }));
    map.replaceChildren(...marks, FX.svg("rect", { class: "window" }));
    const go = (event) => {
      const { left, top } = map.getBoundingClientRect();
      canvas.call(zoom.translateTo, (event.clientX - left) / scale, (event.clientY - top) / scale);
    };
    map.onpointerdown = (event) => { map.setPointerCapture(event.pointerId); go(event); map.onpointermove = go; };
    map.onpointerup = () => { map.onpointermove = null; };
    window(d3.zoomTransform(canvas.node()));
  }
  function window({ x, y, k }) {
    const mark = document.querySelector("#minimap .window");
    if (!mark) return;
    const { width, height } = room();
    mark.setAttribute("x", -x / k); mark.setAttribute("y", -y / k);
    mark.setAttribute("width", width / k); mark.setAttribute("height", height / k);
    const [wide, high] = app.size;
    document.getElementById("minimap").classList.toggle("needless", wide * k <= width + 1 && high * k <= height + 1);
  }

  return { start, draw, paint, toggle, unfoldLevel, foldLevel, reveal, fit, centre, focus, by, pan, select, step, subtitle, firstOpen, minimap, cardOf: (id) => cards.get(id), visible: () => [...placed.values()] };
})();
