"""Converts an artifact for other programs: a separate folder, or one GGUF file for llama.cpp.

GGUF: names, metadata and the order of rotated pairs are those of llama.cpp's own converter.
Source: the GGUF specification (ggml, docs/gguf.md); llama.cpp's loaders for the architectures llama, qwen2 and qwen3.
"""

import errno
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from components.artifacts import store
from components.models.attention.rotary import slowing
from components.models.config import GPTConfig
from components.models.hf import family_of
from components.system import installing
from components.tokenizer.tokenizer import Tokenizer

DType = Literal["f32", "f16", "bf16", "q8_0"]
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # llama.cpp's names
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PER_PIECE = {"model.embed_tokens.weight", "lm_head.weight"}  # matrices with one row per piece
BLOCK = 32  # columns that share a scale in Q8_0; a matrix whose width is not a multiple is written as f16
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types
ADDED_SCORE = -1000.0  # of tokens without one: llama.cpp's converter writes it


class ConversionError(ValueError):
    """An artifact cannot be converted to the requested format."""


def to_folder(folder: Path, out: Path | None) -> Path:
    """Copies an artifact, which is a Hugging Face folder already. Raises ConversionError if `out` exists, is None
    or cannot be written."""
    if out is None:
        raise ConversionError(f"{folder} is a Hugging Face folder already; give --out <folder> for a copy")
    if out.exists():
        raise ConversionError(f"{out} exists already; give --out another name")
    staging = _staging(out)
    try:
        shutil.copytree(folder, staging)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _staging(out: Path) -> Path:
    """The path that holds `out` until it is complete; makes its folder. Raises ConversionError if that fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written ({error.strerror}); give --out another path") from None
    return out.with_name(f"{out.name}.writing-{os.getpid()}")


def to_gguf(folder: Path, out: Path, dtype: DType) -> Path:
    """Writes the language model in a folder, with its SentencePiece tokenizer, as one GGUF file; returns its path.

    dtype: of the matrices; norms and biases are f32. The file gets its name when it is complete. Raises ConversionError
    for a model or tokenizer that llama.cpp cannot represent, if `gguf` is not installed, and if `out` is not writable.
    """
    try:
        import gguf
    except ImportError:
        raise ConversionError(installing.missing("GGUF", "gguf", "gguf")) from None
    config, kind = store.load_config(folder, context=1)
    family = family_of(vars(config))
    if kind != "CausalLM" or family not in ARCHITECTURES:
        raise ConversionError(
            f"{folder}: expected a language model of {', '.join(ARCHITECTURES)}, "
            f"got {family}, {kind}. "
            "Convert others with llama.cpp's convert_hf_to_gguf.py"
        )
    if family == "qwen3" and config.attention_bias:
        raise ConversionError(f"{folder}: llama.cpp's qwen3 has no attention biases, but this model does")
    tokenizer = store.load_tokenizer(folder)
    pieces = _pieces(folder, tokenizer, config.vocab_size)
    config = replace(config, vocab_size=len(pieces))  # rows beyond them have no meaning but could be sampled
    weights = store.load_causal_lm(folder, context=1).state_dict()
    for name in PER_PIECE & weights.keys():
        weights[name] = weights[name][: len(pieces)]
    staging = _staging(out)
    try:
        writer = gguf.GGUFWriter(staging, ARCHITECTURES[family])
        _describe(writer, gguf, config, store.read_card(folder), dtype)
        _describe_tokenizer(writer, tokenizer, pieces)
        kinds = {name: _kind(gguf, tensor, dtype) for name, tensor in _tensors(weights, config, family)}
        for name, tensor in _tensors(weights, config, family):
            size = math.prod(gguf.quant_shape_to_byte_shape(tuple(tensor.shape), kinds[name]))
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in _tensors(weights, config, family):  # one at a time, to keep a single copy in memory
            writer.write_tensor_data(gguf.quants.quantize(tensor.float().numpy(), kinds[name]))
        writer.close()
        staging.rename(out)
    finally:
        staging.unlink(missing_ok=True)
    return out


def _describe(writer: Any, gguf: Any, config: GPTConfig, card: dict[str, Any], dtype: DType) -> None:
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_name(f"{card.get('run', 'gradus')} {card.get('stage', '')}".strip())
    writer.add_file_type(gguf.LlamaFileType[types[dtype]])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling and config.rope_scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling["factor"])


def _describe_tokenizer(writer: Any, tokenizer: Tokenizer, pieces: list[tuple[str, float, int]]) -> None:
    tokens, scores, kinds = zip(*pieces, strict=True)
    writer.add_tokenizer_model("llama")  # llama.cpp's name for SentencePiece with byte pieces
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(tokens))
    writer.add_token_scores(list(scores))
    writer.add_token_types(list(kinds))
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_eot_token_id(tokenizer.end_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(tokenizer.codec.leads_with_space)
    writer.add_chat_template(tokenizer.chat_template)


def _pieces(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> list[tuple[str, float, int]]:
    """(text, score, kind) of every token: the SentencePiece model's pieces, then the tokens that other files add."""
    file = folder / "tokenizer.model"
    if not file.exists():
        raise ConversionError(
            f"{folder} has no tokenizer.model: GGUF is written for SentencePiece tokenizers only. "
            "Convert others with llama.cpp's convert_hf_to_gguf.py"
        )
    model = SentencePieceProcessor(model_file=str(file))
    kinds = {CONTROL: model.is_control, UNKNOWN: model.is_unknown, BYTE: model.is_byte, UNUSED: model.is_unused}
    pieces = []
    for i in range(model.get_piece_size()):
        kind = next((kind for kind, is_so in kinds.items() if is_so(i)), NORMAL)
        pieces.append((model.id_to_piece(i), model.get_score(i), kind))
    special = set(tokenizer.codec.special_ids.values())
    for i, text in enumerate(tokenizer.codec.tokens[len(pieces) :], len(pieces)):
        kind = CONTROL if i in special else USER_DEFINED if text else UNUSED
        pieces.append((text or f"[PAD{i}]", ADDED_SCORE, kind))  # every token needs a text of its own
    if len(pieces) > vocab_size:
        raise ConversionError(
            f"{folder}: {len(pieces)} tokens, but the model has rows for {vocab_size} only. "
            "Take the tokenizer's files from the folder that the model came from"
        )
    return pieces


def _tensors(weights: dict[str, Tensor], config: GPTConfig, family: str) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's names and weights, in file order."""
    for full, tensor in weights.items():
        name, kind = full.rsplit(".", 1)
        if name in OUTSIDE:
            if not (name == "lm_head" and config.tie_word_embeddings):
                yield f"{OUTSIDE[name]}.{kind}", tensor
            continue
        number, inner = name.removeprefix("model.layers.").split(".", 1)
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        if ARCHITECTURES[family] == "llama" and inner in heads:
            tensor = _in_pairs(tensor, heads[inner])
        yield f"blk.{number}.{LAYER[inner]}.{kind}", tensor
    if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        yield "rope_freqs.weight", slowing(config.rope_theta**-exponents, config.rope_scaling)


def _in_pairs(tensor: Tensor, heads: int) -> Tensor:
    """Moves rows of every head from halves (i, i + D/2), which Hugging Face rotates, to neighbors (2i, 2i + 1)."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _kind(gguf: Any, tensor: Tensor, dtype: DType) -> Any:
    wanted = "f32" if tensor.dim() < 2 else "f16" if dtype == "q8_0" and tensor.shape[1] % BLOCK else dtype
    return gguf.GGMLQuantizationType[wanted.upper()]
