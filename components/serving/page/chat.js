// A conversation with one model: streamed, stopped, edited, retried.

import { answer as answerOf, CONTINUES, isBase } from "./answers.js";
import { request } from "./api.js";
import { onModels, reported } from "./connection.js";
import { button, byButton, byId, element, followed, perFrame, speak, submitOnEnter } from "./dom.js";
import { areValid, withSystem } from "./settings.js";
import * as techniques from "./techniques.js";

const turns = []; // {role, content, view}: view is the turn's article
let running = null; // the AbortController of the answer in progress

const say = (text) => (byId("chat-status").textContent = text);

/** A turn at the end of the conversation. */
function addTurn(role, content, name) {
  const text = element("p", { className: "text", dir: "auto" }, content);
  const actions = element("div", { className: "actions" });
  const title = element("h3", {}, name);
  const view = element("article", { className: `turn ${role}`, "aria-label": name }, title, text, actions);
  const turn = { role, content, view, text, actions };
  turns.push(turn);
  followed(() => byId("turns").append(view));
  if (role === "user") actions.append(button("Edit", () => edit(turn)));
  return turn;
}

/** Removes a turn and all after it. */
function cutAt(turn) {
  for (const gone of turns.splice(turns.indexOf(turn))) gone.view.remove();
}

function edit(turn) {
  running?.abort();
  const area = element("textarea", { value: turn.content, rows: 3, dir: "auto", "aria-label": "Edited message" });
  const close = () => {
    form.replaceWith(turn.text);
    turn.actions.hidden = false;
  };
  const form = element("form", {}, area);
  const buttons = [element("button", {}, "Send again"), button("Cancel", close)];
  form.append(element("div", { className: "actions" }, ...buttons));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const content = area.value.trim();
    if (!content || !areValid()) return;
    running?.abort(); // an answer that began after this form was opened
    cutAt(turn);
    ask(content);
  });
  submitOnEnter(area);
  area.addEventListener("keydown", (event) => event.key === "Escape" && close());
  turn.text.replaceWith(form);
  turn.actions.hidden = true;
  area.focus();
}

function ask(content) {
  addTurn("user", content, "You");
  return answer();
}

function retry(turn) {
  if (!areValid()) return;
  running?.abort();
  cutAt(turn);
  answer();
  byId("chat-text").focus();
}

/** The conversation so far, without answers that failed before they began, and their questions. */
function conversation() {
  const heard = turns.filter((turn, place) => !turn.failed && !turns[place + 1]?.failed);
  return heard.map(({ role, content }) => ({ role, content }));
}

/** Streams the next answer into a new turn. */
async function answer() {
  const model = byId("chat-model").value;
  const messages = withSystem(conversation());
  const turn = addTurn("assistant", "", model);
  if (isBase(model)) turn.text.before(element("p", { className: "legend" }, CONTINUES));
  const own = (running = new AbortController());
  setBusy(turn, true);
  say("Answering …");
  let status = "";
  try {
    status = ended(await receive(turn, answerOf(model, messages, own.signal, techniques.chosen())));
  } catch (error) {
    const stopped = error.name === "AbortError";
    turn.failed = !turn.content;
    if (stopped) status = "Stopped.";
    else turn.view.append(element("p", { className: "failure", role: "alert" }, reported(error)));
  }
  if (running === own) {
    running = null;
    say(status);
  }
  setBusy(turn, false);
  if (!turns.includes(turn)) return; // it was cut meanwhile
  speak(turn.content); // once and whole: piece by piece, it could not be followed
  turn.actions.append(button("Retry", () => retry(turn)));
  if (turn.content) addThumbs(turn, { messages, answer: { model, content: turn.content } });
}

/** Two buttons that keep whether an answer is good; the first one pressed counts. */
function addThumbs(turn, vote) {
  const thumb = (label, shown, good) => button(shown, (pressed) => keep(pressed, good), { "aria-label": label });
  const thumbs = [thumb("Good answer", "Good", true), thumb("Bad answer", "Bad", false)];
  async function keep(pressed, label) {
    for (const one of thumbs) one.disabled = true;
    try {
      await request("v1/votes", { ...vote, label });
      pressed.setAttribute("aria-pressed", "true");
      say("The vote is kept.");
    } catch (error) {
      for (const one of thumbs) one.disabled = false;
      say(`The vote was not kept: ${reported(error)}`);
    }
  }
  turn.actions.append(...thumbs);
}

async function receive(turn, chunks) {
  let finish = null;
  const show = () => followed(() => (turn.text.textContent = turn.content));
  const showSoon = perFrame(show);
  try {
    for await (const { choices } of chunks) {
      if (!choices.length) continue;
      turn.content += choices[0].delta.content ?? "";
      if (choices[0].delta.trace?.length) turn.text.after(techniques.shown(choices[0].delta.trace));
      finish = choices[0].finish_reason ?? finish;
      showSoon();
    }
  } finally {
    show(); // frames are not drawn in a tab in the background
  }
  return finish;
}

const ended = (finish) => (finish === "length" ? "The answer was cut: it reached its longest length." : "Answered.");

function setBusy(turn, busy) {
  turn.view.classList.toggle("busy", busy);
  turn.view.setAttribute("aria-busy", busy);
  byId("chat-send").textContent = running ? "Stop" : "Send";
}

function submit(event) {
  event.preventDefault();
  if (running) return byButton(event) && running.abort();
  const area = byId("chat-text");
  const content = area.value.trim();
  if (!content || !byId("chat-model").value || !areValid()) return;
  area.value = "";
  ask(content);
}

/** The menu of language models; the newest one is chosen at first. */
function fillMenu(models) {
  const menu = byId("chat-model");
  const names = models.filter((model) => model.kind === "language model").map((model) => model.id);
  const chosen = names.includes(menu.value) ? menu.value : names.at(-1);
  menu.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  menu.value = chosen ?? "";
}

export function start() {
  onModels(fillMenu);
  techniques.start();
  submitOnEnter(byId("chat-text"));
  byId("chat-form").addEventListener("submit", submit);
  byId("chat").addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  byId("chat-new").addEventListener("click", () => {
    running?.abort();
    if (turns.length) cutAt(turns[0]);
    say("");
    byId("chat-text").focus();
  });
}
