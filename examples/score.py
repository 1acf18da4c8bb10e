"""Scores answers to a question with a reward model, the best first.

python examples/score.py logs/tiny/rm/export "what color is the fev ?" "the fev is red ." "ugh . the fev is red ."
"""

import sys

import torch

from components.artifacts.store import load_scalar
from components.tokenizer.tokenizer import Tokenizer

folder, question, *answers = sys.argv[1:]
model, tokenizer = load_scalar(folder), Tokenizer.load(folder)
scores = {}
for answer in answers:
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids, mask = tokenizer.render(chat)
    with torch.no_grad():
        values = model(torch.tensor([ids]))[0]  # one for each token
    scores[answer] = values[torch.tensor(mask)][-1].item()  # that of the answer's last token judges all of it
for answer, score in sorted(scores.items(), key=lambda item: -item[1]):
    print(f"{score:6.2f}  {answer}")
