// Makes tables fit: smaller where they are too wide, then with names broken. On a phone those of three columns or more become
// lists (pages.css), for which each cell gets its column's title.
document.addEventListener("DOMContentLoaded", () => {
  const tables = [...document.querySelectorAll(".bd-article table.table")];
  for (const table of tables) {
    const titles = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    if (titles.length < 3) continue;
    table.classList.add("labelled");
    for (const row of table.tBodies[0]?.rows ?? [])
      for (const [number, cell] of [...row.cells].entries()) {
        const inner = document.createElement("div");
        inner.append(...cell.childNodes);
        if (!inner.textContent.trim()) cell.classList.add("nothing");
        cell.append(inner);
        cell.dataset.label = titles[number] ?? "";
      }
  }

  const fit = () => {
    for (const table of tables) {
      table.classList.remove("tight", "breaks");
      for (const kind of ["tight", "breaks"])
        if (table.parentElement.scrollWidth > table.parentElement.clientWidth) table.classList.add(kind);
    }
  };
  window.addEventListener("resize", fit);
  fit();
});
