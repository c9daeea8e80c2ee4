// The page of a study: everything but the pictures stands in the document already.

// Switches for the lines of a picture; `changed` gets the names that are off.
function legendOf(picture, changed) {
  const lines = new Map(picture.panels.flatMap(panel => panel.lines || []).reverse().map(line => [line.name, line]));
  const names = [...new Set(picture.panels.flatMap(panel => panel.lines || []).map(line => line.name))];
  if (names.length < 2 && !names.some(name => isGrey(lines.get(name)))) return null;
  const isNamed = picture.panels.some(panel => panel.lines && isAcross(panel));
  const listed = isNamed ? names.filter(name => isGrey(lines.get(name))) : names;
  if (!listed.length) return null;
  const boxes = listed.map(() => element("input", { type: "checkbox", checked: true, change: () => changed(new Set(listed.filter((_, i) => !boxes[i].checked))) }));
  return element("fieldset", { class: "switches" }, element("legend", {}, "Shown"), listed.map((name, i) =>
    element("label", {}, boxes[i], sample(lines.get(name)), element("span", {}, name))));
}

function drawPicture(picture) {
  const box = document.getElementById("picture-" + picture.name).querySelector(".chart");
  const columns = Math.min(6, picture.columns);
  let hidden = new Set();
  const charts = picture.panels.map(panel => responsive(element("div", {}), width => panel.lines ? panelChart(panel, hidden, width) : mapChart(panel, width)));
  const legend = legendOf(picture, now => {
    hidden = now;
    charts.forEach(chart => chart.refresh());
  });
  box.append(element("div", { class: `panel-grid of-${columns} rows-${Math.ceil(picture.panels.length / columns)}` }, charts.map(chart => chart.node)));
  if (legend) box.append(legend);
  if (!picture.panels[0].lines) box.append(element("p", { class: "scale" }, "|cosine| 0", element("span", { "aria-hidden": "true" }, [...Array(9).keys()].map(level => element("i", { class: "h" + level }))), "1"));
}

DATA.pictures.forEach(drawPicture);
drawPending();
document.documentElement.setAttribute("data-drawn", "yes");
