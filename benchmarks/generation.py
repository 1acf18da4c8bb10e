"""Generation: tokens per second, prompts of 64 tokens and 128 new ones, one model's weights for all.

python benchmarks/generation.py --text corpus.txt --hf <python> --litgpt <python>
"""

import argparse

import harness
import pretrain
from harness import DEVICE, VOCABULARY, Contestant, peak_mb

PROMPT, NEW = 64, 128


def prepare(args: argparse.Namespace) -> None:
    text = ("data=text", f"data.path={args.text}", f"model.max_position_embeddings={pretrain.LOAD.context}")
    harness.train(args, "stage=tokenizer", *text, f"tokenizer.vocab_size={VOCABULARY}")
    harness.train(args, "stage=pretrain", *text, "trainer.max_steps=2")


def prompts(batch: int) -> list[list[int]]:
    import torch

    return torch.randint(10, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()


def best_of(draw, batch: int) -> dict[str, float]:
    """The best of three draws after a warm-up: what is compared is the engine, not the machine's hiccups."""
    draw()
    seconds = []
    for _ in range(3):
        began = harness.now()
        draw()
        seconds.append(harness.now() - began)
    return {"rate": batch * NEW / min(seconds), "peak_mb": peak_mb()}


def ours(batch: int, bf16: bool):
    def run(args: argparse.Namespace) -> dict[str, float]:
        import sys

        import torch

        sys.path.insert(0, str(harness.ROOT))
        from components.artifacts import store
        from components.functional.seeding import seeded
        from components.generation.generate import Sampling, generate

        model = store.load_causal_lm(harness.export(args, "pretrain")).eval().to(DEVICE)

        def draw():
            with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
                generate(model, prompts(batch), Sampling(NEW), stop_ids=[], pad_id=0, generator=seeded(DEVICE, 0))

        return best_of(draw, batch)

    return run


def transformers(batch: int, bf16: bool):
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if bf16 else torch.float32
        model = AutoModelForCausalLM.from_pretrained(harness.export(args, "pretrain"), dtype=dtype).eval().to(DEVICE)
        ids = torch.tensor(prompts(batch), device=DEVICE)

        def draw():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=True,
                top_k=0,
                use_cache=True,
                pad_token_id=0,
            )

        with torch.no_grad():
            return best_of(draw, batch)

    return run


def litgpt(batch: int, bf16: bool):
    """litgpt.generate.base for one sequence; for several its batched generator."""

    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from litgpt.generate.base import batched_generate_fn, generate

        torch.manual_seed(0)
        model, _, _ = pretrain.litgpt(args)
        model = model.to(DEVICE, torch.bfloat16 if bf16 else torch.float32).eval()
        ids = torch.tensor(prompts(batch), device=DEVICE)

        @torch.inference_mode()
        def draw():
            model.clear_kv_cache()
            model.max_seq_length = PROMPT + NEW
            model.set_kv_cache(
                batch_size=batch, max_seq_length=PROMPT + NEW, device=ids.device, dtype=model.lm_head.weight.dtype
            )
            if batch == 1:
                generate(model, ids[0], PROMPT + NEW, temperature=1.0, top_k=None)
            else:
                list(
                    batched_generate_fn(
                        model,
                        ids,
                        PROMPT + NEW,
                        sample_args={"temperature": 1.0},
                        stop_tokens=(),
                        include_prompt=False,
                        include_eos=False,
                    )
                )

        return best_of(draw, batch)

    return run


CONTESTANTS = {
    "batch 32: gradus bf16": Contestant(ours(32, True)),
    "batch 32: gradus fp32": Contestant(ours(32, False)),
    "batch 32: HF generate fp32": Contestant(transformers(32, False), ("hf",)),
    "batch 32: HF generate bf16": Contestant(transformers(32, True), ("hf",)),
    "batch 32: litgpt fp32": Contestant(litgpt(32, False), ("litgpt",)),
    "batch 32: litgpt bf16": Contestant(litgpt(32, True), ("litgpt",)),
    "batch 1: gradus fp32": Contestant(ours(1, False)),
    "batch 1: gradus bf16": Contestant(ours(1, True)),
    "batch 1: HF generate fp32": Contestant(transformers(1, False), ("hf",)),
    "batch 1: HF generate bf16": Contestant(transformers(1, True), ("hf",)),
    "batch 1: litgpt fp32": Contestant(litgpt(1, False), ("litgpt",)),
    "batch 1: litgpt bf16": Contestant(litgpt(1, True), ("litgpt",)),
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__, "text")
    harness.contest(__file__, parser, CONTESTANTS, unit="tokens/s", prepare=prepare)
