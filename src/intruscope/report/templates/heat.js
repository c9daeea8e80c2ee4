// A map of layers across and kinds of matrices down.

// `cells` maps "kind/layer" to { kind, layer, value, ... }; a value of null is shown as missing. `text` writes a
// value, `level` gives its colour (0 to 8), `tip` the lines of a cell, `open` what a click does (none: nothing).
function heatGrid({ cells, kinds, label, text, level, tip, open, width }) {
  const layers = [...new Set([...cells.values()].map(cell => cell.layer))].sort((a, b) => (a === null) - (b === null) || a - b);
  const room = (width - 72) / Math.max(1, layers.length);
  const dense = room < 30;
  const every = [1, 2, 4, 5, 10, 20, 50].find(step => step * Math.max(room, 9) >= 26) || 100;
  const table = element("table", { class: dense ? "heat dense" : "heat", role: "grid", "aria-label": label });
  table.style.minWidth = 72 + 9 * layers.length + "px";
  const grid = [];
  table.append(element("thead", {}, element("tr", {}, element("th", { class: "corner", scope: "col" }, "layer"),
    layers.map((layer, place) => element("th", { scope: "col" }, layer === null ? "–" : place % every ? "" : String(layer))))));
  table.append(element("tbody", {}, kinds.map(kind => {
    const row = layers.map(layer => {
      const cell = cells.get(kind + "/" + layer);
      if (!cell) return element("td", { class: "none", "aria-label": "none" });
      const known = cell.value !== null;
      const node = element("td", {
        class: known ? "h" + level(cell.value) : "unknown", tabindex: -1, click: open ? () => open(cell) : null,
        "data-kind": kind, "data-layer": layer, "data-value": cell.value,
        "aria-label": `${kind}, layer ${layer}: ${known ? text(cell.value) : "no result"}`,
        keydown: event => { if (open && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); open(cell); } },
      }, known ? (dense ? null : text(cell.value)) : "×");
      tipOn(node, () => tip(cell));
      return node;
    });
    grid.push(row);
    return element("tr", {}, element("th", { scope: "row", title: kind }, kind), row);
  })));
  walkGrid(table, grid);
  return table;
}

function scaleBar(scale) {
  return element("p", { class: "scale" }, scale.ends[0], element("span", { "aria-hidden": "true" }, [...Array(9).keys()].map(level => element("i", { class: "h" + level }))), scale.ends[1]);
}
