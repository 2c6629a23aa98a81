"use strict";
(() => {
  const list = document.getElementById("list");
  const all = [...list.querySelectorAll("details.q")];
  const category = document.getElementById("f-category");
  const show = document.getElementById("f-show");
  const order = document.getElementById("f-order");
  const text = document.getElementById("f-text");
  const count = document.getElementById("count");
  const texts = new Map();
  const words = (q) => {
    if (!texts.has(q)) texts.set(q, q.textContent.toLowerCase());
    return texts.get(q);
  };
  const low = (q) => (q.dataset.low === "" ? NaN : Number(q.dataset.low));
  const kinds = {
    "": () => true,
    low: (q) => low(q) <= 4,
    high: (q) => low(q) >= 8,
    differ: (q) => Number(q.dataset.spread) >= 3,
    unread: (q) => q.dataset.unread === "1",
  };
  const orders = {
    id: (a, b) => a.dataset.n - b.dataset.n,
    low: (a, b) => (low(a) || 99) - (low(b) || 99) || a.dataset.n - b.dataset.n,
    spread: (a, b) => b.dataset.spread - a.dataset.spread || a.dataset.n - b.dataset.n,
  };
  const filter = () => {
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const q of all) {
      const fits = (!category.value || q.dataset.category === category.value) && kinds[show.value](q) &&
        (!wanted || words(q).includes(wanted));
      q.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown === all.length ? `${shown} questions` : `${shown} of ${all.length} questions`;
  };
  category.addEventListener("change", filter);
  show.addEventListener("change", filter);
  text.addEventListener("input", filter);
  order.addEventListener("change", () => list.append(...all.sort(orders[order.value])));
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) return;
    if (event.key === "/") {
      event.preventDefault();
      text.focus();
    } else if (event.key === "j" || event.key === "k") {
      const visible = all.filter((q) => !q.hidden);
      const at = visible.findIndex((q) => q.contains(document.activeElement));
      const next = event.key === "j" ? at + 1 : Math.max(at - 1, 0);
      if (visible[next]) visible[next].querySelector("summary").focus();
    }
  });
  // a browser may bring a form's values back after a reload
  filter();
})();
