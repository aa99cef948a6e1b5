"""How the page of a report looks and what little it does: sorting tables. No part of it comes from elsewhere."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --card: #f6f7f9; --text: #1c2430; --soft: #5b6675;
  --line: #d9dee5; --accent: #2257b8; --good: #11693b; --good-back: #ddf3e5; --bad: #a3231b; --bad-back: #fbe3e0; }
@media (prefers-color-scheme: dark) { :root { --back: #14181e; --card: #1c222b; --text: #e4e8ee; --soft: #9aa6b5;
  --line: #333c48; --accent: #8ab4ff; --good: #8be0b0; --good-back: #143524; --bad: #ffb0a8; --bad-back: #4a1d1a; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
nav { font-size: .875rem; }
@media (min-width: 1320px) { body { display: grid; grid-template-columns: 250px minmax(0, 1fr); }
  nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 2rem 1rem;
    border-right: 1px solid var(--line); } }
@media (max-width: 1319px) { nav { max-width: 1040px; margin: 0 auto; padding: 1.5rem 1.25rem 0; }
  nav ul ul { display: none; } nav li { display: inline-block; margin-right: 1rem; } }
nav ul { list-style: none; margin: 0; padding: 0; }
nav ul ul { padding-left: .9rem; margin-bottom: .6rem; }
nav ul ul a { color: var(--soft); }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
p { margin: .5rem 0 .8rem; max-width: 75ch; }
code, pre { font: .86em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; overflow-x: auto; }
.soft { color: var(--soft); font-size: .9rem; }
.tally { display: flex; gap: .8rem 2rem; flex-wrap: wrap; list-style: none; padding: 0; margin: 1rem 0; }
.tally li { flex: 1 1 240px; }
.tally strong { display: block; font-size: 1.6rem; line-height: 1.3; }
.bar { height: 8px; border-radius: 4px; background: var(--bad-back); overflow: hidden; border: 1px solid var(--line);
  margin-top: .3rem; }
.bar span { display: block; height: 100%; background: var(--good); }
.one-line { white-space: nowrap; }
.changes { margin: .4rem 0; padding-left: 1.2rem; }
.chip { display: inline-block; white-space: nowrap; border-radius: 999px; padding: .05rem .6rem; font-size: .82rem;
  font-weight: 600; }
.held { color: var(--good); background: var(--good-back); }
.not { color: var(--bad); background: var(--bad-back); }
.claims { list-style: none; padding: 0; margin: .6rem 0 1rem; }
.claims li { padding: .3rem 0; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; min-width: 40%; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--card); vertical-align: bottom; min-width: 4.5rem; }
th:first-child { white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th button::after { content: " \\2195"; color: var(--soft); opacity: .55; }
th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.dense table { width: 100%; font-size: .86rem; line-height: 1.4; }
.dense th, .dense td { padding: .25rem .5rem; }
.dense th { white-space: nowrap; }
td.words { min-width: 16rem; }
tbody tr:hover { background: var(--card); }
figure { margin: 1rem 0 1.4rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: 6px; }
@media (prefers-color-scheme: dark) { figure img { filter: brightness(.92); } }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .35rem; }
details { margin: .6rem 0; scroll-margin-top: 1rem; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
.failed { border-left: 4px solid var(--bad); background: var(--bad-back); padding: .6rem .9rem; border-radius: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { nav, summary { display: none; } body { display: block; font-size: 11pt; background: #fff; }
  main { max-width: none; padding: 0; } figure, tr, .claims li { break-inside: avoid; } h2, h3 { break-after: avoid; }
  th button::after { content: ""; } .chip { border: 1px solid; } .wide { overflow: visible; } }
"""

SCRIPT = """
document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var head = button.parentNode, body = head.closest("table").tBodies[0];
    var place = Array.prototype.indexOf.call(head.parentNode.children, head);
    var sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    head.parentNode.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    var rows = Array.prototype.map.call(body.rows, function (row, index) {
      var cell = row.cells[place], text = cell.dataset.value === undefined ? cell.textContent : cell.dataset.value;
      return { row: row, index: index, text: text, number: text.trim() === "" ? NaN : Number(text) };
    });
    var numeric = rows.every(function (one) { return !isNaN(one.number) || one.text.trim() === ""; });
    rows.sort(function (a, b) {
      if (numeric && isNaN(a.number) !== isNaN(b.number)) { return isNaN(a.number) ? 1 : -1; }
      var order = numeric ? a.number - b.number : a.text.localeCompare(b.text, "en", { numeric: true });
      return sign * order || a.index - b.index;
    });
    rows.forEach(function (one) { body.appendChild(one.row); });
  });
});
"""
