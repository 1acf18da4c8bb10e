"""Models with more rows than their tokenizer has pieces, at the end or in between: such an id is never sampled, and
−inf in every log-probability, so sampling and training use the same distribution."""

import json
import math
from pathlib import Path

import pytest
import torch

from components.artifacts import store
from components.artifacts.store import load_causal_lm, write_artifact
from components.evaluation.measure.policy import SamplePlan, describe, respond
from components.functional.seeding import seeded
from components.generation.generate import Sampling, generate, stream
from components.models.attention.kv_cache import Steps
from components.serving.session import ChatSession
from components.tokenizer.codec import TokenizerError
from components.tokenizer.tokenizer import StreamDecoder, Tokenizer
from tests.kit import foreign_tokenizers, tiny_models

HOLES, GAP = range(400, 405), 5  # ids without a piece in the middle of the range


def loud(model, ids):
    """A model with the largest logit at one of `ids` for any input: ±20 times the sum of the hidden state."""
    with torch.no_grad():
        for number, i in enumerate(ids):
            model.lm_head.weight[i] = 20.0 * (-1) ** number
    return model


@pytest.fixture(scope="module")
def holed(tmp_path_factory) -> Path:
    """Qwen2's folder, with five ids in the middle that have no piece."""
    folder = foreign_tokenizers.qwen2(tmp_path_factory.mktemp("holed"))
    definition = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    moved = lambda i: i if i < HOLES.start else i + GAP
    vocab = {piece: moved(i) for piece, i in definition["model"]["vocab"].items()}
    for token in definition["added_tokens"]:
        token["id"] = vocab[token["content"]] = moved(token["id"])
    foreign_tokenizers.write_json(
        folder / "tokenizer.json", definition | {"model": definition["model"] | {"vocab": vocab}}
    )
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config["added_tokens_decoder"] = {str(moved(int(i))): t for i, t in config["added_tokens_decoder"].items()}
    foreign_tokenizers.write_json(folder / "tokenizer_config.json", config)
    ends = [vocab["<|im_end|>"], vocab["<|endoftext|>"]]
    foreign_tokenizers.write_json(folder / "generation_config.json", {"eos_token_id": ends})
    return folder


@pytest.fixture(scope="module")
def padded(holed, tmp_path_factory) -> Path:
    """A model's folder with that tokenizer and seven more rows; its rows without a piece have the largest logits."""
    tokenizer, folder = Tokenizer.load(holed), tmp_path_factory.mktemp("padded") / "export"
    size = tokenizer.vocab_size + 7
    model = tiny_models.random_model(size, max_position_embeddings=128)
    write_artifact(folder, card={"stage": "sft"}, tokenizer=tokenizer, model=loud(model, unused(tokenizer, size)))
    return folder


def unused(tokenizer: Tokenizer, size: int) -> list[int]:
    return [i for i in range(size) if i >= tokenizer.vocab_size or not tokenizer.codec.tokens[i]]


def test_the_ids_without_a_piece_are_those_at_the_end_and_those_in_between(holed, padded):
    tokenizer, model = Tokenizer.load(holed), load_causal_lm(padded)
    size = tokenizer.vocab_size
    assert tokenizer.unused_ids(size + 7) == (*HOLES, *range(size, size + 7)) == model.config.unused_ids
    assert "unused_ids" not in json.loads((padded / "config.json").read_text())


def test_a_tokenizer_with_holes_encodes_chats_as_it_does_without(holed, tmp_path):
    whole, tokenizer = Tokenizer.load(foreign_tokenizers.qwen2(tmp_path)), Tokenizer.load(holed)
    every = [piece for piece in whole.codec.tokens if piece and piece not in whole.codec.special_ids]
    said = whole.decode([whole.codec.tokens.index(piece) for piece in every[-80:]])
    for text in [*foreign_tokenizers.texts(100), said]:
        talk = [{"role": "user", "content": text}, {"role": "assistant", "content": said}]
        moved = [i if i < HOLES.start else i + GAP for i in whole.render(talk).ids]
        assert tokenizer.render(talk).ids == moved


@torch.no_grad()
def test_the_logit_of_an_id_without_a_piece_is_minus_infinity_by_every_way(padded):
    model, ids = load_causal_lm(padded), torch.tensor([[5, 6, 7, 8]])
    absent = list(model.config.unused_ids)
    whole = model(ids)[0, -1]
    cache = model.new_cache(torch.zeros(1, dtype=torch.int64), 6, dtype=torch.float32)
    read = model.next_logits(ids[:, :-1], cache)
    stepped = model.next_logits(ids[:, -1:], cache)[0]
    cache = model.new_cache(torch.zeros(1, dtype=torch.int64), 6, dtype=torch.float32)
    model.next_logits(ids[:, :-1], cache)
    graphed = model.next_logits(ids[:, -1:], Steps(cache))[0]  # the contents of a CUDA graph
    for logits in (whole, read[0], stepped, graphed):
        assert (logits[absent] == -math.inf).all()
        assert logits.isfinite().sum() == len(logits) - len(absent)
    real = whole.isfinite()
    assert torch.allclose(stepped[real], whole[real], atol=1e-5) and torch.allclose(
        graphed[real], whole[real], atol=1e-5
    )


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5, "temperature": 0.7}])
def test_a_model_whose_largest_logits_have_no_piece_samples_only_pieces(padded, settings):
    model, absent = load_causal_lm(padded), set(load_causal_lm(padded).config.unused_ids)
    bare = tiny_models.random_model(model.config.vocab_size, max_position_embeddings=128)
    bare.load_state_dict(model.state_dict())
    sampling = Sampling(16, **settings)
    wanted = dict(stop_ids=[], pad_id=0, generator=seeded("cpu", 0), samples_per_prompt=4)
    responses = generate(model, [[5, 6, 7], [9]], sampling, **wanted).responses()
    assert not absent & {token for response in responses for token in response}
    control = generate(bare, [[5, 6, 7], [9]], sampling, **wanted).responses()
    assert absent & {token for response in control for token in response}
    streamed = list(stream(model, [5, 6, 7], sampling, stop_ids=[], generator=seeded("cpu", 1)))
    assert len(streamed) == 16 and not absent & set(streamed)


def test_an_evaluation_and_its_table_read_the_text_of_a_padded_model(padded):
    model, tokenizer = load_causal_lm(padded), store.load_tokenizer(padded)
    prompts = [tokenizer.render_prompt([{"role": "user", "content": "Where does dax live?"}])]
    responses = respond(model, tokenizer, prompts, SamplePlan(3, 12, 0))
    metrics = describe(model, prompts, responses, reference=load_causal_lm(padded), pad_id=tokenizer.pad_id)
    assert metrics.kl == 0 and math.isfinite(metrics.sequence_entropy)
    assert metrics.entropy_per_token < math.log(tokenizer.vocab_size)


def test_a_chat_with_a_padded_model_produces_pieces(padded):
    model, tokenizer = load_causal_lm(padded), store.load_tokenizer(padded)
    session = ChatSession(model, tokenizer, seed=0, temperature=0, max_new_tokens=8)
    assert "".join(session.ask("Where does dax live?").chunks)


def test_an_id_without_a_piece_from_a_foreign_sampler_decodes_to_nothing(holed, small_tokenizer):
    tokenizer = Tokenizer.load(holed)
    [word] = tokenizer.encode("a")
    for beyond in (HOLES[0], tokenizer.vocab_size, tokenizer.vocab_size + 10_000):
        assert tokenizer.decode([word, beyond, word]) == "aa" == tokenizer.decode([word, beyond, word], False)
        assert StreamDecoder(tokenizer).push(beyond) == ""
    assert small_tokenizer.decode([small_tokenizer.vocab_size]) == ""
    with pytest.raises(TokenizerError, match="id -1"):
        tokenizer.decode([-1])


def test_transformers_never_samples_such_an_id_from_the_export(padded):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(padded).eval()
    absent = load_causal_lm(padded).config.unused_ids
    said = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert not set(absent) & set(said[0, 3:].tolist())
    with torch.no_grad():
        assert int(model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax()) in absent  # the control
