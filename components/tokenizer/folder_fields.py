"""Every field of the files next to a foreign tokenizer: read, irrelevant here, or rejected.

Allow-lists: a field in none of the tables is rejected, unless it is empty. Sampling settings are named in one log line,
since the run's own settings apply; settings that suppress or force tokens are rejected.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.system.foreign_fields import EMPTY
from components.tokenizer.codec import Codec, TokenizerError

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
IDS = {f"{name}_id" for name in NAMES} | {"decoder_start_token_id"}  # redundant with the tokens' names
EXTRA = ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens")

READ = {*NAMES, *EXTRA, "tokenizer_class", "chat_template", "added_tokens_decoder"}
READ |= {"add_bos_token", "add_eos_token", "add_prefix_space", "legacy"}
LENGTHS = """model_max_length max_len max_length max_model_input_sizes padding padding_side padding_strategy
    pad_to_multiple_of pad_token_type_id stride truncation truncation_side truncation_strategy model_input_names
    return_tensors return_attention_mask return_token_type_ids"""  # of batches, which are made differently here
DECODING = """clean_up_tokenization_spaces errors spaces_between_special_tokens
    clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"""  # decode always returns the exact text
CHATS = """split_special_tokens chat_control_tokens response_schema response_template
    use_default_system_prompt"""  # text makes no special tokens; answers are not parsed; the template covers the rest
ORIGIN = """name_or_path _name_or_path _commit_hash transformers_version special_tokens_map_file tokenizer_file
    vocab_file merges_file added_tokens_file backend is_local local_files_only files_loaded processor_class auto_map
    from_slow use_fast slow_tokenizer_class device_map verbose init_inputs trim_offsets tokenizer_type revision
    trust_remote_code unsloth_fixed unsloth_version"""
NO_PART = set(" ".join((LENGTHS, DECODING, CHATS, ORIGIN)).split()) | IDS
FIXED = {  # allowed values of fields that would otherwise change the ids of a text
    "sp_model_kwargs": ({}, None),
    "do_lower_case": (False, None),
    "fix_mistral_regex": (False, None),
}

RUNNING = """use_cache cache_implementation cache_config max_cache_len prefill_chunk_size low_memory compile_config
    disable_compile continuous_batching_config output_attentions output_hidden_states output_scores output_logits
    return_dict_in_generate transformers_version _from_model_config _commit_hash transformers.js_config is_assistant
    use_mtp num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type"""
SAMPLING = """do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size length_penalty diversity_penalty
    exponential_decay_length_penalty max_length max_new_tokens min_length min_new_tokens max_time early_stopping
    num_beams num_beam_groups num_return_sequences penalty_alpha dola_layers guidance_scale watermarking_config
    renormalize_logits remove_invalid_values token_healing"""
OF_THE_MODEL = """suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id bad_words_ids
    force_words_ids constraints sequence_bias stop_strings"""  # no setting of a run is equivalent
KNOWN = {"eos_token_id", *IDS, *" ".join((RUNNING, SAMPLING, OF_THE_MODEL)).split()}  # of generation_config.json

log = logging.getLogger(__name__)


def extra(named: Mapping[str, Any]) -> list[Any]:
    """Special tokens without a fixed role, under any of the names that transformers has used for them."""
    given = named.get(EXTRA[0]) or named.get(EXTRA[1]) or []
    specific = (named.get(EXTRA[2]) or {}).values()
    own = [value for name, value in named.items() if _is_own(name, value)]
    return [*(given.values() if isinstance(given, dict) else given), *specific, *own]


def check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Raises TokenizerError naming a field of tokenizer_config.json that is unknown or not supported."""
    for name, value in settings.items():
        if name in FIXED and value not in FIXED[name]:
            raise TokenizerError(f"{file}: {name}={value!r} is not supported, expected {FIXED[name][0]!r}")
        if name not in READ | NO_PART | FIXED.keys() and not _is_own(name, value):
            _refuse_unknown(file, name, value)


def check_specials(file: Path, named: Mapping[str, Any]) -> None:
    """Raises TokenizerError naming an unknown field of special_tokens_map.json."""
    for name, value in named.items():
        if name not in NAMES + EXTRA and not _is_own(name, value):
            _refuse_unknown(file, name, value)


def check_generation(file: Path, fields: Mapping[str, Any], codec: Codec) -> None:
    """Logs the sampling settings that are ignored. Raises TokenizerError naming a field of generation_config.json that
    is unknown, or that restricts or forces the tokens that the model generates."""
    for name, value in fields.items():
        if name in OF_THE_MODEL.split() and value not in EMPTY:
            if name == "suppress_tokens" and isinstance(value, list) and all(_has_no_piece(i, codec) for i in value):
                continue  # never predicted here either
            raise TokenizerError(
                f"{file}: {name}={value!r} is not supported, and without it the model generates different text. "
                "Remove it from the file to ignore it"
                + (", and list the ids that end a text in eos_token_id" if name == "stop_strings" else "")
            )
        if name not in KNOWN:
            _refuse_unknown(file, name, value)
    ignored = [f"{name}={fields[name]}" for name in SAMPLING.split() if fields.get(name) is not None]
    if ignored:
        log.info("%s: ignoring %s: the run's own sampling settings apply", file, ", ".join(ignored))


def _is_own(name: str, value: Any) -> bool:
    """Whether a field is a special token specific to the model, such as image_token."""
    return name.endswith("_token") and name not in NAMES and isinstance(value, str | dict)


def _has_no_piece(token_id: Any, codec: Codec) -> bool:
    known = isinstance(token_id, int) and token_id >= 0
    return known and (token_id >= len(codec.tokens) or not codec.tokens[token_id])


def _refuse_unknown(file: Path, name: str, value: Any) -> None:
    if value not in EMPTY:
        raise TokenizerError(
            f"{file}: {name}={value!r} is unknown, so it could change the ids of a text; if it does not, remove it"
        )
