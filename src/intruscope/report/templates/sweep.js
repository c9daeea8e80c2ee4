// The page of a sweep from top to bottom.

function sample(index) {
  const mark = look(index);
  return shape("svg", { viewBox: "0 0 26 14", class: mark.colour, "aria-hidden": "true" },
    shape("path", { class: "line" + (mark.isDashed ? " dashed" : ""), d: "M0 7H26" }), markAt(13, 7, mark));
}

// A figure and its interval, which may break between the two but nowhere else.
function split(text) {
  const at = text.indexOf(" (");
  return at < 0 ? text : [element("span", { class: "whole" }, text.slice(0, at)), " ", element("span", { class: "whole" }, text.slice(at + 1))];
}

const capital = text => text[0].toUpperCase() + text.slice(1);

// Rows of { cells, class }; the first cell of each is its heading, the others are numbers.
function table(names, rows) {
  return element("table", { class: "list" },
    element("thead", {}, element("tr", {}, names.map((name, place) => element("th", { scope: "col", class: place ? "number" : null }, capital(name))))),
    element("tbody", {}, rows.map(row => element("tr", { class: row.class }, row.cells.map((cell, place) => element(place ? "td" : "th", place ? { class: "number" } : { scope: "row" }, cell))))));
}

// Checkboxes that show and hide series; `changed` gets the indices of the visible ones.
function switches(indices, isOn, changed) {
  const boxes = indices.map(index => element("input", { type: "checkbox", checked: isOn(index), change: () => changed(indices.filter((_, i) => boxes[i].checked)) }));
  return element("fieldset", { class: "switches" }, element("legend", {}, "Shown"), indices.map((index, i) =>
    element("label", {}, boxes[i], sample(index), element("span", {}, DATA.series[index].name))));
}

function bestFix(section) {
  if (!DATA.fitting) return;
  section.append(element("article", { class: "card" },
    element("p", { class: "pills" }, element("span", { class: "pill good" }, "the best fix")),
    element("p", { class: "advice" }, DATA.fitting.sentence),
    DATA.fitting.command ? [element("p", { class: "lead" }, "To write this model:"), element("pre", { class: "command", tabindex: 0 }, DATA.fitting.command)] : null));
}

function fits(section) {
  if (!DATA.fitting) return section.remove();
  section.append(
    element("p", { class: "lead" }, "Each fit starts at the tuned model and lowers the loss of the task plus the weight times the loss on text. Nothing is fitted on what is reported."),
    element("div", { class: "card" }, facts(DATA.fitting.facts)),
    element("div", { class: "scroll" }, table(["Fix", "Weight", "Trained numbers", "Best step", "Seconds"], DATA.fitting.fits.map(cells => ({ cells })))));
}

function directions(section) {
  const tests = DATA.fitting ? DATA.fitting.directions : [];
  if (!tests.length) return section.remove();
  let at = 0;
  const said = element("p", { class: "advice" });
  const chart = responsive(element("div", {}), width => directionChart(tests[at], width));
  const show = index => { at = index; said.replaceChildren(tests[at].sentence); chart.refresh(); };
  section.append(
    element("p", { class: "lead" }, "A mark is one singular direction of one update: how large it is, and what the fit multiplies it by. Filled marks lie mostly in the span of the intruders of their matrix. If intruders carried the forgetting, the fit would turn them down more than others of the same size."),
    element("div", { class: "controls" }, tests.length > 1 ? choice("Weight", tests.map((test, index) => [String(index), String(test.weight)]), "0", id => show(Number(id))) : null),
    element("div", { class: "card" }, said, chart.node));
  show(0);
}

function glance(section) {
  section.append(...DATA.advice.map(advice => element("article", { class: "card" },
    element("p", { class: "pills" },
      element("span", { class: advice.isRecommended ? "pill good" : "pill" }, advice.isRecommended || advice.isOutdone ? `${advice.outcome}: strength ${advice.strength}` : advice.outcome),
      advice.verdict ? element("span", { class: "pill plain" }, "intruders: " + advice.verdict) : null),
    element("p", { class: "advice" }, advice.sentence),
    advice.commands.map(([lead, command]) => [element("p", { class: "lead" }, lead), element("pre", { class: "command", tabindex: 0 }, command)]))),
  facts(DATA.facts),
  element("div", { class: "scroll" }, table(["The tuned model on", "Sequences", "Examples", "Forgetting", isAccuracy ? "Accuracy" : "Task loss"], DATA.parts.map(row => ({ cells: row.map((text, place) => place === 3 || place === 4 ? split(text) : text) })))));
}

function reading(series, cell) {
  const pairs = [[series.isFit ? "Weight of the loss on text" : "Strength", String(cell.strength)]];
  if (cell.share) pairs.push(["Forgetting won back", withInterval(FORGETTING.share.gain(cell), FORGETTING.share)]);
  pairs.push(
    ["The same in nats/token", withInterval(FORGETTING.nats.gain(cell), { digits: 3, unit: "" })],
    ["Remaining forgetting", withInterval(cell.forgetting, { digits: 3, unit: "" })],
    [isAccuracy ? "Accuracy" : "Task loss", isAccuracy ? withInterval(times(100, cell.task), { digits: 1, unit: "%" }) : withInterval(cell.task, { digits: 3, unit: "" })],
    [isAccuracy ? "Accuracy gained" : "Task loss reduced", withInterval(TASK.gain(cell), TASK)]);
  if (isAccuracy) pairs.push(["Change in the loss of the right answers", withInterval(cell.taskLoss, { digits: 3, unit: "" })]);
  if (cell.difference) {
    pairs.push(["The edit forgets less by", withInterval(cell.difference, { digits: 3, unit: "" })],
      [isAccuracy ? "and is more accurate by" : "and its task loss is lower by", withInterval(minus(TASK.difference(cell)), TASK)]);
  }
  pairs.push(["Matrices changed", String(cell.matrices)], ["Norm of the change", figure(cell.norm)]);
  return [element("h3", {}, series.name), facts(pairs)];
}

function tradeoff(section) {
  const all = DATA.series.map((_, index) => index);
  let shown = all.filter(index => DATA.series[index].isShown);
  let forgetting = hasShare ? FORGETTING.share : FORGETTING.nats;
  let picked = null;
  const side = element("aside", { class: "reading", "aria-live": "polite" }, element("p", { class: "hint" }, "Point at a mark for its figures, or click one to keep them here. With the keyboard: Tab to the chart, then use the arrow keys."));
  const box = element("div", {});
  const chosen = (index, cell) => {
    picked = { series: index, strength: cell.strength };
    for (const node of box.querySelectorAll(".dot")) {
      const isIt = Number(node.dataset.series) === index && Number(node.dataset.strength) === cell.strength;
      if (isIt) node.setAttribute("aria-current", "true"); else node.removeAttribute("aria-current");
    }
    side.replaceChildren(...reading(DATA.series[index], cell));
  };
  const chart = responsive(box, width => tradeChart(shown, forgetting, picked, chosen, width));
  section.append(
    element("p", { class: "lead" }, "All the data. Each line starts at the tuned model and follows one edit as its strength falls. Up: forgetting won back. Right: the task improves. A line above the others wins back more at the same cost."),
    element("div", { class: "controls" }, hasShare ? choice("Forgetting in", Object.entries(FORGETTING).map(([id, each]) => [id, each.name]), "share", id => { forgetting = FORGETTING[id]; chart.refresh(); }) : null),
    switches(all, index => shown.includes(index), now => { shown = now; chart.refresh(); }),
    element("div", { class: "card with-detail" }, chart.node, side));
}

function beside(section) {
  const all = DATA.series.map((_, index) => index).filter(index => DATA.series[index].cells.some(cell => cell.difference));
  if (!all.length) return section.remove();
  let shown = all.filter(index => DATA.series[index].isMatched);
  const charts = [
    ["forgetting, nats/token", cell => cell.difference, { digits: 3, unit: " nats/token" }],
    [isAccuracy ? "accuracy, points" : "task loss, nats/token", cell => cell.taskDifference && minus(TASK.difference(cell)), TASK],
  ].map(([title, get, axis]) => responsive(element("div", {}), width => besideChart(shown, title, get, axis, width)));
  section.append(
    element("p", { class: "lead" }, "All the data. Each control minus the intruder edit at the same strength, item by item. Where the line through a mark crosses zero, the two cannot be told apart."),
    switches(all, index => shown.includes(index), now => { shown = now; charts.forEach(chart => chart.refresh()); }),
    element("div", { class: "row" }, charts.map(chart => element("div", { class: "card" }, chart.node))));
}

function chosenTable(section) {
  section.append(
    element("p", { class: "lead" }, "For each control, the strength below 1 with the least forgetting among those within the largest acceptable cost, chosen on one half of the data. The figures are of the other half, the evaluation half."),
    element("div", { class: "scroll" }, table(["Edit or control", DATA.fitting ? "Strength or weight" : "Strength", hasShare ? FORGETTING.share.title : FORGETTING.nats.title, TASK.title], DATA.choices.map(each => {
      const forgetting = each.figures && (each.figures.share ? withInterval(FORGETTING.share.gain(each.figures), { digits: 0, unit: "" }) : withInterval(FORGETTING.nats.gain(each.figures), { digits: 3, unit: "" }));
      return { cells: [each.name, each.setting, forgetting ? split(forgetting) : "–", each.figures ? split(withInterval(TASK.gain(each.figures), { ...TASK, unit: "" })) : "–"] };
    }))));
}

function numbers(section) {
  const columns = ["Edit or control", DATA.fitting ? "Strength or weight" : "Strength", "Won back, nats/token", ...(hasShare ? ["Won back, %"] : []), TASK.title, "The edit forgets less by, nats/token", "Norm of the change"];
  section.append(
    element("p", { class: "lead" }, "All the data, relative to the tuned model."),
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All measurements" }, table(columns, DATA.series.flatMap(series => series.cells.map(cell => ({
      class: series.control === "intruders" ? "best" : null,
      cells: [series.name, String(cell.strength), ...[
        withInterval(FORGETTING.nats.gain(cell), { digits: 3, unit: "" }), ...(hasShare ? [cell.share ? withInterval(FORGETTING.share.gain(cell), { digits: 1, unit: "" }) : "–"] : []),
        withInterval(TASK.gain(cell), { ...TASK, unit: "" }), withInterval(cell.difference, { digits: 3, unit: "" })].map(split), figure(cell.norm)],
    }))))));
}

function build() {
  const section = id => document.getElementById(id);
  bestFix(section("glance"));
  glance(section("glance"));
  tradeoff(section("tradeoff"));
  beside(section("beside"));
  chosenTable(section("chosen"));
  fits(section("fits"));
  directions(section("directions"));
  numbers(section("numbers"));
  section("settings").append(element("div", { class: "card" }, facts([...DATA.settings, ...DATA.environment])));
  drawPending();
  document.documentElement.setAttribute("data-drawn", "yes");
}

build();
