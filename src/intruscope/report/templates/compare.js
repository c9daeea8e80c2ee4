// The page of a comparison from top to bottom.

const HALF_TURN = 180 / Math.PI;
const degrees = value => value === null ? "–" : `${figure(value * HALF_TURN, 3)}°`;
const spread = value => value === null ? "–" : "±" + figure(value, 2);
const label = index => DATA.members[index].label;

function glance(section) {
  section.append(element("article", { class: "card" },
    element("p", { class: "said" }, DATA.sentence),
    scrolling("The fine-tunes", table(["Fine-tune", "Kind", "Matrices", "Norm of ΔW", "Energy", "Share of an equal-weight merge"],
      DATA.members.map(each => ({ cells: [each.label, each.kind, String(each.matrices), figure(each.norm), percent(each.energy), percent(each.share).replace("-", "−")] })))),
    findings()));
}

// One line for each code: with many fine-tunes the same is found of each.
function findings() {
  const grouped = new Map();
  for (const each of DATA.findings) {
    const key = each[0] + each[1];
    if (!grouped.has(key)) grouped.set(key, []);
    grouped.get(key).push(each);
  }
  if (!grouped.size) return null;
  return element("ul", { class: "findings" }, [...grouped.values()].map(group => {
    const [severity, code, message, place] = group[0];
    const lines = [place ? `${place}: ${message}` : message];
    if (group.length > 1 && code !== "shared-start") lines.push(` (and ${group.length - 1} more)`);
    else lines.push(...group.slice(1).flatMap(each => [element("br"), each[2]]));
    return element("li", { class: severity, "data-code": code }, lines);
  }));
}

// ---- Pairs

const SQUARES = [
  { id: "cosine", name: "Cosine", of: pair => pair.cosine, text: decimal(3), ends: ["0", "1"], level: value => Math.ceil(8 * Math.abs(value) - 1e-9) },
  { id: "left", name: "Overlap of column spaces", of: pair => pair.left, text: decimal(3), ends: ["0", "1"], level: value => Math.ceil(8 * value - 1e-9) },
  { id: "right", name: "Overlap of row spaces", of: pair => pair.right, text: decimal(3), ends: ["0", "1"], level: value => Math.ceil(8 * value - 1e-9) },
  { id: "signs", name: "Sign conflict", of: pair => pair.signs, text: decimal(3), ends: ["0", "1"], level: value => Math.round(8 * value) },
];

// Every fine-tune against every other.
function square(quantity) {
  const found = new Map(DATA.pairs.flatMap(pair => [[pair.a + "/" + pair.b, pair], [pair.b + "/" + pair.a, pair]]));
  return element("table", { class: "heat square" },
    element("thead", {}, element("tr", {}, element("th", { class: "corner" }), DATA.members.map(each => element("th", { scope: "col", title: each.label }, each.label)))),
    element("tbody", {}, DATA.members.map((each, row) => element("tr", {}, element("th", { scope: "row", title: each.label }, each.label), DATA.members.map((_, column) => {
      const pair = found.get(row + "/" + column);
      const value = pair ? quantity.of(pair) : null;
      if (!pair) return element("td", { class: "none" });
      const node = element("td", { class: value === null ? "unknown" : "h" + quantity.level(value), "data-value": value }, quantity.text(value));
      tipOn(node, () => `${label(pair.a)} and ${label(pair.b)}\n${quantity.name}: ${quantity.text(value)}`);
      return node;
    })))));
}

function pairs(section) {
  const names = ["Pair", "Cosine", "random", "shared A", "Norms", "Column spaces", "random", "Row spaces", "random", "Sign conflict", "random", "shared A"];
  const hasShared = DATA.pairs.some(pair => pair.shared !== null);
  const rows = DATA.pairs.map(pair => ({
    nulls: [2, 3, 6, 8, 10, 11],
    cells: [`${label(pair.a)}, ${label(pair.b)}`, decimal(4)(pair.cosine), spread(pair.cosineRandom), spread(pair.cosineSharedA), pair.norms === null ? "–" : `1 : ${figure(pair.norms, 2)}`,
      decimal(3)(pair.left), decimal(3)(pair.leftRandom), decimal(3)(pair.right), decimal(3)(pair.rightRandom), decimal(4)(pair.signs), spread(pair.signsRandom), spread(pair.signsSharedA),
      ...(hasShared ? [pair.shared === null ? "–" : String(pair.shared)] : [])],
  }));
  section.append(element("p", { class: "lead" }, "Cosine of the whole updates; mean overlap of the spaces over the matrices; share of entries with opposite signs. Beside each stands what random directions give, and what adapters give that share nothing but their A: the cosine is 0 ± the spread, the sign conflict 0.5 ± the spread."));
  if (DATA.members.length > 2) {
    const body = element("div", {});
    const draw = id => {
      const quantity = SQUARES.find(each => each.id === id);
      body.replaceChildren(element("div", { class: "scroll" }, square(quantity)), scaleBar(quantity));
    };
    section.append(element("div", { class: "controls" }, choice("Colour by", SQUARES.map(each => [each.id, each.name]), "cosine", draw)), element("div", { class: "card" }, body));
    draw("cosine");
    section.append(element("h3", { class: "detail" }, "All figures"));
  }
  section.append(element("div", { class: "card" }, scrolling("Pairs", table(hasShared ? [...names, "Shared intruders"] : names, rows))));
}

// ---- Maps of one pair

const reversed = value => Math.max(0, Math.min(8, Math.round(8 * (1 - value / (Math.PI / 2)))));
const MAPS = [
  { id: "cosine", name: "Cosine", text: brief, of: each => each.cosine, isSigned: true },
  { id: "leftAngle", name: "Smallest left angle", text: degrees, of: each => each.leftAngle, isAngle: true },
  { id: "rightAngle", name: "Smallest right angle", text: degrees, of: each => each.rightAngle, isAngle: true },
  { id: "left", name: "Overlap of column spaces", text: brief, of: each => each.left },
  { id: "right", name: "Overlap of row spaces", text: brief, of: each => each.right },
  { id: "signs", name: "Sign conflict", text: brief, of: each => each.signs, isHalf: true },
];

// The cell of each kind and layer; where there are several (experts), the value that is furthest from nothing.
function cellsOf(modules, value, strength) {
  const cells = new Map();
  for (const module of modules) {
    const key = module.kind + "/" + module.layer;
    if (!cells.has(key)) cells.set(key, { kind: module.kind, layer: module.layer, modules: [], value: null, shown: null });
    const cell = cells.get(key);
    cell.modules.push(module);
    const found = value(module);
    if (found !== null && found !== undefined && (cell.value === null || strength(found) > strength(cell.value))) [cell.value, cell.shown] = [found, module];
  }
  return cells;
}

function scaleOf(quantity, values) {
  if (quantity.isAngle) return { level: reversed, ends: ["90°", "0°"], strength: value => -value };
  if (quantity.isHalf) return { level: value => Math.min(8, Math.round(8 * Math.abs(value - 0.5) * 2)), ends: ["0.5", "0 or 1"], strength: value => Math.abs(value - 0.5) };
  const top = Math.max(0.1, ...values.map(Math.abs));
  return { level: value => value ? Math.min(8, Math.max(1, Math.ceil(8 * Math.abs(value) / top - 1e-9))) : 0, ends: ["0", (quantity.isSigned ? "± " : "") + figure(top, 2)], strength: Math.abs };
}

function pairTip(cell) {
  const each = cell.shown ?? cell.modules[0];
  const several = cell.modules.length > 1 ? [`the most of ${cell.modules.length} matrices`] : [];
  return [each.name, ...several,
    `cosine ${decimal(4)(each.cosine)} (random ${spread(each.cosineRandom)}, shared A ${spread(each.cosineSharedA)})`,
    `smallest left angle ${degrees(each.leftAngle)} (random ${degrees(each.leftAngleRandom)})`,
    `smallest right angle ${degrees(each.rightAngle)} (random ${degrees(each.rightAngleRandom)})`,
    `column spaces ${decimal(3)(each.left)} (random ${decimal(3)(each.leftRandom)})`,
    `row spaces ${decimal(3)(each.right)} (random ${decimal(3)(each.rightRandom)})`,
    `sign conflict ${decimal(4)(each.signs)} (0.5 ${spread(each.signsRandom)}, shared A ${spread(each.signsSharedA)})`,
    ...(each.shared === null ? [] : [`shared intruders ${each.shared}`])].join("\n");
}

function pairModules(pair) {
  return pair.modules.map(values => {
    const whole = DATA.modules[values[0]];
    return { kind: whole.kind, layer: whole.layer, name: whole.name, ...Object.fromEntries(DATA.pairFields.map((name, place) => [name, values[place + 1]])) };
  });
}

function maps(section) {
  const usable = DATA.pairs.map((pair, index) => [index, pair]).filter(([, pair]) => pair.modules.length);
  if (!usable.length) return section.remove();
  let quantity = MAPS[0], index = usable[0][0];
  const body = element("div", {});
  const draw = () => {
    const modules = pairModules(DATA.pairs[index]);
    const values = modules.map(quantity.of).filter(value => value !== null);
    const scale = scaleOf(quantity, values);
    const cells = cellsOf(modules, quantity.of, scale.strength);
    const pair = DATA.pairs[index];
    const name = `${quantity.name} by layer and kind: ${label(pair.a)}, ${label(pair.b)}`;
    const made = responsive(element("div", { class: "scroll" }), width => heatGrid({ cells, kinds: kindsIn(cells), label: name, text: quantity.text, level: scale.level, tip: pairTip, open: null, width }));
    body.replaceChildren(element("h3", {}, `${label(pair.a)}, ${label(pair.b)}`), made.node, scaleBar(scale));
    drawPending();
  };
  section.append(
    element("p", { class: "lead" }, "Layers across, kinds of matrices down. Point at a cell for its figures beside both nulls. The left angles are between the column spaces (output side), the right ones between the row spaces (input side)."),
    element("div", { class: "controls" },
      choice("Colour by", MAPS.map(each => [each.id, each.name]), quantity.id, id => { quantity = MAPS.find(each => each.id === id); draw(); }),
      usable.length > 1 ? selectBox("Pair", usable.map(([place, pair]) => [place, `${label(pair.a)}, ${label(pair.b)}`]), value => { index = Number(value); draw(); }) : null),
    element("div", { class: "card" }, body));
  draw();
}

// ---- The sum

const SUMS = [
  { id: "inflation", name: "Inflation", text: decimal(2), of: each => each.inflation },
  { id: "ratio", name: "Energy ratio", text: decimal(2), of: each => each.ratio },
];

function sumTip(cell) {
  const each = cell.shown ?? cell.modules[0];
  const lines = [each.name, `inflation ${decimal(3)(each.inflation)} (random ${decimal(3)(each.inflationRandom)}, shared A ${decimal(3)(each.inflationSharedA)})`, `energy of the sum over the energies ${decimal(3)(each.ratio)} (orthogonal 1)`];
  each.energies.forEach((energy, place) => lines.push(`${label(place)}: norm ${figure(Math.sqrt(energy))}, share ${each.shares ? percent(each.shares[place]).replace("-", "−") : "–"}`));
  return lines.join("\n");
}

function sum(section) {
  const several = DATA.modules.filter(module => module.energies.filter(energy => energy > 0).length > 1);
  if (!several.length) return section.remove();
  let quantity = SUMS[0];
  const body = element("div", {});
  const count = DATA.members.length;
  const draw = () => {
    // 1 is what orthogonal updates give; the number of fine-tunes is what equal ones give.
    const level = value => Math.max(0, Math.min(8, Math.round(8 * Math.abs(value - 1) / (count - 1))));
    const cells = cellsOf(several, quantity.of, value => Math.abs(value - 1));
    const made = responsive(element("div", { class: "scroll" }), width => heatGrid({ cells, kinds: kindsIn(cells), label: `${quantity.name} by layer and kind`, text: quantity.text, level, tip: sumTip, open: null, width }));
    body.replaceChildren(made.node, scaleBar({ ends: ["1", `0 or ${count}`] }));
    drawPending();
  };
  const total = DATA.sum;
  section.append(
    element("p", { class: "lead" }, `Inflation is the largest singular value of the sum over the largest of a part; the energy ratio is ‖sum‖² over the sum of the energies. Orthogonal updates give an energy ratio of 1, ${count} equal ones give ${count} for both, and updates that cancel less than 1.`),
    element("div", { class: "card" },
      scrolling("The sum", table(["Of the sum", "Found", "Random directions", "Shared A", "Equal updates"], [
        { cells: ["Energy ratio, all matrices", decimal(3)(total.ratio), "1", "1", String(count)], nulls: [2, 3, 4] },
        { cells: ["Inflation, median of the matrices", decimal(3)(total.inflation), decimal(3)(total.inflationRandom), decimal(3)(total.inflationSharedA), String(count)], nulls: [2, 3, 4] },
        { cells: ["Inflation, largest", decimal(3)(total.largest), "", "", ""] }]))),
    element("div", { class: "controls" }, choice("Colour by", SUMS.map(each => [each.id, each.name]), quantity.id, id => { quantity = SUMS.find(each => each.id === id); draw(); })),
    element("div", { class: "card" }, body));
  draw();
}

// ---- Intruders of the merge

function bar(row, top) {
  const piece = (name, count) => {
    const node = element("i", { class: name });
    node.style.width = `${100 * count / Math.max(1, top)}%`;
    return node;
  };
  return element("div", { class: "bar", "aria-hidden": "true" }, piece("old", row.intruders - (row.fresh ?? 0)), piece("new", row.fresh ?? 0));
}

function preflight(section) {
  const flight = DATA.preflight;
  if (!flight) return section.remove();
  const top = Math.max(...flight.rows.map(row => row.intruders));
  const share = value => value === null ? "" : percent(value);
  const cells = cellsOf(DATA.modules.filter(module => module.fresh !== null), module => module.fresh, value => value);
  const most = Math.max(4, ...[...cells.values()].map(cell => cell.value));
  const map = responsive(element("div", { class: "scroll" }), width => heatGrid({
    cells, kinds: kindsIn(cells), width, open: null, label: "New intruders of the merge by layer and kind", text: String,
    level: value => value ? Math.max(1, Math.ceil(8 * value / most - 1e-9)) : 0,
    tip: cell => {
      const each = cell.shown ?? cell.modules[0];
      return [each.name, `merge: ${each.flight.merge} intruders, ${each.fresh} new`, `parts: ${each.flight.parts.join(", ")}`, `random directions: ${each.flight.random} new`, `sum at the norm of one part: ${each.flight.equal} new`].join("\n");
    },
  }));
  section.append(
    element("p", { class: "lead" }, `Intruders among the ${flight.vectors.toLocaleString("en")} leading left vectors that were examined in each model. New ones are in the merge and in none of its parts. The controls say how many new ones come of size alone: parts with the same singular values in random directions, merged in the same way, and the sum shrunk as a whole to the norm of one part.`),
    element("div", { class: "card" },
      element("p", { class: "scale" }, element("span", {}, element("span", { class: "key old" }), "found in a part too"), element("span", {}, element("span", { class: "key new" }), "new")),
      scrolling("Intruders", table(["Base plus", "Intruders", "", "Energy, % of the base’s", "New", "Energy of the new", "Undecided"], flight.rows.map(row => ({
        class: row.role === "merge" ? "strong" : row.role === "part" ? null : "control",
        cells: [row.name, String(row.intruders), bar(row, top), percent(row.energy), row.fresh === null ? "" : String(row.fresh), share(row.freshEnergy), String(row.undecided)],
      }))))),
    element("h3", { class: "detail" }, "New intruders of the merge, by layer and kind"),
    element("div", { class: "card" }, map.node, scaleBar({ ends: ["0", String(most)] })));
  drawPending();
}

// ---- Forgetting

function forgettingChart(models, width) {
  const values = models.flatMap(model => model.forgetting);
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const room = (high - low || 1) * 0.06;
  const left = Math.min(220, width * 0.34), right = width - 16, step = 34, height = models.length * step + 54;
  const x = value => left + (value - low + room) / (high - low + 2 * room) * (right - left);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": models.map(model => `${model.name}: ${model.text}`).join("; ") });
  for (const tick of linearTicks(low - room, high + room, 5)) {
    svg.append(shape("line", { class: tick === 0 ? "zero" : "gridline", x1: x(tick), x2: x(tick), y1: 6, y2: height - 44 }), shape("text", { x: x(tick), y: height - 26, "text-anchor": "middle" }, plainly(tick)));
  }
  svg.append(shape("text", { x: right, y: height - 3, "text-anchor": "end" }, "forgetting, nats per token"));
  models.forEach((model, place) => {
    const y = 6 + step * (place + 0.5), [value, from, to] = model.forgetting;
    const group = shape("g", { class: model.part ? "c0" : "c1" }, shape("line", { class: "whisker", x1: x(from), x2: x(to), y1: y, y2: y }), markAt(x(value), y, series(model.part ? 0 : 1)));
    tipOn(group, () => `${model.name}\nforgetting ${model.text} nats per token`);
    svg.append(shape("text", { class: "model", x: left - 12, y: y + 4, "text-anchor": "end" }, model.name.length > 26 ? model.name.slice(0, 25) + "…" : model.name), group);
  });
  return svg;
}

function forgetting(section) {
  const found = DATA.forgetting;
  if (!found) return section.remove();
  const chart = responsive(element("div", {}), width => forgettingChart(found.models, width));
  section.append(
    element("p", { class: "lead" }, `Loss on ${found.sequences.toLocaleString("en")} sequences (${found.tokens.toLocaleString("en")} tokens) of ${found.text}, minus the base's ${found.base}. Every model was measured on the same sequences, so differences are taken sequence by sequence, with 95% intervals.`),
    element("div", { class: "card" }, chart.node,
      scrolling("Forgetting", table(["Base plus", "Loss", "Forgetting", "The merge minus this"], found.models.map(model => ({ class: model.part ? null : "strong", cells: [model.name, model.loss, model.text, model.difference] }))))));
  drawPending();
}

function build() {
  const section = id => document.getElementById(id);
  glance(section("glance"));
  pairs(section("pairs"));
  maps(section("maps"));
  sum(section("sum"));
  preflight(section("preflight"));
  forgetting(section("forgetting"));
  section("settings").append(element("div", { class: "card" }, facts([...DATA.settings, ...DATA.environment])));
  drawPending();
  document.documentElement.setAttribute("data-drawn", "yes");
}

build();
