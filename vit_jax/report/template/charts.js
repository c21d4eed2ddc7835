"use strict";
// Charts as inline SVG: lines and points, hover, zoom, linear and logarithmic axes.
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "2 4", "9 3 2 3"];

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

const UNITS = ["", "k", "M", "G", "T", "P", "E"];

function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e4) {
    const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(size) / 3 + 1e-9));
    return +(value / 1000 ** power).toPrecision(3) + UNITS[power];
  }
  return size < 1e-4 ? value.toExponential(1).replace("e-", "e−").replace(".0e", "e") : String(+value.toPrecision(4));
}

const percent = value => +(100 * value).toPrecision(4) + " %";
const exact = (value, asPercent) => value === null ? "–" : asPercent ? (100 * value).toFixed(2) + " %" : short(value);

function linearTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= raw * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

function logTicks(low, high, count) {
  const ticks = [], decades = Math.log10(high / low), factors = decades > 3 ? [1] : decades > 1 ? [1, 3] : [1, 2, 3, 5, 7];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1; power++)
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(+tick.toPrecision(3));
    }
  if (ticks.length < 2) return linearTicks(low, high, count);
  const every = Math.ceil(ticks.length / (count + 2));
  return ticks.filter((_, i) => i % every === 0);
}

function scale(low, high, from, to, logarithmic) {
  if (low === high) {
    const pad = logarithmic ? low * 0.1 : Math.abs(low) * 0.1 || 1;
    low -= pad; high += pad;
  }
  const f = logarithmic ? Math.log : x => x, inverse = logarithmic ? Math.exp : x => x;
  const a = f(low), factor = (to - from) / (f(high) - a);
  const place = value => from + (f(value) - a) * factor;
  place.invert = at => inverse(a + (at - from) / factor);
  place.ticks = count => logarithmic ? logTicks(low, high, count) : linearTicks(low, high, count);
  return place;
}

function extent(lists, keep = () => true) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) for (const value of list)
    if (value !== null && keep(value)) { if (value < low) low = value; if (value > high) high = value; }
  return [low, high];
}

// What a chart shows: `spec()` gives {lines, percent, logX, logY, xLabel, range, onZoom}. A line has x, y, color, label, and may
// have thin, dash, points [[x, y]], mark [x, y].
function drawChart(host, spec) {
  const about = spec(), width = Math.max(240, host.clientWidth), height = host.clientHeight || 230;
  host.replaceChildren();
  const svg = shape(host, "svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img"});
  svg.setAttribute("aria-label", about.label || "");
  const lines = about.lines.filter(line => line.y.some(v => v !== null));
  if (!lines.length) {
    shape(svg, "text", {x: width / 2, y: height / 2, class: "nothing"}, about.empty || "nothing to show");
    return;
  }
  const all = name => lines.flatMap(line => [line[name], (line.points || []).map(p => p[name === "x" ? 0 : 1])]);
  const positive = value => value > 0;
  let [x0, x1] = about.range || extent(all("x"), about.logX ? positive : undefined);
  if (!about.range && lines.every(line => line.x.length < 2)) {  // points alone: none of them lies on the frame
    const pad = about.logX ? (x1 / x0) ** 0.08 : (x1 - x0) * 0.08;
    [x0, x1] = about.logX ? [x0 / pad, x1 * pad] : [x0 - pad, x1 + pad];
  }
  const inside = lines.map(line => line.y.filter((_, i) => line.x[i] >= x0 && line.x[i] <= x1));
  const shown = about.range && inside.some(list => list.some(v => v !== null)) ? inside : all("y");
  let [y0, y1] = extent(shown, about.logY ? positive : undefined);
  if (!isFinite(y0)) [y0, y1] = about.logY ? [0.1, 1] : [0, 1];
  if (!about.logY) { const pad = (y1 - y0) * 0.05; y0 -= y0 >= 0 && y0 - pad < 0 ? y0 : pad; y1 += about.percent && y1 <= 1 ? Math.min(pad, 1 - y1) : pad; }
  const left = 48, right = width - 12, top = 8, bottom = height - 34;
  const sx = scale(x0, x1, left, right, about.logX), sy = scale(y0, y1, bottom, top, about.logY);
  const yText = about.percent ? percent : short;
  for (const tick of sy.ticks(5)) {
    shape(svg, "line", {x1: left, x2: right, y1: sy(tick), y2: sy(tick), class: "grid"});
    shape(svg, "text", {x: left - 8, y: sy(tick) + 4, "text-anchor": "end"}, yText(tick));
  }
  shape(svg, "line", {x1: left, x2: right, y1: bottom, y2: bottom, class: "base"});
  for (const tick of sx.ticks(Math.max(2, Math.floor(width / 90))))
    shape(svg, "text", {x: sx(tick), y: bottom + 16, "text-anchor": "middle"}, short(tick));
  shape(svg, "text", {x: (left + right) / 2, y: height - 3, "text-anchor": "middle"}, about.xLabel);
  const clip = "clip" + Math.random().toString(36).slice(2);
  shape(shape(svg, "clipPath", {id: clip}), "rect", {x: left - 5, y: 0, width: right - left + 10, height: bottom + 5});
  const body = shape(svg, "g", {"clip-path": `url(#${clip})`});
  for (const line of lines) {
    const group = shape(body, "g", {class: "c" + line.color});
    const style = {"stroke-width": line.thin ? 1.1 : 2, "stroke-dasharray": line.thin ? "4 3" : DASHES[line.dash || 0], opacity: line.thin ? 0.85 : 1};
    shape(group, "path", {d: path(line, sx, sy, about), ...style});
    if (line.x.length === 1 && !line.mark) shape(group, "circle", {cx: sx(line.x[0]), cy: sy(line.y[0]), r: 4, class: "point mean"});
    for (const [x, y] of line.points || [])
      if (y !== null && (line.points.length > 1 || line.x.length > 1)) shape(group, "circle", {cx: sx(x), cy: sy(y), r: 3, class: "point"});
    if (line.mark && (!about.logY || line.mark[1] > 0))
      shape(group, "circle", {cx: sx(line.mark[0]), cy: sy(line.mark[1]), r: 4, class: "ring"});
  }
  hover(host, svg, {about, lines, sx, sy, left, right, top, bottom, width});
}

function path(line, sx, sy, about) {
  let d = "", pen = false;
  for (let i = 0; i < line.x.length; i++) {
    const x = line.x[i], y = line.y[i];
    if (y === null || x === null || (about.logX && x <= 0) || (about.logY && y <= 0)) { pen = false; continue; }
    d += `${pen ? "L" : "M"}${sx(x).toFixed(1)} ${sy(y).toFixed(1)}`;
    pen = true;
  }
  return d;
}

function nearest(list, value) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (list[middle] <= value) low = middle; else high = middle; }
  return Math.abs(list[low] - value) <= Math.abs(list[high] - value) ? low : high;
}

function hover(host, svg, view) {
  const {about, lines, sx, sy, left, right, top, bottom, width} = view, tip = document.getElementById("tip");
  const cross = shape(svg, "line", {class: "cross", y1: top, y2: bottom, visibility: "hidden"});
  const chosen = shape(svg, "rect", {class: "chosen", y: top, height: bottom - top, width: 0});
  let from = null;
  const at = event => {
    const box = svg.getBoundingClientRect();
    return Math.min(right, Math.max(left, (event.clientX - box.left) * width / box.width));
  };
  svg.addEventListener("pointermove", event => {
    const x = at(event), value = sx.invert(x);
    cross.setAttribute("x1", x); cross.setAttribute("x2", x); cross.setAttribute("visibility", "visible");
    if (from !== null) { chosen.setAttribute("x", Math.min(from, x)); chosen.setAttribute("width", Math.abs(x - from)); }
    const rows = lines.map(line => { const i = nearest(line.x, value); return {line, x: line.x[i], y: line.y[i]}; });
    rows.sort((a, b) => (b.y ?? -Infinity) - (a.y ?? -Infinity));
    tip.replaceChildren(element("b", {}, `${about.xLabel} ${short(value < 1000 ? +value.toPrecision(3) : Math.round(value))}`),
      ...rows.slice(0, 10).map(({line, y}) => {
        const name = element("span", {class: "c" + line.color}, element("i", {class: "dot"}), line.label);
        return element("div", {}, name, element("span", {}, exact(y, about.percent)));
      }));
    if (rows.length > 10) tip.append(element("div", {class: "muted"}, `and ${rows.length - 10} more`));
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), room = event.clientX + 16 + box.width < innerWidth;
    tip.style.left = Math.max(4, room ? event.clientX + 16 : event.clientX - 16 - box.width) + "px";
    tip.style.top = Math.max(4, Math.min(innerHeight - box.height - 4, event.clientY + 12)) + "px";
  });
  const away = () => { cross.setAttribute("visibility", "hidden"); tip.hidden = true; from = null; chosen.setAttribute("width", 0); };
  svg.addEventListener("pointerleave", away);
  svg.addEventListener("pointercancel", away);
  if (!about.onZoom) return;
  svg.addEventListener("pointerdown", event => { if (event.pointerType === "mouse") { from = at(event); event.preventDefault(); } });
  svg.addEventListener("pointerup", event => {
    const to = at(event), begin = from;
    away();
    if (begin !== null && Math.abs(to - begin) > 8) about.onZoom([sx.invert(Math.min(begin, to)), sx.invert(Math.max(begin, to))]);
  });
  svg.addEventListener("dblclick", () => about.onZoom(null));
}

const drawn = new Map();
const resized = new ResizeObserver(entries => {
  for (const {target} of entries) if (target.clientWidth && target.clientWidth !== drawn.get(target).width) redraw(target);
});

function redraw(host) {
  const state = drawn.get(host);
  state.width = host.clientWidth;
  if (state.width) drawChart(host, state.spec);
}

function chart(parent, title, spec, legend = []) {
  const host = element("div", {class: "chart"});
  const box = element("div", {}, element("h3", {}, title), host);
  if (legend.length) box.append(element("ul", {class: "plot-legend"}, ...legend));
  parent.append(box);
  drawn.set(host, {spec, width: 0});
  resized.observe(host);
  return host;
}
