/* Draws the figures of a page as SVG, from the JSON in #chart-data. All text is set as text, never as markup. Colours come from
   the style sheet, so that a dark screen and paper need no new drawing. */
(function () {
  "use strict";
  const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;
  const root = document.documentElement;
  const specifications = JSON.parse(document.getElementById("chart-data").textContent);
  const slider = document.querySelector("[data-smoothing]");
  const charts = [];

  const chinese = () => root.dataset.lang === "zh";
  const say = (words) => (words ? (chinese() ? words.zh : words.en) : "");

  function element(name, attributes, parent) {
    const node = document.createElementNS(SVG, name);
    Object.keys(attributes).forEach((key) => node.setAttribute(key, attributes[key]));
    if (parent) { parent.appendChild(node); }
    return node;
  }

  function write(parent, words, attributes) {
    const node = element("text", attributes, parent);
    node.textContent = words;
    return node;
  }

  const { tick, exact, width, linearTicks, logTicks, scale, path, smooth, nearest } = fledgeScale;

  function share() { return slider ? Number(slider.value) / 100 : 0; }

  class Chart {
    constructor(holder, spec) {
      this.holder = holder;
      this.spec = spec;
      this.figure = holder.closest("figure");
      this.hidden = spec.series.map(() => false);
      this.log = Boolean(spec.log);
      this.zoom = null;
      this.cursor = null;
      this.tip = document.createElement("div");
      this.tip.className = "tip";
      this.tip.setAttribute("role", "status");
      this.tip.hidden = true;
      this.listen();
    }

    listen() {
      this.figure.querySelectorAll("[data-series]").forEach((button) => button.addEventListener("click", () => {
        const number = Number(button.dataset.series);
        this.hidden[number] = !this.hidden[number];
        button.setAttribute("aria-pressed", String(!this.hidden[number]));
        this.draw();
      }));
      this.figure.querySelectorAll("[data-log]").forEach((button) => button.addEventListener("click", () => {
        this.log = !this.log;
        button.setAttribute("aria-pressed", String(this.log));
        this.draw();
      }));
    }

    visible() { return this.spec.series.filter((_, number) => !this.hidden[number]); }

    draw() {
      const size = { w: this.holder.clientWidth, h: this.holder.clientHeight };
      this.holder.textContent = "";
      if (size.w < 40 || size.h < 40) { return; }
      this.svg = element("svg", {
        viewBox: "0 0 " + size.w + " " + size.h, width: "100%", height: "100%", role: "img", "aria-label": this.summary()
      }, this.holder);
      this.holder.appendChild(this.tip);
      if (this.spec.kind === "bars") { this.bars(size); } else { this.curves(size); }
    }

    /* What a person hears who cannot see the figure. */
    summary() {
      const told = this.spec.series.map((one) => {
        const ys = one.y || one.values, name = say(one.name);
        return (name ? name + ": " : "") + exact(ys[0]) + " \u2192 " + exact(ys[ys.length - 1]);
      });
      return say(this.spec.title) + (say(this.spec.unit) ? " (" + say(this.spec.unit) + ")" : "") + ". " + told.join("; ");
    }

    xRange() {
      const all = this.spec.series.filter((one) => one.x.length);
      const low = this.spec.x_log ? Math.min(...all.map((one) => one.x[0])) : Math.min(0, ...all.map((one) => one.x[0]));
      const high = Math.max(...all.map((one) => one.x[one.x.length - 1]), this.spec.mark ? this.spec.mark.at : -Infinity);
      return this.zoom || [low, high > low ? high : low + 1];
    }

    yRange(range) {
      let low = Infinity, high = -Infinity;
      this.visible().forEach((one) => one.x.forEach((at, index) => {
        const value = one.y[index];
        if (at < range[0] || at > range[1] || (this.log && value <= 0)) { return; }
        low = Math.min(low, value);
        high = Math.max(high, value);
      }));
      if (low > high) { return this.log ? [0.1, 1] : [0, 1]; }
      if (this.log) { return low === high ? [low / 2, high * 2] : [low / Math.pow(high / low, 0.04), high * Math.pow(high / low, 0.04)]; }
      if (this.spec.from_zero) { low = Math.min(0, low); high = Math.max(0, high); }
      const pad = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
      return [this.spec.from_zero && low === 0 ? 0 : low - pad, high + pad];
    }

    curves(size) {
      const range = this.xRange(), [low, high] = this.yRange(range);
      const bottom = size.h - 34, top = this.spec.mark ? 20 : 8;
      const values = this.log ? logTicks(low, high) : linearTicks(low, high, Math.max(2, Math.round((bottom - top) / 38)));
      const left = Math.ceil(Math.max(22, ...values.map((value) => width(tick(value)))) + 10), right = size.w - 14;
      const x = scale(range[0], range[1], left, right, this.spec.x_log), y = scale(low, high, bottom, top, this.log);
      this.frame = { x, y, left, right, top, bottom };
      values.forEach((value) => {
        element("line", { x1: left, x2: right, y1: y.to(value), y2: y.to(value), class: "grid" }, this.svg);
        write(this.svg, tick(value), { x: left - 7, y: y.to(value) + 4, class: "tick", "text-anchor": "end" });
      });
      this.xAxis(x, range, size);
      const inner = element("svg", { x: left - 5, y: top - 6, width: right - left + 10, height: bottom - top + 12 }, this.svg);
      const plot = element("g", { transform: "translate(" + (5 - left) + "," + (6 - top) + ")" }, inner);
      this.visible().forEach((one) => (this.spec.kind === "steps" ? this.steps(plot, one) : this.line(plot, one)));
      if (this.spec.mark) { this.mark(x); }
      this.overlay = element("g", { class: "cursor" }, this.svg);
      this.follow();
      this.showCursor();
    }

    xAxis(x, range, size) {
      const { left, right, bottom } = this.frame;
      element("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }, this.svg);
      let end = -Infinity;
      const values = this.spec.x_log ? logTicks(range[0], range[1]) : linearTicks(range[0], range[1], Math.max(2, (right - left) / 85));
      const whole = values.filter((value) => Number.isInteger(Number(value.toPrecision(12))));  // no step is a fraction
      (whole.length > 1 ? whole : values).forEach((value) => {
          const half = width(tick(value)) / 2, at = x.to(value);
          element("line", { x1: at, x2: at, y1: bottom, y2: bottom + 4, class: "axis" }, this.svg);
          if (at - half < end + 6) { return; }
          write(this.svg, tick(value), { x: Math.min(at, size.w - half), y: bottom + 16, class: "tick", "text-anchor": "middle" });
          end = at + half;
        });
      write(this.svg, say(this.spec.x_title), { x: (left + right) / 2, y: bottom + 31, class: "tick", "text-anchor": "middle" });
    }

    line(plot, one) {
      const { x, y } = this.frame, smoothed = one.noisy && share() > 0 && one.y.length >= 5;
      element("path", { d: path(one.x, one.y, x, y), class: "line " + one.role + (smoothed ? " faint" : "") }, plot);
      if (smoothed) {
        const [xs, ys] = one.means || [one.x, one.y];
        element("path", { d: path(xs, smooth(ys, share()), x, y), class: "line " + one.role }, plot);
      }
      if (one.markers || one.x.length < 2) {
        one.x.forEach((at, index) => {
          if (this.log && one.y[index] <= 0) { return; }
          element("circle", { cx: x.to(at), cy: y.to(one.y[index]), r: 3, class: "dot " + one.role }, plot);
        });
      }
    }

    steps(plot, one) {
      const { x, y, bottom } = this.frame;
      const corners = one.x.slice(1).map((end, index) => {
        const height = y.to(one.y[index]).toFixed(1);
        return x.to(one.x[index]).toFixed(1) + " " + height + "L" + x.to(end).toFixed(1) + " " + height;
      });
      const outline = x.to(one.x[0]).toFixed(1) + " " + bottom + "L" + corners.join("L") + "L"
        + x.to(one.x[one.x.length - 1]).toFixed(1) + " " + bottom;
      element("path", { d: "M" + outline + "Z", class: "area " + one.role }, plot);
      element("path", { d: "M" + outline, class: "line " + one.role }, plot);
    }

    mark(x) {
      const { top, bottom, left, right } = this.frame, at = x.to(this.spec.mark.at), words = say(this.spec.mark.name);
      element("line", { x1: at, x2: at, y1: top, y2: bottom, class: "mark" }, this.svg);
      const half = width(words) / 2;
      write(this.svg, words, { x: Math.max(left + half, Math.min(at, right - half)), y: top - 6, class: "tick ink", "text-anchor": "middle" });
    }

    bars(size) {
      const labels = this.spec.series[0].labels, shown = this.visible(), stacked = this.spec.stacked;
      const left = Math.min(size.w * 0.45, Math.max(...labels.map(width)) + 12), right = size.w - (stacked ? 14 : 46), bottom = size.h - 26;
      const totals = labels.map((_, row) => shown.reduce((sum, one) => sum + one.values[row], 0));
      const largest = stacked ? Math.max(...totals, 1) : Math.max(...shown.map((one) => Math.max(...one.values)), 0);
      const x = scale(0, largest || 1, left, right, false), band = (bottom - 6) / labels.length;
      linearTicks(0, largest || 1, Math.max(2, (right - left) / 85)).forEach((value) => {
        element("line", { x1: x.to(value), x2: x.to(value), y1: 6, y2: bottom, class: "grid" }, this.svg);
        write(this.svg, tick(value), { x: x.to(value), y: bottom + 16, class: "tick", "text-anchor": "middle" });
      });
      const thick = Math.min(26, band * 0.72), one = stacked ? thick : thick / Math.max(1, shown.length);
      labels.forEach((label, row) => {
        const middle = 6 + band * (row + 0.5);
        let start = 0;
        write(this.svg, this.cut(label, left - 12), { x: left - 8, y: middle + 4, class: "tick ink", "text-anchor": "end" });
        shown.forEach((series, number) => {
          const value = series.values[row], from = x.to(stacked ? start : 0), to = x.to((stacked ? start : 0) + value);
          const top = middle - thick / 2 + (stacked ? 0 : number * one), words = exact(Number(value.toFixed(1)));
          const bar = element("rect", { x: from, y: top, width: Math.max(0, to - from), height: Math.max(1, one - 1), class: "bar-of " + series.role }, this.svg);
          element("title", {}, bar).textContent = label + " \u00b7 " + say(series.name) + ": " + words;
          if (!stacked) { write(this.svg, words, { x: to + 5, y: top + one / 2 + 3.5, class: "tick" }); }
          if (stacked && to - from > width(words) + 8) {
            write(this.svg, words, { x: (from + to) / 2, y: middle + 4, class: "tick on-bar", "text-anchor": "middle" });
          }
          start += value;
        });
      });
      element("line", { x1: left, x2: left, y1: 6, y2: bottom, class: "axis" }, this.svg);
    }

    cut(words, room) {
      let kept = words;
      while (kept.length > 1 && width(kept) > room) { kept = kept.slice(0, -2) + "\u2026"; }
      return kept;
    }

    /* Pointer and keys: a cursor that reads values; a drag zooms into a range of steps, Escape and a double click undo it. */
    follow() {
      this.svg.setAttribute("tabindex", "0");
      const at = (event) => {
        const box = this.svg.getBoundingClientRect();
        return (event.clientX - box.left) / box.width * this.holder.clientWidth;
      };
      let from = null;
      this.svg.addEventListener("pointermove", (event) => {
        this.moveTo(this.frame.x.back(at(event)));
        if (from !== null) { this.select(from, at(event)); }
      });
      this.svg.addEventListener("pointerleave", () => { if (from === null) { this.moveTo(null); } });
      this.svg.addEventListener("pointerdown", (event) => {
        if (event.pointerType === "mouse" && event.button === 0 && this.spec.kind === "lines") {
          from = at(event);
          this.svg.setPointerCapture(event.pointerId);
        }
      });
      this.svg.addEventListener("pointerup", (event) => {
        const start = from, end = at(event);
        from = null;
        if (start !== null && Math.abs(end - start) > 8) { this.zoomTo(start, end); }
        else if (start !== null) { this.select(0, 0); }
      });
      this.svg.addEventListener("dblclick", () => this.zoomOut());
      this.svg.addEventListener("keydown", (event) => this.key(event));
      this.svg.addEventListener("blur", () => this.moveTo(null));
    }

    select(from, to) {
      if (this.band) { this.band.remove(); this.band = null; }
      if (from === to) { return; }
      const { left, right, top, bottom } = this.frame;
      const low = Math.max(left, Math.min(from, to)), high = Math.min(right, Math.max(from, to));
      this.band = element("rect", { x: low, y: top, width: Math.max(0, high - low), height: bottom - top, class: "band" }, this.svg);
    }

    zoomTo(from, to) {
      const { x, left, right } = this.frame;
      const ends = [x.back(Math.max(left, Math.min(from, to))), x.back(Math.min(right, Math.max(from, to)))];
      this.zoom = ends[1] > ends[0] ? ends : null;
      this.cursor = null;
      this.draw();
    }

    zoomOut() {
      this.zoom = null;
      this.draw();
    }

    key(event) {
      const one = this.visible()[0];
      if (!one) { return; }
      const now = this.cursor === null ? -1 : nearest(one.x, this.cursor), last = one.x.length - 1;
      const stride = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1;
      const moves = { ArrowLeft: now < 0 ? last : now - stride, ArrowRight: now + stride, Home: 0, End: last };
      if (event.key === "Escape") {
        if (this.zoom) { this.zoomOut(); this.svg.focus(); } else { this.moveTo(null); }
      } else if (event.key in moves) {
        event.preventDefault();
        this.moveTo(one.x[Math.max(0, Math.min(last, moves[event.key]))]);
      }
    }

    moveTo(value) {
      this.cursor = value;
      this.showCursor();
    }

    showCursor() {
      const { x, y, top, bottom, left, right } = this.frame, shown = this.visible().filter((one) => one.x.length);
      this.overlay.textContent = "";
      this.tip.hidden = this.cursor === null || !shown.length;
      if (this.tip.hidden) { return; }
      const lead = shown.reduce((best, one) => (one.x.length > best.x.length ? one : best), shown[0]);
      const at = this.spec.kind === "steps" ? this.cursor : lead.x[nearest(lead.x, this.cursor)];
      const pixel = Math.max(left, Math.min(right, x.to(at)));
      element("line", { x1: pixel, x2: pixel, y1: top, y2: bottom, class: "hair" }, this.overlay);
      this.tip.textContent = "";
      this.row(say(this.spec.x_title) + " " + exact(this.spec.kind === "steps" ? Math.round(at) : at), "", "");
      shown.forEach((one) => {
        let index = nearest(one.x, at);
        if (this.spec.kind === "steps") {
          while (index > 0 && one.x[index] > at) { index -= 1; }
          this.row(exact(one.y[index]) + " " + say(this.spec.unit), one.role, say(one.name));
          return;
        }
        const steps = one === lead ? "" : one.x[index] === at ? "" : " (" + say(this.spec.x_title) + " " + exact(one.x[index]) + ")";
        if (!this.log || one.y[index] > 0) {
          element("circle", { cx: x.to(one.x[index]), cy: y.to(one.y[index]), r: 3.5, class: "dot " + one.role }, this.overlay);
        }
        this.row(exact(one.y[index]), one.role, say(one.name) + steps);
      });
      this.tip.style.left = (pixel < (left + right) / 2 ? pixel + 12 : pixel - 12 - this.tip.offsetWidth) + "px";
    }

    row(value, role, name) {
      const line = document.createElement("div"), strong = document.createElement("b");
      if (role) {
        const swatch = document.createElement("i");
        swatch.className = "swatch-of " + role;
        line.appendChild(swatch);
      }
      strong.textContent = value;
      line.appendChild(strong);
      line.appendChild(document.createTextNode(name ? " " + name : ""));
      this.tip.appendChild(line);
    }
  }

  function drawAll() { charts.forEach((chart) => chart.draw()); }

  Object.keys(specifications).forEach((id) => {
    const holder = document.getElementById(id);
    if (holder) { charts.push(new Chart(holder, specifications[id])); }
  });

  if (slider) {
    const told = document.querySelector("[data-smoothing-value]");
    const show = () => { told.textContent = slider.value + " %"; };
    slider.addEventListener("input", () => { show(); drawAll(); });
    show();
  }
  let waiting = 0;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 120); });
  document.addEventListener("fledge-language", drawAll);
  drawAll();
})();
