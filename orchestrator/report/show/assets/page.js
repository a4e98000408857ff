(function () {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  function onPaper() { return document.documentElement.classList.contains("paper"); }

  function theme(layout) {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    const line = style.getPropertyValue("--line").trim();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const themed = Object.assign({}, layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: onPaper() ? 10 : 13 },
      margin: { l: 60, r: 20, t: 30, b: 50 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
    });
    Object.keys(Object.assign({ xaxis: 0, yaxis: 0 }, layout)).forEach(function (key) {
      if (/^[xy]axis\d*$/.test(key)) { themed[key] = Object.assign({}, axis, layout[key]); }
    });
    themed.hoverlabel = { bgcolor: style.getPropertyValue("--raised").trim(), font: { color: ink } };
    return themed;
  }

  function draw(place) {
    const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    const layout = theme(figure.layout);
    figure.data.forEach(function (trace) {
      if (trace.error_y && trace.type === "bar") { trace.error_y.color = layout.font.color; }
    });
    // On a telephone or a sheet of paper a legend at the side would take the figure's room.
    if (place.clientWidth < 560 && layout.showlegend && !layout.legend) {
      layout.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
    }
    layout.width = place.clientWidth;
    layout.height = place.clientHeight;
    return Plotly.react(place, figure.data, layout, {
      displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    });
  }

  // What is folded has no size yet: it is drawn when it is unfolded.
  function drawAll() {
    document.querySelectorAll(".plot").forEach(function (place) {
      if (place.clientWidth > 0) { draw(place); }
    });
  }

  document.querySelectorAll("details.strip").forEach(function (strip) {
    strip.addEventListener("toggle", function () {
      if (strip.open) { draw(strip.querySelector(".plot")); }
    });
  });

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
  // Before a browser lays out its sheets, figures are drawn in their size and on white.
  function paper(on) {
    return function () {
      document.documentElement.classList.toggle("paper", on);
      drawAll();
    };
  }
  window.addEventListener("beforeprint", paper(true));
  window.addEventListener("afterprint", paper(false));
  let soon = 0;
  window.addEventListener("resize", function () {
    window.clearTimeout(soon);
    soon = window.setTimeout(drawAll, 150);
  });
  drawAll();
})();
