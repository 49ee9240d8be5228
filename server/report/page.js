"use strict";
// Shows the one table that the two lists name; without scripts the first table stays visible.
for (const section of document.querySelectorAll(".matrices")) {
  const lists = [...section.querySelectorAll("select")];
  const update = () => {
    const wanted = lists.map((list) => list.value).join("|");
    for (const table of section.querySelectorAll("[data-table]")) {
      table.hidden = table.dataset.table !== wanted;
    }
  };
  for (const list of lists) list.addEventListener("change", update);
  section.querySelector(".choose").hidden = false;
  update();
}
