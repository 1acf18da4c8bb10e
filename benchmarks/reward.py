"""Reward models: comparisons per second, the same comparisons, batch and cut.

python benchmarks/reward.py --text corpus.txt --chat dialogues.jsonl.gz --preference pairs.jsonl.gz --hf <python>
"""

import argparse

import harness
import sft
from harness import GPU, Contestant, Stopwatch, peak_mb

BATCH, STEPS, WARMUP = (16, 30, 20) if GPU else (8, 10, 3)


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
            f"data.batch_size={BATCH}",
            "data.num_demonstrations=8",
            "trainer.max_epochs=null",
            "examination=null",
            *settings,
            *harness.timed(STEPS, WARMUP),
        )
        return {"rate": BATCH / card["metrics"]["train/step_seconds"], "peak_mb": card["peak_mb"]}

    return run


def trl(**settings):
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
        from trl import RewardConfig, RewardTrainer

        watch = Stopwatch(WARMUP)

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
                max_steps=STEPS + WARMUP,
                per_device_train_batch_size=BATCH,
                max_length=sft.CONTEXT,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                **settings,
            ),
            callbacks=[Watch()],
        )
        trainer.train()
        return {"rate": watch.steps * BATCH / watch.seconds, "peak_mb": peak_mb()}

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
