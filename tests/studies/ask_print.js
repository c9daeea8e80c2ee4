// What the test asks of a study's page as a printer lays it out on A4; an async function body.
const MM = 96 / 25.4, MARGINS = [22 * MM, 24 * MM];
for (const rule of [...document.styleSheets].flatMap(sheet => [...sheet.cssRules])) {
  if (rule.media?.mediaText === "print") rule.media.mediaText = "all";
}
const narrow = 210 * MM - MARGINS[0], wide = 297 * MM - MARGINS[0], high = 210 * MM - MARGINS[1];
document.body.style.width = narrow + "px";
const overflow = [...document.querySelectorAll("table")].map(table => [table.closest("[id]").id, table.getBoundingClientRect().right - narrow]).filter(([, more]) => more > 1);
document.body.style.width = wide + "px";
const pictures = [...document.querySelectorAll(".picture")].map(node => [node.id, node.getBoundingClientRect().height / high]);
return { overflow, pictures, size: getComputedStyle(document.body).fontSize };
