"use strict";

// Colours: light or dark as the system has it, until the reader says otherwise.
const theme = (() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];

  // A page opened from a file may be refused storage; then the choice lasts as long as the page.
  const stored = {
    get() { try { return localStorage.getItem("capsprune-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("capsprune-theme", value); } catch { /* see above */ } },
  };
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const changed = (options) => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    listeners.forEach((listener) => listener(options));
  };
  const set = (value, options) => {
    if (value) root.dataset.theme = value;
    else delete root.dataset.theme;
    changed(options);
  };

  const chosen = stored.get();
  set(chosen === "dark" || chosen === "light" ? chosen : null);
  button.hidden = false;
  button.addEventListener("click", () => {
    set(isDark() ? "light" : "dark");
    stored.set(root.dataset.theme);
  });
  system.addEventListener("change", () => changed());

  // Paper is white, and nothing can be unfolded on it.
  let onScreen;
  addEventListener("beforeprint", () => {
    onScreen = root.dataset.theme;
    set("light", { atOnce: true });
    document.querySelectorAll("details").forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => set(onScreen));

  return { onChange: (listener) => listeners.push(listener) };
})();

// Charts
(() => {
  const root = document.documentElement;
  const panels = JSON.parse(document.getElementById("panels").textContent);
  const charts = [...document.querySelectorAll(".chart")];
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;

  /** What a custom property, such as "--series-1", stands for now. */
  const color = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };

  /** Copies a chart's description with names of colours replaced by colours. */
  const colored = (value, key = "") => {
    if (Array.isArray(value)) return value.map((item) => colored(item, key));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, colored(v, k)]));
    }
    return key === "color" ? color(value) : value;
  };

  const axis = (own) => ({
    automargin: true,
    fixedrange: true, // a finger on the chart scrolls the page
    gridcolor: color("--grid"),
    linecolor: color("--rule"),
    tickangle: 0,
    zerolinecolor: color("--rule"),
    ...own,
    title: { standoff: 8, ...own.title, font: { size: 12, color: color("--quiet") } },
  });

  const family = getComputedStyle(root).fontFamily;
  const layout = (own) => ({
    autosize: true,
    dragmode: false,
    font: { family, size: 12, color: color("--ink") },
    hoverlabel: {
      align: "left",
      bgcolor: color("--surface"),
      bordercolor: color("--faint"),
      font: { family, size: 13, color: color("--ink") },
    },
    hovermode: "closest",
    margin: { l: 44, r: 12, t: 12, b: 40 },
    paper_bgcolor: "rgba(0, 0, 0, 0)",
    plot_bgcolor: "rgba(0, 0, 0, 0)",
    showlegend: false,
    ...own,
    xaxis: axis(own.xaxis),
    yaxis: axis(own.yaxis),
  });

  const figureOf = (chart) => chart.closest("figure");
  const draw = (chart) => {
    const panel = panels[figureOf(chart).dataset.figure][Number(chart.dataset.panel)];
    const hidden = [...figureOf(chart).querySelectorAll(".legend [aria-pressed=false]")];
    const labels = new Set(hidden.map((button) => button.dataset.key));
    const traces = colored(panel.traces).map((trace) => (
      { ...trace, showlegend: false, visible: !labels.has(trace.legendgroup) }
    ));
    return Plotly.react(chart, traces, layout(panel.layout), {
      displayModeBar: false,
      displaylogo: false,
      responsive: true,
    });
  };

  const isShown = (chart) => !chart.closest("[hidden]");
  let latest = 0;
  const drawAll = async ({ atOnce = false } = {}) => {
    const mine = ++latest;
    delete root.dataset.charts;
    for (const chart of charts.filter(isShown)) {
      const drawn = draw(chart);
      if (atOnce) continue;
      await drawn;
      // Give way to the reader between two charts, and to a later call.
      await new Promise((resolve) => setTimeout(resolve));
      if (mine !== latest) return;
    }
    root.dataset.charts = "drawn";
  };

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!pressed));
      charts.filter((chart) => figureOf(chart) === figureOf(button)).filter(isShown).forEach(draw);
    });
  }
  for (const select of document.querySelectorAll("figure select")) {
    const show = () => {
      for (const group of figureOf(select).querySelectorAll(".panels")) {
        group.hidden = group.dataset.group !== select.value;
        if (!group.hidden) group.querySelectorAll(".chart").forEach(draw);
      }
    };
    select.addEventListener("change", show);
    // Some browsers keep a choice over a reload.
    if (select.selectedIndex > 0) show();
  }
  theme.onChange(drawAll);
  drawAll();
})();

// Tables
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];

  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  const sort = (column, direction) => {
    const order = (row) => row.cells[column].dataset.order;
    const rows = [...body.rows].sort((a, b) => {
      const missing = (order(a) === undefined) - (order(b) === undefined);
      return missing || (order(a) === undefined ? 0 : direction * compare(order(a), order(b)));
    });
    body.append(...rows);
  };

  headings.forEach((heading, column) => {
    heading.setAttribute("aria-sort", "none");
    heading.querySelector("button").addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(column, ascending ? 1 : -1);
    });
  });
}
