// Starts the page: its tabs, its views, and the connection.

import * as blind from "./blind.js";
import * as chat from "./chat.js";
import { connect } from "./connection.js";
import { byId } from "./dom.js";
import * as run from "./run.js";
import * as settings from "./settings.js";
import * as side from "./side.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab, focus = true) {
  for (const one of tabs) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    byId(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  const name = tab.getAttribute("aria-controls");
  history.replaceState(null, "", `#${name}`);
  byId(name).dispatchEvent(new Event("shown"));
  if (focus) tab.focus();
}

/** Arrow keys move between tabs, as the pattern for tabs asks. */
function move(event) {
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -tabs.indexOf(event.target), End: -tabs.indexOf(event.target) - 1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  show(tabs.at((tabs.indexOf(event.target) + steps[event.key]) % tabs.length));
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", move);
}
show(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0], false);
settings.restore();
for (const view of [chat, side, blind, run]) view.start();
connect();
