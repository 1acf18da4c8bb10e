// The server's API: requests, streams, and what their failures are called.

/** An error that the server reported, with its HTTP status. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server could not be reached, or ended in the middle of an answer. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

const KEY = "gradus-key"; // forgotten when the tab is closed

export const setKey = (key) => sessionStorage.setItem(KEY, key);

function headers(body) {
  const key = sessionStorage.getItem(KEY);
  return {
    ...(body === undefined ? {} : { "Content-Type": "application/json" }),
    ...(key ? { Authorization: `Bearer ${key}` } : {}),
  };
}

async function send(path, body, signal) {
  const method = body === undefined ? "GET" : "POST";
  let response;
  try {
    response = await fetch(path, { method, headers: headers(body), body: JSON.stringify(body), signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Unreachable();
  }
  if (response.ok) return response;
  const failure = await response.json().catch(() => null);
  throw new ApiError(response.status, failure?.error?.message ?? `The server answered with status ${response.status}.`);
}

/** The JSON at a path; with a body it is posted. */
export async function request(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/** The chunks of a chat completion as they arrive. */
export const chat = (body, signal) => chunks("v1/chat/completions", body, signal);

/** The chunks of a completion as they arrive. */
export const completion = (body, signal) => chunks("v1/completions", body, signal);

async function* chunks(path, body, signal) {
  const response = await send(path, { ...body, stream: true }, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(200, chunk.error.message);
    yield chunk;
  }
  throw new Unreachable(); // a stream that is whole ends with [DONE]
}

/** The data of each server-sent event in a stream of bytes. */
async function* events(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) yield part.replace(/^data: /, "");
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : new Unreachable();
  } finally {
    reader.cancel().catch(() => {});
  }
}
