// The chat's menu of techniques: what the API's field `techniques` gets, and how an answer came about.

import { isBase } from "./answers.js";
import { onModels } from "./connection.js";
import { byId, element } from "./dom.js";

const FIXED = {
  "as it is sampled": [],
  "steps first": [{ name: "chain_of_thought" }],
  "the most frequent of 5": [{ name: "self_consistency", samples: 5 }],
  "criticized and revised": [{ name: "reflection" }],
};
let choices = FIXED;

/** What to ask for; nothing if the answer is taken as it is sampled. */
export function chosen() {
  const techniques = choices[byId("chat-technique").value] ?? [];
  return techniques.length ? { techniques } : {};
}

/** A base model's text is only continued. */
function follow() {
  const menu = byId("chat-technique");
  menu.disabled = isBase(byId("chat-model").value);
  if (menu.disabled) menu.value = Object.keys(FIXED)[0];
}

/** The steps to an answer, to be opened. */
export function shown(trace) {
  const steps = trace.map(({ technique, text }) => element("li", { dir: "auto" }, `${technique}: ${text}`));
  return element("details", { className: "trace" }, element("summary", {}, "How it came about"), element("ol", {}, ...steps));
}

/** Every reward model can choose the best of several answers. */
function fill(models) {
  const scorers = models.filter((model) => model.kind === "reward model");
  const best = scorers.map(({ id }) => [`the best of 8 by ${id}`, [{ name: "best_of_n", samples: 8, score: id }]]);
  choices = { ...FIXED, ...Object.fromEntries(best) };
  const menu = byId("chat-technique");
  const before = menu.value;
  menu.replaceChildren(...Object.keys(choices).map((name) => element("option", {}, name)));
  menu.value = before in choices ? before : Object.keys(FIXED)[0];
  follow();
}

export function start() {
  onModels(fill);
  byId("chat-model").addEventListener("change", follow);
}
