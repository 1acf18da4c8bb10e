"""Reward models: comparisons per second, the same comparisons, batch and cut.

python benchmarks/reward.py --text corpus.txt --chat dialogues.jsonl.gz --preference pairs.jsonl.gz --hf <python>
"""

import argparse

import harness
import sft
from harness import Contestant, Load, Stopwatch, peak_mb

LOAD = Load(batch=8, context=sft.LOAD.context, steps=10, warmup=3)


def prepare(args: argparse.Namespace) -> None:
    sft.prepare(args)
    harness.train(
        args, "stage=sft", "data=chat", f"data.path={args.chat}", "trainer.max_epochs=null", "trainer.max_steps=1"
    )


def ours(*settings: str):
    def run(args: argparse.Namespace) -> dict[str, float]:
        card = harness.train(
            args,
            "stage=rm",
            "data=preference",
            f"data.path={args.preference}",
            f"data.batch_size={LOAD.batch}",
            "data.num_demonstrations=8",
            "trainer.max_epochs=null",
            "examination=null",
            *settings,
            *harness.timed(LOAD.steps, LOAD.warmup),
        )
        return {"rate": LOAD.batch / card["metrics"]["train/step_seconds"], "peak_mb": card["peak_mb"]}

    return run


def trl(load: Load = LOAD, **settings):
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
        from trl import RewardConfig, RewardTrainer

        watch = Stopwatch(load)

        class Watch(TrainerCallback):
            def on_step_end(self, *_, **__):
                watch.step()

        columns = ("prompt", "chosen", "rejected")
        found = harness.records(args.preference, 2000)
        data = Dataset.from_list([{name: r[name] for name in columns} for r in found])
        folder = harness.export(args, "sft")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
        trainer = RewardTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=data,
            args=RewardConfig(
                output_dir=f"{args.work}/trl",
                max_steps=load.steps + load.warmup,
                per_device_train_batch_size=load.batch,
                max_length=load.context,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not harness.GPU,
                **settings,
            ),
            callbacks=[Watch()],
        )
        trainer.train()
        return {"rate": watch.steps_per_second * load.batch, "peak_mb": peak_mb()}

    return run


CONTESTANTS = {
    "gradus": Contestant(ours()),
    "gradus compiled": Contestant(ours("compile=true")),
    "TRL RewardTrainer (default)": Contestant(trl(), ("hf",)),
    "TRL fp32": Contestant(trl(bf16=False), ("hf",)),
    "TRL bf16": Contestant(trl(bf16=True, gradient_checkpointing=False), ("hf",)),
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__, "text", "chat", "preference")
    harness.contest(__file__, parser, CONTESTANTS, unit="comparisons/s", prepare=prepare)
