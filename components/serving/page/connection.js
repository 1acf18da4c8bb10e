// Whether the server is there: it is asked until it answers again, and models are loaded each time it does.

import { byId, element } from "./dom.js";
import { ApiError, request, setKey, Unreachable } from "./api.js";

const PATIENCE = [1, 2, 3, 5]; // seconds until the server is asked again; the last one repeats
const GLANCE = 15; // seconds between two looks at a server that answered
const listeners = [];
let attempts = 0;
let timer;

/** Calls back with the models of /v1/models whenever the server has come up. */
export const onModels = (listener) => listeners.push(listener);

/** Reports a failure where it belongs: a dead server or a missing key to everybody. Returns what to tell the user. */
export function reported(error) {
  if (error instanceof Unreachable) lost(error);
  if (error instanceof ApiError && error.status === 401) askForKey(error.message);
  return error.message;
}

/** Connects, and stays connected. */
export async function connect() {
  clearTimeout(timer);
  try {
    const models = (await request("v1/models")).data;
    const away = attempts > 0;
    attempts = 0;
    byId("key-form").hidden = true;
    say(away ? "Connected again." : `Connected. ${count(models.length, "model")}.`, false);
    for (const listener of listeners) listener(models);
    timer = setTimeout(glance, GLANCE * 1000);
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) askForKey(error.message);
    else lost(error);
  }
}

async function glance() {
  try {
    await request("health");
    timer = setTimeout(glance, GLANCE * 1000);
  } catch (error) {
    lost(error);
  }
}

/** Says why there is no connection, and tries again later. */
function lost(error) {
  clearTimeout(timer);
  const seconds = PATIENCE[Math.min(attempts++, PATIENCE.length - 1)];
  say(error instanceof ApiError ? error.message : "The server does not answer. Trying again …", true);
  timer = setTimeout(connect, seconds * 1000);
}

function say(text, bad) {
  const status = byId("connection");
  status.classList.toggle("bad", bad);
  if (status.textContent !== text) status.replaceChildren(element("span", {}, text));
}

function askForKey(message) {
  const form = byId("key-form");
  byId("key-error").textContent = sessionStorage.length ? message : "";
  say("An API key is needed.", true);
  if (form.hidden) {
    form.hidden = false;
    byId("key").focus();
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  connect();
});

/** "1 token", "2 tokens". */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
