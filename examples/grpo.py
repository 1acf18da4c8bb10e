"""GRPO with a reward in Python:  python examples/grpo.py HuggingFaceTB/SmolLM2-135M-Instruct my_model"""

import sys
from functools import partial

import lightning

from components.artifacts.store import load_causal_lm, write_artifact
from components.data.prompts import PromptsData
from components.generation.generate import Sampling
from components.models.lora import LoRA
from components.rewards.functions import FunctionReward
from components.stages.grpo import GRPO
from components.tokenizer.tokenizer import Tokenizer
from components.training.contract import RunContext
from components.training.optimizers import adamw


def brief(texts, finished):
    """1 for an answer of at most three words that ends by itself."""
    return [float(done and len(text.split()) <= 3) for text, done in zip(texts, finished)]


folder, target = sys.argv[1:]
questions = [{"prompt": f"What is {a} plus {b}?"} for a in range(1, 10) for b in range(1, 10)]
tokenizer = Tokenizer.load(folder)
data = PromptsData(records=questions, tokenizer=tokenizer, context=256, prompts_per_rollout=4, val_fraction=0)
stage = GRPO(
    policy=partial(load_causal_lm, folder),
    reward=lambda: FunctionReward.of_functions(brief),
    sampling=Sampling(max_new_tokens=16),
    samples_per_prompt=8,
    optimizer=partial(adamw, lr=3e-4),
    stop_ids=tokenizer.stop_ids,
    pad_id=tokenizer.pad_id,
    run=RunContext(lora=LoRA()),
)
lightning.Trainer(max_steps=80, logger=False, enable_checkpointing=False).fit(stage, data)
write_artifact(target, model=stage.exportable(), tokenizer=tokenizer)
