// Elements. Text is always set as text: nothing here, or anywhere on the page, parses HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties, and children that are elements or texts. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** An element of a picture, with attributes. */
export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A table of texts; the first cell of a row is its heading. */
export function table(caption, columns, rows) {
  const heads = columns.map((column) => element(column ? "th" : "td", column ? { scope: "col" } : {}, column));
  const body = rows.map(([first, ...rest]) => {
    return element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell)));
  });
  const head = element("thead", {}, element("tr", {}, ...heads));
  return element("table", {}, element("caption", {}, caption), head, element("tbody", {}, ...body));
}

/** A button that does something when pressed. */
export function button(label, action, properties = {}) {
  const made = element("button", { type: "button", ...properties }, label);
  made.addEventListener("click", () => action(made));
  return made;
}

/** Has a screen reader read a text out. */
export const speak = (text) => (byId("spoken").textContent = text);

/** Makes Enter in a text area submit its form; Shift+Enter starts a line, and so does Enter within a word being composed. */
export function submitOnEnter(area) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    area.form.requestSubmit();
  });
}

/** Whether a form was submitted by its button, not by Enter in a text: only that stops an answer in progress. */
export const byButton = (event) => event.submitter !== null;

/** A function that calls `show` once before the next frame is drawn, however often it is called until then. */
export function perFrame(show) {
  let waits = false;
  return () => {
    if (!waits) requestAnimationFrame(() => ((waits = false), show()));
    waits = true;
  };
}

/** Keeps the end of the document in view while `change` makes it longer, if it is in view now. */
export function followed(change) {
  const page = document.documentElement;
  const atEnd = page.scrollHeight - window.scrollY - window.innerHeight < 80;
  change();
  if (atEnd) window.scrollTo(0, page.scrollHeight);
}
