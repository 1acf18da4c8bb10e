"""PPO and GRPO: samples per second, the same prompts, lengths, epochs and models.

    python benchmarks/rl.py --text corpus.txt --chat dialogues.jsonl.gz --preference pairs.jsonl.gz \\
        --hf <python> --trl-ppo <python>

64 samples an iteration: PPO of 64 prompts, 4 epochs of one minibatch; GRPO of 8 prompts × 8, one epoch. 64 new tokens
each: the models' weights are random, so that nearly none ends sooner.
"""

import argparse
import json
from pathlib import Path

import harness
import reward
from harness import Contestant, Load, Stopwatch, peak_mb

EPOCHS, GROUP = 4, 8
NEW = 64
LOAD = Load(batch=64, context=0, steps=3, warmup=1)  # of iterations; prompts are as long as they are


def prepare(args: argparse.Namespace) -> None:
    """Everything before RL, and a file of prompts that all contestants read."""
    reward.prepare(args)
    harness.train(
        args,
        "stage=rm",
        "data=preference",
        f"data.path={args.preference}",
        "data.num_demonstrations=8",
        "trainer.max_epochs=null",
        "trainer.max_steps=1",
        "examination=null",
        "data.batch_size=8",
    )
    write_prompts(args)


def write_prompts(args: argparse.Namespace) -> None:
    """prompts.jsonl: prompts of the comparisons that are of about one length."""
    asked = {r["prompt"][0]["content"] for r in harness.records(args.preference, 10**6)}
    chosen = sorted(text for text in asked if 120 <= len(text) <= 180)[: LOAD.batch * 2]
    lines = [json.dumps({"prompt": [{"role": "user", "content": text}]}) for text in chosen]
    Path(args.work, "prompts.jsonl").write_text("\n".join(lines) + "\n")


def ours(stage: str, updates: int, *settings: str):
    def run(args: argparse.Namespace) -> dict[str, float]:
        card = harness.train(
            args,
            f"stage={stage}",
            "data=prompts",
            f"data.path={args.work}/prompts.jsonl",
            "data.val_fraction=0",
            f"stage.sampling.max_new_tokens={NEW}",
            "gate.enabled=false",
            *settings,
            *harness.timed(LOAD.steps * updates, LOAD.warmup * updates),
        )
        return {"rate": LOAD.batch / (card["metrics"]["train/step_seconds"] * updates), "peak_mb": card["peak_mb"]}

    return run


def models(args: argparse.Namespace, *stages: str):
    """(tokenizer, a model of each stage, prompts as text)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(harness.export(args, "sft"), padding_side="left")
    found = []
    for stage in stages:
        kind = AutoModelForSequenceClassification if stage == "rm" else AutoModelForCausalLM
        model = kind.from_pretrained(harness.export(args, stage), dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
        found.append(model)
    return tokenizer, found, harness.records(f"{args.work}/prompts.jsonl", 10**6)


def trl_ppo(load: Load = LOAD, new: int = NEW, **settings):
    def run(args: argparse.Namespace) -> dict[str, float]:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        tokenizer, (policy, reference, scorer, value), asked = models(args, "sft", "sft", "rm", "rm")
        render = tokenizer.apply_chat_template
        rendered = [render(r["prompt"], add_generation_prompt=True, return_dict=False) for r in asked]
        watch = Stopwatch(load)

        class Watch(TrainerCallback):
            def on_step_end(self, *_, **__):
                watch.step()

        PPOTrainer(
            args=PPOConfig(
                output_dir=f"{args.work}/trl",
                total_episodes=load.batch * (load.steps + load.warmup),
                num_ppo_epochs=EPOCHS,
                num_mini_batches=1,
                response_length=new,
                kl_coef=0.1,
                report_to="none",
                save_strategy="no",
                num_sample_generations=0,
                use_cpu=not harness.GPU,
                **settings,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=scorer,
            value_model=value,
            train_dataset=Dataset.from_list([{"input_ids": ids} for ids in rendered]),
            callbacks=[Watch()],
            eval_dataset=Dataset.from_list([{"input_ids": ids} for ids in rendered[:8]]),
        ).train()
        return {"rate": watch.steps_per_second * load.batch, "peak_mb": peak_mb()}

    return run


def trl_grpo(load: Load = LOAD, new: int = NEW, **settings):
    def run(args: argparse.Namespace) -> dict[str, float]:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        tokenizer, (policy, scorer), asked = models(args, "sft", "rm")
        watch = Stopwatch(load)

        class Watch(TrainerCallback):
            def on_step_end(self, *_, **__):
                watch.step()

        GRPOTrainer(
            model=policy,
            reward_funcs=scorer,
            processing_class=tokenizer,
            reward_processing_classes=tokenizer,
            args=GRPOConfig(
                output_dir=f"{args.work}/trl",
                max_steps=load.steps + load.warmup,
                per_device_train_batch_size=load.batch,
                num_generations=GROUP,
                max_completion_length=new,
                beta=0.1,
                report_to="none",
                save_strategy="no",
                use_cpu=not harness.GPU,
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=Dataset.from_list(asked),
            callbacks=[Watch()],
        ).train()
        return {"rate": watch.steps_per_second * load.batch, "peak_mb": peak_mb()}

    return run


PPO = (f"data.prompts_per_rollout={LOAD.batch}", f"stage.epochs={EPOCHS}", "stage.minibatches=1")
GRPO = (
    f"data.prompts_per_rollout={LOAD.batch // GROUP}",
    f"stage.samples_per_prompt={GROUP}",
    "stage.epochs=1",
    "stage.minibatches=1",
)
SMALL = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4}
CONTESTANTS = {
    "PPO: gradus": Contestant(ours("ppo", EPOCHS, *PPO)),
    "PPO: TRL (default precision)": Contestant(trl_ppo(**SMALL), ("trl-ppo",)),
    "PPO: TRL fp32": Contestant(trl_ppo(bf16=False, gradient_checkpointing=False, **SMALL), ("trl-ppo",)),
    "PPO: TRL bf16": Contestant(
        trl_ppo(bf16=True, gradient_checkpointing=False, per_device_train_batch_size=LOAD.batch), ("trl-ppo",)
    ),
    "GRPO: gradus": Contestant(ours("grpo", 1, *GRPO)),
    "GRPO: TRL (default precision)": Contestant(trl_grpo(), ("hf",)),
    "GRPO: TRL fp32": Contestant(trl_grpo(bf16=False, gradient_checkpointing=False), ("hf",)),
    "GRPO: TRL bf16": Contestant(trl_grpo(bf16=True, gradient_checkpointing=False), ("hf",)),
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__, "text", "chat", "preference")
    harness.contest(__file__, parser, CONTESTANTS, unit="samples/s", prepare=prepare)
