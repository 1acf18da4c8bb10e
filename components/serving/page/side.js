// Several models answer one prompt at once.

import { answer, CONTINUES, isBase } from "./answers.js";
import { request } from "./api.js";
import { onModels, reported } from "./connection.js";
import { byButton, byId, element, submitOnEnter } from "./dom.js";
import { areValid, samplesTheModel, withSystem } from "./settings.js";
import { TokenView } from "./tokens.js";

const ALTERNATIVES = 5;
let scorers = []; // names of reward models
let running = null;

/** A model's column: what it is answering, and numbers below that. */
class Column {
  constructor(model) {
    this.model = model;
    this.tokens = new TokenView(`Answer of ${model}, token by token`);
    this.numbers = element("dl", { className: "numbers" });
    const titles = [element("h3", {}, model)];
    if (isBase(model)) titles.push(element("p", { className: "legend" }, CONTINUES));
    this.view = element("article", { className: "answer", "aria-label": model }, ...titles, this.tokens.view, this.numbers);
    this.content = "";
  }

  note(name, value, title = "") {
    const parts = [element("dt", { title }, name), element("dd", {}, value)];
    this.numbers.append(element("div", {}, ...parts));
  }

  fail(message) {
    this.view.append(element("p", { className: "failure", role: "alert" }, message));
  }

  /** Streams the answer, then adds its numbers. Returns whether it was whole; a score can fail after that. */
  async answer(messages, signal) {
    const start = performance.now();
    let whole = false;
    this.view.classList.add("busy");
    try {
      for await (const { choices } of answer(this.model, messages, signal, { top: ALTERNATIVES })) this.take(choices[0]);
      whole = true;
      this.count((performance.now() - start) / 1000);
      await this.score(messages, signal);
    } catch (error) {
      this.fail(error.name === "AbortError" ? "Stopped." : reported(error));
    }
    this.view.classList.remove("busy");
    return whole;
  }

  take(choice) {
    if (!choice) return;
    this.content += choice.delta.content ?? "";
    if (choice.delta.role && choice.delta.content) this.tokens.addText(choice.delta.content);
    for (const entry of choice.logprobs?.content ?? []) this.tokens.add(entry);
    if (choice.finish_reason === "length") this.note("cut", "at its longest length");
  }

  count(seconds) {
    const { tokens, surprise } = this.tokens;
    this.note("tokens", String(tokens));
    this.note("seconds", seconds.toFixed(2));
    if (!tokens) return this.note("answer", "empty: it ended at once");
    const mean = `${(surprise / tokens).toFixed(2)} nats/token`;
    if (samplesTheModel()) this.note("entropy ≈", mean, "Estimated as the mean −log p of the sampled tokens");
    else this.note("mean −log p", mean, "An estimate of the entropy only at temperature 1 and top p 1");
  }

  async score(messages, signal) {
    for (const model of scorers) {
      const scored = [...messages, { role: "assistant", content: this.content }];
      const { data } = await request("v1/score", { model, messages: scored }, signal);
      const name = scorers.length > 1 ? `reward by ${model}` : "reward";
      this.note(name, data[0].score.toFixed(2).replace("-", "−"), `Score by ${model}`);
    }
  }
}

async function submit(event) {
  event.preventDefault();
  if (running) return byButton(event) && running.abort();
  const content = byId("side-text").value.trim();
  const columns = chosen().map((model) => new Column(model));
  if (!columns.length) byId("side-status").textContent = "Choose at least one model.";
  if (!content || !columns.length || !areValid()) return;
  const messages = withSystem([{ role: "user", content }]);
  running = new AbortController();
  byId("side-send").textContent = "Stop";
  byId("side-status").textContent = "Answering …";
  byId("answers").replaceChildren(...columns.map((column) => column.view));
  const { signal } = running;
  const answered = (await Promise.all(columns.map((column) => column.answer(messages, signal)))).filter(Boolean).length;
  running = null;
  byId("side-send").textContent = "Send";
  byId("side-status").textContent = ended(answered, columns.length, signal.aborted);
}

function ended(answered, asked, stopped) {
  if (answered === asked) return "All have answered.";
  return stopped ? "Stopped." : `${answered} of ${asked} have answered.`;
}

const boxes = () => [...byId("side-models").querySelectorAll("input")];
const chosen = () => boxes().filter((box) => box.checked).map((box) => box.value);

/** The base model, the SFT model and the newest of the others, if they are there; else the first three. */
function shownFirst(models) {
  const latest = (holds) => models.findLast((model) => holds(model.stage))?.id;
  const found = [
    latest((stage) => stage === "pretrain"),
    latest((stage) => stage === "sft"),
    latest((stage) => stage !== "pretrain" && stage !== "sft"),
  ].filter((name) => name !== undefined);
  return found.length > 1 ? found : models.slice(0, 3).map((model) => model.id);
}

function fillModels(models) {
  scorers = models.filter((model) => model.kind === "reward model").map((model) => model.id);
  const speaking = models.filter((model) => model.kind === "language model");
  const before = boxes().length ? chosen() : shownFirst(speaking);
  const labels = speaking.map(({ id }) => {
    const box = element("input", { type: "checkbox", value: id, checked: before.includes(id) });
    return element("label", {}, box, id);
  });
  byId("side-models").replaceChildren(...labels);
}

export function start() {
  onModels(fillModels);
  submitOnEnter(byId("side-text"));
  byId("side-form").addEventListener("submit", submit);
  byId("side").addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
}
