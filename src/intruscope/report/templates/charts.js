// The charts of a scan.

// ---- Heat map

const shortPercent = value => value === null ? "–" : figure(100 * value, 2) + "%";
const worst = (matrices, side, get) => {
  const values = matrices.map(matrix => get(sideOf(matrix, side))).filter(value => value !== null);
  return values.length ? Math.max(...values) : null;
};
const QUANTITIES = [
  { id: "count", name: "Intruders", text: String, least: 4, of: (matrices, side) => matrices.reduce((sum, matrix) => sum + sideOf(matrix, side).intruders, 0) },
  { id: "energy", name: "Energy share of W", text: shortPercent, of: (matrices, side) => worst(matrices, side, each => each.energy) },
  { id: "updateEnergy", name: "Energy share of ΔW", text: shortPercent, of: (matrices, side) => worst(matrices, side, each => each.updateEnergy) },
  {
    id: "lowest", name: "Lowest alignment", text: value => figure(value, 2), reversed: true,
    of: (matrices, side) => { const far = worst(matrices, side, each => each.lowest === null ? null : -each.lowest); return far === null ? null : -far; },
  },
];

// Cells of one report: "kind/layer" to its matrices. A cell holds several where a layer has several of a kind (experts).
function heatCells(report, quantity, side) {
  const cells = new Map();
  for (const matrix of report.matrices) {
    if (matrix.scope !== "paper") continue;
    const key = matrix.kind + "/" + matrix.layer;
    if (!cells.has(key)) cells.set(key, { kind: matrix.kind, layer: matrix.layer, matrices: [], missing: [] });
    cells.get(key)[sideOf(matrix, side) ? "matrices" : "missing"].push(matrix);
  }
  for (const cell of cells.values()) cell.value = cell.matrices.length ? quantity.of(cell.matrices, side) : null;
  return cells;
}

function heatScale(quantity, allCells) {
  const values = allCells.flatMap(cells => [...cells.values()].map(cell => cell.value)).filter(value => value !== null);
  if (quantity.reversed) {
    return { level: value => Math.round(8 * (1 - value)), ends: ["1", "0"] };
  }
  const top = Math.max(...values, quantity.least || 0) || 1;
  return { level: value => value > 0 ? Math.max(1, Math.ceil(8 * value / top - 1e-9)) : 0, ends: [quantity.text(0), quantity.text(top)] };
}

function heatTip(cell, quantity, side) {
  const [first] = cell.matrices.length ? cell.matrices : cell.missing;
  if (!cell.matrices.length) return `${first.name}\n${first.status}: no result`;
  const several = cell.matrices.length > 1;
  const sum = get => cell.matrices.reduce((total, matrix) => total + get(sideOf(matrix, side)), 0);
  const lines = [several ? `${cell.kind}, layer ${cell.layer}: ${cell.matrices.length} matrices` : first.name];
  lines.push(`${sum(each => each.intruders)} of ${sum(each => each.num)} leading vectors are intruders`);
  for (const each of QUANTITIES.slice(1)) lines.push(`${each.name}${several && !each.reversed ? ", largest" : ""}: ${each.text(each.of(cell.matrices, side))}`);
  if (cell.missing.length) lines.push(`${cell.missing.length} without a result`);
  return lines.join("\n");
}

function heatTable(report, reportIndex, cells, kinds, scale, quantity, side, width) {
  const open = cell => {
    const matrices = cell.matrices.length ? cell.matrices : cell.missing;
    const most = matrices.reduce((best, each) => (sideOf(each, side)?.intruders ?? -1) > (sideOf(best, side)?.intruders ?? -1) ? each : best);
    openMatrix(reportIndex, most);
  };
  return heatGrid({ cells, kinds, width, open, text: quantity.text, level: scale.level, label: `${quantity.name} by layer and kind: ${report.label}`, tip: cell => heatTip(cell, quantity, side) });
}

// ---- Intruders over epsilon

function curvePoints(report, cut) {
  const found = report.curves.filter(([k]) => k <= cut);
  return found.length ? found[found.length - 1][1] : [];
}

function curveChart(cut, isLargest, width) {
  const lines = DATA.reports.map((report, index) => ({ report, look: series(index), points: curvePoints(report, cut) })).filter(line => line.points.length);
  const share = (count, total) => total ? count / total : 0;
  const nulls = isLargest ? lines.filter(line => line.report.null) : [];
  const tops = lines.flatMap(line => line.points.map(([, found, undecided, total]) => share(found + undecided, total)));
  tops.push(...nulls.map(({ report: { null: [, , high, total] } }) => share(high, total)));
  const epsilons = lines[0].points.map(([epsilon]) => epsilon);
  const x = { lo: epsilons[0] - 0.03, hi: epsilons[epsilons.length - 1] + 0.03, ticks: epsilons.map(each => [each, String(each)]) };
  const top = Math.max(...tops) || 0.1;
  const y = { log: false, lo: 0, hi: Math.min(1, top * 1.08), ticks: linearTicks(0, Math.min(1, top * 1.08), 5) };
  const label = lines.map(({ report, points }) => `${report.label}: ` + points.map(([epsilon, found, , total]) => `${found} of ${total} below ${epsilon}`).join(", ")).join("; ");
  const { svg, sx, sy, bottom, margin } = frame({ width, height: Math.min(380, 180 + width * 0.2), label, x, y, xTitle: "threshold epsilon", yTitle: "leading vectors below the threshold", yText: percent });
  for (const epsilon of new Set(lines.map(line => line.report.epsilon))) {
    if (epsilon < x.lo || epsilon > x.hi) continue;
    svg.append(shape("line", { class: "epsilon", x1: sx(epsilon), x2: sx(epsilon), y1: margin.top, y2: bottom }));
    svg.append(shape("text", { x: sx(epsilon) + 6, y: margin.top + 11 }, "used here"));
  }
  nulls.forEach(({ report, look }, place) => {
    const [mean, low, high, total] = report.null;
    const [from, to] = [sx(report.epsilon - 0.045), sx(report.epsilon + 0.045)];
    const [upper, lower, middle] = [high, low, mean].map(count => sy(share(count, total)));
    svg.append(shape("g", { class: look.colour },
      shape("rect", { class: "fill band", x: from, width: to - from, y: upper - 1, height: Math.max(2, lower - upper + 2) }),
      shape("line", { class: "stroke chance", x1: from, x2: to, y1: middle, y2: middle })));
    if (!place) svg.append(shape("text", { x: to + 6, y: Math.min(bottom - 5, middle + 14) }, "by chance"));
  });
  for (const { report, look, points } of lines) {
    const at = points.map(([epsilon, found, undecided, total]) => [sx(epsilon), sy(share(found, total)), sy(share(found + undecided, total))]);
    const path = at.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
    const back = [...at].reverse().map(([px, , py]) => `L${px.toFixed(1)} ${py.toFixed(1)}`).join("");
    const group = shape("g", { class: look.colour }, shape("path", { class: "fill band", d: path + back + "Z" }), shape("path", { class: "stroke curve", d: path }));
    points.forEach(([epsilon, found, undecided, total], i) => {
      const mark = markAt(at[i][0], at[i][1], look);
      tipOn(mark, () => `${report.label}\nepsilon ${epsilon}: ${found} of ${total} (${percent(share(found, total))})${undecided ? `\n${undecided} undecided` : ""}`);
      group.append(mark);
    });
    svg.append(group);
  }
  return svg;
}

// ---- Every leading vector

// Dots closer than this many pixels are drawn once: a screen shows no more, and a page stays quick.
const STRIP_STEP = 0.5;

function stripChart(report, reportIndex, side, width) {
  const matrices = measured(report).filter(matrix => sideOf(matrix, side));
  const starts = [];
  let total = 0;
  for (const matrix of matrices) {
    starts.push(total);
    total += sideOf(matrix, side).lower.length + 1;
  }
  const height = 300;
  const y = { log: false, lo: 0, hi: 1, ticks: [0, 0.25, 0.5, 0.75, 1] };
  const numIntruders = matrices.reduce((sum, matrix) => sum + sideOf(matrix, side).intruders, 0);
  const label = `Alignments of ${total - matrices.length} leading vectors in ${matrices.length} matrices of ${report.label}; ${numIntruders} are intruders`;
  const { svg, sx, sy, right, bottom, margin } = frame({ width, height, label, x: { lo: -1, hi: Math.max(1, total), ticks: [] }, y, xTitle: "vectors in the order of the model, by layer", yTitle: "alignment with the base" });
  let last = undefined, lastText = -Infinity;
  matrices.forEach((matrix, i) => {
    if (matrix.layer === last) return;
    last = matrix.layer;
    const px = sx(starts[i] - 0.5);
    if (px - lastText < 24) return;
    lastText = px;
    svg.append(shape("line", { class: "gridline", x1: px, x2: px, y1: margin.top, y2: bottom }), shape("text", { x: px, y: bottom + 18 }, matrix.layer === null ? "–" : String(matrix.layer)));
  });
  svg.append(shape("line", { class: "epsilon", x1: margin.left, x2: right, y1: sy(report.epsilon), y2: sy(report.epsilon) }));
  const paths = { a: [], d: [], b: [], i: [] };
  const seen = new Set();
  const snap = value => Math.round(value / STRIP_STEP) * STRIP_STEP;
  matrices.forEach((matrix, i) => {
    const vectors = sideOf(matrix, side);
    vectors.lower.forEach((lower, j) => {
      const verdict = vectors.verdicts[j];
      const step = `M${snap(sx(starts[i] + j))} ${snap(sy(lower))}V${snap(sy(vectors.upper[j]))}`;
      if (seen.has(verdict + step)) return;
      seen.add(verdict + step);
      paths[verdict].push(step);
    });
  });
  const many = total > width ? " many" : "";
  for (const [verdict, steps] of Object.entries(paths)) {
    if (steps.length) svg.append(shape("path", { class: `points v-${verdict}${many}`, d: steps.join(""), "data-vectors": steps.length }));
  }
  const nearest = event => {
    const box = svg.getBoundingClientRect();
    const scale = width / box.width;
    const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    let best = null, least = 14;
    for (let i = 0; i < matrices.length; i++) {
      const vectors = sideOf(matrices[i], side);
      if (sx(starts[i] - 1) - 14 > px || sx(starts[i] + vectors.lower.length) + 14 < px) continue;
      for (let j = 0; j < vectors.lower.length; j++) {
        const distance = Math.hypot(sx(starts[i] + j) - px, sy((vectors.lower[j] + vectors.upper[j]) / 2) - py);
        if (distance < least) [best, least] = [[matrices[i], vectors, j], distance];
      }
    }
    return best;
  };
  svg.addEventListener("pointermove", event => {
    const hit = nearest(event);
    svg.classList.toggle("hot", hit !== null);
    if (!hit) return hideTip();
    const [matrix, vectors, j] = hit;
    showTip(`${matrix.name}\nvector ${j + 1} of ${vectors.num}, singular value ${figure(matrix.values[j])}\nalignment ${bounds(vectors.lower[j], vectors.upper[j])}: ${VERDICTS[vectors.verdicts[j]]}`, event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", hideTip);
  svg.addEventListener("click", event => {
    const hit = nearest(event);
    if (hit) openMatrix(reportIndex, hit[0]);
  });
  return svg;
}

// ---- One quantity of the update over the layers, a panel per kind

// A point per layer; where a layer has several matrices of a kind (experts), their median and their range.
function layerPoints(report, kind, get) {
  const layers = new Map();
  for (const matrix of measured(report)) {
    if (matrix.kind !== kind || matrix.layer === null || !get(matrix)) continue;
    if (!layers.has(matrix.layer)) layers.set(matrix.layer, []);
    layers.get(matrix.layer).push([matrix, ...get(matrix)]);
  }
  return [...layers].sort(([a], [b]) => a - b).map(([layer, all]) => {
    const values = all.map(each => each[1]).sort((a, b) => a - b);
    return {
      layer,
      name: all.length > 1 ? `${all.length} matrices of layer ${layer}, median` : all[0][0].name,
      value: values[Math.floor((values.length - 1) / 2)],
      low: Math.min(...all.map(each => each[2])),
      high: Math.max(...all.map(each => each[3])),
    };
  });
}

function panel(kind, get, text, y, xTicks, width) {
  const [lo, hi] = [xTicks[0], xTicks[xTicks.length - 1]];
  const every = [1, 2, 5, 10, 20, 50].find(step => step * (width - 60) >= 26 * (hi - lo + 1)) || 100;
  const x = { lo: lo - 0.5, hi: hi + 0.5, ticks: xTicks.filter(layer => (layer - lo) % every === 0).map(layer => [layer, String(layer)]) };
  const lines = DATA.reports.map((report, index) => ({ report, look: series(index), points: layerPoints(report, kind, get) })).filter(line => line.points.length);
  const label = `${kind}: ` + lines.map(({ report, points }) => `${report.label} from ${text(Math.min(...points.map(each => each.low)))} to ${text(Math.max(...points.map(each => each.high)))}`).join("; ");
  const { svg, sx, sy } = frame({ width, height: 190, label, x, y, xTitle: null, yTitle: kind, yText: text, margin: { left: 48, right: 8, top: 26, bottom: 26 } });
  const size = (width - 60) / (hi - lo + 1) < 10 ? 0.6 : 1;
  for (const { report, look, points } of lines) {
    const group = shape("g", { class: look.colour });
    group.append(shape("path", { class: "stroke thin", d: points.map(({ layer, value }, i) => `${i ? "L" : "M"}${sx(layer).toFixed(1)} ${sy(value).toFixed(1)}`).join("") }));
    for (const { layer, name, value, low, high } of points) {
      const px = sx(layer);
      if (high > low) group.append(shape("path", { class: "stroke interval", d: `M${px.toFixed(1)} ${sy(low).toFixed(1)}V${sy(high).toFixed(1)}` }));
      const mark = markAt(px, sy(value), look, size);
      tipOn(mark, () => `${DATA.reports.length > 1 ? report.label + "\n" : ""}${name}\n${text(value)}${high > low ? `, between ${text(low)} and ${text(high)}` : ""}`);
      group.append(mark);
    }
    svg.append(group);
  }
  return svg;
}

function panels(section, get, text) {
  const all = DATA.reports.flatMap(measured);
  const points = all.map(get).filter(Boolean);
  const layers = [...new Set(all.map(matrix => matrix.layer).filter(layer => layer !== null))].sort((a, b) => a - b);
  const kinds = kindsOf(DATA.reports).filter(kind => all.some(matrix => matrix.kind === kind && matrix.layer !== null && get(matrix)));
  if (!points.length || !layers.length || !kinds.length) return false;
  const y = valueAxis(points.flat());
  section.append(element("div", { class: "panels" }, kinds.map(kind => responsive(element("div", {}), width => panel(kind, get, text, y, layers, width)).node)));
  return true;
}

// ---- Similarity map

function ramp() {
  const style = getComputedStyle(document.documentElement);
  const stops = [...Array(9).keys()].map(level => {
    const hex = style.getPropertyValue("--h" + level).trim().slice(1);
    return [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16));
  });
  return [...Array(256).keys()].map(level => {
    const place = level / 255 * 8, low = Math.min(7, Math.floor(place)), part = place - low;
    return stops[low].map((channel, i) => Math.round(channel + part * (stops[low + 1][i] - channel)));
  });
}

function similarityMap(map, side) {
  const levels = Uint8Array.from(atob(map.levels), character => character.charCodeAt(0));
  const canvas = element("canvas", { width: map.columns, height: map.rows, role: "img", "aria-label": `Similarity of ${map.rows} base and ${map.columns} tuned ${side} vectors` });
  const paint = () => {
    const colours = ramp();
    const context = canvas.getContext("2d");
    const image = context.createImageData(map.columns, map.rows);
    levels.forEach((level, i) => image.data.set([...colours[level], 255], 4 * i));
    context.putImageData(image, 0, 0);
  };
  paint();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * map.columns), row = Math.floor((event.clientY - box.top) / box.height * map.rows);
    if (row < 0 || column < 0 || row >= map.rows || column >= map.columns) return;
    showTip(`base vector ${row + 1}, tuned vector ${column + 1}\n|cosine| ${figure(levels[row * map.columns + column] / 255, 2)}`, event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", hideTip);
  return element("figure", { class: "mapbox" },
    element("p", { class: "side", "aria-hidden": "true" }, `base vectors, 1 to ${map.rows}`), canvas,
    element("p", { class: "under", "aria-hidden": "true" }, `tuned vectors, 1 to ${map.columns}`),
    element("figcaption", { class: "under" }, "|cosine| of every pair; an intruder is an empty column, and the diagonal shifts behind it.", scaleBar({ ends: ["0", "1"] })));
}
