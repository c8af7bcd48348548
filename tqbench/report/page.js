// Sorts a table by the column whose title is pressed; rows without figures stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    if (column && !table.querySelector(`tbody td:nth-child(${column + 1})[data-order]`)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title.textContent;
    title.replaceChildren(button);
    title.setAttribute("aria-sort", "none");
    button.onclick = () => {
      const sign = title.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      titles.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      title.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const order = (row) => {
        if (column === 0) return row.cells[0].textContent;
        const value = row.cells[column]?.dataset.order;
        return value === undefined ? null : Number(value);
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [order(a), order(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (column === 0 ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
      });
      table.tBodies[0].append(...rows);
    };
  });
}

// Shows the rows in which every word stands, and fades the marks of the others in figures.
const filter = document.querySelector("form.filter");
const found = [...document.querySelectorAll("[data-find]")];
const marks = [...document.querySelectorAll("figure g > title")].map((title) => [title.parentNode, title.textContent.split(": ")[0].toLowerCase()]);
const rows = found.filter((part) => part.closest("table.main"));
function choose() {
  const words = filter.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const outcome = filter.outcome?.value ?? "";
  for (const part of found) {
    const text = part.dataset.find.toLowerCase();
    const other = outcome && part.dataset.outcome !== undefined && part.dataset.outcome !== outcome;
    part.hidden = other || !words.every((word) => text.includes(word));
  }
  for (const section of document.querySelectorAll("section.results")) {
    const own = section.querySelectorAll("[data-find]");
    section.hidden = own.length > 0 && [...own].every((part) => part.hidden);
  }
  const named = marks.some(([, name]) => words.some((word) => name.includes(word)));
  for (const [mark, name] of marks) mark.style.opacity = !named || words.every((word) => name.includes(word)) ? "" : "0.12";
  filter.querySelector("output").textContent = words.length || outcome ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
}
if (rows.length > 3) {
  filter.hidden = false;
  filter.oninput = choose;
  filter.onsubmit = (event) => event.preventDefault();
}

// On paper nothing can be opened.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
