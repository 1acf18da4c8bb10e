"""GGUF files contain the model: names, shapes, values and metadata, read back by gguf's own reader."""

import sys

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from components.artifacts import conversion
from components.artifacts.conversion import ConversionError, to_folder, to_gguf
from components.artifacts.store import write_artifact
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers, tiny_models

gguf = pytest.importorskip("gguf")
VARIANTS = {
    "llama": ({}, "llama"),
    "tied": ({"tie_word_embeddings": True}, "llama"),
    "mistral": ({"sliding_window": 64}, "llama"),
    "qwen2": ({"attention_bias": True}, "qwen2"),
    "qwen3": ({"qk_norm": True}, "qwen3"),
}
WIDE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2)


def artifact(folder, tokenizer, **changes):
    model = tiny_models.random_model(tokenizer.vocab_size + 2, **WIDE, **changes)
    write_artifact(folder / "export", card={"stage": "ppo", "run": "tiny"}, tokenizer=tokenizer, model=model)
    return folder / "export", model.state_dict()


def read(file):
    """(metadata by name, tensors by name as float32)."""
    reader = gguf.GGUFReader(file)
    tensors = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors, reader.tensors


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_has_llama_cpps_name(name, tmp_path, small_tokenizer):
    changes, architecture = VARIANTS[name]
    folder, weights = artifact(tmp_path, small_tokenizer, **changes)
    facts, tensors, _ = read(to_gguf(folder, tmp_path / "x.gguf", "f32"))
    assert facts["general.architecture"] == architecture
    pieces = small_tokenizer.vocab_size
    assert torch.equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"][:pieces])
    assert torch.equal(tensors["output_norm.weight"], weights["model.norm.weight"])
    assert ("output.weight" in tensors) == (name != "tied")
    inner = {
        "ffn_down": "mlp.down_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_gate": "mlp.gate_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "attn_norm": "input_layernorm",
    }
    for theirs, ours in inner.items():
        assert torch.equal(tensors[f"blk.1.{theirs}.weight"], weights[f"model.layers.1.{ours}.weight"])
    q, expected = tensors["blk.1.attn_q.weight"], weights["model.layers.1.self_attn.q_proj.weight"]
    if architecture == "llama":  # 4 heads of 16 rows: pair i of a head is rows i and i + 8 of ours, 2i and 2i + 1 there
        order = [16 * head + i + half for head in range(4) for i in range(8) for half in (0, 8)]
        expected = expected[order]
    assert torch.equal(q, expected)
    assert len(tensors) == len(weights) - (name == "tied")


def test_the_metadata_is_the_configs(tmp_path, small_tokenizer):
    folder, _ = artifact(tmp_path, small_tokenizer, rope_theta=5e4, head_dim=32)
    facts, _, _ = read(to_gguf(folder, tmp_path / "x.gguf", "f32"))
    expected = {
        "context_length": 64,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "rope.freq_base": 5e4,
        "rope.dimension_count": 32,
    }
    assert {name: facts[f"llama.{name}"] for name in expected} == expected
    assert facts["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


def test_the_tokenizer_comes_with_kinds_scores_ends_and_template(tmp_path, small_tokenizer):
    folder, _ = artifact(tmp_path, small_tokenizer)
    facts, _, _ = read(to_gguf(folder, tmp_path / "x.gguf", "f32"))
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    size = small_tokenizer.vocab_size
    assert len(tokens) == len(kinds) == len(facts["tokenizer.ggml.scores"]) == size
    assert kinds[small_tokenizer.bos_id] == kinds[small_tokenizer.end_id] == 3
    assert kinds[tokens.index("<0x0A>")] == 6
    (word,) = small_tokenizer.encode("a")
    assert kinds[word] == 1 and tokens[word] == "a"
    named = {
        "bos": small_tokenizer.bos_id,
        "eos": small_tokenizer.eos_id,
        "eot": small_tokenizer.end_id,
        "padding": small_tokenizer.pad_id,
    }
    assert {name: facts[f"tokenizer.ggml.{name}_token_id"] for name in named} == named
    assert facts["tokenizer.chat_template"] == small_tokenizer.chat_template
    assert facts["tokenizer.ggml.add_bos_token"] is True and facts["tokenizer.ggml.add_space_prefix"] is False


def test_a_foreign_tokenizer_comes_with_its_added_tokens_and_its_leading_space(tmp_path):
    pieces = SentencePieceProcessor(model_proto=foreign_tokenizers.sentencepiece_model()).get_piece_size()
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    texts = {0: "<unk>", 1: "<s>", 2: "</s>", pieces: "<|im_start|>", pieces + 1: "<tool>"}
    added = {str(i): {"content": text, "special": text != "<tool>"} | flags for i, text in texts.items()}
    tokenizer = Tokenizer.load(foreign_tokenizers.llama2(tmp_path / "llama2", added_tokens_decoder=added))
    folder, weights = artifact(tmp_path, tokenizer)
    facts, tensors, _ = read(to_gguf(folder, tmp_path / "x.gguf", "f32"))
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    assert tokens[pieces:] == ["<|im_start|>", "<tool>"] and kinds[pieces:] == [3, 4]
    assert kinds[:3] == [2, 3, 3] and len(facts["tokenizer.ggml.scores"]) == facts["llama.vocab_size"] == pieces + 2
    assert torch.equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"][: pieces + 2])
    assert facts["tokenizer.ggml.add_space_prefix"] is True


def test_more_tokens_than_the_model_has_rows_are_refused(tmp_path, small_tokenizer):
    folder, _ = artifact(tmp_path, small_tokenizer)
    with pytest.raises(ConversionError, match=f"{small_tokenizer.vocab_size} tokens, but the model has rows for 50"):
        conversion._pieces(folder, small_tokenizer, 50)


@pytest.mark.parametrize(("dtype", "bits"), [("f16", 11), ("bf16", 8), ("q8_0", 7)])
def test_matrices_are_rounded_to_the_type_and_vectors_are_not(dtype, bits, tmp_path, small_tokenizer):
    folder, weights = artifact(tmp_path, small_tokenizer)
    _, tensors, held = read(to_gguf(folder, tmp_path / "x.gguf", dtype))
    kinds = {t.name: t.tensor_type.name.lower() for t in held}
    assert kinds["blk.0.ffn_up.weight"] == dtype and kinds["blk.0.ffn_norm.weight"] == "f32"
    exact = weights["model.layers.0.mlp.up_proj.weight"]
    error = (tensors["blk.0.ffn_up.weight"] - exact).abs().max()
    assert 0 < error <= exact.abs().max() * 2.0**-bits


def test_q8_0_needs_blocks_of_32_and_a_narrower_matrix_is_f16(tmp_path, small_tokenizer):
    model = tiny_models.random_model(small_tokenizer.vocab_size, hidden_size=64, intermediate_size=40)
    write_artifact(tmp_path / "export", card={}, tokenizer=small_tokenizer, model=model)
    _, _, held = read(to_gguf(tmp_path / "export", tmp_path / "x.gguf", "q8_0"))
    kinds = {t.name: t.tensor_type.name for t in held}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_llama3s_scaling_is_a_divisor_for_each_pair(tmp_path, small_tokenizer):
    scaling = dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    folder, _ = artifact(tmp_path, small_tokenizer, rope_scaling=scaling)
    _, tensors, _ = read(to_gguf(folder, tmp_path / "x.gguf", "q8_0"))
    divisors = tensors["rope_freqs.weight"]
    # head_dim 16: frequency 10000^(-i/8); in 64 tokens pair 0 turns 10.186 times, pair 1 3.2211 times, pair 2 1.0186
    # times, the others less than once
    kept = [2.2211 / 3, 0.0186 / 3]
    between = [1 / (share + (1 - share) / 8) for share in kept]
    assert divisors.tolist() == pytest.approx([1, *between, *[8] * 5], rel=1e-3)


def test_linear_scaling_is_named(tmp_path, small_tokenizer):
    folder, _ = artifact(tmp_path, small_tokenizer, rope_scaling={"rope_type": "linear", "factor": 4.0})
    facts, _, _ = read(to_gguf(folder, tmp_path / "x.gguf", "f32"))
    assert (facts["llama.rope.scaling.type"], facts["llama.rope.scaling.factor"]) == ("linear", 4.0)


def test_what_llama_cpp_cannot_represent_is_refused_and_leaves_no_file(tmp_path, small_tokenizer):
    size, out = small_tokenizer.vocab_size, tmp_path / "x.gguf"
    write_artifact(tmp_path / "rm", card={}, tokenizer=small_tokenizer, model=tiny_models.random_scalar(size))
    gpt2 = tiny_models.random_model(
        size,
        norm="layer",
        positions="learned",
        mlp="gelu",
        attention_bias=True,
        attention_output_bias=True,
        num_key_value_heads=4,
    )
    write_artifact(tmp_path / "gpt2", card={}, tokenizer=small_tokenizer, model=gpt2)
    write_artifact(
        tmp_path / "biased",
        card={},
        tokenizer=small_tokenizer,
        model=tiny_models.random_model(size, qk_norm=True, attention_bias=True, attention_output_bias=True),
    )
    write_artifact(tmp_path / "bare", card={}, tokenizer=small_tokenizer, model=tiny_models.random_model(size))
    (tmp_path / "bare/tokenizer.model").rename(tmp_path / "tokenizer.model")
    told = {
        "rm": "got llama, SequenceClassification",
        "gpt2": "got gpt2",
        "biased": "no attention biases",
        "bare": "tokenizer",
    }
    for name, message in told.items():
        with pytest.raises(ValueError, match=message):
            to_gguf(tmp_path / name, out, "f16")
    assert not list(tmp_path.glob("x.gguf*"))


def test_without_the_package_the_error_has_the_command_that_installs_it(tmp_path, small_tokenizer, monkeypatch):
    folder, _ = artifact(tmp_path, small_tokenizer)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConversionError, match=r"pip install -c \S+ -e '?\S+\[gguf\]'?$"):
        to_gguf(folder, tmp_path / "x.gguf", "f16")


def test_a_copy_of_the_folder_is_whole_and_replaces_nothing(tmp_path, small_tokenizer):
    folder, _ = artifact(tmp_path, small_tokenizer)
    out = to_folder(folder, tmp_path / "copy")
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}
    for taken, message in ((out, "exists already"), (None, "give --out <folder>")):
        with pytest.raises(ConversionError, match=message):
            to_folder(folder, taken)


def test_a_path_that_cannot_be_written_is_reported_with_the_option_for_another(tmp_path, small_tokenizer, monkeypatch):
    folder, _ = artifact(tmp_path, small_tokenizer)
    (tmp_path / "file").write_text("")
    for convert in (lambda out: to_gguf(folder, out, "f16"), lambda out: to_folder(folder, out)):
        with pytest.raises(ConversionError, match=r"file/x: cannot be written \(.*\); give --out another path"):
            convert(tmp_path / "file/x")
        with monkeypatch.context() as patch:
            patch.setattr(conversion.os, "access", lambda *_: False)
            with pytest.raises(
                ConversionError, match=r"x: cannot be written \(Permission denied\); give --out another"
            ):
                convert(tmp_path / "x")
        convert(tmp_path / "new/folder" / str(id(convert)))
    assert not list(tmp_path.glob("x*"))


def test_rows_without_a_piece_are_omitted_so_that_llama_cpp_cannot_sample_them(tmp_path, small_tokenizer):
    size = small_tokenizer.vocab_size
    model = tiny_models.random_model(size + 2, hidden_size=64)
    write_artifact(tmp_path / "export", card={}, tokenizer=small_tokenizer, model=model)
    reader = gguf.GGUFReader(to_gguf(tmp_path / "export", tmp_path / "x.gguf", "f32"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == size
    assert reader.fields["llama.vocab_size"].contents() == size
    assert [tensors[name].shape[1] for name in ("token_embd.weight", "output.weight")] == [size, size]
    kept = torch.from_numpy(tensors["output.weight"].data.copy())
    assert torch.equal(kept, model.lm_head.weight[:size])
