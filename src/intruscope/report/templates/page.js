// The page from top to bottom.

function findingsList(findings) {
  const groups = new Map();
  for (const finding of findings) {
    const key = finding[0] + " " + finding[1];
    groups.set(key, [...(groups.get(key) || []), finding]);
  }
  const order = ["error", "warning", "info"];
  const lines = [...groups.values()].sort(([a], [b]) => order.indexOf(a[0]) - order.indexOf(b[0]));
  if (!lines.length) return null;
  return element("ul", { class: "findings" }, lines.map(group => {
    const [severity, , message, place] = group[0];
    const more = group.length > 1 ? ` (and ${group.length - 1} more)` : "";
    return element("li", { class: severity }, element("strong", {}, severity + ": "), place ? place + ": " : "", message + more);
  }));
}

function glance(section) {
  section.append(element("div", { class: "row" }, DATA.reports.map((report, index) => {
    const { intruders, candidates, chance } = report.headline;
    const findings = [...report.findings, ...report.matrices.flatMap(matrix => matrix.findings)];
    return element("article", { class: "card" }, heading(index, report),
      element("p", { class: "big" }, intruders.toLocaleString("en"), element("small", {}, ` of ${candidates.toLocaleString("en")} leading vectors` + (chance === null ? "" : `; by chance ${chance}`))),
      element("p", { class: "said" }, report.sentence),
      facts([["Base", report.base], ["Tuned", report.tuned], ...report.figures]),
      findingsList(findings));
  })));
}

// A choice between left and right vectors, where a scan has both.
function chooseSide(changed) {
  const sides = [...new Set(DATA.reports.flatMap(report => report.matrices.flatMap(matrix => matrix.sides.map(side => side.side))))];
  return sides.length < 2 ? null : choice("Vectors", sides.map(side => [side, side + " vectors"]), sides[0], changed);
}

function heat(section) {
  let quantity = QUANTITIES[0], side = null;
  const body = element("div", {});
  const draw = () => {
    const cells = DATA.reports.map(report => heatCells(report, quantity, side));
    const scale = heatScale(quantity, cells);
    const kinds = [...new Set(cells.flatMap(each => [...each.values()].map(cell => cell.kind)))].sort((a, b) => kindOrder(a) - kindOrder(b) || (a < b ? -1 : 1));
    const tables = DATA.reports.map((report, index) => responsive(element("div", { class: "scroll" }), width => heatTable(report, index, cells[index], kinds, scale, quantity, side, width)));
    body.replaceChildren(
      element("div", { class: "row" }, DATA.reports.map((report, index) => element("div", { class: "card" }, heading(index, report), tables[index].node))),
      scaleBar(scale));
    drawPending();
  };
  section.append(
    element("p", { class: "lead" }, "Layers across, modules down. Choose a cell to open its matrix below."),
    element("div", { class: "controls" },
      choice("Colour by", QUANTITIES.map(each => [each.id, each.name]), quantity.id, id => { quantity = QUANTITIES.find(each => each.id === id); draw(); }),
      chooseSide(value => { side = value; draw(); })), body);
  draw();
}

function curve(section) {
  const cuts = [...new Set(DATA.reports.flatMap(report => report.curves.map(([k]) => k)))].sort((a, b) => a - b);
  if (!cuts.length) return section.remove();
  const largest = cuts[cuts.length - 1];
  let cut = largest;
  const chart = responsive(element("div", {}), width => curveChart(cut, cut === largest, width));
  const numbers = element("div", { class: "scroll" });
  const tabulate = () => numbers.replaceChildren(element("table", { class: "list" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Scan"), curvePoints(DATA.reports[0], cut).map(([epsilon]) => element("th", { scope: "col", class: "number" }, String(epsilon))))),
    element("tbody", {}, DATA.reports.map(report => element("tr", {}, element("th", { scope: "row" }, report.label),
      curvePoints(report, cut).map(([, found, undecided, total]) => element("td", { class: "number" }, `${found}/${total}${undecided ? ` +${undecided}?` : ""}`)))))));
  const hasNull = DATA.reports.some(report => report.null);
  section.append(
    element("p", { class: "lead" }, "How many leading vectors have no base vector closer than the threshold. A shaded band holds the undecided ones.", hasNull ? " The dashed bar is chance: an update with the same singular values in random directions, with the range of 95% of draws." : ""),
    element("div", { class: "controls" }, cuts.length > 1 ? choice("Vectors per matrix", cuts.map(k => [k, "top " + k]), cut, value => { cut = value; chart.refresh(); tabulate(); }) : null),
    element("div", { class: "card" }, DATA.reports.length > 1 ? legend(DATA.reports.map((report, index) => [series(index).colour, series(index).mark, report.label])) : null, chart.node,
      element("details", { class: "numbers" }, element("summary", {}, "The numbers"), numbers)));
  tabulate();
}

function strip(section) {
  let side = null;
  const charts = DATA.reports.map((report, index) => responsive(element("div", {}), width => stripChart(report, index, side, width)));
  const present = new Set(DATA.reports.flatMap(report => measured(report).flatMap(matrix => matrix.sides.flatMap(each => [...each.verdicts]))));
  section.append(
    element("p", { class: "lead" }, "One mark per vector, as tall as its bounds are apart; below the dotted line nothing in the base matches it."),
    element("div", { class: "controls" }, chooseSide(value => { side = value; charts.forEach(chart => chart.refresh()); })),
    legend(Object.entries(VERDICTS).filter(([letter]) => present.has(letter)).map(([letter, name]) => ["v-" + letter, letter === "i" ? "⬤" : "●", name])),
    element("div", { class: "row" }, DATA.reports.map((report, index) => element("div", { class: "card" }, heading(index, report), charts[index].node))));
}

function updates(section, lead, get, text) {
  section.append(element("p", { class: "lead" }, lead),
    DATA.reports.length > 1 ? legend(DATA.reports.map((report, index) => [series(index).colour, series(index).mark, report.label])) : "");
  if (!panels(section, get, text)) section.remove();
}

function settings(section) {
  section.append(element("div", { class: "row" }, DATA.reports.map((report, index) =>
    element("div", { class: "card" }, heading(index, report), facts([...report.settings, ...report.environment])))));
}

function build() {
  const section = id => document.getElementById(id);
  const isAnything = DATA.reports.some(report => report.matrices.some(matrix => matrix.scope === "paper"));
  const isMeasured = DATA.reports.some(report => measured(report).length);
  glance(section("glance"));
  if (isAnything) heat(section("heat"));
  if (isMeasured) {
    curve(section("curve"));
    strip(section("strip"));
    updates(section("rank"), "How many directions the update really uses, over the layers. Lines through the marks show the interval that is known, or the range where a layer has several matrices of a kind.", matrix => matrix.rank && matrix.rank.slice(0, 3), figure);
    updates(section("norm"), "‖ΔW‖ relative to ‖W‖ (Frobenius), over the layers.", matrix => matrix.norm === null ? null : [matrix.norm, matrix.norm, matrix.norm], percent);
  }
  for (const id of isMeasured ? [] : ["curve", "strip", "rank", "norm"]) section(id).remove();
  if (!isAnything) section("heat").remove();
  matricesTable(section("matrices"));
  coverageTable(section("coverage"));
  settings(section("settings"));
  drawPending();
  document.documentElement.setAttribute("data-drawn", "yes");
}

build();
