"use strict";
// Tables sort by a click on a heading: numbers by size, text by letters, empty cells last; a second click turns the order round.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const numeric = heading.classList.contains("number");
    const before = heading.getAttribute("aria-sort");
    const rising = before ? before !== "ascending" : !numeric;
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      if (numeric) return cell.dataset.key === undefined ? null : Number(cell.dataset.key);
      return cell.textContent === "" ? null : cell.textContent;
    };
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    rows.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      const order = numeric ? one - other : one.localeCompare(other, "en", { numeric: true });
      return rising ? order : -order;
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }));
}
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
