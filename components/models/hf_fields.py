"""Every known field of a foreign config.json: the values it can have, or that it has no effect here.

An allow-list: a field that is in none of the tables is refused, unless it is empty.
"""

from typing import Any

from components.system.foreign_fields import EMPTY

DECODER = {  # read by hf.shape_of, in every family but gpt2
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "tie_word_embeddings",
    "initializer_range",
}
WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
READ = {
    "llama": DECODER | {"attention_bias"},
    "mistral": DECODER | {"sliding_window"},
    "qwen2": DECODER | WINDOWS,
    "qwen3": DECODER | WINDOWS | {"attention_bias"},
    "gpt2": {
        "vocab_size",
        "n_embd",
        "n_inner",
        "n_layer",
        "n_head",
        "n_positions",
        "layer_norm_epsilon",
        "tie_word_embeddings",
        "initializer_range",
    },
}

FIXED = {  # the values that this decoder implements; OF_FAMILY takes precedence
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
    "is_causal": (True,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "is_llama_config": (True,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
}
OF_FAMILY: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"use_sliding_window": (False,)},
    "mistral": {"attention_bias": (False,), "use_sliding_window": (False,)},
    "qwen2": {"attention_bias": (True, False)},  # a Qwen2 always has them on q, k and v
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
    },
}

ORIGIN = """architectures model_type transformers_version _name_or_path _commit_hash dtype torch_dtype
    _attn_implementation attn_implementation _attn_implementation_autoset _attn_implementation_internal
    unsloth_fixed unsloth_version transformers.js_config tokenizer_class"""
RUNNING = """use_cache pretraining_tp chunk_size_feed_forward gradient_checkpointing torchscript use_bfloat16
    tf_legacy_loss return_dict output_hidden_states output_attentions n_ctx is_decoder loss_type"""
TRAINING = """attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout classifier_dropout
    finetuning_task"""  # of the foreign training; here the run's settings apply
CLASSIFIER = """id2label label2id num_labels problem_type summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout"""  # the number of scores follows from the weights
IDS = """bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id prefix"""  # read from the tokenizer's files
GENERATION = """task_specific_params max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size num_return_sequences output_scores return_dict_in_generate remove_invalid_values
    exponential_decay_length_penalty"""  # of generate(); here the sampling settings apply
NO_PART = set(" ".join((ORIGIN, RUNNING, TRAINING, CLASSIFIER, IDS, GENERATION)).split())


def check(fields: dict[str, Any], family: str) -> None:
    """Raises ValueError naming the first field that is unknown or has a value that this decoder does not implement."""
    for name, value in fields.items():
        if name in READ[family] or name in NO_PART:
            continue
        allowed = OF_FAMILY.get(family, {}).get(name) or FIXED.get(name)
        if allowed is None and value not in EMPTY:
            raise ValueError(
                f"{name}={value!r} is unknown, so it could change what the model computes; if it does not, remove it"
            )
        if allowed is not None and value is not None and value not in allowed:
            raise ValueError(f"{name}={value!r} is not supported, expected {' or '.join(map(repr, allowed))}")
