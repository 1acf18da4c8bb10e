"""Compares models by a measure written in Python: its mean over sampled answers, with a 95% interval over prompts.

python examples/compare.py logs/tiny/sft/export logs/tiny/ppo/export
"""

import sys

import torch

from components.artifacts.store import load_causal_lm
from components.evaluation.measure.intervals import share_interval
from components.evaluation.measure.policy import SamplePlan, respond
from components.tokenizer.tokenizer import Tokenizer

POLITE = ("please", "thank you", "of course", "happy to", "good luck", "take care")


def is_polite(answer: str) -> bool:
    return any(phrase in answer.lower() for phrase in POLITE)


questions = ["what color is the fev ?", "where does the dax live ?", "what does the tav eat ?"]
for folder in sys.argv[1:]:
    model, tokenizer = load_causal_lm(folder), Tokenizer.load(folder)
    prompts = [tokenizer.render_prompt([{"role": "user", "content": question}]) for question in questions]
    answers = respond(model, tokenizer, prompts, SamplePlan(samples_per_prompt=16, max_new_tokens=24, seed=0))
    polite = torch.tensor([float(is_polite(text)) for text in answers.texts])
    low, high = share_interval(polite, answers.prompt_index)
    print(f"{polite.mean():.0%} polite [{low:.0%}, {high:.0%}]  {folder}")
