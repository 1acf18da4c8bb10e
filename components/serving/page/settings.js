// Settings that all views share. They are kept in the browser.

import { byId } from "./dom.js";

const KEPT = "gradus-settings";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const field = (name) => byId("settings").querySelector(`[name=${name}]`);

/** The sampling fields of a request. A field that is empty is left out: the server's default holds. */
export function sampling() {
  const filled = NUMBERS.filter((name) => field(name).value !== "");
  return Object.fromEntries(filled.map((name) => [name, Number(field(name).value)]));
}

/** Whether the model's own distribution is sampled from, so that −log p of samples estimates its entropy. */
export function samplesTheModel() {
  const { temperature = 1, top_p = 1 } = sampling();
  return temperature === 1 && top_p === 1;
}

/** The conversation after the system prompt, if there is one. */
export function withSystem(messages) {
  const system = field("system").value;
  return system.trim() ? [{ role: "system", content: system }, ...messages] : messages;
}

/** Shows the first setting that is out of its range. Returns whether there is none. */
export function areValid() {
  const wrong = NUMBERS.map(field).find((input) => !input.validity.valid);
  if (wrong) {
    byId("settings").open = true;
    wrong.reportValidity();
  }
  return !wrong;
}

function keep() {
  const values = [...NUMBERS, "system"].map((name) => [name, field(name).value]);
  localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(values)));
}

/** Fills in what was kept. */
export function restore() {
  const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
  for (const [name, value] of Object.entries(kept)) field(name).value = value;
  byId("settings").addEventListener("input", keep);
}
