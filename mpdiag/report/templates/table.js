// the table of tensors: filter, kind, worst or all, sort
(() => {
  const table = document.querySelector("table.tensors");
  if (!table) return;
  const body = table.tBodies[0];
  const worstFirst = [...body.rows];
  const filter = byId("filter"), kind = byId("kind"), all = byId("all");
  const limit = all ? Number(all.dataset.worst) : Infinity;
  let showAll = false;

  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = words.length || showAll ? Infinity : limit;
    let shown = 0;
    for (const row of worstFirst) {
      const fits = (!kind.value || row.dataset.kind === kind.value)
        && words.every((word) => row.dataset.search.includes(word));
      row.hidden = !(fits && left-- > 0);
      if (!row.hidden) shown += 1;
    }
    byId("shown").textContent = `${shown} of ${worstFirst.length}`;
    if (all) {
      all.textContent = showAll ? `Worst ${limit}` : `Show all ${worstFirst.length}`;
      all.setAttribute("aria-pressed", String(showAll));
    }
  };

  const column = (header) => {  // the cell index under a header of the two-row head
    const [top, low] = table.tHead.rows;
    if (header.parentElement === top) return header.cellIndex < 4 ? header.cellIndex : header.cellIndex + 4;
    return 4 + [...low.cells].indexOf(header);
  };
  const valueOf = (row, index) => {
    const text = row.cells[index].dataset.v;
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));

  const sort = (header) => {
    const button = header.querySelector("button.sort");
    const first = button.dataset.first, second = first === "ascending" ? "descending" : "ascending";
    const now = header.getAttribute("aria-sort");
    const next = now === "none" ? first : now === first ? second : "none";  // third click: worst first again
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", next);
    const index = column(header), sign = next === "ascending" ? 1 : -1;
    const rows = next === "none" ? worstFirst
      : [...worstFirst].sort((a, b) => sign * compare(valueOf(a, index), valueOf(b, index)));
    body.append(...rows);
  };
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button.sort");
    if (button) sort(button.closest("th"));
  });

  const reveal = () => {  // a deep link may lead to a row that the filter or the limit hides
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && byId(id);
    if (!target || !body.contains(target) || !target.hidden) return;
    filter.value = "";
    kind.value = "";
    showAll = true;
    show();
    target.scrollIntoView({ block: "center" });
  };
  filter.addEventListener("input", show);
  filter.form.addEventListener("submit", (event) => event.preventDefault());
  kind.addEventListener("change", show);
  if (all) all.addEventListener("click", () => { showAll = !showAll; show(); });
  addEventListener("hashchange", reveal);
  show();
  reveal();
})();
