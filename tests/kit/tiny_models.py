"""Models whose every word is known beforehand, or that are as small as they come."""

from collections.abc import Sequence

import torch

from components.models.config import GPTConfig
from components.models.heads import CausalLM, ScalarModel, new_causal_lm, scalar_from_causal
from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train

TEXTS = ["where does anna live? anna lives in paris. bob lives in rome. yes no maybe, said the cat to the dog."] * 20


def small_tokenizer() -> Tokenizer:
    return train(TEXTS, vocab_size=340)


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The same tokenizer with a template of another family, whose special tokens it spells as text."""
    for name in ("<|im_end|>", "<|eot_id|>"):
        template = template.replace(name, "<|end|>")
    codec = tokenizer.codec
    relaxed = object.__new__(type("Relaxed", (type(codec),), {"strict": False}))
    relaxed.__dict__.update(codec.__dict__)
    return Tokenizer(relaxed, template)


def small_config(vocab_size: int, **changes) -> GPTConfig:
    """Two layers with grouped-query attention."""
    shape = dict(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return GPTConfig(vocab_size=vocab_size, **(shape | changes))


def countable_config(**changes) -> GPTConfig:
    """Of so few weights that they are counted by hand.

    A layer: norm 4; q 16, k 8, v 8; o 16; norm 4; gate 24, up 24; down 24: 128. Two of them, norm 4 and head 40: 300.
    """
    shape = dict(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8,
    )
    return GPTConfig(**(shape | changes))


def random_model(vocab_size: int, seed: int = 0, **changes) -> CausalLM:
    """Random weights, large enough that its logits differ by whole units."""
    torch.manual_seed(seed)
    return new_causal_lm(small_config(vocab_size, **changes)).eval()


def random_scalar(vocab_size: int, seed: int = 0, **changes) -> ScalarModel:
    return scalar_from_causal(random_model(vocab_size, seed, **changes)).eval()


def parrot(tokenizer: Tokenizer, *sequences: Sequence[int], context: int = 128, vocab_size: int = 0) -> CausalLM:
    """A model that goes on from each id with the one that follows it in `sequences`, and from any other with end_id.

    Embeddings are one-hot and the layers add nothing, so the output matrix is a table from an id to the next.
    """
    follower: dict[int, int] = {}
    for sequence in sequences:
        for now, after in zip(sequence, sequence[1:], strict=False):
            assert follower.setdefault(now, after) == after, "an id cannot have two followers"
    size = vocab_size or tokenizer.vocab_size
    model = random_model(
        size,
        hidden_size=size,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        max_position_embeddings=context,
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for now in range(size):
            model.lm_head.weight[follower.get(now, tokenizer.end_id), now] = 2.0
    return model
