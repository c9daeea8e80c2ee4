// What the test of a study's page asks of it; an async function body.
const all = (selector, node = document) => [...node.querySelectorAll(selector)];
const picture = name => document.getElementById("picture-" + name);
const dots = (name, panel, line) => all(`[data-line="${line}"] .dot`, all(".panel-grid > div", picture(name))[panel]);
const centre = node => {
  const box = node.querySelector(".hit-area").getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
};
const answer = {
  drawn: document.documentElement.dataset.drawn,
  hacked: typeof window.hacked,
  overflow: document.documentElement.scrollWidth - innerWidth,
  scrolled: all(".arms").map(table => table.parentElement.scrollWidth - table.parentElement.clientWidth),
  pictures: all(".picture").map(node => [node.id.replace("picture-", ""), all("svg[role]", node.querySelector(".panel-grid")).length]),
  background: getComputedStyle(document.body).backgroundColor,
};
answer.lines = DATA.pictures.map(({ name, panels }) => panels.map(panel => (panel.lines || []).map(line => [line.name, line.points.length])));
answer.shown = DATA.pictures.map(({ name }) => all(".panel-grid > div", picture(name)).map(panel => all("[data-line]", panel).map(group => [group.dataset.line, all(".dot", group).length])));
answer.places = dots("rates", 0, "LoRA r 8").map(centre);
answer.full = dots("rates", 0, "full").map(centre);
const [dot] = dots("rates", 0, "LoRA r 8");
dot.dispatchEvent(new PointerEvent("pointermove", { clientX: 50, clientY: 50 }));
answer.tip = document.querySelector(".tip").textContent;
const [mark] = dots("scatter", 0, "r 16, alpha 8");
mark.dispatchEvent(new PointerEvent("pointermove", { clientX: 50, clientY: 50 }));
answer.mark = document.querySelector(".tip").textContent;
// One tab stop in a panel, and the arrows walk along a line.
const panel = all(".panel-grid > div", picture("rates"))[0];
answer.stops = all(".dot", panel).filter(node => node.tabIndex === 0).length;
const first = all(".dot", panel).find(node => node.tabIndex === 0);
first.focus();
answer.focused = document.querySelector(".tip").textContent;
first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
answer.walked = document.activeElement.getAttribute("aria-label");
// A switch takes a line out of every panel, and nothing else moves.
const label = all(".switches label", picture("rates")).find(node => node.textContent === "full");
label.querySelector("input").click();
answer.hidden = all("[data-line='full']", picture("rates")).length;
answer.unmoved = dots("rates", 0, "LoRA r 8").map(centre);
label.querySelector("input").click();
answer.back = all("[data-line='full']", picture("rates")).length;
// A map tells the cell under the pointer.
const map = picture("similarity").querySelector("svg.map");
if (map) {
  const box = map.getBoundingClientRect(), scale = box.width / map.viewBox.baseVal.width;
  answer.map = map.getAttribute("aria-label");
  map.dispatchEvent(new PointerEvent("pointermove", { clientX: box.x + (30 + 3) * scale, clientY: box.y + (24 + 3) * scale }));
  answer.cell = document.querySelector(".tip").textContent;
}
answer.links = all("#C13 .about a").map(link => link.getAttribute("href")).filter(href => !document.querySelector(href));
return answer;
