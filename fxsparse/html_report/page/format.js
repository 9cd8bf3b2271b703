// Numbers as people read them, and elements whose texts stay texts.
const FX = {};

FX.FIGURES = {
  flops: { title: "FLOPs", unit: "" },
  macs: { title: "MACs", unit: "" },
  dense_macs: { title: "dense MACs", unit: "" },
  dram_bytes: { title: "DRAM", unit: "B" },
  sram_bytes: { title: "SRAM", unit: "B" },
  cycles: { title: "cycles", unit: "" },
  energy_pj: { title: "energy", unit: "J", scale: 1e-12 },
  time_s: { title: "time", unit: "s" },
  saved_bytes: { title: "kept for backward", unit: "B" },
};
FX.PASSES = { forward: "forward", grad_input: "grad-input", grad_weight: "grad-weight" };

FX.format = (() => {
  const digits = (value) => (Math.abs(value) >= 9999.5 ? value.toFixed(0) : String(Number(value.toPrecision(4))));
  const BINARY = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];
  const LARGE = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]];
  const SMALL = [["m", 1e-3], ["µ", 1e-6], ["n", 1e-9], ["p", 1e-12]];

  function quantity(value, unit = "") {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (unit === "B") {
      const found = BINARY.find(([, one]) => size >= one);
      return found ? `${digits(value / found[1])} ${found[0]}` : `${digits(value)} B`;
    }
    const found = LARGE.find(([, one]) => size >= one) || (unit && size > 0 && size < 1 && SMALL.find(([, one]) => size >= one));
    return (found ? `${digits(value / found[1])} ${found[0]}${unit}` : `${digits(value)} ${unit}`).trim();
  }
  const figure = (name, value) => {
    if (value === null || value === undefined) return "–";
    const { unit, scale } = FX.FIGURES[name];
    return quantity(value * (scale || 1), unit);
  };
  const percent = (value) => (value === null || value === undefined ? "–" : `${Number((100 * value).toPrecision(3))} %`);
  const ratio = (value) => (value === null || value === undefined ? "–" : `${value < 100 ? value.toFixed(2) : digits(value)}×`);
  return { quantity, figure, percent, ratio };
})();

// el("td", {class: "n", "data-value": 3}, "text", child, ...): children that are no nodes become text, never markup.
FX.el = (name, attributes = {}, ...children) => FX.fill(document.createElement(name), attributes, children);
FX.svg = (name, attributes = {}, ...children) => FX.fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
FX.fill = (element, attributes, children) => {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
};
// A number shown in short, with the exact one at hand.
FX.number = (figure, value, tag = "td", more = {}) =>
  FX.el(tag, { class: "n", "data-figure": figure, "data-value": value, title: value === null || value === undefined ? null : `${value}`, ...more },
    figure.endsWith("density") ? (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4)))) : FX.format.figure(figure, value));
