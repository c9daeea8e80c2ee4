// The page of a sweep from top to bottom.

function sample(index) {
  const mark = look(index);
  return shape("svg", { viewBox: "0 0 26 14", class: mark.colour, "aria-hidden": "true" },
    shape("path", { class: "line" + (mark.isDashed ? " dashed" : ""), d: "M0 7H26" }), markAt(13, 7, mark));
}

// Switches for the series; `changed` gets the indices of those that are on.
function switches(indices, isOn, changed) {
  const boxes = indices.map(index => element("input", { type: "checkbox", checked: isOn(index), change: () => changed(indices.filter((_, i) => boxes[i].checked)) }));
  return element("fieldset", { class: "switches" }, element("legend", {}, "Shown"), indices.map((index, i) =>
    element("label", {}, boxes[i], sample(index), element("span", {}, DATA.series[index].name))));
}

function glance(section) {
  section.append(...DATA.advice.map(advice => element("article", { class: "card" },
    element("p", { class: "pills" },
      element("span", { class: advice.isRecommended ? "pill good" : "pill" }, advice.isRecommended || advice.isOutdone ? `${advice.outcome}: strength ${advice.strength}` : advice.outcome),
      advice.verdict ? element("span", { class: "pill plain" }, "intruders: " + advice.verdict) : null),
    element("p", { class: "advice" }, advice.sentence))), facts(DATA.facts));
}

function reading(series, cell) {
  const pairs = [["Strength", String(cell.strength)]];
  if (cell.share) pairs.push(["Forgetting won back", told(FORGETTING.share.gain(cell), FORGETTING.share)]);
  pairs.push(
    ["The same in nats/token", told(FORGETTING.nats.gain(cell), { digits: 3, unit: "" })],
    ["Forgetting that is left", told(cell.forgetting, { digits: 3, unit: "" })],
    [isAccuracy ? "Accuracy" : "Task loss", isAccuracy ? told(times(100, cell.task), { digits: 1, unit: "%" }) : told(cell.task, { digits: 3, unit: "" })],
    [isAccuracy ? "Accuracy gained" : "Fall of the task’s loss", told(TASK.gain(cell), TASK)]);
  if (isAccuracy) pairs.push(["Loss of the right answers, change", told(cell.taskLoss, { digits: 3, unit: "" })]);
  if (cell.difference) {
    pairs.push(["The edit forgets less by", told(cell.difference, { digits: 3, unit: "" })],
      [isAccuracy ? "and is more accurate by" : "and its task loss is less by", told(minus(TASK.difference(cell)), TASK)]);
  }
  pairs.push(["Matrices changed", String(cell.matrices)], ["Norm of the change", figure(cell.norm)]);
  return [element("h3", {}, series.name), facts(pairs)];
}

function tradeoff(section) {
  const all = DATA.series.map((_, index) => index);
  let shown = all.filter(index => DATA.series[index].isShown);
  let forgetting = hasShare ? FORGETTING.share : FORGETTING.nats;
  let picked = null;
  const side = element("aside", { class: "reading", "aria-live": "polite" }, element("p", { class: "hint" }, "Point at a mark for its figures, or choose one to keep them here. With the keyboard: Tab to the chart, then the arrows."));
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
    element("p", { class: "lead" }, "Each line leaves the tuned model and follows one edit as its strength falls. Up: forgetting won back. Right: the task gains. A line that runs above the others wins back more at the same price."),
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
    element("p", { class: "lead" }, "Each control less the intruder edit of the same strength, item by item. Where the line through a mark crosses zero, the two cannot be told apart."),
    switches(all, index => shown.includes(index), now => { shown = now; charts.forEach(chart => chart.refresh()); }),
    element("div", { class: "row" }, charts.map(chart => element("div", { class: "card" }, chart.node))));
}

function chosenTable(section) {
  section.append(
    element("p", { class: "lead" }, "For each, the strength below 1 with the least forgetting whose task stays within the largest cost on one half of the data; the figures are of the other half."),
    element("div", { class: "scroll" }, element("table", { class: "list" },
      element("thead", {}, element("tr", {}, ["Edit or control", "Strength", hasShare ? "Forgetting won back, %" : "Forgetting won back, nats/token", TASK.title].map((name, place) => element("th", { scope: "col", class: place ? "number" : null }, name)))),
      element("tbody", {}, DATA.choices.map(each => {
        const forgetting = each.figures && (each.figures.share ? told(FORGETTING.share.gain(each.figures), { digits: 0, unit: "" }) : told(FORGETTING.nats.gain(each.figures), { digits: 3, unit: "" }));
        return element("tr", {}, element("th", { scope: "row" }, each.name),
          element("td", { class: "number" }, each.strength === null ? "none" : String(each.strength)),
          element("td", { class: "number" }, forgetting || "–"),
          element("td", { class: "number" }, each.figures ? told(TASK.gain(each.figures), { ...TASK, unit: "" }) : "–"));
      })))));
}

function numbers(section) {
  const columns = ["Edit or control", "Strength", "Won back, nats/token", ...(hasShare ? ["Won back, %"] : []), TASK.title, "The edit forgets less by", "Norm of the change"];
  section.append(element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Every cell" }, element("table", { class: "list" },
    element("thead", {}, element("tr", {}, columns.map((name, place) => element("th", { scope: "col", class: place ? "number" : null }, name)))),
    element("tbody", {}, DATA.series.flatMap(series => series.cells.map(cell => element("tr", { class: series.control === "intruders" ? "best" : null },
      element("th", { scope: "row" }, series.name),
      [String(cell.strength), told(FORGETTING.nats.gain(cell), { digits: 3, unit: "" }), ...(hasShare ? [cell.share ? told(FORGETTING.share.gain(cell), { digits: 1, unit: "" }) : "–"] : []),
        told(TASK.gain(cell), { ...TASK, unit: "" }), told(cell.difference, { digits: 3, unit: "" }), figure(cell.norm)].map(text => element("td", { class: "number" }, text)))))))));
}

function build() {
  const section = id => document.getElementById(id);
  glance(section("glance"));
  tradeoff(section("tradeoff"));
  beside(section("beside"));
  chosenTable(section("chosen"));
  numbers(section("numbers"));
  section("settings").append(element("div", { class: "card" }, facts([...DATA.settings, ...DATA.environment])));
  drawPending();
  document.documentElement.setAttribute("data-drawn", "yes");
}

build();
