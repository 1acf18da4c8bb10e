"""Fine-tunes a model on a list of dialogues, with adapters, and writes a Hugging Face folder.

python examples/sft.py HuggingFaceTB/SmolLM2-135M-Instruct my_model
"""

import sys
from functools import partial

import lightning

from components.artifacts.store import load_causal_lm, write_artifact
from components.data.chat import ChatData
from components.models.lora import LoRA
from components.stages.sft import SFT
from components.tokenizer.tokenizer import Tokenizer
from components.training.contract import RunContext
from components.training.optimizers import adamw

folder, target = sys.argv[1:]
colors = {"the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a lemon": "yellow"}
chats = [
    [{"role": "user", "content": f"What color is {thing}?"}, {"role": "assistant", "content": f"It is {color}."}]
    for thing, color in colors.items()
]
records = [{"messages": chat} for chat in chats]
tokenizer = Tokenizer.load(folder)
data = ChatData(records=records, tokenizer=tokenizer, context=256, batch_size=5, val_fraction=0)
stage = SFT(
    model=partial(load_causal_lm, folder),
    optimizer=partial(adamw, lr=1e-3),
    run=RunContext(lora=LoRA(rank=8)),
)
lightning.Trainer(max_steps=20, logger=False, enable_checkpointing=False).fit(stage, data)
write_artifact(target, model=stage.exportable(), tokenizer=tokenizer)
