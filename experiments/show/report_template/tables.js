// Tables: a heading sorts; what does not fit is said, and one press away -------------------------------------------------

/** Rows in the order of one column, each body's by themselves; what has no value stays last either way. */
function sortTable(table, column, direction) {
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const difference = Number(x) - Number(y);
    return direction * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
  };
  for (const body of table.tBodies) body.append(...[...body.rows].sort(compare));
  table.querySelectorAll("thead th").forEach((th, i) => {
    if (i === column) th.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    else th.removeAttribute("aria-sort");
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((th, column) => {
    th.querySelector("button").addEventListener("click", () => {
      sortTable(table, column, th.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    });
  });
}

/** How many columns reach beyond the right edge, by more than the space after their text. */
function hiddenColumns(scroll) {
  const edge = scroll.getBoundingClientRect().right;
  const headings = [...scroll.querySelectorAll("thead th")];
  return headings.filter((th) => th.getBoundingClientRect().right > edge + 6).length;
}
for (const box of document.querySelectorAll(".table")) {
  const [scroll, more] = [box.querySelector(".scroll"), box.querySelector(".more")];
  const tell = () => {
    const number = hiddenColumns(scroll);
    box.classList.toggle("cut", number > 0);
    more.hidden = number === 0;
    more.textContent = `${number} more column${number === 1 ? "" : "s"} →`;
  };
  more.addEventListener("click", () => scroll.scrollBy({ left: 0.6 * scroll.clientWidth, behavior: "smooth" }));
  scroll.addEventListener("scroll", tell, { passive: true });
  new ResizeObserver(() => requestAnimationFrame(tell)).observe(scroll);
  tell();
}
