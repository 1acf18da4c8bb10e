"""SFT: real tokens per second (padding not counted), the same dialogues, batch and cut.

python benchmarks/sft.py --text corpus.txt --chat dialogues.jsonl.gz --hf <python>
"""

import argparse

import harness
from harness import VOCABULARY, Contestant, Load, Stopwatch, peak_mb

LOAD = Load(batch=16, context=512, steps=8, warmup=3)


def prepare(args: argparse.Namespace) -> None:
    """A tokenizer and a base model, whose weights do not matter."""
    text = ("data=text", f"data.path={args.text}", f"model.max_position_embeddings={LOAD.context}")
    harness.train(args, "stage=tokenizer", *text, f"tokenizer.vocab_size={VOCABULARY}")
    harness.train(args, "stage=pretrain", *text, "trainer.max_steps=2")


def ours(precision: str, *settings: str):
    def run(args: argparse.Namespace) -> dict[str, float]:
        card = harness.train(
            args,
            "stage=sft",
            "data=chat",
            f"data.path={args.chat}",
            f"data.batch_size={LOAD.batch}",
            f"trainer.precision={precision}",
            "trainer.max_epochs=null",
            *harness.timed(LOAD.steps, LOAD.warmup),
            *settings,
        )
        return {"rate": card["metrics"]["train/tokens_per_second"], "peak_mb": card["peak_mb"]}

    return run


def trl(load: Load = LOAD, **settings):
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        watch, seen = Stopwatch(load), []

        class Watch(TrainerCallback):
            def on_step_end(self, *_, **__):
                watch.step()
                seen.append(trainer._total_train_tokens)

        data = Dataset.from_list([{"messages": r["messages"]} for r in harness.records(args.chat, 10**6)])
        folder = harness.export(args, "pretrain")
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder),
            train_dataset=data,
            args=SFTConfig(
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
        return {"rate": (seen[-1] - seen[load.warmup - 1]) / watch.seconds, "peak_mb": peak_mb()}

    return run


CONTESTANTS = {
    "gradus": Contestant(ours("auto")),
    "gradus compiled": Contestant(ours("auto", "compile=true")),
    "gradus fp32": Contestant(ours("32-true")),
    "TRL SFTTrainer (default)": Contestant(trl(), ("hf",)),
    "TRL fp32": Contestant(trl(bf16=False), ("hf",)),
    "TRL bf16 by length": Contestant(
        trl(bf16=True, train_sampling_strategy="group_by_length", gradient_checkpointing=False), ("hf",)
    ),
    "TRL bf16 packed": Contestant(trl(bf16=True, packing=True, gradient_checkpointing=False), ("hf",)),
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__, "text", "chat")
    harness.contest(__file__, parser, CONTESTANTS, unit="real tokens/s", prepare=prepare)
