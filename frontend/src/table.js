// The table of all instances: sorted, filtered, moved through by keys.

import { TabulatorFull as Tabulator } from "tabulator-tables";

import { testOf } from "./conditions.js";
import { drawThumbnail, shownNumber } from "./zoo.js";

const THUMBNAIL = "thumbnail of the PRep";

function columnOf(column, index) {
  const isNumber = column.kind === "number";
  return {
    title: column.shown,
    field: `c${index}`,
    hozAlign: isNumber ? "right" : "left",
    headerFilter: "input",
    headerFilterPlaceholder: isNumber ? "> 0.5" : "filter",
    headerFilterFunc: (wanted, value) => testOf(wanted, column.kind)(value),
    headerTooltip: column.name,
    formatter: (cell) => {
      const text = isNumber ? shownNumber(cell.getValue()) : String(cell.getValue() ?? "");
      const element = document.createElement("span");
      element.textContent = text.length > 60 ? `${text.slice(0, 57)}...` : text;
      return element;
    },
    sorter: isNumber ? (a, b) => numberOr(a) - numberOr(b) : "alphanum",
    frozen: column.name === "id",
    minWidth: 70,
    maxInitialWidth: 260,
  };
}

// A missing value and one that is no number come last in rising order.
function numberOr(value) {
  return typeof value === "number" ? value : Infinity;
}

export class ZooTable {
  // opened: is called with a row that the user opens; changed: with the rows that filters let through
  constructor(element, zoo, opened, changed) {
    this.zoo = zoo;
    this.opened = opened;
    this.focus = null;
    const columns = zoo.tableColumns;
    const rows = zoo.ids.map((_, row) => {
      const data = { row };
      columns.forEach((column, index) => (data[`c${index}`] = column.values[row]));
      return data;
    });
    const [id, ...others] = columns.map(columnOf);
    this.table = new Tabulator(element, {
      data: rows,
      index: "row",
      height: "calc(100vh - 15rem)",
      layout: "fitDataFill",
      columnHeaderSortMulti: true,
      placeholder: "No instance fits the filters.",
      columns: [
        id,
        {
          title: "",
          headerTooltip: THUMBNAIL,
          headerSort: false,
          width: 110,
          formatter: (cell) => {
            const canvas = document.createElement("canvas");
            canvas.className = "thumbnail";
            canvas.setAttribute("role", "img");
            canvas.setAttribute("aria-label", THUMBNAIL);
            return drawThumbnail(canvas, zoo, cell.getData().row);
          },
        },
        ...others,
      ],
      rowFormatter: (row) => row.getElement().classList.toggle("focused", row.getData().row === this.focus),
    });
    this.table.on("rowClick", (event, row) => this.open(row.getData().row));
    this.table.on("dataFiltered", (filters, found) => changed(found.map((row) => row.getData().row)));
    element.tabIndex = 0;
    element.addEventListener("keydown", (event) => this.moved(event));
  }

  open(row) {
    this.mark(row);
    this.opened(row);
  }

  search(text) {
    if (!text.trim()) return this.table.clearFilter();
    const test = testOf(text, "text");
    const columns = this.zoo.tableColumns;
    return this.table.setFilter((data) => columns.some((_, index) => test(data[`c${index}`])));
  }

  moved(event) {
    if (event.target.tagName === "INPUT") return;
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 15, PageUp: -15 }[event.key];
    if (event.key === "Enter" && this.focus !== null) return this.opened(this.focus);
    if (!step) return;
    event.preventDefault();
    const rows = this.table.getRows("active");
    if (!rows.length) return;
    const place = rows.findIndex((row) => row.getData().row === this.focus);
    const next = place < 0 ? 0 : Math.min(Math.max(place + step, 0), rows.length - 1);
    this.mark(rows[next].getData().row);
    this.table.scrollToRow(this.focus, "nearest", false).catch(() => {});
  }

  mark(row) {
    const before = this.focus;
    this.focus = row;
    for (const changed of [before, row]) {
      const found = changed === null ? null : this.table.getRow(changed);
      if (found) found.reformat();
    }
  }
}
