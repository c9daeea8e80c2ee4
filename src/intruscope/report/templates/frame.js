// What every chart stands on: drawn to the width it has, and again when that changes.

const MARGIN = { left: 46, right: 14, top: 30, bottom: 40 };
const MARK_PATHS = [
  "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z", "M0 -5.5L5.5 0L0 5.5L-5.5 0Z", "M0 -5L5 4H-5Z",
  "M-4 -4H4V4H-4Z", "M0 5L5 -4H-5Z", "M-5 -1.6H-1.6V-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5Z",
];

let pending = [];

// Draw what was made since the last call, now that it stands in the page and has a width.
function drawPending() {
  const charts = pending;
  pending = [];
  charts.forEach(redraw => redraw());
}

function responsive(parent, draw) {
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(parent.clientWidth);
    if (width < 40 || Math.abs(width - drawn) < 2) return;
    drawn = width;
    parent.replaceChildren(draw(width));
  };
  pending.push(redraw);
  // In a frame of its own: drawing changes the height, which an observer may not do while it observes.
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(parent);
  return { node: parent, refresh: () => { drawn = 0; redraw(); } };
}

// Round numbers that cover lo..hi, about `count` of them.
function linearTicks(lo, hi, count) {
  const rough = (hi - lo || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(each => each * power).find(each => each >= rough);
  const ticks = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi * (1 + 1e-9); i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(lo, hi) {
  const decades = Math.log10(hi / lo);
  const ticks = [];
  for (let power = Math.floor(Math.log10(lo)); power <= Math.ceil(Math.log10(hi)); power++) {
    for (const each of decades < 2 ? [1, 2, 5] : [1]) {
      const tick = Number((each * 10 ** power).toPrecision(3));
      if (tick >= lo * 0.999 && tick <= hi * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

// A linear axis from 0, or a logarithmic one where values differ more than thirtyfold.
function valueAxis(values) {
  const positive = values.filter(value => value > 0).sort((a, b) => a - b);
  const top = positive.length ? positive[positive.length - 1] : 0, low = positive[0];
  if (top > 0 && top > 30 * low) {
    const [lo, hi] = [low * 0.8, top * 1.25];
    return { log: true, lo, hi, ticks: logTicks(lo, hi) };
  }
  const hi = top > 0 ? top * 1.08 : 1;
  return { log: false, lo: 0, hi, ticks: linearTicks(0, hi, 5) };
}

// Axes, grid and titles; gives the drawing and the two scales.
function frame({ width, height, label, x, y, xTitle, yTitle, yText = figure, margin = MARGIN }) {
  const right = width - margin.right, bottom = height - margin.bottom;
  const sx = value => margin.left + (value - x.lo) / (x.hi - x.lo) * (right - margin.left);
  const unit = value => y.log ? Math.log(value / y.lo) / Math.log(y.hi / y.lo) : (value - y.lo) / (y.hi - y.lo);
  const sy = value => bottom - Math.max(0, Math.min(1, unit(value))) * (bottom - margin.top);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of y.ticks) {
    svg.append(
      shape("line", { class: "gridline", x1: margin.left, x2: right, y1: sy(tick), y2: sy(tick) }),
      shape("text", { x: margin.left - 8, y: sy(tick) + 4, "text-anchor": "end" }, yText(tick)));
  }
  svg.append(shape("line", { class: "axis", x1: margin.left, x2: right, y1: bottom, y2: bottom }));
  for (const [value, text] of x.ticks) svg.append(shape("text", { x: sx(value), y: bottom + 18, "text-anchor": "middle" }, text));
  if (xTitle) svg.append(shape("text", { x: right, y: height - 3, "text-anchor": "end" }, xTitle));
  if (yTitle) svg.append(shape("text", { class: "title", x: 0, y: 13 }, yTitle));
  return { svg, sx, sy, right, bottom, margin };
}

function markAt(x, y, look, size = 1) {
  return shape("path", { class: "fill " + look.colour, d: look.path, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${size})` });
}

// One tab stop for a grid; arrow keys walk it.
function walkGrid(table, grid) {
  const first = grid.flat().find(cell => cell.hasAttribute("tabindex"));
  if (first) first.tabIndex = 0;
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  table.addEventListener("keydown", event => {
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    let row = grid.findIndex(cells => cells.includes(event.target)), column = row < 0 ? -1 : grid[row].indexOf(event.target);
    let next;
    do {
      row += step[0];
      column += step[1];
      next = grid[row]?.[column];
    } while (next && !next.hasAttribute("tabindex"));
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
