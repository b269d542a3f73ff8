// Sorts tables, shows the chosen metric, and dims the other series of a legend entry.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], first = [...body.rows], heads = [...table.tHead.querySelectorAll("th[aria-sort]")];
  const next = {none: "ascending", ascending: "descending", descending: "none"};
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const order = next[head.getAttribute("aria-sort")], value = row => row.cells[column].dataset.value;
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", order);
    const known = first.filter(row => value(row) !== undefined), rest = first.filter(row => value(row) === undefined);
    const numbers = known.every(row => value(row).trim() !== "" && isFinite(value(row)));
    const less = numbers ? (a, b) => value(a) - value(b) : (a, b) => value(a).localeCompare(value(b));
    const sign = order === "descending" ? -1 : 1;
    if (order !== "none") known.sort((a, b) => sign * less(a, b));
    body.append(...(order === "none" ? first : [...known, ...rest]));
  }));
}
const choice = document.querySelector("#metric");
if (choice) {
  const blocks = [...document.querySelectorAll("[data-metric]")];
  const show = () => blocks.forEach(block => { block.hidden = block.dataset.metric !== choice.value; });
  choice.addEventListener("change", show);
  choice.closest(".choice").hidden = false;
  show();
}
for (const item of document.querySelectorAll("li[data-show]")) {
  const scope = item.closest(".scope"), marks = [...scope.querySelectorAll("[data-key]")];
  const on = () => {
    marks.forEach(mark => mark.classList.toggle("shown", mark.dataset.key === item.dataset.show));
    scope.classList.add("dim");
  };
  const off = () => scope.classList.remove("dim");
  for (const event of ["mouseenter", "focus"]) item.addEventListener(event, on);
  for (const event of ["mouseleave", "blur"]) item.addEventListener(event, off);
}
