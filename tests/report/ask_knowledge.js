// What the test of a page of facts asks of it; an async function body.
const all = (selector, node = document) => [...node.querySelectorAll(selector)];
const cells = () => all("#transitions td[data-row]").map(cell => Number(cell.textContent));
const listed = () => all("#facts tbody tr").map(row => all("th, td", row).map(cell => cell.textContent));
const pick = (section, words) => all(section + " label").find(label => label.textContent.startsWith(words)).click();
const answer = {
  drawn: document.documentElement.dataset.drawn,
  hacked: typeof window.hacked,
  subtitle: document.querySelector(".subtitle").textContent,
  said: document.querySelector(".said").textContent,
  findings: all(".findings li").map(node => node.dataset.code),
  untrained: cells(),
  lost: listed(),
  shifts: all("#shifts tbody tr").map(row => all("th, td", row).map(cell => cell.textContent)),
  answers: all("#answers tbody tr").map(row => all("th, td", row).map(cell => cell.textContent)),
  example: document.querySelector(".example").textContent,
};
pick("#transitions", "trained facts");
answer.trained = cells();
answer.lostTrained = listed().length;
pick("#transitions", "all facts");
answer.all = cells();
pick("#facts", "all");
answer.page = listed().length;
answer.pager = document.querySelector("#facts .pager").textContent;
all("#facts .pager button")[1].click();
answer.second = listed().length;
const cell = all("#transitions td[data-row]").find(node => node.dataset.row === "0" && node.dataset.column === "3");
cell.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
answer.picked = listed().map(row => row[0]);
answer.pressed = all("#transitions td[aria-pressed=true]").length;
const box = document.querySelector("#facts input[type=search]");
box.value = "q3"; box.dispatchEvent(new Event("input"));
answer.searched = listed().map(row => row[0]);
pick("#transitions", "base, other prompts");
answer.null = cells();
answer.overflow = document.documentElement.scrollWidth - innerWidth;
answer.background = getComputedStyle(document.body).backgroundColor;
return answer;
