(function () {
  "use strict";
  var root = document.documentElement;
  var specifications = JSON.parse(document.getElementById("plot-data").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var touch = window.matchMedia("(pointer: coarse)").matches;
  var printing = false;
  var COLOURS = 8;

  function colour(name) {
    return getComputedStyle(root).getPropertyValue("--" + name).trim();
  }

  function paint(index) {
    return colour("c" + index % COLOURS);
  }

  function translucent(hex) {
    var channels = [1, 3, 5].map(function (at) { return parseInt(hex.slice(at, at + 2), 16); });
    return "rgba(" + channels.join(",") + ",0.13)";
  }

  function outline(trace, index) {
    return {
      type: "scatter", mode: "lines", name: trace.name, x: trace.x, y: trace.y, fill: "tozeroy",
      fillcolor: translucent(paint(index)), line: { color: paint(index), width: 1.75, shape: "hv" },
      hovertemplate: "from %{x:,}: %{y:.1f} %<extra>%{fullData.name}</extra>"
    };
  }

  function bars(spec) {
    return function (trace, index) {
      return {
        type: "bar", orientation: "h", name: trace.name, y: trace.labels, x: trace.values,
        marker: { color: paint(index) },
        text: trace.values.map(function (value) { return value >= (spec.stacked ? 8 : 0) ? value.toFixed(1) : ""; }),
        textposition: spec.stacked ? "inside" : "outside", insidetextanchor: "middle", textangle: 0, cliponaxis: false,
        textfont: { size: 11, color: spec.stacked ? colour("paper") : colour("muted") }, constraintext: "none",
        hovertemplate: "%{x:.1f} %<extra>%{fullData.name}</extra>"
      };
    };
  }

  function axis() {
    return {
      gridcolor: colour("rule"), zeroline: false, linecolor: colour("rule"), fixedrange: touch, automargin: true,
      tickfont: { size: 11, color: colour("muted") }
    };
  }

  function layout(spec, holder) {
    var result = {
      width: holder.clientWidth, height: holder.clientHeight, margin: { l: 44, r: 14, t: 20, b: 30 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("muted") },
      showlegend: spec.traces.length > 1, legend: { orientation: "h", y: -0.16, yanchor: "top", font: { size: 11 } },
      dragmode: touch ? false : "zoom", hovermode: "closest", bargap: 0.28, barmode: spec.stacked ? "stack" : "group",
      hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("rule"), font: { size: 12, color: colour("ink") } },
      xaxis: axis(), yaxis: axis()
    };
    if (spec.kind === "histogram") {
      Object.assign(result.xaxis, { type: "log", showgrid: false, showline: true }, ticks(spec));
      Object.assign(result.yaxis, { rangemode: "tozero", ticksuffix: " %" });
      if (spec.mark !== null) { mark(result, spec.mark); }
    } else {
      Object.assign(result.xaxis, { rangemode: "tozero", range: [0, spec.stacked ? 101 : highest(spec)], ticksuffix: " %" });
      Object.assign(result.yaxis, { autorange: "reversed", showgrid: false, ticksuffix: " " });
      result.legend.traceorder = "normal";
    }
    return result;
  }

  function highest(spec) {
    var all = [].concat.apply([], spec.traces.map(function (trace) { return trace.values; }));
    return Math.max(10, 1.12 * Math.max.apply(null, all));
  }

  /* Powers of ten, with 2 and 5 where there are few, written out. */
  function ticks(spec) {
    var all = [].concat.apply([], spec.traces.map(function (trace) { return trace.x; }));
    if (spec.mark !== null) { all.push(spec.mark); }
    var low = Math.min.apply(null, all), high = Math.max.apply(null, all), values = [];
    var leads = Math.log10(high / low) > 3.5 ? [1] : [1, 2, 5];
    for (var power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      leads.forEach(function (lead) { values.push(Number(lead + "e" + power)); });
    }
    return {
      tickvals: values, ticktext: values.map(function (value) { return value.toLocaleString("en"); }),
      range: [Math.log10(low) - 0.02, Math.log10(high) + 0.06]
    };
  }

  function mark(result, at) {
    result.shapes = [{
      type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { color: colour("ink"), width: 1.25, dash: "dot" }
    }];
    result.annotations = [{
      x: Math.log10(at), y: 1, yref: "paper", text: "context " + at.toLocaleString("en"), showarrow: false,
      yanchor: "bottom", font: { size: 11, color: colour("ink") }
    }];
  }

  function draw(id) {
    var holder = document.getElementById(id), spec = specifications[id];
    if (!holder || !window.Plotly) { return; }
    var traces = spec.traces.map(spec.kind === "histogram" ? outline : bars(spec));
    window.Plotly.react(holder, traces, layout(spec, holder), { displayModeBar: false });
  }

  function drawAll() {
    Object.keys(specifications).forEach(draw);
  }

  var waiting = 0;
  window.addEventListener("resize", function () {
    if (printing) { return; }
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  dark.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", function () { printing = true; root.classList.add("printing"); drawAll(); });
  window.addEventListener("afterprint", function () { printing = false; root.classList.remove("printing"); drawAll(); });
  drawAll();
})();
