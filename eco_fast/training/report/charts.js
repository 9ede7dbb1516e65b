"use strict";
// The curves: all charts show the same steps; a range is chosen by dragging, by the buttons or by keys.
(() => {
  const SPACE = {left: 52, right: 8, top: 8, bottom: 22};
  const charts = JSON.parse(document.getElementById("data").textContent).charts;
  const figures = [...document.querySelectorAll(".chart")];
  const steps = charts.flatMap((chart) => chart.series.flatMap((series) => series.points.map((point) => point[0])));
  if (!steps.length) return;
  const whole = [steps.reduce((a, b) => Math.min(a, b)), steps.reduce((a, b) => Math.max(a, b))];
  let range = null; // null: as far as the curves that are shown reach

  const make = (name, attributes, parent, text) => {
    const svg = ["svg", "g", "path", "line", "rect", "text"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const colour = (place) => `var(--c${place % 8})`;
  const words = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
    return String(Number(value.toPrecision(6)));
  };
  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const distance = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const found = [];
    for (let at = Math.ceil(low / distance - 1e-9); at * distance <= high + distance * 1e-9; at++) found.push(at * distance);
    return found;
  };
  const shown = (chart) => chart.series.filter((series) => series.shown);
  const reach = () => {
    const ends = charts.flatMap((chart) => shown(chart).flatMap((one) => [one.points[0][0], one.points.at(-1)[0]]));
    return ends.length ? [Math.min(...ends), Math.max(...ends)] : whole;
  };
  const visible = () => {
    const [low, high] = range ?? reach();
    return low < high ? [low, high] : [low - 1, high + 1];
  };
  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle; else high = middle;
    }
    return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? points[low] : points[high];
  };

  const views = charts.map((chart, place) => {
    const figure = figures[place];
    const svg = make("svg", {tabindex: 0, role: "img", "aria-label": `${chart.label} over the steps; + and - zoom, arrows move, 0 shows all`}, figure);
    const legend = make("div", {class: "legend"}, figure);
    const labels = chart.series.map((series) => {
      const button = make("button", {type: "button", style: `--own: ${colour(series.colour)}`}, legend, series.name);
      button.addEventListener("click", () => { series.shown = !series.shown; drawAll(); });
      return button;
    });
    return {chart, svg, labels, dragged: null};
  });

  const draw = (view) => {
    const {chart, svg, labels} = view;
    const {width, height} = svg.getBoundingClientRect();
    const [first, last] = visible();
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const inside = {width: Math.max(width - SPACE.left - SPACE.right, 1), height: height - SPACE.top - SPACE.bottom};
    // Of each curve what is in sight, and one point on either side, so that its line leaves the chart.
    const pieces = chart.series.map((series) => {
      if (!series.shown) return [];
      const from = series.points.findIndex((point) => point[0] >= first);
      const to = series.points.findLastIndex((point) => point[0] <= last);
      return from < 0 || to < 0 ? [] : series.points.slice(Math.max(from - 1, 0), to + 2);
    });
    const values = pieces.flatMap((piece) => piece.filter((point) => point[0] >= first && point[0] <= last).flatMap((point) => point.slice(1)));
    let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    if (low > high) [low, high] = [0, 1];
    const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    [low, high] = [low - margin, high + margin];
    const x = (step) => SPACE.left + (step - first) / (last - first) * inside.width;
    const y = (value) => SPACE.top + (high - value) / (high - low) * inside.height;
    view.step = (position) => Math.min(Math.max(first + (position - SPACE.left) / inside.width * (last - first), first), last);
    view.x = x;
    for (const value of ticks(low, high, 6)) {
      make("line", {class: "grid", x1: SPACE.left, x2: width - SPACE.right, y1: y(value), y2: y(value)}, svg);
      make("text", {x: SPACE.left - 6, y: y(value) + 4, "text-anchor": "end"}, svg, words(value));
    }
    for (const step of ticks(first, last, Math.max(Math.floor(width / 90), 2))) {
      make("text", {x: x(step), y: height - 6, "text-anchor": "middle"}, svg, words(step));
    }
    const clip = make("svg", {x: SPACE.left, y: SPACE.top, width: inside.width, height: inside.height}, svg);
    const group = make("g", {transform: `translate(${-SPACE.left} ${-SPACE.top})`}, clip);
    pieces.forEach((piece, number) => {
      if (!piece.length) return;
      const place = chart.series[number].colour;
      const line = (points) => points.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
      if (piece[0].length === 4) {
        const back = piece.map((point) => [point[0], point[3]]).reverse();
        make("path", {class: "band", fill: colour(place), d: `M${line(piece.map((point) => [point[0], point[2]]))}L${line(back)}Z`}, group);
      }
      const dashes = place < 8 ? "none" : `${2 + Math.floor(place / 8) * 2} 3`;
      make("path", {class: "line", stroke: colour(place), "stroke-dasharray": dashes, d: `M${line(piece)}${piece.length === 1 ? "h4" : ""}`}, group);
    });
    view.over = make("g", {}, svg);
    labels.forEach((label, number) => {
      label.textContent = chart.series[number].name;
      label.setAttribute("aria-pressed", chart.series[number].shown);
    });
  };

  const point = (view, position) => {
    view.over.replaceChildren();
    const bottom = view.svg.getBoundingClientRect().height - SPACE.bottom;
    const at = view.step(position);
    if (view.dragged !== null) {
      const [from, to] = [view.x(view.dragged), view.x(at)].sort((a, b) => a - b);
      make("rect", {class: "chosen", x: from, width: to - from, y: SPACE.top, height: bottom - SPACE.top}, view.over);
    }
    make("line", {class: "cross", x1: view.x(at), x2: view.x(at), y1: SPACE.top, y2: bottom}, view.over);
    view.chart.series.forEach((series, number) => {
      if (!series.shown) return;
      const [step, value] = nearest(series.points, at);
      view.labels[number].textContent = `${series.name} ${words(value)} at ${words(step)}`;
    });
  };

  const bar = document.createElement("div");
  bar.className = "zoom";
  document.querySelector(".charts").prepend(bar);
  const zoomed = make("span", {role: "status"}, bar);
  const drawAll = () => {
    views.forEach(draw);
    const [first, last] = visible();
    zoomed.textContent = range ? `steps ${words(Math.round(first))} to ${words(Math.round(last))}` : "Drag over a chart to see those steps alone.";
  };
  const show = (first, last) => {
    const [low, high] = reach();
    const size = Math.min(Math.max(last - first, 2), high - low);
    const from = Math.min(Math.max(first, low), high - size);
    range = size >= high - low ? null : [from, from + size];
    drawAll();
  };
  const zoom = (factor) => {
    const [first, last] = visible(), middle = (first + last) / 2, half = (last - first) / 2 * factor;
    show(middle - half, middle + half);
  };
  const move = (share) => {
    const [first, last] = visible(), far = (last - first) * share;
    show(first + far, last + far);
  };
  const all = () => { range = null; drawAll(); };
  for (const [label, act] of [["Zoom in", () => zoom(0.5)], ["Zoom out", () => zoom(2)], ["All steps", all]]) {
    make("button", {type: "button"}, bar, label).addEventListener("click", act);
  }
  const keys = {"+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "0": all, Escape: all, ArrowLeft: () => move(-0.25), ArrowRight: () => move(0.25)};
  for (const view of views) {
    const {svg} = view;
    const position = (event) => event.clientX - svg.getBoundingClientRect().left;
    svg.addEventListener("pointerdown", (event) => {
      svg.setPointerCapture(event.pointerId);
      view.dragged = view.step(position(event));
    });
    svg.addEventListener("pointermove", (event) => point(view, position(event)));
    svg.addEventListener("pointerup", (event) => {
      const ends = [view.dragged, view.step(position(event))].sort((a, b) => a - b);
      const far = Math.abs(view.x(ends[1]) - view.x(ends[0])) > 5;
      view.dragged = null;
      if (far) show(...ends); else point(view, position(event));
    });
    svg.addEventListener("pointercancel", () => { view.dragged = null; draw(view); });
    svg.addEventListener("pointerleave", () => { if (view.dragged === null) draw(view); });
    svg.addEventListener("dblclick", all);
    svg.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
  }
  drawAll();
  new ResizeObserver(drawAll).observe(document.querySelector(".charts"));
})();
