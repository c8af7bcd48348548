// Sorts a result table by the column whose title is pressed; rows without figures stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    if (column && !table.querySelector(`tbody td:nth-child(${column + 1})[data-order]`)) return;
    const button = document.createElement("button");
    button.textContent = title.textContent;
    title.replaceChildren(button);
    button.onclick = () => {
      const sign = title.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const order = (row) => {
        if (column === 0) return row.cells[0].textContent;
        const value = row.cells[column]?.dataset.order;
        return value === undefined ? null : Number(value);
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [order(a), order(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (column === 0 ? x.localeCompare(y) : x - y);
      });
      table.tBodies[0].append(...rows);
    };
  });
}
// On paper nothing can be opened.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
