"""Samples four answers of a model to a question.

python examples/sample.py logs/tiny/ppo/export "what color is the fev ?"
"""

import sys

import torch

from components.artifacts.store import load_causal_lm
from components.generation.generate import Sampling, generate
from components.tokenizer.tokenizer import Tokenizer

folder, question = sys.argv[1:]
model, tokenizer = load_causal_lm(folder), Tokenizer.load(folder)
samples = generate(
    model,
    [tokenizer.render_prompt([{"role": "user", "content": question}])],
    Sampling(max_new_tokens=32, temperature=0.7),
    stop_ids=tokenizer.stop_ids,
    pad_id=tokenizer.pad_id,
    generator=torch.Generator().manual_seed(0),
    samples_per_prompt=4,
)
for ids in samples.responses():
    print(tokenizer.decode(ids))
