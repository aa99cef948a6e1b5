// The page of one instance: its PRep in small, its row of the table, its layers and their statistics.

import { drawThumbnail, shownNumber } from "./zoo.js";

export function element(name, content = "", attributes = {}) {
  const made = document.createElement(name);
  made.append(...[content].flat());
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function tableOf(heads, rows, caption) {
  const cells = (name, values) => values.map((value, index) => element(name, value, index > 1 ? { class: "number" } : {}));
  const head = element("thead", element("tr", cells("th", heads)));
  const body = element("tbody", rows.map((row) => element("tr", cells("td", row))));
  return element("div", element("table", [element("caption", caption), head, body]), { class: "wide" });
}

// moved: is called with -1 or 1 for the instance before or after this one
export function showInstance(dialog, zoo, row, moved) {
  const architecture = zoo.architectureOf(row);
  const [height, width] = zoo.thumbnail.shape;
  const canvas = drawThumbnail(element("canvas", "", { class: "large", role: "img" }), zoo, row);
  const cells = height * width;
  const words =
    `${cells} means of about ${Math.max(1, Math.round(architecture.parameters / cells))} neighbouring weights each, in packing order, ` +
    `blue below 0, red above; full colour at ${shownNumber(architecture.limit)}, grey where a value is not finite`;
  canvas.setAttribute("aria-label", words);
  const facts = element("dl", zoo.tableColumns.flatMap((column) => {
    const value = column.values[row];
    if (value === null || value === undefined) return [];
    return [element("dt", column.name), element("dd", shownNumber(value))];
  }));
  const statistics = zoo.statisticsOf(row);
  const layers = statistics
    ? tableOf(
        ["tensor", "shape", ...zoo.statistics],
        statistics.map(([name, shape, values]) => [name, shape.join(" x ") || "number", ...values.map(shownNumber)]),
        `${architecture.name}: ${architecture.parameters.toLocaleString("en")} parameters in ${statistics.length} tensors`,
      )
    : element("p", "This zoo has too many tensors for their statistics to be on one page; `prepkit stat ZOO#ID` tells them.");
  const buttons = [["Before", -1], ["After", 1]].map(([text, step]) => {
    const button = element("button", text, { type: "button", title: step < 0 ? "Key: left" : "Key: right" });
    button.addEventListener("click", () => moved(step));
    return button;
  });
  const close = element("button", "Close", { type: "button", title: "Key: Esc" });
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(
    element("header", [element("h2", zoo.ids[row], { id: "instance-title" }), element("div", [...buttons, close])]),
    canvas,
    element("p", words, { class: "soft" }),
    facts,
    layers,
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
