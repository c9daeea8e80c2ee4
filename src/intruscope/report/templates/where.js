// The page of an attribution from top to bottom.

const share = value => value === null || value === undefined ? "–" : decimal(1)(100 * value) + "%";
// For the cells of a map, where there is room for three characters and a sign.
const briefShare = value => decimal(Math.abs(value) < 0.0995 ? 1 : 0)(100 * value);
const interval = (found, text) => found === null ? "–" : found[1] === null ? text(found[0]) : `${text(found[0])} (${text(found[1])} to ${text(found[2])})`;

const QUANTITIES = [
  { id: "forgetting", name: "Share of forgetting", of: each => each.forgetting?.[0] ?? null, text: briefShare, unit: "%" },
  { id: "gain", name: "Share of the gain", of: each => each.gain?.[0] ?? null, text: briefShare, unit: "%", needsGain: true },
  { id: "ratio", name: "Ratio", of: each => each.ratio?.[0] ?? null, text: brief, needsGain: true },
  { id: "norm", name: "Share of squared norm", of: each => each.norm, text: briefShare, unit: "%" },
].filter(each => DATA.hasGain || !each.needsGain);

const COLUMNS = DATA.hasGain ? ["Squared norm", "Forgetting", "Gain", "Ratio"] : ["Squared norm", "Forgetting"];
const cellsOfShare = each => [share(each.norm), interval(each.forgetting, share), ...(DATA.hasGain ? [interval(each.gain, share), each.ratio === null ? "" : interval(each.ratio, decimal(2))] : [])];

function glance(section) {
  section.append(element("article", { class: "card" },
    element("p", { class: "said" }, DATA.sentence),
    scrolling("Totals", table(["Of the whole update", "Measured", "Sum of the parts", "Points on the path", "Sequences or examples", "Groups"],
      DATA.totals.map(each => ({ cells: [each.name, each.measured, each.attributed, String(each.points), String(each.sequences), String(each.groups)] })))),
    DATA.findings.length ? element("ul", { class: "findings" }, DATA.findings.map(each => element("li", { class: each[0], "data-code": each[1] }, each[2]))) : null));
}

// ---- Spans

const BARS = [["norm", "share of squared norm", 5], ["forgetting", "share of forgetting", 1], ["gain", "share of the gain", 0]].filter(each => DATA.hasGain || each[0] !== "gain");
const barOf = (span, id) => id === "norm" ? [span.norm, null, null] : span[id];

function spanChart(width) {
  const values = DATA.spans.flatMap(span => BARS.flatMap(([id]) => barOf(span, id) ?? [])).filter(value => value !== null);
  const low = Math.min(0, ...values), high = Math.max(0.1, ...values);
  const left = Math.min(190, width * 0.34), right = width - 16, step = 18 * BARS.length + 16, height = DATA.spans.length * step + 46;
  const x = value => left + (value - low) / (high - low) * (right - left);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": DATA.spans.map(span => `${span.name}: ${cellsOfShare(span).join(", ")}`).join("; ") });
  for (const tick of linearTicks(low, high, width < 500 ? 4 : 7)) {
    svg.append(shape("line", { class: tick === 0 ? "zero" : "gridline", x1: x(tick), x2: x(tick), y1: 4, y2: height - 40 }), shape("text", { x: x(tick), y: height - 22, "text-anchor": "middle" }, decimal(0)(100 * tick) + "%"));
  }
  DATA.spans.forEach((span, place) => {
    const top = 8 + step * place;
    svg.append(shape("text", { class: "model", x: left - 12, y: top + 9 * BARS.length + 4, "text-anchor": "end" }, span.name));
    BARS.forEach(([id, name, colour], index) => {
      const found = barOf(span, id);
      if (!found || found[0] === null) return;
      const y = top + 18 * index;
      const group = shape("g", { class: "c" + colour }, shape("rect", { class: "fill", x: Math.min(x(0), x(found[0])), width: Math.abs(x(found[0]) - x(0)), y, height: 14, rx: 2 }));
      if (found[1] !== null) group.append(shape("line", { class: "range", x1: x(found[1]), x2: x(found[2]), y1: y + 7, y2: y + 7 }));
      tipOn(group, () => `${span.name}\n${name} ${interval(found, share)}`);
      svg.append(group);
    });
  });
  return svg;
}

function spans(section) {
  const chart = responsive(element("div", {}), spanChart);
  section.append(
    element("p", { class: "lead" }, "The updates of all matrices, split into their projection on the intruders, their projection on the other top vectors, and the rest. If intruders were what makes a model forget, their share of forgetting would be above their share of the gain."),
    element("div", { class: "card" },
      legend(BARS.map(([, name, colour]) => ["c" + colour, "■", name])), chart.node,
      scrolling("Spans", table(["Part", ...COLUMNS], DATA.spans.map(span => ({ class: span.name === "intruders" ? "strong" : null, cells: [span.name, ...cellsOfShare(span)] }))))));
  drawPending();
}

// ---- Maps

// The cell of each kind and layer. Where there are several matrices (experts), their shares add up.
function cells(quantity) {
  const found = new Map();
  DATA.matrices.forEach((matrix, index) => {
    const key = matrix.kind + "/" + matrix.layer;
    if (!found.has(key)) found.set(key, { kind: matrix.kind, layer: matrix.layer, members: [], value: null });
    found.get(key).members.push({ matrix, index });
  });
  for (const cell of found.values()) {
    const values = cell.members.map(each => quantity.of(each.matrix));
    if (cell.members.length === 1) cell.value = values[0];
    else if (quantity.id === "ratio") cell.value = null;
    else if (!values.includes(null)) cell.value = values.reduce((sum, value) => sum + value, 0);
  }
  return found;
}

function mapScale(quantity, found) {
  const values = [...found.values()].map(cell => cell.value).filter(value => value !== null);
  // A ratio of 1 is the middle; each step is a factor of the square root of 2.
  if (quantity.id === "ratio") return { level: value => value <= 0 ? 0 : Math.max(0, Math.min(8, Math.round(4 + 2 * Math.log2(value)))), ends: ["¼ or less", "4 or more"] };
  const top = Math.max(0.001, ...values.map(Math.abs));
  const isSigned = values.some(value => value < 0);
  return { level: value => value ? Math.min(8, Math.max(1, Math.ceil(8 * Math.abs(value) / top - 1e-9))) : 0, ends: ["0", (isSigned ? "± " : "") + share(top)] };
}

function mapTip(cell) {
  const lines = [];
  for (const { matrix } of cell.members.slice(0, 4)) {
    const texts = cellsOfShare(matrix);
    lines.push(matrix.name, ...COLUMNS.map((name, place) => `${name.toLowerCase()} ${texts[place] || "not clear"}`));
  }
  if (cell.members.length > 4) lines.push(`and ${cell.members.length - 4} more matrices`);
  return lines.join("\n");
}

function maps(section, opened) {
  if (!DATA.matrices.length) return section.remove();
  let quantity = QUANTITIES[0];
  const body = element("div", {});
  const draw = () => {
    const found = cells(quantity);
    const scale = mapScale(quantity, found);
    const made = responsive(element("div", { class: "scroll" }), width => heatGrid({
      cells: found, kinds: kindsIn(found), label: `${quantity.name} by layer and kind`, text: quantity.text, level: scale.level, tip: mapTip,
      open: cell => opened(cell.members[0].index), width,
    }));
    body.replaceChildren(made.node, scaleBar(scale));
    drawPending();
  };
  section.append(
    element("p", { class: "lead" }, `Layers across, kinds of matrices down; shares in %. Point at a cell for its intervals, and select it to see the directions of its update.${DATA.hasGain ? " In the map of ratios, × marks a matrix whose share of the gain cannot be told from zero." : ""}`),
    element("div", { class: "controls" }, choice("Colour by", QUANTITIES.map(each => [each.id, each.name]), quantity.id, id => { quantity = QUANTITIES.find(each => each.id === id); draw(); })),
    element("div", { class: "card" }, body));
  draw();
}

// ---- One matrix

const POINTS = DATA.hasGain ? ["Squared norm", "Forgetting", "Gain"] : ["Squared norm", "Forgetting"];
const pointCells = each => POINTS.map((_, place) => share(each[place]));

function matrix(section) {
  if (!DATA.matrices.length) {
    section.remove();
    return () => {};
  }
  const body = element("div", { class: "card" });
  const box = selectBox("Matrix", DATA.matrices.map((each, index) => [index, each.name]), value => draw(Number(value)));
  const draw = index => {
    box.value = index;
    const found = DATA.matrices[index];
    const inside = [];
    if (found.directions.length) {
      inside.push(element("h3", {}, "Singular directions of the update"), scrolling("Directions", table(["Direction", ...POINTS], found.directions.map((each, place) => ({ cells: [String(place + 1), ...pointCells(each)] })))));
    }
    if (found.vectors.length) {
      inside.push(element("h3", { class: "detail" }, "Top left singular vectors of the tuned matrix"), scrolling("Vectors", table(["Vector", ...POINTS], found.vectors.map((each, place) => ({ class: each[3] === "intruder" ? "strong" : null, cells: [`${place + 1}, ${each[3]}`, ...pointCells(each)] })))));
    }
    if (!inside.length) inside.push(element("p", {}, "The fine-tune did not change this matrix."));
    body.replaceChildren(...inside);
  };
  section.append(element("p", { class: "lead" }, "Shares of the whole model’s squared norm, forgetting and gain. Rows of either table do not overlap; the two tables split the same update in two ways."), element("div", { class: "controls" }, box), body);
  draw(DATA.matrices.reduce((best, each, index) => (each.forgetting?.[0] ?? 0) > (DATA.matrices[best].forgetting?.[0] ?? 0) ? index : best, 0));
  return index => {
    draw(index);
    section.scrollIntoView({ block: "nearest" });
  };
}

function parts(section) {
  const rows = [...DATA.matrices, ...DATA.tensors].sort((a, b) => (b.forgetting?.[0] ?? 0) - (a.forgetting?.[0] ?? 0));
  section.append(element("div", { class: "card tall" }, scrolling("All parts", table(["Matrix or other tensor", ...COLUMNS], rows.map(each => ({ cells: [each.name, ...cellsOfShare(each)] }))))));
}

function build() {
  const section = id => document.getElementById(id);
  glance(section("glance"));
  spans(section("spans"));
  const open = matrix(section("matrix"));
  maps(section("maps"), open);
  parts(section("parts"));
  section("settings").append(element("div", { class: "card" }, facts(DATA.settings)));
  drawPending();
  document.documentElement.setAttribute("data-drawn", "yes");
}

build();
