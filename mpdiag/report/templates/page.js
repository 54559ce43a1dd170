"use strict";
const byId = (id) => document.getElementById(id);
const root = document.documentElement;

// theme
const isDark = () => root.dataset.theme
  ? root.dataset.theme === "dark"
  : matchMedia("(prefers-color-scheme: dark)").matches;
const labelTheme = () => {
  byId("theme").textContent = isDark() ? "Light" : "Dark";
  byId("theme").setAttribute("aria-pressed", String(isDark()));
};
const switchTheme = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("mpdiag-theme", root.dataset.theme); } catch (forbidden) { /* not remembered */ }
  labelTheme();
  document.dispatchEvent(new Event("themechange"));
};
byId("theme").addEventListener("click", switchTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  labelTheme();
  document.dispatchEvent(new Event("themechange"));
});
labelTheme();

// copy: the button says what happened; where the clipboard is closed, the text is selected instead
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch (closed) {
      getSelection().selectAllChildren(code);
      said = "Selected";
    }
    button.textContent = said;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// the saved result, byte for byte as embedded
byId("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([byId("diagnosis").textContent], { type: "application/json" }));
  link.download = byId("download").dataset.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

// a link to a section opens what is folded in it; paper gets everything, and the screen its folds back
const unfold = () => {
  const target = location.hash && byId(decodeURIComponent(location.hash.slice(1)));
  for (const fold of target ? target.querySelectorAll(":scope > details.fold") : []) fold.open = true;
};
addEventListener("hashchange", unfold);
unfold();
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const fold of closed) fold.open = true;
});
addEventListener("afterprint", () => { for (const fold of closed) fold.open = false; });

// keys
const showKeys = (open) => {
  byId("keys").hidden = !open;
  byId("show-keys").setAttribute("aria-expanded", String(open));
};
byId("show-keys").addEventListener("click", () => showKeys(byId("keys").hidden));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const filter = byId("filter");
  if (event.key === "Escape") {
    showKeys(false);
    if (filter && filter.value) { filter.value = ""; filter.dispatchEvent(new Event("input")); }
    if (document.activeElement === filter) filter.blur();
    return;
  }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === "?") showKeys(byId("keys").hidden);
  else if (event.key === "d") switchTheme();
  else if (event.key === "a" && byId("all")) byId("all").click();
  else if (event.key === "/" && filter) { event.preventDefault(); filter.focus(); }
});
