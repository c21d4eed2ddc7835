// The page: curves of the runs, plots of the comparison, predictions, tables that sort, light and dark.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const stored = { get: key => { try { return sessionStorage.getItem("vit_jax-" + key); } catch { return null; } },
                 set: (key, value) => { try { sessionStorage.setItem("vit_jax-" + key, value); } catch { /* a sandbox has none */ } } };

function themes() {
  const root = document.documentElement, use = name => { root.style.colorScheme = name; stored.set("theme", name); };
  if (stored.get("theme")) use(stored.get("theme"));
  $("theme").addEventListener("click", () => {
    const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    use(dark ? "light" : "dark");
  });
  let before = "";  // on paper everything is light
  addEventListener("beforeprint", () => {
    before = root.style.colorScheme; root.style.colorScheme = "light";
    for (const fold of document.querySelectorAll("#how details, #summary details")) fold.open = true;
  });
  addEventListener("afterprint", () => { root.style.colorScheme = before; });
}

function navigation() {
  const links = [...document.querySelectorAll("section[id]")].map(section => {
    const text = section.querySelector("h2").firstChild.textContent.trim();
    return element("li", {}, element("a", {href: "#" + section.id}, text));
  });
  $("nav").append(element("ul", {}, ...links));
}

// Curves

const view = { axis: stored.get("axis") || "steps", smooth: 0, logarithmic: false, range: null, hidden: new Set() };
const AXES = { steps: "step", epochs: "epoch", seconds: "seconds", flops: DATA.flops };

function interpolated([steps, values], step) {
  if (!steps.length) return null;
  let i = 1;
  if (step >= steps[steps.length - 1]) i = steps.length - 1;
  else { let low = 0, high = steps.length - 1; while (high - low > 1) { const m = (low + high) >> 1; if (steps[m] <= step) low = m; else high = m; } i = high; }
  if (steps.length < 2) return values[0];
  return values[i - 1] + (step - steps[i - 1]) / (steps[i] - steps[i - 1]) * (values[i] - values[i - 1]);
}

function position(run, axis) {
  if (axis === "epochs") return run.steps_per_epoch ? step => step / run.steps_per_epoch : null;
  if (axis === "flops") return run.flops_per_step ? step => step * run.flops_per_step : null;
  if (axis === "seconds") return run.seconds[0].length ? step => interpolated(run.seconds, step) : null;
  return step => step;
}

function smoothed(values, weight) {
  if (!weight) return values;
  let mean = 0, total = 0;
  return values.map(value => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value; total = weight * total + 1 - weight;
    return mean / total;
  });
}

// Whether any run has validations of a metric: training is then drawn thin everywhere, else as the only curve.
function validated(key) {
  return DATA.runs.some(run => run.series[`val/${key}`]);
}

function curveLines(key) {
  const lines = [];
  for (const run of DATA.runs) {
    const place = position(run, view.axis);
    if (!place || view.hidden.has(run.group)) continue;
    for (const split of ["train", "val"]) {
      const found = run.series[`${split}/${key}`];
      if (!found) continue;
      const only = !validated(key);
      const line = { x: found[0].map(place), y: smoothed(found[1], split === "train" ? view.smooth : 0), color: run.color,
                     thin: split === "train" && !only,
                     label: [DATA.runs.length > 1 ? run.name : "", only ? "" : split].filter(Boolean).join(" ") || key };
      if (split === "val" && run.best && run.best.key === `val/${key}`) line.mark = [place(run.best.step), run.best.value];
      lines.push(line);
    }
  }
  return lines;
}

function whole() {
  const ends = DATA.runs.filter(run => position(run, view.axis)).flatMap(run => Object.values(run.series).map(([steps]) => position(run, view.axis)(steps[steps.length - 1])));
  return ends.length ? [0, Math.max(...ends)] : null;
}

function curves() {
  if (!DATA.charts.length) return;
  const all = () => { for (const host of drawn.keys()) if (host.closest("#curves")) redraw(host); };
  for (const key of document.querySelectorAll("#legend [data-of=validation]")) key.hidden = !DATA.charts.some(about => validated(about.key));
  const zoom = range => { view.range = range; $("whole").hidden = !range; all(); };
  for (const about of DATA.charts) {
    if (about.more) $("more").hidden = false;
    chart(about.more ? $("more-charts") : $("charts"), about.title, () => {
      const lines = curveLines(about.key);
      const positive = lines.some(line => line.y.some(v => v > 0)) && lines.every(line => line.y.every(v => v === null || v >= 0));
      return { lines, percent: about.percent, logY: view.logarithmic && positive, xLabel: AXES[view.axis], range: view.range || whole(),
               onZoom: zoom, label: about.title, empty: view.axis === "steps" ? "no run is shown" : "the runs do not tell their " + view.axis };
    });
  }
  for (const option of [...$("axis").options]) if (!DATA.runs.some(run => position(run, option.value))) option.remove();
  $("axis").value = view.axis;
  if (!$("axis").value) $("axis").value = view.axis = "steps";
  $("axis").addEventListener("change", event => { view.axis = event.target.value; stored.set("axis", view.axis); zoom(null); });
  $("smooth").addEventListener("input", event => { view.smooth = +event.target.value; all(); });
  $("logarithmic").addEventListener("change", event => { view.logarithmic = event.target.checked; all(); });
  $("whole").addEventListener("click", () => zoom(null));
  for (const button of document.querySelectorAll("#legend button")) button.addEventListener("click", () => {
    const group = +button.dataset.group, hide = !view.hidden.has(group);
    if (hide) view.hidden.add(group); else view.hidden.delete(group);
    button.setAttribute("aria-pressed", String(!hide));
    all();
  });
}

function plots() {
  for (const plot of DATA.plots) {
    const legend = plot.lines.map(line => {
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("width", 24); svg.setAttribute("height", 8);
      if (line.x.length > 1) shape(svg, "path", {d: "M1 4H23", "stroke-dasharray": DASHES[line.dash || 0]});
      else shape(svg, "circle", {cx: 12, cy: 4, r: 3, style: "fill: var(--c)"});
      return element("li", {class: "c" + line.color}, svg, line.label);
    });
    chart($("plots"), plot.title, () => ({lines: plot.lines, percent: plot.percent, logX: plot.log_x, xLabel: plot.x, label: plot.title}), legend);
  }
}

// Predictions

function thumbnail(key, about) {
  const uri = DATA.images[key];
  if (!uri) return element("span", {class: "blank"}, "no image");
  const image = element("img", {src: uri, alt: about, title: about, loading: "lazy"});
  if (uri.startsWith("data:image/png")) image.className = "small";
  return image;
}

function matrix(found, body) {
  if (!found.matrix) { body.append(element("p", {class: "empty"}, "There are too many classes for a matrix.")); return; }
  const names = found.shown.map(c => found.classes[c]), n = names.length;
  const panel = element("div", {class: "cell", "aria-live": "polite"}), table = element("table", {class: "matrix" + (n > 16 ? " many" : "")});
  const head = element("tr", {}, element("th", {class: "corner"}, "true ↓ predicted →"));
  for (const name of names) head.append(element("th", {scope: "col", title: name}, element("span", {}, name.length > 13 ? name.slice(0, 12) + "…" : name)));
  table.append(element("thead", {}, head));
  const longest = Math.min(13, Math.max(...names.map(name => name.length)));
  table.style.setProperty("--names", `${22 + 5.4 * longest}px`);
  const rows = element("tbody");
  const totals = found.shown.map(c => found.per_class.length ? found.per_class[c][1] : 0);
  let first = null;
  const show = (i, j, button) => {
    for (const other of rows.querySelectorAll("[aria-pressed]")) other.removeAttribute("aria-pressed");
    button.setAttribute("aria-pressed", "true");
    const count = found.matrix[i][j], keys = found.cells[`${i},${j}`] || [];
    const share = totals[i] ? ` (${(100 * count / totals[i]).toFixed(1)} % of ${names[i]})` : "";
    const text = i === j ? `${names[i]}, taken for what it is` : `${names[i]}, taken for ${names[j]}`;
    const images = keys.filter(key => DATA.images[key]).map(key => thumbnail(key, text));
    panel.replaceChildren(element("h3", {}, text), element("p", {class: "muted note"}, `${count.toLocaleString("en")} ${count === 1 ? "image" : "images"}${share}`),
      element("div", {class: "thumbs"}, ...images));
    if (!images.length) panel.append(element("p", {class: "muted note"}, "No image of this cell is in the page."));
    else if (images.length < count) panel.append(element("p", {class: "muted note"}, `${images.length} of them are shown.`));
  };
  found.matrix.forEach((row, i) => {
    const line = element("tr", {}, element("th", {scope: "row", title: names[i]}, names[i]));
    row.forEach((count, j) => {
      const share = totals[i] ? Math.sqrt(count / totals[i]) : 0;
      const button = element("button", {type: "button", "data-cell": `${i},${j}`, style: `--tone: var(${i === j ? "--accent" : "--wrong"}); --p: ${(count ? 8 + 92 * share : 0).toFixed(1)}`,
        "aria-label": `${names[i]} taken for ${names[j]}: ${count}`}, String(count));
      if (share > 0.62) button.classList.add("strong");
      if (!count) { button.classList.add("none"); button.disabled = true; }
      else button.addEventListener("click", () => show(i, j, button));
      if (i !== j && count && (!first || count > first.count)) first = {count, i, j, button};
      line.append(element("td", {}, button));
    });
    rows.append(line);
  });
  table.append(rows);
  body.append(element("div", {class: "confusion"}, element("div", {class: "wide"}, table), panel));
  if (n < found.classes.length) body.append(element("p", {class: "muted note"}, `The ${n} of ${found.classes.length} classes that are confused most.`));
  if (first) show(first.i, first.j, first.button);
  else panel.append(element("p", {class: "muted"}, "No image is taken for another class. Click a cell to see its images."));
}

function classTable(found, body) {
  if (!found.per_class.length) { body.append(element("p", {class: "empty"}, "There are too many classes for a table.")); return; }
  const titles = ["class", "images", "accuracy", "precision", "F1", "most often taken for"];
  const head = element("tr", {}, ...titles.map((title, i) => element("th", {class: i && i < 5 ? "number" : ""}, title)));
  const cell = value => element("td", {class: "number", "data-value": value ?? ""}, exact(value, true));
  const rows = found.per_class.map(([c, images, recall, precision, f1, other, share]) => element("tr", {},
    element("th", {scope: "row"}, found.classes[c]), element("td", {class: "number", "data-value": images}, images.toLocaleString("en")),
    cell(recall), cell(precision), cell(f1),
    element("td", {"data-value": share ?? ""}, other === null ? "–" : found.classes[other] + " ", other === null ? "" : element("small", {class: "muted"}, (100 * share).toFixed(1) + " %"))));
  const table = element("table", {class: "sortable"}, element("thead", {}, head), element("tbody", {}, ...rows));
  body.append(element("div", {class: "wide"}, table));
  sortable(table);
}

function reliability(found, body) {
  if (!found.reliability.length) { body.append(element("p", {class: "empty"}, "The probabilities are not finite.")); return; }
  const svg = document.createElementNS(SVG, "svg"), left = 40, size = 290, top = 8, bins = 15;
  svg.setAttribute("viewBox", "0 0 350 396"); svg.setAttribute("role", "img"); svg.setAttribute("aria-label", "Accuracy against confidence");
  const x = value => left + value * size, y = value => top + (1 - value) * size, low = top + size + 8, high = 54;
  for (const tick of [0, .25, .5, .75, 1]) {
    shape(svg, "line", {x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), class: "grid"});
    shape(svg, "text", {x: left - 7, y: y(tick) + 4, "text-anchor": "end"}, (100 * tick) + " %");
    shape(svg, "text", {x: x(tick), y: low + high + 16, "text-anchor": "middle"}, (100 * tick) + " %");
  }
  for (const [bin, share, confidence, accuracy] of found.reliability) {
    const place = {x: x(bin / bins) + 1, width: size / bins - 2};
    const sure = Math.min(accuracy, confidence);
    shape(svg, "rect", {...place, y: y(sure), height: y(0) - y(sure), class: "bar"});
    shape(svg, "rect", {...place, y: Math.min(y(accuracy), y(confidence)), height: Math.abs(y(accuracy) - y(confidence)), class: "gap"});
    shape(svg, "line", {x1: place.x, x2: place.x + place.width, y1: y(accuracy), y2: y(accuracy), class: "cap"});
    shape(svg, "rect", {...place, y: low + high * (1 - share), height: high * share, class: "share"});
  }
  shape(svg, "line", {x1: x(0), y1: y(0), x2: x(1), y2: y(1), class: "ideal"});
  shape(svg, "line", {x1: x(0), x2: x(1), y1: low + high, y2: low + high, class: "grid"});
  shape(svg, "text", {x: x(1), y: low + high + 34, "text-anchor": "end"}, "confidence");
  const below = found.reliability.reduce((sum, [, share, confidence, accuracy]) => sum + share * (confidence - accuracy), 0);
  const verdict = Math.abs(below) < 0.01 ? "On average it is as sure as it is right." : below > 0 ? `On average it is ${(100 * below).toFixed(1)} points too sure of itself.` : `On average it is ${(-100 * below).toFixed(1)} points less sure than it is right.`;
  body.append(element("div", {class: "rel"}, svg, element("div", {},
    element("p", {}, found.ece ? `Calibration error ${found.ece}. ` : "", verdict),
    element("p", {class: "muted note"}, "Blue lines: how often predictions of this confidence are right. Red: their distance to the confidence. Grey, below: how many of the predictions are so sure."))));
}

function cards(found, name, body) {
  if (!found[name].length) { body.append(element("p", {class: "empty"}, name === "mistakes" ? "It made no mistake." : "It is never right.")); return; }
  const caption = card => {
    const p = element("p", {}, element("strong", {}, found.classes[card.label])), taken = card.top[0][0];
    if (taken !== card.label) p.append(", taken for ", element("strong", {}, found.classes[taken]));
    return p;
  };
  const list = found[name].map(card => {
    const text = `image ${card.place} of the split`, bars = element("div", {class: "top5"});
    card.top.forEach(([c, share]) => {
      const right = c === card.label, tone = right ? "right true" : c === card.top[0][0] ? "wrong" : "other";
      bars.append(element("div", {class: tone, style: `--w: ${(100 * (share || 0)).toFixed(1)}%`}, element("span", {title: found.classes[c]}, found.classes[c]), element("span", {}, exact(share, true).replace(/\.(\d)\d /, ".$1 "))));
    });
    const image = thumbnail(card.image, text);
    return element("div", {class: "card"}, image, element("div", {}, caption(card), bars));
  });
  body.append(element("div", {class: "cards"}, ...list));
}

function predictions() {
  if (!DATA.classified.length) return;
  const show = i => {
    const found = DATA.classified[i], draw = { confusion: matrix, classes: classTable, reliability,
      mistakes: (f, body) => cards(f, "mistakes", body), hits: (f, body) => cards(f, "hits", body) };
    for (const [id, fill] of Object.entries(draw)) { const body = $(id).querySelector(".body"); body.replaceChildren(); fill(found, body); }
  };
  $("which")?.addEventListener("change", event => show(+event.target.value));
  show(0);
}

function sortable(table) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    title.tabIndex = 0;
    const sort = () => {
      const numeric = title.classList.contains("number") || [...table.tBodies[0].rows].some(row => row.cells[column].dataset.value);
      const down = title.getAttribute("aria-sort") ? title.getAttribute("aria-sort") !== "descending" : numeric;
      const key = row => { const cell = row.cells[column]; return numeric ? parseFloat(cell.dataset.value ?? cell.textContent.replace(/,/g, "")) : cell.textContent; };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const p = key(a), q = key(b);
        if (!numeric) return (down ? -1 : 1) * p.localeCompare(q, "en", {numeric: true});
        return isNaN(p) || isNaN(q) ? isNaN(p) - isNaN(q) : (down ? q - p : p - q);
      });
      for (const other of titles) other.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...rows);
    };
    title.addEventListener("click", sort);
    title.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}

themes(); navigation(); curves(); plots(); predictions();
for (const table of document.querySelectorAll("main > section .sortable")) if (!table.closest(".body")) sortable(table);
const refresh = +document.body.dataset.refresh;
if (refresh) setTimeout(() => location.reload(), 1000 * refresh);
document.documentElement.dataset.ready = Math.round(performance.now());
