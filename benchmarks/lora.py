"""Memory and speed of adapters against training all weights, stage by stage.

    python benchmarks/lora.py --text corpus.txt --chat dialogues.jsonl.gz --preference pairs.jsonl.gz

8 layers of width 512 (27M parameters). PPO with all weights holds four models (policy, reference, reward, value), two
of them with gradients and optimizer state; with adapters one trunk, where the reward model is of adapters too.
"""

import argparse

import harness
import rl
from harness import Contestant

SHAPE = (
    "model.num_hidden_layers=8",
    "model.hidden_size=512",
    "model.intermediate_size=1376",
    "model.num_attention_heads=8",
    "model.num_key_value_heads=8",
)
BATCH, STEPS, WARMUP = 4, 3, 1
DATA = {"sft": "chat", "rm": "preference", "dpo": "preference"}
LORA = ("lora=default",)


def prepare(args: argparse.Namespace) -> None:
    """A base, and models of one step; reward models of all weights and of adapters, each in a run folder of its own."""
    one = ("trainer.max_steps=1", "data.batch_size=4")
    harness.train(args, "stage=tokenizer", "data=text", f"data.path={args.text}", "tokenizer.vocab_size=4096")
    harness.train(args, *SHAPE, "stage=pretrain", "data=text", f"data.path={args.text}", *one)
    harness.train(args, *SHAPE, "stage=sft", "data=chat", f"data.path={args.chat}", "trainer.max_epochs=null", *one)
    reward = (
        "stage=rm",
        "data=preference",
        f"data.path={args.preference}",
        "data.num_demonstrations=8",
        "trainer.max_epochs=null",
        "examination=null",
        *one,
    )
    harness.train(args, *SHAPE, *reward, "paths.folder=rm-all")
    harness.train(args, *SHAPE, *reward, *LORA, "paths.folder=rm-lora")
    rl.write_prompts(args)


def fitted(stage: str, *settings: str):
    def run(args: argparse.Namespace) -> dict[str, float]:
        card = harness.train(
            args,
            *SHAPE,
            f"stage={stage}",
            f"data={DATA[stage]}",
            f"data.path={args.chat if stage == 'sft' else args.preference}",
            f"data.batch_size={BATCH}",
            "trainer.max_epochs=null",
            *(("examination=null", "data.num_demonstrations=8") if stage == "rm" else ()),
            *settings,
            *harness.timed(STEPS, WARMUP),
        )
        return {"rate": BATCH / card["metrics"]["train/step_seconds"], "peak_mb": card["peak_mb"]}

    return run


def ppo(*settings: str):
    def run(args: argparse.Namespace) -> dict[str, float]:
        card = harness.train(
            args,
            *SHAPE,
            "stage=ppo",
            "data=prompts",
            f"data.path={args.work}/prompts.jsonl",
            "data.val_fraction=0",
            "stage.sampling.max_new_tokens=32",
            "gate.enabled=false",
            "data.prompts_per_rollout=16",
            "stage.epochs=2",
            "stage.minibatches=2",
            *settings,
            *harness.timed(4, 4),
        )
        return {"rate": 16 / (card["metrics"]["train/step_seconds"] * 4), "peak_mb": card["peak_mb"]}

    return run


def reward_of(kind: str) -> str:
    return "artifacts.rm=${paths.logs}/${run}/rm-" + kind + "/export"


CHECKPOINTING = ("gradient_checkpointing=true",)
CONTESTANTS = {
    "SFT: lora": Contestant(fitted("sft", *LORA)),
    "SFT: lora on an nf4 base with checkpointing": Contestant(fitted("sft", *LORA, "lora.base=nf4", *CHECKPOINTING)),
    "SFT: all weights": Contestant(fitted("sft")),
    "SFT: all weights with checkpointing": Contestant(fitted("sft", *CHECKPOINTING)),
    "DPO: lora": Contestant(fitted("dpo", *LORA)),
    "DPO: all weights": Contestant(fitted("dpo")),
    "PPO: lora on one trunk": Contestant(ppo(*LORA, reward_of("lora"))),
    "PPO: lora beside a whole reward model": Contestant(ppo(*LORA, reward_of("all"))),
    "PPO: all weights in four models": Contestant(ppo(reward_of("all"))),
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__, "text", "chat", "preference")
    harness.contest(__file__, parser, CONTESTANTS, unit="samples/s", prepare=prepare)
