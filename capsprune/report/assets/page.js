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
  const changed = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    listeners.forEach((listener) => listener());
  };
  const set = (value) => {
    if (value) root.dataset.theme = value;
    else delete root.dataset.theme;
    changed();
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
    set("light");
    document.querySelectorAll("details").forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => set(onScreen));

  return { isDark, onChange: (listener) => listeners.push(listener) };
})();

// Charts: the descriptions of the pictures, fitted to the screen and to its colours.
(() => {
  const root = document.documentElement;
  const { figures, themes } = JSON.parse(document.getElementById("charts").textContent);
  const charts = [...document.querySelectorAll(".chart")];
  const family = getComputedStyle(root).fontFamily;
  const drawings = new Map();

  /** Puts as many panels side by side as there is room for, `spare` px narrower than that. */
  const fitted = (description, room, spare) => {
    const { config: _, usermeta: { beside, panel, label }, ...spec } = structuredClone(description);
    const most = Math.min(spec.columns, spec.concat.length);
    const fits = (columns) => most % columns === 0 && columns * (0.95 * panel + beside) <= room;
    const columns = [4, 3, 2, 1].find((columns) => columns === 1 || fits(columns));
    const share = (room - (columns - 1) * spec.spacing - spare) / columns - beside;
    const width = Math.max(120, Math.min(share, 2 * panel));
    spec.concat.forEach((panel) => { panel.width = Math.floor(width); });
    const config = structuredClone(themes[theme.isDark() ? "dark" : "light"]);
    config.legend.columns = Math.max(1, Math.floor(room / label));
    config.legend.labelLimit = room - 40;
    return { ...spec, columns, padding: 2, config: { ...config, font: family } };
  };

  const draw = async (chart) => {
    const options = {
      actions: false, ast: true, renderer: "svg",
      tooltip: { theme: theme.isDark() ? "dark" : "light" },
    };
    const room = chart.clientWidth;
    let spare = 0;
    // What stands beside the panels has its width once it is drawn.
    for (let attempt = 0; attempt < 3; attempt += 1) {
      drawings.get(chart)?.finalize();
      drawings.set(chart, await vegaEmbed(chart, fitted(figures[chart.dataset.figure], room, spare), options));
      const over = chart.querySelector("svg").getBoundingClientRect().width - room;
      if (over <= 0) break;
      spare += Math.ceil(over);
    }
  };

  let latest = 0;
  const drawAll = async () => {
    const mine = ++latest;
    delete root.dataset.charts;
    for (const chart of charts) {
      await draw(chart);
      // Give way to the reader between two charts, and to a later call.
      await new Promise((resolve) => setTimeout(resolve));
      if (mine !== latest) return;
    }
    root.dataset.charts = "drawn";
  };

  let width = root.clientWidth;
  let waiting;
  addEventListener("resize", () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    delete root.dataset.charts;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 100);
  });
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
