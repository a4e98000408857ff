(function () {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Okabe and Ito's colours: told apart by every kind of colour vision, on white and on black.
  const colorway = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#B8A800", "#7F7F7F"];

  function theme(layout) {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    const line = style.getPropertyValue("--line").trim();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const themed = Object.assign({}, layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: 13 },
      colorway: colorway, margin: { l: 60, r: 20, t: 30, b: 50 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
    });
    themed.xaxis = Object.assign({}, axis, layout.xaxis);
    themed.yaxis = Object.assign({}, axis, layout.yaxis);
    return themed;
  }

  function drawAll() {
    document.querySelectorAll(".plot").forEach(function (place) {
      const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
      Plotly.react(place, figure.data, theme(figure.layout), {
        responsive: true, displaylogo: false,
        modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
      });
    });
  }

  document.querySelectorAll("th[data-sort]").forEach(function (head) {
    head.addEventListener("click", function () {
      const body = head.closest("table").tBodies[0];
      const at = head.cellIndex;
      const down = head.dataset.sort !== "up";
      const key = function (row) {
        const value = row.cells[at] ? row.cells[at].dataset.value : undefined;
        return value === undefined ? (at === 0 ? row.cells[0].textContent : null) : Number(value);
      };
      const rows = Array.from(body.rows).sort(function (a, b) {
        const x = key(a), y = key(b);
        if (x === null || y === null) { return (x === null) - (y === null); }
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? 1 : -1);
      });
      rows.forEach(function (row) { body.appendChild(row); });
      head.dataset.sort = down ? "up" : "down";
    });
  });

  dark.addEventListener("change", drawAll);
  drawAll();
})();
