"""Reward functions for stage=ppo, grpo, rloo and rejection, and for stage=compare judge=function. On one line:

python train.py stage=grpo model=hf model.path=HuggingFaceTB/SmolLM2-135M-Instruct lora=default context=512
    reward=function reward.path=examples/rewards.py:valid_json data=prompts data.path=examples/prompts.jsonl
    stage.sampling.max_new_tokens=64

A function is called by argument name, with lists that have an item for each response: `prompts` and `completions` as
messages, `texts` as strings, and every column of the data. It returns a number for each, or None where it does not
apply.
"""

import json
import re


def valid_json(completions, **columns):
    """1 for a JSON object and nothing else, 0.2 if it at least begins like one."""
    scores = []
    for [message] in completions:
        text = message["content"].strip()
        try:
            scores.append(float(isinstance(json.loads(text), dict)))
        except ValueError:
            scores.append(0.2 * text.startswith("{"))
    return scores


def has_fields(texts, fields):
    """The share of the fields in the column `fields` that the answer names in quotes; None for records without them."""
    named = [set(re.findall(r'"(\w+)"', text)) for text in texts]
    return [None if not wanted else len(found & set(wanted)) / len(wanted) for found, wanted in zip(named, fields)]
