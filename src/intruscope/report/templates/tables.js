// Tables that stay quick: only the rows of one page are in the document.

// columns: [{name, value: what to sort by, cell: text or node, number, wrap}]; gives {node, show(rows)}.
function pagedTable(columns, { caption, perPage, row: decorate }) {
  let rows = [], page = 0, sorted = null, falling = false;
  const status = element("span", { role: "status" });
  const body = element("tbody", {});
  const heads = columns.map((column, index) => element("th", { scope: "col", class: column.number ? "number" : null },
    column.value ? element("button", { type: "button", click: () => sortBy(index) }, column.name) : column.name));
  const turn = (text, label, target) => element("button", { type: "button", "aria-label": label, click: () => { page = target(); draw(); } }, text);
  const last = () => Math.max(0, Math.ceil(rows.length / perPage) - 1);
  const back = [turn("«", "First page", () => 0), turn("‹", "Previous page", () => page - 1)];
  const on = [turn("›", "Next page", () => page + 1), turn("»", "Last page", last)];

  function sortBy(index) {
    falling = sorted === index ? !falling : Boolean(columns[index].number);
    sorted = index;
    heads.forEach((head, i) => i === index ? head.setAttribute("aria-sort", falling ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    page = 0;
    order();
    draw();
  }

  // What has no value comes last either way.
  function order() {
    if (sorted === null) return;
    const { value } = columns[sorted];
    const keyed = rows.map(row => [value(row), row]);
    const sign = falling ? -1 : 1;
    keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === b ? 0 : a < b ? -sign : sign));
    rows = keyed.map(([, row]) => row);
  }

  function draw() {
    const shown = rows.slice(page * perPage, (page + 1) * perPage);
    body.replaceChildren(...shown.map(row => element("tr", decorate ? decorate(row) : {}, columns.map(column =>
      element("td", { class: [column.number ? "number" : "", column.wrap ? "wrap" : ""].join(" ").trim() || null }, column.cell(row))))));
    const from = page * perPage + 1;
    status.textContent = rows.length ? `${from.toLocaleString("en")}–${(from + shown.length - 1).toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "Nothing matches.";
    back.forEach(button => { button.disabled = page === 0; });
    on.forEach(button => { button.disabled = page >= last(); });
    pager.hidden = rows.length <= perPage && rows.length > 0;
  }

  const pager = element("div", { class: "pager" }, back, status, on);
  const node = element("div", {}, element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", { class: "list" }, element("caption", { class: "unseen" }, caption), element("thead", {}, element("tr", {}, heads)), body)), pager);
  return {
    node,
    draw,
    show(next) {
      rows = next;
      page = 0;
      order();
      draw();
    },
  };
}

// Filters over rows that carry `search` (lower case): boxes narrow each other.
function filters(rows, tests, table) {
  const apply = () => table.show(rows.filter(row => Object.values(tests).every(test => test(row))));
  apply();
  return (name, test) => {
    tests[name] = test;
    apply();
  };
}

const SCAN_COLUMN = { name: "Scan", value: row => row.scan, cell: row => DATA.reports[row.scan].label };

function scanFilter(set) {
  if (DATA.reports.length === 1) return null;
  return selectBox("Scan", [["", "All scans"], ...DATA.reports.map((report, index) => [index, report.label])],
    value => set("scan", row => value === "" || row.scan === Number(value)));
}

// ---- Matrices

let current = null;
let openMatrix = () => {};

function matrixRow(matrix, index, scan) {
  const side = matrix.sides[0] || null;
  return { matrix, index, scan, side, search: matrix.name.toLowerCase() };
}

function matricesTable(section) {
  const rows = DATA.reports.flatMap((report, scan) => report.matrices.map((matrix, index) => matrixRow(matrix, index, scan)));
  const several = DATA.reports.length > 1;
  const of = get => row => row.side ? get(row.side) : null;
  const detail = element("div", { class: "card detail", hidden: true });
  const hits = row => row.side.intruders ? element("span", { class: "hit" }, String(row.side.intruders)) : "0";
  const columns = [
    { name: "Matrix", wrap: true, value: row => row.index, cell: row => element("button", { type: "button", class: "link", click: () => openMatrix(row.scan, row.matrix) }, breakable(row.matrix.name)) },
    ...(several ? [SCAN_COLUMN] : []),
    { name: "Kind", value: row => kindOrder(row.matrix.kind) + row.matrix.kind, cell: row => row.matrix.kind },
    { name: "Layer", number: true, value: row => row.matrix.layer, cell: row => figure(row.matrix.layer) },
    { name: "Shape", number: true, value: row => row.matrix.shape[0] * row.matrix.shape[1], cell: row => row.matrix.shape.join(" × ") },
    { name: "Intruders", number: true, value: of(side => side.intruders), cell: row => row.side ? [hits(row), ` of ${row.side.num}`] : row.matrix.status },
    { name: "Undecided", number: true, value: of(side => side.undecided), cell: row => figure(of(side => side.undecided)(row)) },
    { name: "Lowest alignment", number: true, value: of(side => side.lowest), cell: row => figure(of(side => side.lowest)(row), 2) },
    { name: "Energy in W", number: true, value: of(side => side.energy), cell: row => percent(of(side => side.energy)(row)) },
    { name: "Energy in ΔW", number: true, value: of(side => side.updateEnergy), cell: row => percent(of(side => side.updateEnergy)(row)) },
    { name: "Eff. rank of ΔW", number: true, value: row => row.matrix.rank && row.matrix.rank[0], cell: row => figure(row.matrix.rank && row.matrix.rank[0]) },
    { name: "‖ΔW‖ / ‖W‖", number: true, value: row => row.matrix.norm, cell: row => percent(row.matrix.norm) },
  ];
  const table = pagedTable(columns, { caption: "Matrices", perPage: 20, row: row => ({ "aria-current": row.matrix === current }) });
  const set = filters(rows, {}, table);
  const kinds = [...new Set(rows.map(row => row.matrix.kind))].sort((a, b) => kindOrder(a) - kindOrder(b) || (a < b ? -1 : 1));
  const shows = [
    ["", "All matrices", () => true],
    ["hit", "With intruders", row => row.side && row.side.intruders > 0],
    ["undecided", "With undecided vectors", row => row.side && row.side.undecided > 0],
    ["other", "Outside the paper’s scope", row => row.matrix.scope === "other"],
    ["missing", "Without a result", row => !row.side],
  ];
  section.append(element("div", { class: "controls" },
    searchBox("Find a matrix", text => set("search", row => row.search.includes(text))),
    scanFilter(set),
    selectBox("Kind", [["", "All kinds"], ...kinds.map(kind => [kind, kind])], value => set("kind", row => value === "" || row.matrix.kind === value)),
    selectBox("Show", shows.map(([value, text]) => [value, text]), value => set("show", shows.find(([each]) => each === value)[2]))), table.node, detail);
  openMatrix = (scan, matrix) => {
    hideTip();
    current = matrix;
    table.draw();
    const title = element("h3", { tabindex: -1 }, matrix.name);
    detail.replaceChildren(title, several ? element("p", { class: "lead" }, DATA.reports[scan].label) : "", ...matrixDetail(matrix));
    detail.hidden = false;
    title.focus({ preventScroll: true });
    detail.scrollIntoView({ block: "start" });
  };
}

function matrixDetail(matrix) {
  const pairs = [
    ["Shape (out × in)", matrix.shape.join(" × ")],
    ["Kind and layer", `${matrix.kind}, ${matrix.layer === null ? "outside the layers" : matrix.layer}`],
    ["Scope", matrix.scope === "paper" ? "the paper’s: counted" : "other: reported, not counted"],
    ["Status", matrix.status],
  ];
  if (matrix.rank) {
    const [value, low, high, method] = matrix.rank;
    pairs.push(["Effective rank of ΔW", high > low ? `${figure(value)} (${figure(low)} to ${figure(high)})` : figure(value)], ["known from", method]);
  }
  if (matrix.failure) pairs.push(["The list of vectors is complete but for a probability of", figure(matrix.failure, 2)]);
  if (matrix.norm !== null) pairs.push(["‖ΔW‖ relative to ‖W‖", percent(matrix.norm)]);
  return [
    element("div", { class: "row" }, facts(pairs), findingsList(matrix.findings)),
    ...matrix.sides.map(side => sideDetail(matrix, side)),
  ];
}

function sideDetail(matrix, side) {
  const pairs = [["Intruders", `${side.intruders} of ${side.num}`], ["Energy share in W", percent(side.energy)], ["Energy share in ΔW", percent(side.updateEnergy)]];
  if (side.failure) pairs.push(["The bounds hold but for a probability of", figure(side.failure, 2)]);
  if (side.null) pairs.push(["Intruders by chance", `${figure(side.null[0])} (${figure(side.null[1])} to ${figure(side.null[2])})`]);
  const columns = [
    { name: "#", number: true, value: i => i, cell: i => String(i + 1) },
    { name: "Singular value", number: true, value: i => matrix.values[i], cell: i => figure(matrix.values[i], 4) },
    { name: "Alignment", number: true, value: i => side.lower[i], cell: i => bounds(side.lower[i], side.upper[i]) },
    { name: "Verdict", value: i => side.verdicts[i], cell: i => element("span", { class: side.verdicts[i] === "i" ? "hit" : null }, VERDICTS[side.verdicts[i]]) },
    { name: "Certificate", value: i => side.certificates[i], cell: i => CERTIFICATES[side.certificates[i]] },
    { name: "Matches base vector", number: true, value: i => side.matches[i] && side.matches[i][0], cell: i => figure(side.matches[i] && side.matches[i][0]) },
    { name: "Its singular value changed by", number: true, value: i => side.matches[i] && side.matches[i][1], cell: i => side.matches[i] ? signed(side.matches[i][1]) : "–" },
  ];
  if (side.outside) columns.push({ name: "Outside the base’s column space", number: true, value: i => side.outside[i], cell: i => percent(side.outside[i]) });
  const table = pagedTable(columns, { caption: `${side.side} vectors of ${matrix.name}`, perPage: 20 });
  table.show([...side.lower.keys()]);
  return element("div", {},
    element("h4", {}, `${side.side === "left" ? "Left" : "Right"} singular vectors`), facts(pairs), table.node,
    side.num > side.lower.length ? element("p", { class: "lead" }, `The first ${side.lower.length} of ${side.num}; the JSON report has all.`) : null,
    mapOnDemand(side));
}

function mapOnDemand(side) {
  if (side.map === null) return null;
  if (side.map === "omitted") return element("p", { class: "lead" }, "Its similarity map is not on this page, which would grow too large; the JSON report has it.");
  const box = element("div", {});
  const button = element("button", { type: "button", "aria-expanded": "false", click: () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    button.textContent = open ? "Show the similarity map" : "Hide the similarity map";
    box.replaceChildren(...(open ? [] : [similarityMap(side.map, side.side)]));
  } }, "Show the similarity map");
  return element("div", { class: "ondemand" }, button, box);
}

// ---- Coverage ledger

function coverageTable(section) {
  const rows = DATA.reports.flatMap((report, scan) => report.coverage.lines.map(([tensor, origin, status, reason], index) =>
    ({ tensor, origin, status, reason: report.coverage.reasons[reason], index, scan, search: tensor.toLowerCase() })));
  const columns = [
    { name: "Tensor", wrap: true, value: row => row.index, cell: row => breakable(row.tensor) },
    ...(DATA.reports.length > 1 ? [SCAN_COLUMN] : []),
    { name: "In", value: row => row.origin, cell: row => row.origin },
    { name: "Status", value: row => row.status, cell: row => row.status },
    { name: "Because", wrap: true, value: row => row.reason, cell: row => row.reason },
  ];
  const table = pagedTable(columns, { caption: "Coverage ledger", perPage: 20 });
  const set = filters(rows, {}, table);
  const words = { compared: "compared", unchanged: "unchanged", skipped: "skipped", head: "of a head that one model alone has", missed: "missed" };
  const states = Object.keys(words).filter(status => rows.some(row => row.status === status));
  const count = status => rows.reduce((sum, row) => sum + (row.status === status), 0).toLocaleString("en");
  section.append(
    element("p", { class: "lead" }, `What was done with each of ${rows.length.toLocaleString("en")} stored tensors: ${states.map(status => `${count(status)} ${words[status]}`).join(", ")}.`),
    element("div", { class: "controls" },
      searchBox("Find a tensor", text => set("search", row => row.search.includes(text))),
      scanFilter(set),
      selectBox("Status", [["", "Every status"], ...states.map(status => [status, status])], value => set("status", row => value === "" || row.status === value))),
    table.node);
}
