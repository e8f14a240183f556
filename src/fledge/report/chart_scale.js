/* Numbers as text, ticks, scales, paths and smoothing of the figures. */
const fledgeScale = (function () {
  "use strict";
  const SHORT = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
  const minus = (digits) => digits.replace(/-/g, "\u2212");

  /* A number of an axis: all digits up to ten thousand, then a letter; an exponent below a thousandth. */
  function tick(value) {
    const size = Math.abs(value);
    if (size === 0) { return "0"; }
    if (size < 9.9e-4) { return minus(Number(value.toPrecision(3)).toExponential()).replace("+", ""); }
    const scale = size < 1e4 ? null : SHORT.find((one) => size >= one[0]);
    return minus(scale ? Number((value / scale[0]).toPrecision(4)) + scale[1] : String(Number(value.toPrecision(6))));
  }

  /* A number to read: four significant figures, whole numbers with all digits. */
  function exact(value) {
    if (Number.isInteger(value)) { return minus(value.toLocaleString("en")); }
    const size = Math.abs(value);
    if (size < 1e-3) { return minus(value.toExponential(3)).replace("+", ""); }
    return minus(size >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4))));
  }

  const width = (words) => Array.from(words).reduce((sum, one) => sum + (one.codePointAt(0) > 0x2e7f ? 11.5 : 6.4), 0);

  function linearTicks(low, high, count) {
    const rough = (high - low) / Math.max(1, count), power = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = power * [1, 2, 2.5, 5, 10].find((lead) => lead * power >= rough * 0.999);
    const values = [];
    for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number += 1) { values.push(number * step); }
    return values;
  }

  /* 1, 2 and 5 of every decade, fewer where there are many decades. */
  function logTicks(low, high) {
    const decades = Math.log10(high / low), values = [];
    const leads = decades > 4 ? [1] : decades > 2 ? [1, 3] : [1, 2, 5];
    const every = Math.max(1, Math.ceil(decades / 8));
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      leads.forEach((lead) => {
        const value = Number(lead + "e" + power);
        if (value >= low * 0.999 && value <= high * 1.001 && power % every === 0) { values.push(value); }
      });
    }
    return values.length > 1 ? values : linearTicks(low, high, 4);
  }

  function scale(low, high, from, to, log) {
    const at = log ? Math.log : (value) => value, a = at(low), b = at(high);
    return {
      low, high, log,
      to: (value) => from + (to - from) * (at(value) - a) / (b - a || 1),
      back: (pixel) => { const value = a + (pixel - from) / (to - from) * (b - a); return log ? Math.exp(value) : value; }
    };
  }

  /* The smallest and the largest value of each pixel column, so that no spike is lost. */
  function path(xs, ys, x, y) {
    const parts = [];
    let column = null, first, low, high, last;
    const flush = () => {
      if (column === null) { return; }
      const kept = [first, low, high, last].filter((one, index, all) => all.indexOf(one) === index).sort((a, b) => a - b);
      kept.forEach((index) => parts.push(x.to(xs[index]).toFixed(1) + " " + y.to(ys[index]).toFixed(1)));
    };
    for (let index = 0; index < xs.length; index += 1) {
      if (y.log && ys[index] <= 0) { continue; }
      const pixel = Math.round(x.to(xs[index]));
      if (pixel !== column) { flush(); column = pixel; first = low = high = index; }
      last = index;
      if (ys[index] < ys[low]) { low = index; }
      if (ys[index] > ys[high]) { high = index; }
    }
    flush();
    return parts.length ? "M" + parts.join("L") : "";
  }

  /* The centred moving average over a share of the points: it does not lag behind a falling loss. */
  function smooth(ys, share) {
    const half = Math.round(ys.length * share / 2), sums = [0];
    ys.forEach((value) => sums.push(sums[sums.length - 1] + value));
    return ys.map((_, index) => {
      const from = Math.max(0, index - half), after = Math.min(ys.length, index + half + 1);
      return (sums[after] - sums[from]) / (after - from);
    });
  }

  function nearest(xs, value) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < value) { low = middle; } else { high = middle; }
    }
    return Math.abs(xs[low] - value) <= Math.abs(xs[high] - value) ? low : high;
  }

  return { tick, exact, width, linearTicks, logTicks, scale, path, smooth, nearest };
})();
