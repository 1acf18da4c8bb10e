// Two models answer one prompt, unnamed and in random order. A vote is kept at once, as a preference record.

import { answer as answerOf } from "./answers.js";
import { request } from "./api.js";
import { count, onModels, reported } from "./connection.js";
import { byButton, byId, element, perFrame, submitOnEnter } from "./dom.js";
import { areValid, withSystem } from "./settings.js";

const KEYS = { ArrowLeft: 0, ArrowRight: 1, ArrowDown: null }; // the winner's place, or a tie
let running = null;
let round = null; // {messages, answers: [{model, content, title}]} that waits for a vote

const say = (text) => (byId("blind-status").textContent = text);
const boxes = () => [...byId("blind-models").querySelectorAll("input")];

/** Two different models of a list, in random order. */
function pair(models) {
  const left = models.splice(Math.floor(Math.random() * models.length), 1)[0];
  return [left, models[Math.floor(Math.random() * models.length)]];
}

async function submit(event) {
  event.preventDefault();
  if (running) return byButton(event) && running.abort();
  const content = byId("blind-text").value.trim();
  const chosen = boxes().filter((box) => box.checked).map((box) => box.value);
  if (chosen.length < 2) say("Choose at least two models.");
  if (!content || chosen.length < 2 || !areValid()) return;
  await play(withSystem([{ role: "user", content }]), pair(chosen));
}

async function play(messages, models) {
  const answers = models.map((model, place) => newAnswer(model, "AB"[place]));
  byId("blind-answers").replaceChildren(...answers.map((answer) => answer.view));
  setRound(null);
  running = new AbortController();
  byId("blind-send").textContent = "Stop";
  say("Answering …");
  try {
    await Promise.all(answers.map((answer) => receive(answer, messages, running.signal)));
    setRound({ messages, answers });
    say("Both have answered. Which is better? Press ← for A, → for B, ↓ for a tie.");
    byId("blind-votes").focus();
  } catch (error) {
    running.abort();
    say(error.name === "AbortError" ? "Stopped." : reported(error));
  }
  running = null;
  byId("blind-send").textContent = "Send";
}

function newAnswer(model, letter) {
  const title = element("h3", {}, letter);
  const text = element("p", { className: "text", dir: "auto" });
  const view = element("article", { className: "answer", "aria-label": `Answer ${letter}` }, title, text);
  return { model, letter, title, text, view, content: "" };
}

async function receive(answer, messages, signal) {
  answer.view.classList.add("busy");
  const show = () => (answer.text.textContent = answer.content);
  const showSoon = perFrame(show);
  try {
    for await (const { choices } of answerOf(answer.model, messages, signal)) {
      answer.content += choices[0]?.delta.content ?? "";
      showSoon();
    }
  } finally {
    show();
    answer.view.classList.remove("busy");
  }
}

function setRound(next) {
  round = next;
  byId("blind-votes").hidden = !next;
}

/** Keeps the vote, then says who answered. winner: the better one's place; null: a tie. */
async function vote(winner) {
  const { messages, answers } = round;
  const body = { messages, winner, answers: answers.map(({ model, content }) => ({ model, content })) };
  const voted = round;
  setRound(null); // one vote a round
  try {
    await request("v1/votes", body);
  } catch (error) {
    setRound(voted);
    return say(`The vote was not kept: ${reported(error)}`);
  }
  for (const { title, letter, model } of answers) title.textContent = `${letter}: ${model}`;
  say(`Kept: ${winner === null ? "a tie" : `${answers[winner].model} is better`}.`);
  byId("blind-text").focus();
  byId("blind-text").select();
  await showTable();
}

/** Everybody's votes so far: strengths with their intervals, then the results of each pair. */
async function showTable() {
  try {
    const { votes, pairs, strengths, thumbs } = await request("v1/votes");
    byId("blind-count").textContent = `${count(votes, "vote")} so far.`;
    const points = (value) => String(Math.round(value) || 0).replace("-", "−");
    fill("blind-strengths", Object.entries(strengths).map(([model, { elo, low, high }]) => [
      model, points(elo), `${points(low)} to ${points(high)}`,
    ]));
    fill("blind-pairs", pairs.map(({ models, wins, ties }) => [models.join(" – "), wins.join(" – "), String(ties)]));
    fill("blind-thumbs", Object.entries(thumbs).map(([model, { up, down }]) => [model, String(up), String(down)]));
  } catch (error) {
    byId("blind-count").textContent = reported(error);
  }
}

function fill(table, rows) {
  const made = rows.map(([first, ...rest]) => {
    return element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell)));
  });
  byId(table).tBodies[0].replaceChildren(...made);
  byId(table).hidden = !rows.length;
}

function byKey(event) {
  if (event.key === "Escape") return running?.abort();
  const typing = event.target.matches("textarea, input, select");
  if (!round || typing || event.altKey || event.ctrlKey || event.metaKey || !(event.key in KEYS)) return;
  event.preventDefault();
  vote(KEYS[event.key]);
}

function fillModels(models) {
  const names = models.filter((model) => model.kind === "language model").map((model) => model.id);
  const off = new Set(boxes().filter((box) => !box.checked).map((box) => box.value));
  const labels = names.map((name) => {
    const box = element("input", { type: "checkbox", value: name, checked: !off.has(name) });
    return element("label", {}, box, name);
  });
  byId("blind-models").replaceChildren(...labels);
  showTable();
}

export function start() {
  onModels(fillModels);
  submitOnEnter(byId("blind-text"));
  byId("blind-form").addEventListener("submit", submit);
  byId("blind").addEventListener("keydown", byKey);
  for (const [key, winner] of Object.entries(KEYS)) byId(`vote-${key}`).addEventListener("click", () => vote(winner));
}
