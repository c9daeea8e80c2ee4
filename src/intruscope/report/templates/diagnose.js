// The page of a diagnosis from top to bottom.

const PARTS = { forgetting: "Forgetting", skills: "Skills", fixes: "Fixes" };

function command(text) {
  return element("pre", { class: "command" }, text);
}

function glance(section) {
  section.append(element("div", { class: "card" },
    element("p", { class: "answer " + DATA.verdict }, DATA.answer),
    DATA.sentences.map(text => element("p", { class: "said" }, text))));
}

function next(section) {
  if (!DATA.commands.length) return section.remove();
  section.append(element("div", { class: "card" }, DATA.commands.map(([purpose, text]) => [element("h3", {}, purpose), command(text)])));
}

function direction([, low, high]) {
  return low > 0 ? "worse" : high < 0 ? "better" : "same";
}

// One row per figure: its change with the interval, harm to the right of the line at 0.
function forest(rows, title, digits, width) {
  const label = `${title}: ` + rows.map(row => `${row.name} ${withInterval(row.harm, { digits, unit: "" })}`).join("; ");
  const left = Math.min(260, Math.round(width * 0.34));
  const height = 62 + 30 * rows.length;
  const x = around(rows.flatMap(row => row.harm));
  x.ticks = linearTicks(x.lo, x.hi, Math.max(3, Math.round((width - left) / 110))).map(value => [value, plainly(value)]);
  const made = frame({ width, height, label, x, y: { log: false, lo: 0, hi: rows.length, ticks: [] }, xTitle: title + " →", margin: { left, right: 14, top: 8, bottom: 40 } });
  const { svg, sx, sy, bottom } = made;
  svg.setAttribute("class", "forest");
  svg.append(shape("line", { class: "zero", x1: sx(0), x2: sx(0), y1: 8, y2: bottom }));
  rows.forEach((row, i) => {
    const y = sy(rows.length - i - 0.5), [value, low, high] = row.harm;
    const group = shape("g", { class: direction(row.harm) },
      shape("line", { class: "interval", x1: sx(low), x2: sx(high), y1: y, y2: y }),
      shape("circle", { class: "fill", cx: sx(value), cy: y, r: 5 }));
    tipOn(group, () => `${row.name}\n${withInterval(row.harm, { digits, unit: "" })}\n${row.note}`);
    const name = row.name.length > left / 7.2 ? row.name.slice(0, Math.floor(left / 7.2) - 1) + "…" : row.name;
    svg.append(shape("text", { class: "value", x: left - 10, y: y + 4, "text-anchor": "end" }, name), group);
  });
  return svg;
}

function forgetting(section) {
  if (!DATA.forgetting) return section.remove();
  const rows = DATA.forgetting;
  const groups = [["nats", "loss added, nats/token", 3], ["score", "score lost", 3]].map(([kind, title, digits]) => [rows.filter(row => row.kind === kind), title, digits]).filter(([some]) => some.length);
  section.append(
    element("p", { class: "lead" }, "The tuned model minus the base, item by item. To the right of the line at 0, the tuned model is worse; where an interval crosses it, chance alone explains the change."),
    ...groups.map(([some, title, digits]) => element("div", { class: "card" }, responsive(element("div", {}), width => forest(some, title, digits, width)).node)),
    element("div", { class: "scroll" }, table(["Measured on", "Base", "Tuned", "Tuned is worse by", ""], rows.map(row => ({
      cells: [row.name, row.base === null ? "–" : row.base.toFixed(3), row.tuned.toFixed(3), withInterval(row.harm, { digits: 3, unit: "" }), row.note],
    })))));
}

function table(columns, rows) {
  return element("table", { class: "list" }, element("thead", {}, element("tr", {}, columns.map(name => element("th", { scope: "col" }, name)))),
    element("tbody", {}, rows.map(row => element("tr", { class: row.class || null }, row.cells.map((cell, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, cell))))));
}

function fixes(section) {
  if (!DATA.series.length) return section.remove();
  const unit = isAccuracy ? " points" : "";
  const forgettingAxis = hasShare ? FORGETTING.share : FORGETTING.nats;
  const shown = DATA.series.map((_, index) => index).filter(index => DATA.series[index].cells.some(cell => forgettingAxis.gain(cell)));
  section.append(
    element("p", { class: "lead" }, "Each line starts at the tuned model and follows one fix as its strength falls. Up: forgetting won back. Right: the task improves."),
    element("div", { class: "card" },
      legend(shown.map(index => [look(index).colour, MARKS[MARK_PATHS.indexOf(look(index).path)], DATA.series[index].name])),
      responsive(element("div", {}), width => tradeChart(shown, forgettingAxis, null, () => {}, width)).node),
    DATA.fixes.length ? element("div", { class: "scroll" }, table(["Fix", "Strength or weight", "Forgetting, nats/token", isAccuracy ? "Accuracy, points" : "Task loss, nats/token", "Certain"], DATA.fixes.map(fix => ({
      class: fix.isCertain ? "best" : null,
      cells: [fix.title, fix.setting, withInterval(fix.change, { digits: 3, unit: "" }), withInterval(isAccuracy ? times(100, fix.task) : fix.task, { digits: isAccuracy ? 1 : 3, unit }), fix.isCertain ? "yes" : "no"],
    })))) : element("p", {}, "No fix lowers forgetting at an acceptable cost to the task."));
}

function weights(section) {
  const { headline, figures, findings } = DATA.scan;
  const cells = new Map();
  for (const matrix of DATA.scan.matrices.filter(each => each.scope === "paper")) {
    const side = matrix.sides[0];
    const key = `${matrix.kind}/${matrix.layer}`;
    const before = cells.get(key) || { kind: matrix.kind, layer: matrix.layer, value: null, chance: null, num: 0 };
    if (side) {
      before.value = (before.value || 0) + side.intruders;
      before.num += side.num;
      if (side.null) before.chance = (before.chance || 0) + side.null[0];
    }
    cells.set(key, before);
  }
  const kinds = [...new Set([...cells.values()].map(cell => cell.kind))].sort((a, b) => kindOrder(a) - kindOrder(b) || (a < b ? -1 : 1));
  const top = Math.max(1, ...[...cells.values()].map(cell => cell.value || 0));
  section.append(
    element("div", { class: "row" },
      element("div", { class: "card" },
        element("p", { class: "big" }, String(headline.intruders), element("small", {}, ` of ${headline.candidates} vectors are intruders`)),
        facts(figures)),
      cells.size ? element("div", { class: "card" }, element("h3", {}, "Intruders by layer and kind"), responsive(element("div", { class: "scroll" }), width => heatGrid({
        cells, kinds, width, label: "Intruders by layer and kind", text: String, level: value => value ? Math.max(1, Math.round(8 * value / top)) : 0,
        tip: cell => `${cell.kind}, layer ${cell.layer}\n${cell.value === null ? "no result" : `${cell.value} of ${cell.num}`}${cell.chance === null ? "" : `, ${figure(cell.chance)} by chance`}`,
      })).node) : null),
    findings.length ? element("ul", { class: "findings" }, findings.map(([severity, code, message]) => element("li", { class: severity }, element("b", {}, code + " "), message))) : "");
}

function skipped(section) {
  if (!DATA.skipped.length) return section.remove();
  section.append(element("ul", { class: "findings" }, DATA.skipped.map(([part, reason, wasAsked]) => element("li", { class: wasAsked ? "warning" : "" }, element("b", {}, PARTS[part] + ": "), reason + "."))));
}

function build() {
  for (const [id, part] of Object.entries({ glance, next, forgetting, fixes, weights, skipped })) part(document.getElementById(id));
  drawPending();
  document.documentElement.setAttribute("data-drawn", "yes");
}

build();
