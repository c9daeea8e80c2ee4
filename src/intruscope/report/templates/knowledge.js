// The page of a measurement of facts from top to bottom.

const PAGE_SIZE = 25;
const [QUESTION, ANSWER, TRAINED, BASE, TUNED, OTHER, BASE_RIGHT, TUNED_RIGHT, BASE_ANSWER, TUNED_ANSWER, SHIFT] = Array(11).keys();
const breaking = name => name.split(/(?=Known)/).flatMap((part, place) => place ? [element("wbr"), part] : [part]);
// HighlyKnown, MaybeKnown, and the last two as one.
const level = place => Math.max(0, 2 - place);

function table(names, rows, attributes = {}) {
  return element("table", { class: "list", ...attributes },
    element("thead", {}, element("tr", {}, names.map((name, place) => element("th", { scope: "col", class: place ? "number" : null }, name)))),
    element("tbody", {}, rows.map(row => element("tr", { class: row.class }, row.cells.map((cell, place) =>
      element(place ? "td" : "th", place ? { class: "number" } : { scope: "row", class: "name" }, cell))))));
}

const scrolling = (label, ...content) => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, content);

function glance(section) {
  section.append(element("article", { class: "card" },
    element("p", { class: "said" }, DATA.sentence),
    DATA.reliability ? element("p", {}, DATA.reliability) : null,
    DATA.findings.length ? element("ul", { class: "findings" }, DATA.findings.map(([severity, code, message]) => element("li", { class: severity, "data-code": code }, message))) : null));
}

// What the table of facts shows; the matrix and the controls change it.
const shown = { group: DATA.judged, cell: null, kind: "lost", search: "", first: 0 };
let redrawFacts = () => {};
const inGroup = fact => shown.group === "all" || fact[TRAINED] === (shown.group === "trained");

function transitions(section) {
  const box = element("div", {});
  let kind = "tuned";
  const draw = () => box.replaceChildren(matrix(kind, draw));
  const names = DATA.groups.map(group => [group.name, `${group.name} facts`]);
  section.append(
    element("p", { class: "lead" }, "Number of facts by category in the base (rows) and in the tuned model (columns). Select a cell to list its facts below."),
    element("div", { class: "controls" },
      names.length > 1 ? choice("Facts", names, shown.group, name => { shown.group = name; shown.cell = null; draw(); refresh(); }) : null,
      choice("Columns", [["tuned", "tuned model"], ["null", "base, other prompts"]], kind, value => { kind = value; shown.cell = null; draw(); refresh(); })),
    element("div", { class: "card" }, box,
      element("p", { class: "moves" }, element("span", { class: "down" }, "above the diagonal: known less well"), element("span", { class: "up" }, "below: known better"))));
  draw();
}

function refresh() {
  shown.first = 0;
  redrawFacts();
}

function matrix(kind, redraw) {
  const counts = DATA.groups.find(group => group.name === shown.group)[kind];
  const most = Math.max(1, ...counts.flat());
  const columns = counts[0].map((_, place) => counts.reduce((sum, row) => sum + row[place], 0));
  const total = columns.reduce((sum, each) => sum + each, 0);
  const cell = (count, row, column) => {
    const pressed = shown.cell !== null && shown.cell.row === row && shown.cell.column === column;
    const press = () => { shown.cell = pressed ? null : { row, column, kind }; redraw(); refresh(); };
    const node = element("td", {
      class: "h" + (count ? Math.max(1, Math.ceil(8 * Math.sqrt(count / most))) : 0), tabindex: 0, role: "button", "aria-pressed": String(pressed),
      "data-row": row, "data-column": column, click: press, "aria-label": `${DATA.categories[row]} to ${DATA.categories[column]}: ${count}`,
      keydown: event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); press(); } },
    }, String(count));
    tipOn(node, () => `${DATA.categories[row]} → ${DATA.categories[column]}\n${count} facts, ${percent(count / total)} of ${total}`);
    return node;
  };
  return element("table", { class: "matrix", "aria-label": "Transitions" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, kind === "tuned" ? "base ↓ tuned →" : "base ↓ other prompts →"), [...DATA.categories, "all"].map(name => element("th", { scope: "col" }, breaking(name))))),
    element("tbody", {},
      counts.map((row, place) => element("tr", {}, element("th", { scope: "row" }, breaking(DATA.categories[place])), row.map((count, column) => cell(count, place, column)),
        element("td", { class: "sum" }, String(row.reduce((sum, each) => sum + each, 0))))),
      element("tr", {}, element("th", { scope: "row" }, "all"), columns.map(count => element("td", { class: "sum" }, String(count))), element("td", { class: "sum" }, String(total)))));
}

function shifts(section) {
  section.append(
    element("p", { class: "lead" }, "Share of the facts that fell or rose a level, in percent, with 95% intervals. Facts that the fine-tune was trained on are counted apart: they should rise."),
    element("div", { class: "card" }, scrolling("Shifts", table(DATA.shiftColumns, DATA.shifts.map(cells => ({ cells, class: cells[0] === DATA.judged ? "strong" : null }))))));
}

function answers(section) {
  const width = DATA.groups.length > 1 ? DATA.answerColumns.length : DATA.answerColumns.length - 1;
  section.append(
    element("p", { class: "lead" }, "All most likely answers, over all facts and prompts. The first row is what they would be if all were right."),
    element("div", { class: "card" }, scrolling("Answers", table(DATA.answerColumns.slice(0, width), DATA.answers.map(cells => ({ cells: cells.slice(0, width) }))))));
}

function factTable(section) {
  const KINDS = { lost: fact => fact[SHIFT] < 0, gained: fact => fact[SHIFT] > 0, all: () => true };
  const count = kind => DATA.facts.filter(KINDS[kind]).length;
  const box = element("div", {});
  const controls = element("div", { class: "controls" },
    choice("Show", [["lost", `lost (${count("lost")})`], ["gained", `gained (${count("gained")})`], ["all", `all (${count("all")})`]], shown.kind, kind => { shown.kind = kind; refresh(); }),
    searchBox("Search", words => { shown.search = words; refresh(); }));
  redrawFacts = () => {
    const found = DATA.facts.filter(fact => inGroup(fact)
      && (shown.cell ? fact[BASE] === shown.cell.row && fact[shown.cell.kind === "tuned" ? TUNED : OTHER] === shown.cell.column : KINDS[shown.kind](fact))
      && (!shown.search || [QUESTION, ANSWER, BASE_ANSWER, TUNED_ANSWER].some(place => fact[place].toLowerCase().includes(shown.search))));
    found.sort((a, b) => Math.abs(b[TUNED_RIGHT] - b[BASE_RIGHT]) - Math.abs(a[TUNED_RIGHT] - a[BASE_RIGHT]));
    const page = found.slice(shown.first, shown.first + PAGE_SIZE);
    const which = shown.group === "all" ? "" : ` among the ${shown.group} facts`;
    const what = shown.cell ? `from ${DATA.categories[shown.cell.row]} to ${DATA.categories[shown.cell.column]}${shown.cell.kind === "null" ? " under other prompts" : ""}` : shown.kind === "all" ? "in all" : shown.kind;
    const move = step => () => { shown.first += step; redrawFacts(); };
    box.replaceChildren(
      element("p", { class: "lead", role: "status" }, `${found.length} ${what}${which}.`),
      page.length ? scrolling("Facts", element("table", { class: "list facts-list" },
        element("thead", {}, element("tr", {}, ["Question", "Answer", "Base", "right", "Tuned", "right", "Base says", "Tuned says"].map((name, place) =>
          element("th", { scope: "col", class: place === 3 || place === 5 ? "number" : null }, name)))),
        element("tbody", {}, page.map(fact => element("tr", {},
          element("th", { scope: "row", class: "name" }, fact[QUESTION], fact[TRAINED] ? " (trained)" : null),
          element("td", {}, fact[ANSWER]),
          element("td", {}, DATA.categories[fact[BASE]]), element("td", { class: "number" }, percent(fact[BASE_RIGHT])),
          element("td", { class: level(fact[TUNED]) < level(fact[BASE]) ? "down" : level(fact[TUNED]) > level(fact[BASE]) ? "up" : null }, DATA.categories[fact[TUNED]]), element("td", { class: "number" }, percent(fact[TUNED_RIGHT])),
          element("td", { class: "name" }, fact[BASE_ANSWER] || "(empty)"), element("td", { class: "name" }, fact[TUNED_ANSWER] || "(empty)")))))) : "",
      found.length > PAGE_SIZE ? element("div", { class: "pager" },
        element("button", { type: "button", disabled: shown.first === 0, click: move(-PAGE_SIZE) }, "Previous"),
        `${shown.first + 1} to ${shown.first + page.length} of ${found.length}`,
        element("button", { type: "button", disabled: shown.first + PAGE_SIZE >= found.length, click: move(PAGE_SIZE) }, "Next")) : "");
  };
  section.append(
    element("p", { class: "lead" }, "Those that changed most come first. “Right” is the share of the prompts whose most likely answer is right; the last columns show the most frequent of these answers."),
    controls, element("div", { class: "card" }, box));
  redrawFacts();
}

function settings(section) {
  section.append(
    element("p", { class: "lead" }, "The first prompt of the first fact, as the models read it:"),
    element("pre", { class: "example" }, DATA.example),
    element("div", { class: "card" }, facts(DATA.settings)));
}

function build() {
  const section = id => document.getElementById(id);
  glance(section("glance"));
  transitions(section("transitions"));
  shifts(section("shifts"));
  answers(section("answers"));
  factTable(section("facts"));
  settings(section("settings"));
  document.documentElement.setAttribute("data-drawn", "yes");
}

build();
