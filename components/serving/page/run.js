// How a run was made: lineage, report card and learning curves. All of it is text and numbers, set as such.

import { request } from "./api.js";
import { onModels, reported } from "./connection.js";
import { charts } from "./curves.js";
import { byId, element, table } from "./dom.js";
import { showLineage } from "./lineage.js";

const INDENT = "  "; // a label that starts with it belongs to the row above
const say = (text) => (byId("run-status").textContent = text);
let shown = ""; // the run on the tab

/** Loads the chosen run. */
async function load() {
  const name = byId("run-name").value;
  if (!name) return;
  say("Reading …");
  try {
    const run = await request(`v1/runs/${encodeURIComponent(name)}`);
    if (name !== byId("run-name").value) return; // another one was chosen meanwhile
    shown = name;
    byId("run-notes").replaceChildren(...run.notes.map((note) => element("li", {}, note)));
    fill("run-lineage", run.lineage.length, () => showLineage(run.lineage));
    fill("run-report", run.report, () => byId("run-report").replaceChildren(...report(run.report)));
    fill("run-curves", run.curves.length, () => byId("run-curves").replaceChildren(...charts(run.curves)));
    say("");
  } catch (error) {
    say(reported(error));
  }
}

/** Shows a part with its heading if there is something in it. */
function fill(id, isThere, show) {
  byId(id).hidden = byId(`${id}-title`).hidden = !isThere;
  if (isThere) show();
}

function report({ summary, tables, made }) {
  const lines = summary.map((line) => element("li", {}, line));
  const parts = tables.map(({ title, columns, rows, note }) => {
    const grid = table(title, columns, rows);
    for (const { cells } of grid.tBodies[0].rows) cells[0].classList.toggle("sub", cells[0].textContent.startsWith(INDENT));
    const scroll = element("div", { className: "scroll", role: "region", tabIndex: 0, "aria-label": title }, grid);
    return element("div", {}, scroll, element("p", { className: "legend" }, note));
  });
  return [element("ul", {}, ...lines), ...parts, element("p", { className: "legend" }, made.join(" · "))];
}

async function fillMenu() {
  const menu = byId("run-name");
  try {
    const names = (await request("v1/runs")).data.map((run) => run.id);
    const chosen = names.includes(menu.value) ? menu.value : names[0];
    menu.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    menu.value = chosen ?? "";
    if (!byId("run").hidden) await load();
  } catch (error) {
    say(reported(error));
  }
}

export function start() {
  onModels(fillMenu);
  byId("run-name").addEventListener("change", load);
  byId("run-refresh").addEventListener("click", load);
  byId("run").addEventListener("shown", () => byId("run-name").value !== shown && load());
}
