// Lets a reader choose which columns a guide shows, keeps which are hidden, and marks what differs between those shown.
document.addEventListener("DOMContentLoaded", () => {
  const all = [...new Set([...document.querySelectorAll(".column")].map((c) => c.dataset.column))];
  if (!all.length) return;
  document.body.classList.add("has-columns");
  const titles = Object.fromEntries(
    [...document.querySelectorAll(".column")].map((c) => [c.dataset.column, c.querySelector(".column-title").textContent]));
  let shown = all;
  let elsewhere = [];  // hidden, and not on this page
  try {
    const hidden = (localStorage.getItem("bridges-hidden-columns") || "").split(" ").filter((name) => name);
    const left = all.filter((name) => !hidden.includes(name));
    if (left.length) shown = left;
    elsewhere = hidden.filter((name) => !all.includes(name));
  } catch (error) { /* no storage: all columns */ }

  const form = document.createElement("form");
  form.className = "choose-columns";
  form.setAttribute("aria-label", "Columns to show");
  form.append("Show ");
  for (const name of all) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = name;
    box.checked = shown.includes(name);
    label.append(box, titles[name]);
    form.append(label);
  }
  const note = document.createElement("span");
  note.innerHTML = 'Marked: <span class="word differs">what</span> differs from the first column shown, and in that one what no other has.';
  form.append(note);
  document.querySelector(".bd-article h1").after(form);

  // A word or line has a class `not-NAME` for each column that lacks it.
  const show = () => {
    for (const columns of document.querySelectorAll(".columns")) {
      const here = [];
      for (const column of columns.querySelectorAll(".column")) {
        column.hidden = !shown.includes(column.dataset.column);
        if (!column.hidden) here.push(column);
      }
      columns.style.setProperty("--shown", Math.max(here.length, 1));
      const names = here.map((column) => column.dataset.column);
      for (const [number, column] of here.entries()) {
        const lacking = number ? names.slice(0, 1) : names.slice(1);
        for (const part of column.querySelectorAll("[class*='not-']"))
          part.classList.toggle("differs", lacking.length > 0 && lacking.every((name) => part.classList.contains(`not-${name}`)));
      }
    }
  };
  form.addEventListener("change", (event) => {
    const chosen = [...form.querySelectorAll("input:checked")].map((box) => box.value);
    if (!chosen.length) { event.target.checked = true; return; }
    shown = chosen;
    const hidden = [...elsewhere, ...all.filter((name) => !shown.includes(name))];
    try { localStorage.setItem("bridges-hidden-columns", hidden.join(" ")); } catch (error) { /* not kept */ }
    show();
  });
  show();
});
