// the two charts worth zooming: plotly unpacks itself, then takes the place of the static drawings
(async () => {
  if (typeof DecompressionStream === "undefined") return;  // an older browser keeps the static charts
  const bytes = Uint8Array.from(atob(byId("plotly-packed").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  if (!window.Plotly) return;

  const figures = JSON.parse(byId("figures").textContent);
  const coloured = (value, style) => {  // "var(--x)" becomes what the theme says it is now
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
    }
    return value;
  };
  const draw = () => {
    const style = getComputedStyle(root);
    for (const plot of document.querySelectorAll(".plot[data-figure]")) {
      const figure = figures[plot.dataset.figure];
      if (!figure) continue;
      let live = plot.querySelector(".live");
      if (!live) {
        live = document.createElement("div");
        live.className = "live";
        plot.append(live);
        plot.classList.add("drawn");
      }
      const { data, layout } = coloured(figure, style);
      window.Plotly.react(live, data, layout, { displaylogo: false, responsive: true });
    }
  };
  draw();
  document.addEventListener("themechange", draw);
})();
