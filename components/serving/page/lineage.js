// The lineage of a run as a graph: columns from the data to the last model. Where there is no room, it is a list.

import { byId, drawn, element } from "./dom.js";

const GAP = 28; // pixels in front of a box in which lines bend
let nodes = [];

/** Shows nodes {id, title, kind, facts, parents, model}, each after its parents. */
export function showLineage(given) {
  const titles = new Map(given.map((node) => [node.id, node.title]));
  const places = placed(given);
  nodes = given.map((node) => {
    const facts = node.facts.map((fact) => element("p", {}, fact));
    const from = node.parents.map((id) => titles.get(id)).join(", ");
    const origin = element("p", { className: "from" }, from ? `from ${from}` : "");
    const view = element("li", { className: node.kind }, element("h3", {}, node.title), ...facts, origin);
    view.style.setProperty("--column", places.get(node.id).column + 1);
    view.style.setProperty("--row", places.get(node.id).row);
    return { ...node, view };
  });
  byId("run-nodes").replaceChildren(...nodes.map((node) => node.view));
  draw();
}

/** Column and row of each node. A line runs along its parent's row up to the child's column: no box stands there. */
function placed(given) {
  const columns = new Map();
  for (const { id, kind, parents } of given) {
    if (kind === "artifact") columns.set(id, 1 + Math.max(0, ...parents.map((parent) => columns.get(parent) ?? 0)));
  }
  for (const { id, kind } of given.filter((node) => node.kind !== "artifact")) {
    const children = given.filter((node) => node.parents.includes(id)).map((node) => columns.get(node.id));
    columns.set(id, Math.min(...children) - 1);
  }
  const places = new Map();
  const isTaken = (column, row) => {
    const boxes = [...places.values()].some((place) => place.column === column && place.row === row);
    const lines = given.some((child) => child.parents.some((parent) => {
      const place = places.get(parent);
      return place?.row === row && place.column < column && column < columns.get(child.id);
    }));
    return boxes || lines;
  };
  const isSource = ({ kind }) => Number(kind !== "artifact");
  const order = [...given].sort((one, other) => columns.get(one.id) - columns.get(other.id) || isSource(other) - isSource(one));
  for (const { id, kind } of order) {
    let row = kind === "artifact" ? 2 : 1;
    while (isTaken(columns.get(id), row)) row += 1;
    places.set(id, { column: columns.get(id), row });
  }
  return places;
}

/** Draws the lines between the boxes, where these are now. */
function draw() {
  const lines = byId("run-lines");
  const origin = lines.getBoundingClientRect();
  const boxes = new Map(nodes.map((node) => [node.id, node.view.getBoundingClientRect()]));
  const paths = nodes.flatMap((node) => node.parents.map((parent) => {
    const [from, to] = [boxes.get(parent), boxes.get(node.id)];
    const [x, y] = [from.right - origin.left, from.top + from.height / 2 - origin.top];
    const [endX, endY] = [to.left - origin.left, to.top + to.height / 2 - origin.top];
    const bend = `C${endX - GAP / 2} ${y} ${endX - GAP / 2} ${endY} ${endX - 5} ${endY}`;
    return drawn("path", { d: `M${x} ${y}H${endX - GAP}${bend}m-4 -4l4 4l-4 4` });
  }));
  lines.replaceChildren(...paths);
}

new ResizeObserver(draw).observe(byId("run-nodes"));
