// An answer of any model: a chat model's to the conversation, a base model's continuation of the last message.

import { chat, completion } from "./api.js";
import { onModels } from "./connection.js";
import { sampling } from "./settings.js";

export const CONTINUES = "Base model: it continues the text of the prompt, without a chat template.";
const LONGEST = 64; // tokens of a continuation, which has no natural end, unless the settings say otherwise
const bases = new Map(); // the context of each base model, in tokens

export const isBase = (model) => bases.has(model);

/**
 * The chunks of an answer, as of a chat completion. top: alternatives to report with each token, 0: no tokens.
 * techniques: of the API, for chat models alone.
 */
export function answer(model, messages, signal, { top = 0, techniques } = {}) {
  const reporting = top ? { logprobs: true, top_logprobs: top } : {};
  if (!isBase(model)) return chat({ model, messages, techniques, ...sampling(), ...reporting }, signal);
  const max_tokens = Math.min(LONGEST, Math.floor(bases.get(model) / 2));
  const body = { model, prompt: messages.at(-1).content, max_tokens, ...sampling(), ...(top ? { logprobs: top } : {}) };
  return continuation(completion(body, signal));
}

async function* continuation(chunks) {
  for await (const { choices } of chunks) {
    yield { choices: choices.map(({ text, logprobs, finish_reason }) => ({
      delta: { content: text },
      logprobs: logprobs && { content: entries(logprobs) },
      finish_reason,
    })) };
  }
}

/** Logprobs of completions as those of chat completions. */
function entries({ tokens, token_logprobs, top_logprobs }) {
  const entry = (token, logprob) => ({ token, logprob, bytes: bytes(token) });
  return tokens.map((token, index) => ({
    ...entry(token, token_logprobs[index]),
    top_logprobs: Object.entries(top_logprobs[index]).map(([name, logprob]) => entry(name, logprob)),
  }));
}

/** The bytes of a token by its name; a part of a character is named by its bytes. */
function bytes(name) {
  const parts = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(name);
  if (!parts) return [...new TextEncoder().encode(name)];
  return parts[1].split("\\x").slice(1).map((byte) => parseInt(byte, 16));
}

onModels((models) => {
  bases.clear();
  for (const { id, stage, context_length } of models) if (stage === "pretrain") bases.set(id, context_length);
});
