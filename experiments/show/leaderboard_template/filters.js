// The family chosen governs everything; the other filters govern the table of all settings ---------------------------

const chosenFamily = () => document.querySelector("input[name=family]:checked").value;

function applyFilters() {
  const family = chosenFamily();
  for (const part of document.querySelectorAll("article[data-family]")) part.hidden = family !== "" && part.dataset.family !== family;
  const [kind, calibrated, rows, name] = ["kind", "calibrated", "rows", "name"].map((id) => by(id).value);
  const wanted = name.trim().toLowerCase();
  const fits = (row) =>
    (!kind || row.dataset.kind === kind) &&
    (!calibrated || row.dataset.calibrated === calibrated) &&
    row.cells[0].textContent.toLowerCase().includes(wanted);
  let count = 0;
  for (const body of by("settings").querySelectorAll("tbody.rows")) {
    const inGroup = (!family || body.dataset.family === family) && (!rows || body.dataset.rows === rows);
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !(inGroup && fits(row));
      shown += !row.hidden;
    }
    body.hidden = body.previousElementSibling.hidden = shown === 0;
    count += shown;
  }
  by("count").value = `${count} row${count === 1 ? "" : "s"}`;
}
for (const id of ["family", "filters"]) {
  by(id).hidden = false;
  by(id).addEventListener("input", applyFilters);
}
/** A link to a family shows it. */
function followHash() {
  const tab = [...document.querySelectorAll("input[name=family]")].find((each) => each.value && `#${each.value}` === location.hash);
  if (!tab) return;
  tab.checked = true;
  applyFilters();
  by(tab.value).scrollIntoView();
}
addEventListener("hashchange", followHash);
applyFilters();
followHash();
