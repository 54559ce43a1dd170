// before first paint, so that the page never flashes in the other theme; storage may be forbidden
document.documentElement.classList.add("js");
try {
  const kept = localStorage.getItem("mpdiag-theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
} catch (forbidden) { /* the system's choice holds */ }
