// Sorts tables, shows the chosen metric, dims the other series of a legend entry, and shows where a model looked.
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
function showWords(report) {
  const card = report.closest(".exam"), words = [...report.querySelectorAll(".word")];
  const layers = [...card.querySelectorAll("canvas")], said = card.querySelector("output");
  const [maps, rows, columns] = (report.dataset.grid || "0 0 0").split(" ").map(Number);
  const show = word => {
    words.forEach(other => other.classList.toggle("shown", other === word));
    let text = `${word.textContent} · ${Math.round(100 * word.dataset.sure)} %`;
    if (word.dataset.heat) {
      const heat = Uint8Array.from(atob(word.dataset.heat), sign => sign.charCodeAt(0)), cells = rows * columns;
      layers.forEach((layer, view) => {
        layer.width = columns;
        layer.height = rows;
        const picture = layer.getContext("2d").createImageData(columns, rows), first = (view % maps) * cells;
        for (let i = 0; i < cells; i++) picture.data.set([255, 110, 0, heat[first + i]], 4 * i);
        layer.getContext("2d").putImageData(picture, 0, 0);
        layer.hidden = false;
      });
      const peak = heat.indexOf(Math.max(...heat)), place = peak % cells;
      const view = maps > 1 ? `view ${Math.floor(peak / cells) + 1}, ` : "";
      if (heat[peak] > 0) text += ` · ${view}row ${Math.floor(place / columns) + 1}/${rows}, column ${place % columns + 1}/${columns}`;
    }
    said.textContent = text;
  };
  const hide = () => {
    const focused = words.find(word => word === document.activeElement);
    if (focused) return show(focused);
    words.forEach(word => word.classList.remove("shown"));
    layers.forEach(layer => { layer.hidden = true; });
    said.textContent = "\u00a0";
  };
  words.forEach((word, place) => {
    word.addEventListener("mouseenter", () => show(word));
    word.addEventListener("mouseleave", hide);
    word.addEventListener("focus", () => {
      words.forEach(other => { other.tabIndex = other === word ? 0 : -1; });
      show(word);
    });
    word.addEventListener("blur", () => setTimeout(hide));
    word.addEventListener("keydown", event => {
      const next = {ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: words.length - 1}[event.key];
      if (!words[next]) return;
      event.preventDefault();
      words[next].focus();
    });
  });
  return {words, show, hide};
}
document.querySelectorAll(".report").forEach(showWords);
if (window.frameElement) {
  const fit = () => { frameElement.style.height = `${document.body.offsetHeight}px`; };
  new ResizeObserver(fit).observe(document.body);
}
