
// Tables that sort by a click on a head: rising, falling, as they were.

for (const table of document.querySelectorAll(".table table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  if (original.length < 2) continue;
  heads.forEach((head, column) => {
    const button = html("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", other === head ? next : "none");
      body.append(...(next === "none" ? original : sorted(original, column, next === "ascending" ? 1 : -1)));
    });
  });
}

/** Return rows by the number of a cell, or by its text; what is not known stands last. */
function sorted(rows, column, sign) {
  const cell = (row) => row.cells[column];
  const numeric = rows.some((row) => "value" in cell(row).dataset);
  const known = numeric ? rows.filter((row) => "value" in cell(row).dataset) : [...rows];
  const compare = numeric
    ? (a, b) => cell(a).dataset.value - cell(b).dataset.value
    : (a, b) => cell(a).textContent.localeCompare(cell(b).textContent, "en", { numeric: true });
  known.sort((a, b) => sign * compare(a, b));
  return [...known, ...rows.filter((row) => !known.includes(row))];
}
