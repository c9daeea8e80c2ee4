// The charts of a sweep. Gains are drawn upwards and to the right, so that the top right corner is always better.

const isAccuracy = DATA.metric === "accuracy";
const hasShare = DATA.series.some(each => each.cells.some(cell => cell.share));
const minus = ([value, low, high]) => [-value, -high, -low];
const times = (factor, three) => three.map(value => factor * value);

// What the axes show: [estimate, low, high], better upwards.
const TASK = {
  gain: cell => isAccuracy ? times(100, cell.taskChange) : minus(cell.taskChange),
  difference: cell => cell.taskDifference && (isAccuracy ? times(100, cell.taskDifference) : minus(cell.taskDifference)),
  title: isAccuracy ? "accuracy gained, points" : "task loss reduced, nats/token", digits: isAccuracy ? 1 : 3, unit: isAccuracy ? " points" : " nats/token",
};
const FORGETTING = {
  share: { name: "% of the forgetting", gain: cell => cell.share && times(100, minus(cell.share)), title: "forgetting won back, %", digits: 0, unit: "%" },
  nats: { name: "nats/token", gain: cell => minus(cell.change), title: "forgetting won back, nats/token", digits: 3, unit: " nats/token" },
};

// There are six colours and marks: from the seventh series on, lines are dashed and marks shifted.
function look(index) {
  const round = Math.floor(index / 6);
  return { colour: "c" + [1, 0, 2, 5, 3, 4][(index + round) % 6], path: MARK_PATHS[(index + 3 * round) % 6], isDashed: round > 0 };
}

function rounded(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? "−" : "") + text;
}

function withInterval(three, { digits, unit }) {
  if (!three) return "–";
  const [value, low, high] = three.map(each => rounded(each, digits));
  return `${value}${unit} (${low} to ${high})`;
}

function tradeTip(series, cell, forgetting) {
  return `${series.name}, ${cell.setting}\nforgetting won back: ${withInterval(forgetting.gain(cell), forgetting)}\n${isAccuracy ? "accuracy gained" : "task loss reduced"}: ${withInterval(TASK.gain(cell), TASK)}`;
}

// Bounds that contain the values and zero, with a margin; an interval may leave the frame.
function around(values) {
  const [lo, hi] = [Math.min(0, ...values), Math.max(0, ...values)];
  const room = (hi - lo || 1) * 0.09;
  return { log: false, lo: lo - room, hi: hi + room };
}

function within(value, scale) {
  return Math.max(scale.lo, Math.min(scale.hi, value));
}

function whiskers(x, y, [px, py], frameOf) {
  const { sx, sy } = frameOf;
  return [
    shape("line", { class: "whisker", x1: sx(within(x[1], frameOf.x)), x2: sx(within(x[2], frameOf.x)), y1: py, y2: py }),
    shape("line", { class: "whisker", x1: px, x2: px, y1: sy(within(y[1], frameOf.y)), y2: sy(within(y[2], frameOf.y)) }),
  ];
}

function dot(place, mark, parts, attributes) {
  const [px, py] = place;
  return shape("g", { class: "dot", role: "img", tabindex: -1, ...attributes }, parts,
    shape("circle", { class: "ring", cx: px, cy: py, r: 10 }), markAt(px, py, mark, 1.25));
}

// Every visible series from the tuned model outwards; `chosen` gets a series and one of its cells.
function tradeChart(shown, forgetting, picked, chosen, width) {
  const drawn = shown.map(index => ({ index, series: DATA.series[index], cells: DATA.series[index].cells.filter(cell => forgetting.gain(cell)) }));
  const cells = drawn.flatMap(each => each.cells);
  const x = around(cells.map(cell => TASK.gain(cell)[0]));
  const y = around(cells.map(cell => forgetting.gain(cell)[0]));
  x.ticks = linearTicks(x.lo, x.hi, Math.max(3, Math.round(width / 120))).map(value => [value, plainly(value)]);
  y.ticks = linearTicks(y.lo, y.hi, 6);
  const label = `Forgetting won back against ${TASK.title}: ` + drawn.map(({ series, cells: each }) => `${series.name}: ` + each.map(cell => `${cell.setting}, ${withInterval(forgetting.gain(cell), forgetting)} at ${withInterval(TASK.gain(cell), TASK)}`).join("; ")).join(". ");
  const made = frame({ width, height: Math.max(340, Math.min(560, width * 0.62)), label, x, y, xTitle: TASK.title + " →", yTitle: forgetting.title + " ↑", yText: plainly });
  const { svg, sx, sy, right, bottom, margin } = made;
  svg.setAttribute("role", "group");
  Object.assign(made, { x, y });
  svg.append(
    shape("line", { class: "zero", x1: sx(0), x2: sx(0), y1: margin.top, y2: bottom }), shape("line", { class: "zero", x1: margin.left, x2: right, y1: sy(0), y2: sy(0) }),
    shape("text", { class: "corner", x: right - 4, y: margin.top + 12, "text-anchor": "end" }, "better ↗"));
  const isLate = right - sx(0) < 90;
  const grid = [];
  // The edit last, on top of its controls.
  for (const { index, series, cells: each } of [...drawn].sort((a, b) => (a.series.control === "intruders") - (b.series.control === "intruders"))) {
    const mark = look(index);
    const ordered = [...each].sort((a, b) => b.strength - a.strength);
    const places = ordered.map(cell => [sx(TASK.gain(cell)[0]), sy(forgetting.gain(cell)[0])]);
    // A fit's line does not pass through the tuned model: with no weight on text it still lowers the task's loss.
    const weaker = places.filter((_, i) => series.isFit || ordered[i].strength < 1), stronger = series.isFit ? [] : places.filter((_, i) => ordered[i].strength > 1).reverse();
    const from = series.isFit ? places[0] : [sx(0), sy(0)];
    const path = points => points.length ? `M${from[0].toFixed(1)} ${from[1].toFixed(1)}` + points.map(([px, py]) => `L${px.toFixed(1)} ${py.toFixed(1)}`).join("") : "";
    const group = shape("g", { class: mark.colour + (series.control === "intruders" ? " edit" : "") },
      shape("path", { class: "line" + (mark.isDashed ? " dashed" : ""), d: path(weaker) + path(stronger) }));
    const row = ordered.map((cell, i) => {
      const node = dot(places[i], mark, whiskers(TASK.gain(cell), forgetting.gain(cell), places[i], made), { "aria-label": tradeTip(series, cell, forgetting).replaceAll("\n", "; "), "data-series": index, "data-strength": cell.strength });
      if (picked && picked.series === index && picked.strength === cell.strength) node.setAttribute("aria-current", "true");
      tipOn(node, () => tradeTip(series, cell, forgetting));
      node.addEventListener("click", () => chosen(index, cell));
      node.addEventListener("focus", () => chosen(index, cell));
      group.append(node);
      if (series.control === "intruders") group.append(shape("text", { class: "strength", x: places[i][0] + 9, y: places[i][1] - 8 }, String(cell.strength)));
      return node;
    });
    svg.append(group);
    grid.push(row);
  }
  svg.append(shape("circle", { class: "origin", cx: sx(0), cy: sy(0), r: 5 }), shape("text", { class: "title", x: sx(0) + (isLate ? -9 : 9), y: sy(0) + 17, "text-anchor": isLate ? "end" : "start" }, "tuned model"));
  walkGrid(svg, grid.reverse());
  return svg;
}

// The difference of each control from the edit at the same strength; above zero, the edit is better.
function besideChart(shown, title, get, axis, width) {
  const drawn = shown.map(index => ({ index, series: DATA.series[index], cells: DATA.series[index].cells.filter(cell => get(cell)) })).filter(each => each.cells.length);
  const strengths = [...new Set(drawn.flatMap(each => each.cells.map(cell => cell.strength)))].sort((a, b) => a - b);
  const values = drawn.flatMap(each => each.cells.flatMap(get));
  const y = around(values.length ? values : [0]);
  y.ticks = linearTicks(y.lo, y.hi, 5);
  const x = { lo: -0.5, hi: Math.max(0.5, strengths.length - 0.5), ticks: strengths.map((strength, place) => [place, String(strength)]) };
  const label = `${title}: ` + drawn.map(({ series, cells }) => `${series.name}: ` + cells.map(cell => `at ${cell.strength} ${withInterval(get(cell), axis)}`).join(", ")).join("; ");
  const { svg, sx, sy, right, margin } = frame({ width, height: 300, label, x, y, xTitle: "strength", yTitle: title, yText: plainly });
  svg.setAttribute("role", "group");
  svg.append(shape("line", { class: "zero", x1: margin.left, x2: right, y1: sy(0), y2: sy(0) }),
    shape("text", { class: "corner", x: right, y: 13, "text-anchor": "end" }, "edit better ↑"));
  const room = Math.min(0.16, 0.8 / Math.max(1, drawn.length));
  walkGrid(svg, drawn.map(({ index, series, cells }, order) => {
    const mark = look(index);
    const group = shape("g", { class: mark.colour });
    svg.append(group);
    return cells.map(cell => {
      const [value, low, high] = get(cell);
      const place = [sx(strengths.indexOf(cell.strength) + (order - (drawn.length - 1) / 2) * room), sy(value)];
      const text = `${series.name}, strength ${cell.strength}\nthe edit is better by ${withInterval([value, low, high], axis)}`;
      const node = dot(place, mark, shape("line", { class: "whisker", x1: place[0], x2: place[0], y1: sy(low), y2: sy(high) }), { "aria-label": text.replaceAll("\n", "; ") });
      tipOn(node, () => text);
      group.append(node);
      return node;
    });
  }));
  return svg;
}

// The factor of each direction against its size on a logarithmic axis.
function directionChart(test, width) {
  const sizes = test.points.map(point => Math.log10(point[4]));
  const x = { log: false, lo: Math.min(...sizes) - 0.1, hi: Math.max(...sizes) + 0.1 };
  x.ticks = linearTicks(x.lo, x.hi, Math.max(3, Math.round(width / 140))).map(value => [value, (10 ** value).toPrecision(2)]);
  const y = around([1, ...test.points.map(point => point[2])]);
  y.ticks = linearTicks(y.lo, y.hi, 6);
  const made = frame({ width, height: Math.max(280, Math.min(420, width * 0.5)), label: test.sentence, x, y, xTitle: "singular value over the largest of the base →", yTitle: "fitted factor", yText: plainly });
  const { svg, sx, sy, right, margin } = made;
  svg.append(shape("line", { class: "zero", x1: margin.left, x2: right, y1: sy(1), y2: sy(1) }),
    shape("text", { class: "corner", x: right, y: sy(1) - 5, "text-anchor": "end" }, "1: kept as it is"));
  const isIn = point => point[3] > 0.5;
  for (const point of [...test.points].sort((a, b) => isIn(a) - isIn(b))) {
    const text = `${point[0]}, direction ${point[1]}\nfactor ${rounded(point[2], 3)}\nshare in the intruders ${rounded(100 * point[3], 0)}%\nsize ${point[4].toPrecision(2)}` + (point[5] === null ? "" : `\nalignment ${rounded(point[5], 2)}`);
    const node = shape("circle", { class: isIn(point) ? "direction inside" : "direction", cx: sx(Math.log10(point[4])), cy: sy(point[2]), r: 3.5 });
    tipOn(node, () => text);
    svg.append(node);
  }
  return svg;
}
