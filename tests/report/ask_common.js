// Helpers of the scripts that ask a page (the body of an async function; see browser.py).
const wait = time => new Promise(done => setTimeout(done, time));
const all = (query, from = document) => [...from.querySelectorAll(query)];
const text = query => all(query).map(node => node.textContent);
const cells = () => all("#heat table").map(table => Object.fromEntries(
  all("td[data-kind]", table).map(cell => [cell.dataset.kind + "/" + cell.dataset.layer, cell.dataset.value])));
const pick = (section, words) => all(section + " label").find(label => label.textContent === words).click();
const type = (box, words) => { box.value = words; box.dispatchEvent(new Event("input")); };
await wait(400);
