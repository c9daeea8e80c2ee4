"use strict";
// Small helpers. Names from files only ever become text nodes or attribute values.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const MARKS = ["●", "◆", "▲", "■", "▼", "✚"];
const VERDICTS = { i: "intruder", a: "aligned", b: "borderline", d: "degenerate" };
const CERTIFICATES = { p: "proved", b: "probabilistic", d: "dense" };

function append(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) parent.append(child);
  }
  return parent;
}

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  return append(node, children);
}

function shape(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  return append(node, children);
}

function figure(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
}

const plainly = value => figure(value).replace("-", "−");

function signed(value) {
  return (value > 0 ? "+" : value < 0 ? "−" : "") + percent(Math.abs(value));
}

// Two bounds as one number where they round to the same one.
function bounds(lower, upper) {
  const [low, high] = [lower.toFixed(3), upper.toFixed(3)];
  return low === high ? low : `${low}–${high}`;
}

function percent(value) {
  return value === null || value === undefined ? "–" : figure(100 * value) + "%";
}

function series(index) {
  return { colour: "c" + (index % 6), mark: MARKS[index % 6], path: MARK_PATHS[index % 6] };
}

function heading(index, report) {
  if (DATA.reports.length === 1) return element("h3", {}, report.label);
  const look = series(index);
  return element("h3", {}, element("span", { class: "mark " + look.colour, "aria-hidden": "true" }, look.mark), report.label);
}

function legend(items) {
  return element("ul", { class: "legend" }, items.map(([colour, mark, name]) =>
    element("li", { class: colour }, element("b", { "aria-hidden": "true" }, mark + " "), element("span", { class: "name" }, name))));
}

function facts(pairs) {
  return element("dl", { class: "facts" }, pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

// A long name that may break after its dots.
function breakable(name) {
  return name.split(/(?<=[./])/).flatMap((part, i) => i ? [element("wbr"), part] : [part]);
}

let numChoices = 0;
// A radio group: [[value, text], ...]; `changed` gets the value.
function choice(label, options, value, changed) {
  const name = "choice-" + ++numChoices;
  return element("fieldset", { class: "choice" }, element("legend", {}, label), options.map(([each, text]) =>
    element("label", {}, element("input", { type: "radio", name, value: each, checked: each === value, change: () => changed(each) }), text)));
}

function selectBox(label, options, changed) {
  const box = element("select", { "aria-label": label, change: () => changed(box.value) }, options.map(([value, text]) => element("option", { value }, text)));
  return box;
}

function searchBox(label, changed) {
  const box = element("input", { type: "search", placeholder: label, "aria-label": label, input: () => changed(box.value.toLowerCase()) });
  return box;
}

const TIP = element("div", { class: "tip", role: "status", hidden: true });
document.body.append(TIP);

function showTip(text, x, y) {
  TIP.textContent = text;
  TIP.hidden = false;
  const box = TIP.getBoundingClientRect();
  const left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4));
  const top = y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18;
  TIP.style.left = left + "px";
  TIP.style.top = top + "px";
}

function hideTip() {
  TIP.hidden = true;
}

function tipOn(node, text) {
  node.addEventListener("pointermove", event => showTip(text(), event.clientX, event.clientY));
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("focus", () => {
    const box = node.getBoundingClientRect();
    showTip(text(), box.left, box.bottom - 14);
  });
  node.addEventListener("blur", hideTip);
}

function measured(report) {
  return report.matrices.filter(matrix => matrix.scope === "paper" && matrix.sides.length);
}

// The side of that name; the first for none; undefined where there is no result.
function sideOf(matrix, name) {
  return name === null ? matrix.sides[0] : matrix.sides.find(side => side.side === name);
}

function kindOrder(kind) {
  const place = DATA.kinds.indexOf(kind);
  return place < 0 ? DATA.kinds.length : place;
}

function kindsOf(reports) {
  const kinds = [...new Set(reports.flatMap(report => measured(report).map(matrix => matrix.kind)))];
  return kinds.sort((a, b) => kindOrder(a) - kindOrder(b) || (a < b ? -1 : 1));
}

addEventListener("keydown", event => {
  if (event.key === "Escape") hideTip();
});
