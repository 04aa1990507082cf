"use strict";
// Shows what the page's data holds: sections of parts, each of a `kind` that a function of SHOW puts
// into the page. Texts are never parsed as HTML.

function make(parent, tag, name, text) {
  const made = parent.appendChild(document.createElement(tag));
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

const SHOW = {
  table: showTable, tabs: showTabs, lines: showLines, facts: showFacts, charts: showCharts,
  bars: showBars, ramp: showRamp, scenes: showScenes, cameras: showCameras, note: showNote,
};

function showPage(data) {
  const main = document.querySelector("main");
  for (const section of data.sections) {
    const box = make(main, "section");
    if (section.title) make(box, "h2", "", section.title);
    if (section.note) make(box, "p", "note", section.note);
    for (const part of section.parts) SHOW[part.kind](box, part, data);
  }
  document.getElementById("theme").onclick = () => {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  };
}

function showNote(box, part) {
  const note = make(box, "p", "note");
  for (const [text, style] of part.texts) make(note, "span", style, text);
}

// A cell is a text, or [text, style, address]. Estimates are "mean [low, high] anything".
function fillCell(cell, value, isEstimate) {
  const [text, style, address] = Array.isArray(value) ? value : [value, "", ""];
  if (style) cell.className = style;
  const parts = isEstimate && /^([+-]?\d+\.\d+)( \[.*?\])?(.*)$/.exec(text);
  if (parts) {
    make(cell, "b", "", parts[1]);
    if (parts[2]) make(cell, "span", "interval", parts[2]);
    if (parts[3]) make(cell, "span", "faint", parts[3]);
  } else if (address) make(cell, "a", "", text).href = address;
  else cell.textContent = text;
}

function showTable(box, part) {
  const styles = part.style.split(" "), has = style => styles.includes(style);
  const scroll = make(box, "div", "scroll"), table = make(scroll, "table", part.style);
  const heads = make(make(table, "thead"), "tr"), body = make(table, "tbody");
  for (const text of part.heads) {
    const head = make(heads, "th", "", text);
    head.scope = "col";
    if (/[↑↓]/.test(text)) head.title = text.includes("↑") ? "higher is better" : "lower is better";
  }
  let last = null;
  part.rows.forEach((cells, index) => {
    const row = make(body, "tr", part.row_styles[index] || ""), isNew = cells[0] !== last;
    if (has("grouped") && isNew) row.classList.add("group");
    last = cells[0];
    cells.forEach((cell, column) => {
      const made = make(row, column ? "td" : "th");
      if (!column) made.scope = "row";
      if (column || isNew || !has("grouped")) fillCell(made, cell, column && has("estimates"));
    });
  });
  if (has("sortable")) makeSortable(heads, body);
  return scroll;
}

function makeSortable(heads, body) {
  [...heads.cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const sorted = head.getAttribute("aria-sort");
      const rising = sorted ? sorted === "descending" : column === 0;
      for (const other of heads.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const value = row => {
        const text = row.cells[column].textContent, number = parseFloat(text);
        if (!column) return text;
        return isNaN(number) ? -Infinity : number;
      };
      const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
      body.append(...[...body.rows].sort((a, b) => order(a, b) * (rising ? 1 : -1)));
    };
  });
}

function showTabs(box, part) {
  const tabs = make(box, "div", "tabs");
  const panes = part.tabs.map(([, table]) => showTable(box, table));
  const buttons = part.tabs.map(([title]) => make(tabs, "button", "", title));
  const choose = chosen => buttons.forEach((button, index) => {
    button.setAttribute("aria-pressed", index === chosen);
    panes[index].hidden = index !== chosen;
  });
  buttons.forEach((button, index) => { button.onclick = () => choose(index); });
  choose(0);
  const find = make(tabs, "input", "find");
  Object.assign(find, { type: "search", placeholder: "find a scene", ariaLabel: "find a scene" });
  find.oninput = () => {
    const words = find.value.toLowerCase();
    for (const pane of panes) for (const row of pane.querySelectorAll("tbody tr"))
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(words);
  };
}

function showFold(box, title, isOpen, style) {
  const fold = make(box, "details", style);
  fold.open = isOpen;
  make(fold, "summary", "", title);
  return fold;
}

function showLines(box, part) {
  const list = make(showFold(box, part.title, part.open, "warning"), "ul");
  for (const text of part.texts) make(list, "li", "", text);
}

function showFacts(box, part) {
  const heads = ["field", "value"], rows = part.rows;
  showTable(showFold(box, part.title, part.open, ""), { heads, rows, row_styles: [], style: "facts" });
}

// A histogram: rows of [from, to, count].
function showBars(box, part) {
  const table = make(make(box, "div", "scroll"), "table", "bars");
  make(table, "caption", "", part.title);
  const most = Math.max(...part.bins.map(([, , count]) => count));
  for (const [low, high, count] of part.bins) {
    const row = make(table, "tr");
    make(row, "th", "", `${low.toFixed(3)} - ${high.toFixed(3)}`);
    const cell = make(row, "td");
    make(cell, "i").style.width = `${Math.round(130 * count / most)}px`;
    make(cell, "span", "", count);
  }
}

// Charts: curves over x with bands of their intervals.
const WIDTH = 400, HEIGHT = 260, LEFT = 52, RIGHT = 14, TOP = 14, BOTTOM = 40, INSET = 14;
const short = value => String(Number(value.toPrecision(4)));

// About `count` round numbers, evenly spaced, the first <= low and the last >= high.
function ticks(low, high, count = 5) {
  const raw = ((high - low) || Math.abs(high) || 1) / (count - 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const start = Math.floor(low / step + 1e-9), end = Math.max(Math.ceil(high / step - 1e-9), start + 1);
  return Array.from({ length: end - start + 1 }, (_, i) => Number(((start + i) * step).toPrecision(10)));
}

// Where things lie in a chart: ticks, and the places u, v of x and y.
function chartLayout(series, isLog) {
  const points = series.flatMap(one => one.points);
  const xs = [...new Set(points.map(point => point[0]))].sort((a, b) => a - b);
  const values = points.flatMap(point => point.slice(1)).filter(value => value !== null);
  const yTicks = ticks(Math.min(...values), Math.max(...values));
  const first = xs[0], last = xs.at(-1), low = yTicks[0], high = yTicks.at(-1);
  const along = isLog && first > 0 ? Math.log : x => x, span = along(last) - along(first);
  const width = WIDTH - LEFT - RIGHT - 2 * INSET, height = HEIGHT - TOP - BOTTOM;
  const u = x => LEFT + INSET + width * (span ? (along(x) - along(first)) / span : 0.5);
  const v = y => TOP + height * (high - y) / (high - low);
  let end = -Infinity;
  const xTicks = (xs.length <= 12 ? xs : ticks(first, last)).filter(x => {
    const isFree = first <= x && x <= last && u(x) - end >= 8 * String(x).length + 4;
    if (isFree) end = u(x);
    return isFree;
  });
  return { xTicks, yTicks, u, v };
}

function svg(parent, tag, attributes, text) {
  const space = document.getElementById("space").namespaceURI;
  const made = parent.appendChild(document.createElementNS(space, tag));
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function showCharts(box, part) {
  const charts = make(box, "div", "charts");
  for (const { title, unit, series } of part.charts) {
    const figure = make(charts, "figure");
    make(figure, "figcaption", "", title);
    showChart(figure, `${title} against the ${part.x_label}`, series, part.x_label, unit, part.log_x);
  }
  const legend = make(box, "ul", "legend");
  for (const one of part.charts[0].series) {
    const item = make(legend, "li"), style = "s" + one.color;
    const key = svg(item, "svg", { class: "key", viewBox: "0 0 28 12", "aria-hidden": true });
    if (!one.markers_only) svg(key, "line", { class: "line " + style, x1: 1, x2: 27, y1: 6, y2: 6 });
    svg(key, "circle", { class: "marker " + style, cx: 14, cy: 6, r: 3.2 });
    item.append(one.title);
  }
}

function showChart(box, name, series, xLabel, yLabel, isLog) {
  const { xTicks, yTicks, u, v } = chartLayout(series, isLog);
  const viewBox = `0 0 ${WIDTH} ${HEIGHT}`;
  const chart = svg(box, "svg", { class: "chart", viewBox, role: "img", "aria-label": name });
  for (const y of yTicks) {
    svg(chart, "line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: v(y), y2: v(y) });
    svg(chart, "text", { class: "tick", x: LEFT - 7, y: v(y) + 4, "text-anchor": "end" }, short(y));
  }
  for (const x of xTicks) {
    const place = { x: u(x), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" };
    svg(chart, "text", { class: "tick", ...place }, String(x));
  }
  const middle = { class: "axis", "text-anchor": "middle" };
  svg(chart, "text", { ...middle, x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6 }, xLabel);
  const side = `translate(12 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`;
  svg(chart, "text", { ...middle, transform: side }, yLabel);
  for (const one of series) showCurve(chart, one, u, v);
}

function showCurve(chart, one, u, v) {
  const style = "s" + one.color, points = [...one.points].sort((a, b) => a[0] - b[0]);
  const bounds = points.filter(([, , low, high]) => low !== null && high !== null);
  const path = places => places.map(([x, y]) => `${u(x).toFixed(1)},${v(y).toFixed(1)}`).join(" ");
  if (bounds.length > 1) {
    const above = bounds.map(([x, , , high]) => [x, high]);
    const below = bounds.map(([x, , low]) => [x, low]).reverse();
    svg(chart, "polygon", { class: "band " + style, points: path([...above, ...below]) });
  } else if (bounds.length) {
    const [x, , low, high] = bounds[0], ends = { x1: u(x), x2: u(x), y1: v(low), y2: v(high) };
    svg(chart, "line", { class: "whisker " + style, ...ends });
  }
  if (points.length > 1 && !one.markers_only)
    svg(chart, "polyline", { class: "line " + style, points: path(points) });
  for (const [x, y, low, high] of points) {
    const marker = svg(chart, "circle", { class: "marker " + style, cx: u(x), cy: v(y), r: 3.2 });
    const interval = low === null || high === null ? "" : ` [${short(low)}, ${short(high)}]`;
    svg(marker, "title", {}, `${one.title}, ${x}: ${short(y)}${interval}`);
  }
}
