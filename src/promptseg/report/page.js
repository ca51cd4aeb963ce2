"use strict";
// The gallery's filters. Without this script every picture is shown, with prediction and truth.
const gallery = document.getElementById("tiles");
const filters = [...document.querySelectorAll("select[data-filter]")];
const count = document.getElementById("shown");

function apply() {
  let shown = 0;
  for (const tile of gallery.children) {
    const fits = filters.every((filter) => !filter.value || tile.dataset[filter.dataset.filter] === filter.value);
    tile.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  count.textContent = `${shown} of ${gallery.children.length} shown`;
}

for (const filter of filters) {
  filter.addEventListener("change", apply);
}
for (const view of document.querySelectorAll("input[name=view]")) {
  view.addEventListener("change", () => { gallery.dataset.view = view.value; });
}
document.getElementById("controls").hidden = false;
apply();
