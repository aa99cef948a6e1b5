// The page of a zoo: its parts, and what the keyboard and the address do.

import { showAudit } from "./audit.js";
import { Histogram, Scatter } from "./charts.js";
import { element, showInstance } from "./instance.js";
import { ZooTable } from "./table.js";
import { readZoo, shownNumber } from "./zoo.js";

const at = (id) => document.getElementById(id);
const TABS = ["table", "charts", "map", "audit"];
const WANTED = ["accuracy", "test_accuracy", "psnr", "loss"]; // columns that a chart shows first, where there are such

async function start() {
  const zoo = await readZoo(at("data"));
  const facts = zoo.of === zoo.shown ? zoo.facts : [["on this page", `${zoo.shown} of ${zoo.of}, evenly spaced`], ...zoo.facts];
  at("facts").append(...facts.map(([name, text]) => element("div", [element("dt", name), element("dd", text)])));

  const numbers = zoo.numbers.filter((column) => !column.hidden && column.name !== "class_id").map((column) => column.name);
  const best = WANTED.find((name) => numbers.includes(name)) ?? numbers.at(-1);
  const varying = zoo.numbers.filter((column) => new Set(column.values).size > 1).map((column) => column.name);
  const others = numbers.filter((name) => name !== best && varying.includes(name));
  const other = others.find((name) => /epoch|step|iteration/.test(name)) ?? others[0];
  const charts = [];
  const classes = zoo.tableColumns.find((column) => column.name === (zoo.architectures.length > 1 ? "architecture" : "split"));
  if (numbers.length) {
    const axes = [other ?? best, best];
    charts.push(new Scatter(at("scatter"), at("scatter-controls"), zoo, { axes, colour: classes?.name }, open));
  } else {
    at("scatter").replaceWith(element("p", "The table has no column of numbers to draw."));
  }
  charts.push(new Histogram(at("histogram"), at("histogram-controls"), zoo, best ?? "architecture"));
  if (zoo.map) {
    const shares = zoo.map.explained.map((share) => `${(100 * share).toFixed(1)} %`).join(" and ");
    const how = zoo.map.exact ? "" : " They are computed from 1,024 random projections of the PReps.";
    at("map-words").textContent =
      `The first two principal components of the PReps, which explain ${shares} of the variance of the weights.${how}`;
    const axes = ["component 1", "component 2"];
    charts.push(new Scatter(at("map"), at("map-controls"), zoo, { axes, colour: best ?? classes?.name, fixed: true }, open));
  } else {
    at("map").replaceWith(element("p", "A map needs three instances with finite weights that are not all equal."));
  }
  showAudit(at("part-audit"), zoo);

  let shown = zoo.ids.map((_, row) => row);
  const table = new ZooTable(at("table"), zoo, open, (rows) => {
    shown = rows;
    at("count").textContent = rows.length === zoo.shown ? "" : `${rows.length.toLocaleString("en")} of ${zoo.shown.toLocaleString("en")}`;
    for (const chart of charts) chart.show(rows);
  });
  charts.forEach((chart) => chart.show(shown));

  // The address names the instance that is open, so that a link leads to it and the browser's buttons work.
  function open(row) {
    location.hash = encodeURIComponent(zoo.ids[row]);
  }
  const dialog = at("instance");
  const move = (step) => {
    const place = shown.indexOf(zoo.rowOfId.get(decodeURIComponent(location.hash.slice(1))));
    const next = shown[place + step];
    if (next !== undefined) open(next);
  };
  const follow = () => {
    const row = zoo.rowOfId.get(decodeURIComponent(location.hash.slice(1)));
    if (row === undefined) dialog.close();
    else showInstance(dialog, zoo, row, move);
  };
  addEventListener("hashchange", follow);
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) move(step);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  const show = (name) => {
    for (const tab of TABS) {
      const chosen = tab === name;
      at(`tab-${tab}`).setAttribute("aria-selected", chosen);
      at(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
      at(`part-${tab}`).hidden = !chosen;
    }
    charts.filter((chart) => chart.stale).forEach((chart) => chart.draw());
  };
  TABS.forEach((tab, place) => {
    at(`tab-${tab}`).addEventListener("click", () => show(tab));
    at(`tab-${tab}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = TABS[(place + step + TABS.length) % TABS.length];
      show(next);
      at(`tab-${next}`).focus();
    });
  });
  at("search").addEventListener("input", (event) => table.search(event.target.value));
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName)) {
      event.preventDefault();
      at("search").focus();
    }
  });
  if (zoo.audit) {
    const found = Object.values(zoo.audit.counts).reduce((sum, count) => sum + count, 0);
    if (found) at("tab-audit").append(` (${shownNumber(found)})`);
  }
  table.table.on("tableBuilt", () => {
    follow();
    document.documentElement.dataset.ready = "yes";
  });
}

start().catch((error) => {
  document.querySelector("main").prepend(element("p", `The page could not be shown: ${error.message}`, { role: "alert" }));
  throw error;
});
