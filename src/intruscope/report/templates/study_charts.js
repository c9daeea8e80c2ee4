// The charts of a study: draws the pictures as they come, and adds no figure of its own.

const DASHES = ["", "6 3", "2 2.2", "8 2.5 2 2.5", "3.5 2", "9 2.5 2 2.5 2 2.5"];
const PANEL_HEIGHT = 232, ROW_HEIGHT = 21, CHARACTER = 6.6;

function lookOf({ look: [colour, mark, dash, isHollow] }) {
  return { colour: colour === null ? "grey" : "c" + colour, path: mark === null ? null : MARK_PATHS[mark], dash: DASHES[dash], isHollow };
}

const isGrey = line => line.look[0] === null;

// What a line is drawn with, small: for the legend.
function sample(line) {
  const look = lookOf(line);
  const isJoined = line.kind === "mean" || line.kind === "band" || line.kind === "course";
  return shape("svg", { viewBox: "0 0 34 14", class: look.colour, "aria-hidden": "true" },
    isJoined ? shape("path", { class: "joined", d: "M0 7H34", "stroke-dasharray": look.dash }) : null,
    look.path ? mark(17, 7, look) : null);
}

function mark(x, y, look, size = 1) {
  const node = markAt(x, y, look, size);
  if (look.isHollow) node.classList.add("hollow");
  return node;
}

const isAcross = panel => panel.lines.some(line => line.kind === "across");

// Bounds of an axis, with the room that a scale of the numbers' kind needs.
function bounded(axis, values, { hasZero = false } = {}) {
  const known = values.filter(value => value !== null);
  if (hasZero || axis.zero) known.push(0);
  let [lo, hi] = [Math.min(...known), Math.max(...known)];
  if (axis.log) return { lo: lo / 1.25, hi: hi * 1.25 };
  const room = (hi - lo || Math.abs(hi) || 1) * 0.07;
  if (axis.top !== null) return { lo: axis.zero ? 0 : lo - room, hi: axis.top };
  return { lo: axis.zero && lo >= 0 ? 0 : lo - room, hi: hi + room };
}

// Ticks whose texts stand clear of each other.
function clear(ticks, place, room) {
  let end = -Infinity;
  return ticks.filter(([value, text]) => {
    const half = text.length * CHARACTER / 2;
    if (place(value) - half < end + room) return false;
    end = place(value) + half;
    return true;
  });
}

function scalesOf(panel, width) {
  const points = panel.lines.flatMap(line => line.points.map(point => [line, point]));
  const [along, up] = [[], []];
  for (const [line, [x, y, low, high]] of points) {
    along.push(x);
    up.push(y);
    (line.kind === "across" || (isAcross(panel) && line.kind === "marks") ? along : up).push(low, high);
  }
  const x = bounded(panel.x, along), y = bounded(panel.y, up, { hasZero: panel.zero });
  if (panel.threshold !== null) y.hi = Math.max(y.hi, panel.threshold * 1.05);
  const unit = panel.x.log ? Math.log10 : value => value;
  [x.lo, x.hi] = [unit(x.lo), unit(x.hi)];
  const left = isAcross(panel) ? 14 + CHARACTER * Math.max(...panel.y.ticks.map(([, text]) => text.length)) : 46;
  const rows = panel.y.ticks.length;
  if (isAcross(panel)) [y.lo, y.hi] = [-rows + 0.4, 0.6];
  const margin = { left, right: 12, top: panel.y.title ? 46 : 26, bottom: 40 };
  const room = (value) => margin.left + (unit(value) - x.lo) / (x.hi - x.lo) * (width - margin.left - margin.right);
  const round = panel.x.log ? logTicks(10 ** x.lo, 10 ** x.hi) : linearTicks(x.lo, x.hi, Math.max(3, Math.round((width - left) / 42)));
  const named = panel.x.ticks.length ? panel.x.ticks : round.map(value => [value, plainly(value)]);
  x.ticks = clear(named, room, 4).map(([value, text]) => [unit(value), text]);
  y.ticks = panel.y.ticks.length ? panel.y.ticks.map(([value]) => value) : linearTicks(y.lo, y.hi, 5);
  const names = new Map(panel.y.ticks);
  const height = isAcross(panel) ? margin.top + margin.bottom + ROW_HEIGHT * rows : PANEL_HEIGHT;
  return { x, y, unit, margin, height, yText: value => names.get(value) ?? plainly(value) };
}

function described(panel) {
  return `${panel.title}: ${panel.y.title || panel.x.title}. ` + panel.lines.map(line => `${line.name}, ${line.points.length} ${line.points.length === 1 ? "mark" : "marks"}`).join("; ");
}

const PARTS = {
  mean: (at, look) => [...reaches(at), joined(at, look)],
  band: (at, look) => [band(at), joined(at, look)],
  course: (at, look) => [joined(at, look, "thin-line")],
  marks: () => [],
  across: at => at.filter(each => each.low !== null).map(({ px, py, low, high }) => shape("line", { class: "reach-line", x1: low, x2: high, y1: py, y2: py })),
};

function joined(at, look, name = "joined") {
  return shape("path", { class: name, d: at.map(({ px, py }, i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join(""), "stroke-dasharray": look.dash });
}

function reaches(at) {
  return at.filter(each => each.low !== null).map(({ px, low, high }) => shape("line", { class: "whisker", x1: px, x2: px, y1: low, y2: high }));
}

function band(at) {
  const ends = name => at.map(each => `${each.px.toFixed(1)} ${(each[name] ?? each.py).toFixed(1)}`);
  return shape("path", { class: "fill band", d: "M" + ends("high").join("L") + "L" + ends("low").reverse().join("L") + "Z" });
}

// One panel; `hidden` holds the names of lines that are switched off.
function panelChart(panel, hidden, width) {
  const shown = panel.lines.filter(line => !hidden.has(line.name));
  const scales = scalesOf(panel, width);
  const { x, y, unit, margin, height } = scales;
  const drawn = frame({ width, height, label: described(panel), x, y, xTitle: panel.x.title, yTitle: null, yText: scales.yText, margin });
  const { svg, sx, sy, right } = drawn;
  svg.setAttribute("role", "group");
  svg.append(shape("text", { class: "title strong", x: 0, y: 14 }, panel.title));
  if (panel.y.title) svg.append(shape("text", { x: 0, y: 33 }, panel.y.title));
  if (panel.zero) svg.append(shape("line", { class: "zero", x1: margin.left, x2: right, y1: sy(0), y2: sy(0) }));
  if (panel.threshold !== null) svg.append(shape("line", { class: "epsilon", x1: margin.left, x2: right, y1: sy(panel.threshold), y2: sy(panel.threshold) }));
  const grid = [];
  // The first line on top, and what chance makes above all.
  for (const line of [...shown].reverse().sort((a, b) => isGrey(a) - isGrey(b))) {
    const look = lookOf(line);
    const end = line.kind === "across" ? value => sx(unit(value)) : sy;
    const at = line.points.map(([px, py, low, high]) => ({
      px: sx(unit(px)) + (panel.x.log ? 0 : line.shift * (right - margin.left)), py: sy(py),
      low: low === null || isAcross(panel) !== (line.kind === "across") ? null : end(low),
      high: high === null || isAcross(panel) !== (line.kind === "across") ? null : end(high),
    }));
    const group = shape("g", { class: look.colour, "data-line": line.name }, PARTS[line.kind](at, look));
    grid.push(line.points.map(([, , , , tooltip], i) => {
      const isSmall = line.kind === "course" && i < at.length - 1;
      const node = shape("g", { class: isSmall ? "dot faint" : "dot", role: "img", tabindex: -1, "aria-label": tooltip.replaceAll("\n", "; ") },
        shape("circle", { class: "hit-area", cx: at[i].px, cy: at[i].py, r: isSmall ? 5 : 8 }),
        shape("circle", { class: "ring", cx: at[i].px, cy: at[i].py, r: 9 }),
        isSmall || !look.path ? null : mark(at[i].px, at[i].py, look));
      tipOn(node, () => tooltip);
      group.append(node);
      return node;
    }));
    svg.append(group);
  }
  if (grid.length) walkGrid(svg, grid.reverse());
  return svg;
}

// A similarity map: a path for each of nine levels, so that it is sharp on paper and follows dark and light.
function mapChart(panel, width) {
  const { rows, columns, hundredths } = panel;
  const margin = { left: 30, top: 24, bottom: 20 };
  const size = width - margin.left - 2, cell = size / columns;
  const height = margin.top + rows * cell + margin.bottom;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height.toFixed(1)}`, role: "img", class: "map", "aria-label": described_map(panel) });
  svg.append(shape("text", { class: "title strong", x: 0, y: 14 }, panel.title));
  const paths = [...Array(9)].map(() => []);
  hundredths.forEach((value, i) => paths[Math.min(8, Math.floor(value * 9 / 101))].push(`M${(margin.left + i % columns * cell).toFixed(2)} ${(margin.top + Math.floor(i / columns) * cell).toFixed(2)}h${cell.toFixed(2)}v${cell.toFixed(2)}h${(-cell).toFixed(2)}z`));
  paths.forEach((steps, level) => steps.length && svg.append(shape("path", { class: "l" + level, d: steps.join("") })));
  const text = (x, y, words, anchor) => shape("text", { x, y, "text-anchor": anchor }, words);
  svg.append(text(margin.left - 5, margin.top + 11, "1", "end"), text(margin.left - 5, margin.top + rows * cell, String(rows), "end"),
    text(margin.left, height - 5, "1", "start"), text(margin.left + size, height - 5, String(columns), "end"));
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale - margin.left) / cell), row = Math.floor(((event.clientY - box.top) * scale - margin.top) / cell);
    if (row < 0 || column < 0 || row >= rows || column >= columns) return hideTip();
    showTip(`base vector ${row + 1}, tuned vector ${column + 1}\n|cosine| ${(hundredths[row * columns + column] / 100).toFixed(2)}`, event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", hideTip);
  return svg;
}

function described_map({ title, rows, columns, hundredths }) {
  const blank = [...Array(columns).keys()].filter(column => [...Array(rows).keys()].every(row => hundredths[row * columns + column] < 50));
  return `${title}: ${rows} base and ${columns} tuned vectors; tuned vectors without a counterpart among them: ${blank.length ? blank.map(column => column + 1).join(", ") : "none"}`;
}
