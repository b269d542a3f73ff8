"""How the page of a grid looks, and the little that it does by itself: sorting, choosing a metric, showing a row."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2733;--soft:#5b6875;--paper:#fff;--panel:#f6f8f9;--rule:#e3e8ec;--edge:#c3ccd4;
--link:#0b62a8;--base:#e3f1ea;--good:#1c7c4a;--bad:#b3402a;--warn:#8a6100;--warnpaper:#fdf5e0;
--c0:#0072b2;--c1:#d55e00;--c2:#00855f;--c3:#b5478c;--c4:#3c9bd6;--c5:#b98500;--c6:#3b4650;--c7:#7a7200}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ee;--soft:#9aa7b3;--paper:#14191e;--panel:#1b2229;--rule:#2a333c;
--edge:#46525e;--link:#7cbcf0;--base:#1d3429;--good:#5fcb93;--bad:#f08d78;--warn:#e6bd5c;--warnpaper:#2e2718;
--c0:#4ba6e0;--c1:#f0803c;--c2:#2fc598;--c3:#e296c3;--c4:#a3d8f7;--c5:#f0b73a;--c6:#cdd5dc;--c7:#e2d84a}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:1700px;margin:2em auto 4em;padding:0 1em;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.6em;line-height:1.25;margin:0}
h2{font-size:1.2em;margin:2.4em 0 .8em;border-bottom:1px solid var(--edge);padding-bottom:.2em}
h3{font-size:1em;margin:1.6em 0 .4em}a{color:var(--link)}
.who{color:var(--soft);font-size:.88em;margin:.3em 0}.who p{margin:.2em 0}
.notices{border-left:4px solid var(--warn);background:var(--warnpaper);padding:.6em 1em;margin:1.2em 0}
.notices ul{margin:0;padding-left:1.1em}
.cards{display:flex;flex-wrap:wrap;gap:.8em;margin:1.4em 0 0}
.card{flex:1 1 210px;background:var(--panel);border:1px solid var(--rule);border-radius:6px;padding:.7em 1em}
.card b{display:block;font-size:1.35em;font-variant-numeric:tabular-nums}.card span{display:block}
.scroll{overflow-x:auto}.scroll:focus-visible,button:focus-visible,li:focus-visible,select:focus-visible{
outline:2px solid var(--link);outline-offset:1px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.93em;overflow-wrap:normal}
td,th{padding:.34em .75em;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
thead th{white-space:normal;vertical-align:bottom;border-bottom:1px solid var(--edge)}
th.group{text-align:center;font-weight:600}
thead tr.groups th{border-bottom:0;padding-bottom:0}th.group span{display:block;border-bottom:1px solid var(--edge)}

.under{display:block}td:has(.under) .pm{font-size:.86em}
td.words,th.words{text-align:left}tbody th{font-weight:400}
tr.baseline>*{background:var(--base)}tbody tr:hover>*{background:var(--panel)}
td.text{white-space:normal;min-width:16em;max-width:32em;text-align:left}
.tag{font-size:.8em;color:var(--good);border:1px solid;border-radius:9px;padding:0 .5em;margin-left:.5em}
th button{font:inherit;font-weight:600;
color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:inherit}
th button::after{content:"\\2195";color:var(--edge);margin-left:.35em;font-size:.85em}
th[aria-sort=ascending] button::after{content:"\\2191";color:var(--link)}
th[aria-sort=descending] button::after{content:"\\2193";color:var(--link)}
.best{font-weight:700}.pm{color:var(--soft)}sup{line-height:0}
.status{font-size:.88em;white-space:nowrap}.status::before{content:"\\25cf";margin-right:.4em}
.done{color:var(--good)}.failed{color:var(--bad)}.running{color:var(--link)}.waits{color:var(--warn)}
.choice{display:inline-block;margin:0 0 .4em}.choice[hidden]{display:none}
select{font:inherit;
color:inherit;background:var(--panel);border:1px solid var(--edge);border-radius:4px;padding:.2em .4em}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:1.2em 1.6em}
figure{margin:0;min-width:0}figure.plot{max-width:500px}figure.wide{max-width:1280px}
.plots>figure.wide,.plots>:has(figure.wide){grid-column:1/-1}
figure.wide .picture{overflow-x:auto}figure.wide svg[role]{min-width:860px}
figcaption{font-weight:600;margin-bottom:.2em}
svg[role]{display:block;width:100%;height:auto;background:var(--panel);border-radius:6px}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg text.tick{font-size:11.5px;fill:var(--soft)}
.axis,.rule,.zero,.line,.thin,.front,.ring,.bar{fill:none}.axis{stroke:var(--edge)}.rule{stroke:var(--rule)}
.zero{stroke:var(--soft);stroke-dasharray:2 3}.line{stroke:var(--c);stroke-width:2.2;stroke-linejoin:round}
.thin{stroke:var(--c);stroke-width:1;opacity:.6}.front{stroke:var(--soft);stroke-width:1.4;stroke-dasharray:5 4}
.ring{stroke:var(--ink);stroke-width:1.3}.dot{fill:var(--soft);opacity:.55}.dot.own{fill:var(--c);opacity:.6}
.mark{fill:var(--c);stroke:var(--c);stroke-width:1.6;stroke-linejoin:round}.mark.hollow{fill:var(--paper)}
.bar{stroke:var(--soft);stroke-width:1.6}.bar.sure{stroke:var(--ink)}.point{fill:var(--soft)}.point.sure{fill:var(--ink)}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}
.c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}.c7{--c:var(--c7)}
svg.key{vertical-align:-.1em;margin-right:.5em;flex:none}svg.interval{vertical-align:-.2em;margin-left:.4em}
ul.keys{list-style:none;display:flex;flex-wrap:wrap;gap:.1em 1.2em;margin:.5em 0;padding:0;font-size:.88em}
ul.keys li{display:flex;align-items:center}ul.keys li[data-show]{cursor:default}
.dim [data-key]:not(.shown){opacity:.12}
.lacks{font-size:.84em;color:var(--warn);margin:.4em 0}.lacks ul{list-style:none;margin:0;padding:0}
ol.notes{margin:.3em 0;padding-left:1.6em}details summary{cursor:pointer}
table.results tbody th,table.results thead tr:last-child th:first-child{position:sticky;left:0;
background:var(--paper);z-index:1}table.results tr.baseline>th{background:var(--base)}
@media(max-width:700px){body{margin-top:1em;font-size:14px}td,th{padding:.3em .5em}
table.results tbody th{min-width:8em;max-width:40vw;white-space:normal}
.tag{display:block;width:fit-content;margin-left:0}}
@media print{th button::after,.choice{display:none}.scroll{overflow:visible}}
"""

SCRIPT = """
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
"""
