// What the test of a sweep's page asks of it; an async function body.
const all = (selector, node = document) => [...node.querySelectorAll(selector)];
const box = id => document.getElementById(id);
const labels = all("#tradeoff .switches label");
const answer = {
  drawn: document.documentElement.dataset.drawn,
  hacked: typeof window.hacked,
  subtitle: document.querySelector(".subtitle").textContent,
  advice: all(".advice").map(node => node.textContent),
  names: labels.map(node => node.textContent),
  shown: all("#tradeoff .dot").length,
};
// Positions follow the figures: up is forgetting won back, right is what the task gains.
answer.places = all("#tradeoff .dot").map(node => {
  const box = node.querySelector("path").getBoundingClientRect();
  return [DATA.series[node.dataset.series].control, Number(node.dataset.strength), box.x + box.width / 2, box.y + box.height / 2];
});
const dot = all("#tradeoff .dot").find(node => node.dataset.series === "0" && node.dataset.strength === "0.5");
dot.dispatchEvent(new PointerEvent("pointermove", { clientX: 50, clientY: 50 }));
answer.tip = document.querySelector(".tip").textContent;
dot.dispatchEvent(new MouseEvent("click", { bubbles: true }));
answer.current = all("#tradeoff .dot[aria-current]").map(node => [node.dataset.series, node.dataset.strength]);
answer.reading = all("#tradeoff .reading dt").map((node, i) => [node.textContent, all("#tradeoff .reading dd")[i].textContent]);
// One tab stop, and the arrows walk.
answer.stops = all("#tradeoff .dot").filter(node => node.tabIndex === 0).length;
const first = all("#tradeoff .dot").find(node => node.tabIndex === 0);
first.focus();
first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
answer.walked = [document.activeElement.dataset.series, document.activeElement.dataset.strength];
labels[0].querySelector("input").click();
answer.fewer = all("#tradeoff .dot").length;
all("#tradeoff .choice input").find(input => input.value === "nats").click();
answer.axis = all("#tradeoff svg text.title").map(node => node.textContent);
answer.beside = all("#beside .dot").map(node => node.getAttribute("aria-label"));
answer.choices = all("#chosen tbody tr").map(row => all("th, td", row).map(cell => cell.textContent));
answer.rows = all("#numbers tbody tr").length;
answer.overflow = document.documentElement.scrollWidth - innerWidth;
answer.clipped = all(".scroll").map(node => node.scrollWidth - node.clientWidth);
answer.commands = all(".command").map(node => node.textContent);
answer.parts = all("#glance tbody tr").map(row => all("th, td", row).map(cell => cell.textContent));
answer.background = getComputedStyle(document.body).backgroundColor;
return answer;
