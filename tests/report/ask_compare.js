// What the test of a comparison's page asks of it; an async function body.
const all = (selector, node = document) => [...node.querySelectorAll(selector)];
const texts = (selector, node = document) => all(selector, node).map(each => each.textContent);
const rows = id => all(`#${id} .list tbody tr`).map(row => texts("th, td", row));
const pick = (id, value) => all(`#${id} .choice input`).find(input => input.value === value).click();
const cells = id => all(`#${id} .heat tbody td[data-kind]`).map(node => [node.dataset.kind, node.dataset.layer, Number(node.dataset.value), node.className]);
const tipOf = node => {
  node.dispatchEvent(new PointerEvent("pointermove", { clientX: 50, clientY: 50 }));
  return document.querySelector(".tip").textContent;
};
const answer = {
  drawn: document.documentElement.dataset.drawn,
  hacked: typeof window.hacked,
  subtitle: document.querySelector(".subtitle").textContent,
  said: document.querySelector(".said").textContent,
  members: rows("glance"),
  findings: texts("#glance .findings li"),
  pairs: rows("pairs"),
  square: all("#pairs .square td[data-value]").map(node => Number(node.dataset.value)),
  cosines: cells("maps"),
  tip: tipOf(document.querySelector("#maps .heat td[data-kind]")),
  sum: rows("sum"),
  inflations: cells("sum"),
  preflight: document.getElementById("preflight") ? rows("preflight") : null,
  bars: all("#preflight .bar").map(bar => all("i", bar).map(piece => Math.round(piece.getBoundingClientRect().width))),
  forgetting: document.getElementById("forgetting") ? rows("forgetting") : null,
};
pick("pairs", "right");
answer.rightSquare = all("#pairs .square td[data-value]").map(node => Number(node.dataset.value));
pick("maps", "rightAngle");
answer.angles = cells("maps");
const box = document.querySelector("#maps select");
box.value = "1";
box.dispatchEvent(new Event("change"));
await new Promise(done => setTimeout(done, 50));
answer.secondAngles = cells("maps");
const first = document.querySelector("#maps .heat td[tabindex='0']");
answer.stops = all("#maps .heat td").filter(node => node.tabIndex === 0).length;
first.focus();
first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
answer.walked = [document.activeElement.dataset.kind, document.activeElement.dataset.layer];
answer.overflow = document.documentElement.scrollWidth - innerWidth;
answer.background = getComputedStyle(document.body).backgroundColor;
return answer;
