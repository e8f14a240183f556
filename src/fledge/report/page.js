(function () {
  "use strict";
  var root = document.documentElement;
  var specifications = JSON.parse(document.getElementById("chart-data").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var touch = window.matchMedia("(pointer: coarse)").matches;
  var folded = document.querySelectorAll("details:not(.long)");
  var printing = false;

  function colour(name) {
    return getComputedStyle(root).getPropertyValue("--" + name).trim();
  }

  function trace(spec) {
    var faint = /-faint$/.test(spec.role);
    var paint = colour(spec.role.replace(/-faint$/, ""));
    var points = spec.role === "eval" || spec.x.length < 2;
    return {
      type: "scatter",
      x: spec.x,
      y: spec.y,
      name: spec.name[root.dataset.lang] || "",
      mode: points ? "lines+markers" : "lines",
      opacity: faint ? 0.28 : 1,
      line: { color: paint, width: faint ? 1 : points ? 1.25 : 2, shape: "linear" },
      marker: { color: paint, size: 6 },
      cliponaxis: !points,
      hoverinfo: faint ? "skip" : undefined,
      hovertemplate: faint ? undefined : "%{y:.4~g}" + (spec.name.en ? " %{fullData.name}" : "") + "<extra></extra>"
    };
  }

  function layout(spec, holder) {
    var ink = colour("muted"), rule = colour("rule");
    var axis = {
      gridcolor: rule, zeroline: false, linecolor: rule, tickfont: { size: 11, color: ink },
      fixedrange: touch, automargin: true, nticks: 6
    };
    var title = root.dataset.lang === "zh" ? "步" : "step";
    return {
      width: holder.clientWidth,
      height: holder.clientHeight,
      margin: { l: 44, r: 12, t: 8, b: 34 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      showlegend: false,
      dragmode: touch ? false : "zoom",
      hovermode: "x unified",
      hoverlabel: { bgcolor: colour("paper"), bordercolor: rule, font: { size: 12, color: colour("ink") } },
      xaxis: Object.assign({}, axis, lastStep(spec) > 0 ? { range: [0, lastStep(spec)] } : {}, {
        showgrid: false, showline: true, title: { text: title, font: { size: 11, color: ink }, standoff: 6 }
      }),
      yaxis: Object.assign({}, axis, spec.log ? logTicks(spec) : {
        rangemode: spec.from_zero ? "tozero" : "normal", exponentformat: "SI", minexponent: 4
      })
    };
  }

  function lastStep(spec) {
    return Math.max.apply(null, spec.traces.map(function (one) { return one.x[one.x.length - 1]; }));
  }

  /* 1, 2 and 5 of every decade, written out: plotly's own log ticks leave the zeros away. */
  function logTicks(spec) {
    var values = [], all = [].concat.apply([], spec.traces.map(function (one) { return one.y; }));
    var low = Math.min.apply(null, all), high = Math.max.apply(null, all);
    var decades = Math.log10(high / low), leads = decades > 4 ? [1] : decades > 2 ? [1, 3] : [1, 2, 5];
    for (var power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      leads.forEach(function (lead) { values.push(Number(lead + "e" + power)); });
    }
    return { type: "log", tickvals: values, ticktext: values.map(function (value) { return String(value); }) };
  }

  function draw(id) {
    var holder = document.getElementById(id);
    if (!holder || !window.Plotly) { return; }
    var spec = specifications[id];
    window.Plotly.react(holder, spec.traces.map(trace), layout(spec, holder), { displayModeBar: false });
  }

  function drawAll() {
    Object.keys(specifications).forEach(draw);
  }

  function choose(language) {
    root.dataset.lang = language;
    root.lang = language === "zh" ? "zh-CN" : "en";
    try { localStorage.setItem("fledge-language", language); } catch (refused) { /* a file may have no storage */ }
    showChoice();
    drawAll();
  }

  function showChoice() {
    document.querySelectorAll("[data-choose]").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.choose === root.dataset.lang));
    });
  }

  document.querySelectorAll("[data-choose]").forEach(function (button) {
    button.addEventListener("click", function () { choose(button.dataset.choose); });
  });

  var waiting = 0;
  window.addEventListener("resize", function () {
    if (printing) { return; }
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  dark.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", function () {
    printing = true;
    root.classList.add("printing");
    folded.forEach(function (one) { one.dataset.was = one.open ? "1" : ""; one.open = true; });
    drawAll();
  });
  window.addEventListener("afterprint", function () {
    printing = false;
    root.classList.remove("printing");
    folded.forEach(function (one) { one.open = one.dataset.was === "1"; });
    drawAll();
  });

  showChoice();
  drawAll();
})();
