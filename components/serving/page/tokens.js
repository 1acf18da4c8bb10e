// An answer token by token: shaded by probability, with the alternatives of the token that is pointed at or focused.

import { byId, element } from "./dom.js";

const percent = (p) => (p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(p < 0.1 ? 1 : 0)}%`);
const visible = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "␣");

/** Shows an answer's tokens as they arrive, and adds up their log-probabilities. */
export class TokenView {
  constructor(label) {
    this.view = element("div", { className: "text", dir: "auto", role: "listbox", "aria-label": label });
    this.view.setAttribute("aria-orientation", "horizontal");
    this.tokens = 0;
    this.surprise = 0; // the sum of −log p, in nats
    this.decoder = new TextDecoder();
    this.view.addEventListener("keydown", (event) => step(this.view, event));
  }

  /** One entry of logprobs.content. */
  add(entry) {
    this.tokens += 1;
    this.surprise -= entry.logprob;
    const bytes = Uint8Array.from(entry.bytes ?? []);
    const shown = this.decoder.decode(bytes, { stream: true }) || (entry.bytes ? "" : entry.token);
    const made = element("span", { className: "token", role: "option", tabIndex: this.tokens > 1 ? -1 : 0 }, shown);
    made.style.setProperty("--p", Math.exp(entry.logprob).toFixed(4));
    made.setAttribute("aria-label", spoken(entry));
    for (const event of ["mouseenter", "focus"]) made.addEventListener(event, () => reveal(made, entry));
    for (const event of ["mouseleave", "blur"]) made.addEventListener(event, hide);
    this.view.append(made);
  }

  /** Text that belongs to no token: what the template makes every answer begin with. */
  addText(text) {
    this.view.append(text);
  }
}

function spoken(entry) {
  const others = entry.top_logprobs.filter((other) => other.token !== entry.token);
  const listed = others.map((other) => `${other.token.trim()} ${percent(Math.exp(other.logprob))}`).join(", ");
  return `${entry.token.trim()}, ${percent(Math.exp(entry.logprob))}${listed ? `; instead: ${listed}` : ""}`;
}

/** Arrow keys move the focus from token to token; one of them is in the tab order. */
function step(view, event) {
  if (event.key === "Escape") return hide();
  const tokens = [...view.querySelectorAll(".token")];
  const now = tokens.indexOf(document.activeElement);
  const forward = getComputedStyle(view).direction === "rtl" ? -1 : 1; // where the text goes
  const next = { ArrowRight: now + forward, ArrowLeft: now - forward, Home: 0, End: tokens.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  if (!tokens[next]) return;
  tokens[now].tabIndex = -1;
  tokens[next].tabIndex = 0;
  tokens[next].focus();
}

function reveal(token, entry) {
  const known = entry.top_logprobs.some((other) => other.token === entry.token);
  const rows = known ? entry.top_logprobs : [...entry.top_logprobs, entry];
  const listed = rows.map((row) => {
    const cells = [element("td", {}, visible(row.token)), element("td", {}, percent(Math.exp(row.logprob)))];
    return element("tr", { className: row.token === entry.token ? "chosen" : "" }, ...cells);
  });
  const box = byId("alternatives");
  box.replaceChildren(element("table", {}, element("tbody", {}, ...listed)));
  box.hidden = false;
  place(box, token.getBoundingClientRect());
}

/** Puts the box below a token, or above it where there is no room, inside the window. */
function place(box, token) {
  const below = token.bottom + 6 + box.offsetHeight < window.innerHeight;
  box.style.top = `${below ? token.bottom + 6 : Math.max(4, token.top - 6 - box.offsetHeight)}px`;
  box.style.left = `${Math.max(4, Math.min(token.left, document.documentElement.clientWidth - box.offsetWidth - 4))}px`;
}

function hide() {
  byId("alternatives").hidden = true;
}
