// Learning curves: a chart for the losses of a stage, and one for each other metric.

import { drawn, element } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 150;
const shownNumber = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 }).replace("-", "−");

/** Charts of curves {stage, metric, steps, values}; a value that was not finite is null. */
export function charts(curves) {
  const groups = new Map();
  for (const curve of curves) {
    const name = `${curve.stage}: ${curve.metric.endsWith("/loss") ? "loss" : curve.metric}`;
    groups.set(name, [...(groups.get(name) ?? []), curve]);
  }
  return [...groups].map(([name, series]) => chart(name, series));
}

function chart(name, series) {
  const steps = [...new Set(series.flatMap((curve) => curve.steps))].sort((one, other) => one - other);
  const values = series.flatMap((curve) => curve.values).filter((value) => value !== null);
  const [left, right] = [steps[0], steps.at(-1)];
  const [low, high] = values.length ? values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]) : [0, 0];
  const x = (step) => (right > left ? ((step - left) / (right - left)) * WIDTH : WIDTH / 2);
  const y = (value) => (high > low ? HEIGHT - ((value - low) / (high - low)) * HEIGHT : HEIGHT / 2);
  const lines = series.map((curve, number) => {
    const kind = curve.steps.length > 1 ? "line" : "line dot";
    return drawn("path", { class: `${kind} line-${number}`, d: path(curve, x, y) });
  });
  const cursor = drawn("path", { class: "cursor" });
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" }, ...lines, cursor);
  const readings = element("p", { className: "readings" });
  const range = { role: "slider", tabIndex: 0, "aria-label": name, "aria-valuemin": left, "aria-valuemax": right };
  const plot = element("div", { className: "plot", ...range }, picture);

  function read(step) {
    cursor.setAttribute("d", `M${x(step)} 0V${HEIGHT}`);
    const texts = series.map((curve) => {
      const value = curve.values[curve.steps.findLastIndex((logged) => logged <= step)] ?? null;
      return `${curve.metric} ${value === null ? "–" : shownNumber(value)}`;
    });
    const title = `step ${step.toLocaleString("en")}`;
    const keys = texts.map((text, number) => element("span", { className: `key key-${number}` }, text));
    readings.replaceChildren(`${title} `, ...keys);
    plot.setAttribute("aria-valuenow", step);
    plot.setAttribute("aria-valuetext", [title, ...texts].join(", "));
  }

  let place = steps.length - 1;
  const moveTo = (next) => read(steps[(place = Math.max(0, Math.min(next, steps.length - 1)))]);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const step = left + ((event.clientX - box.left) / box.width) * (right - left);
    const distances = steps.map((other) => Math.abs(other - step));
    moveTo(distances.indexOf(Math.min(...distances)));
  });
  plot.addEventListener("keydown", (event) => {
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: steps.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    moveTo(next);
  });
  moveTo(place);
  const ends = (one, other) => [element("span", {}, one), element("span", {}, other)];
  const vertical = element("div", { className: "ends vertical" }, ...ends(shownNumber(high), shownNumber(low)));
  const horizontal = element("div", { className: "ends" }, ...ends(left.toLocaleString("en"), right.toLocaleString("en")));
  return element("figure", { className: "chart" }, element("figcaption", {}, name), vertical, plot, horizontal, readings);
}

/** The line through a curve's points, interrupted where a value is missing; a point alone is a dot. */
function path({ steps, values }, x, y) {
  let pen = "M";
  let drawnPath = "";
  values.forEach((value, index) => {
    if (value !== null) drawnPath += `${pen}${x(steps[index]).toFixed(1)} ${y(value).toFixed(1)}${pen === "M" ? "h.01" : ""}`;
    pen = value === null ? "M" : "L";
  });
  return drawnPath;
}
