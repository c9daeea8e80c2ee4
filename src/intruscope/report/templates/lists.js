// Tables and numbers that the pages of comparisons and attributions share.

const decimal = digits => value => {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
};
// For the cells of a map, where there is room for three characters and a sign.
const brief = value => decimal(2)(value).replace("0.", ".");

function table(names, rows, attributes = {}) {
  return element("table", { class: "list", ...attributes },
    element("thead", {}, element("tr", {}, names.map((name, place) => element("th", { scope: "col", class: place ? "number" : null }, name)))),
    element("tbody", {}, rows.map(row => element("tr", { class: row.class }, row.cells.map((cell, place) =>
      element(place ? "td" : "th", place ? { class: row.nulls?.includes(place) ? "number null" : "number" } : { scope: "row", class: "name" }, cell))))));
}

const scrolling = (label, ...content) => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, content);

const kindsIn = cells => [...new Set([...cells.values()].map(cell => cell.kind))].sort((a, b) => kindOrder(a) - kindOrder(b) || (a < b ? -1 : 1));
