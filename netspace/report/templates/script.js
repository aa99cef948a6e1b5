// Sort a table by the column whose head is pressed, and the other way round when it is pressed again.
document.querySelectorAll("th button").forEach((button) => {
  button.addEventListener("click", () => {
    const head = button.parentNode, body = head.closest("table").tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[column], text = (cell.dataset.value ?? cell.textContent).trim();
      return { row, text, number: text === "" ? NaN : Number(text) };
    });
    const numeric = rows.every((one) => one.text === "" || !isNaN(one.number));
    rows.sort((a, b) => {
      if (numeric && isNaN(a.number) !== isNaN(b.number)) return isNaN(a.number) ? 1 : -1; // empty cells come last
      if (numeric) return sign * (a.number - b.number) || 0; // NaN: both are empty
      return sign * a.text.localeCompare(b.text, "en", { numeric: true });
    });
    rows.forEach((one) => body.appendChild(one.row));
  });
});
