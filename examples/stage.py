"""A stage of your own:  python examples/stage.py HuggingFaceTB/SmolLM2-135M-Instruct dialogues.jsonl my_model"""

import sys
from functools import partial
from typing import Any

import lightning

from components.artifacts.store import load_causal_lm, write_artifact
from components.data.batches import LMBatch
from components.data.chat import ChatData
from components.stages.sft import SFT
from components.tokenizer.tokenizer import Tokenizer
from components.training.contract import LossOutput, Term
from components.training.optimizers import adamw


class Smoothed(SFT):
    """SFT with `smoothing` times the cross-entropy to the uniform distribution (label smoothing)."""

    def __init__(self, smoothing: float = 0.1, **shared: Any) -> None:
        super().__init__(**shared)
        self.smoothing = smoothing

    def compute_loss(self, batch: LMBatch) -> LossOutput:
        imitation = super().compute_loss(batch)
        logits = self.model(batch.input_ids, batch.layout)[batch.mask]
        others = -self.smoothing * logits.log_softmax(-1).mean()
        metrics = {**imitation.metrics, "others": others.detach()}
        return LossOutput((*imitation.terms, Term(others, len(logits))), metrics)


folder, path, target = sys.argv[1:]
tokenizer = Tokenizer.load(folder)
data = ChatData(path=path, tokenizer=tokenizer, context=256, batch_size=8)
stage = Smoothed(model=partial(load_causal_lm, folder), optimizer=partial(adamw, lr=1e-4))
lightning.Trainer(max_steps=50, logger=False, enable_checkpointing=False).fit(stage, data)
write_artifact(target, model=stage.exportable(), tokenizer=tokenizer)
