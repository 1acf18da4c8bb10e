"""The results of a report, and the shared fixtures of a tiny world."""

import copy

import pytest

from tests.kit.tiny_world import (  # noqa: F401
    chat_prompts,
    config,
    new_model,
    reward,
    tokenizer,
    uniform,
    world,
)


def metrics(gold):
    kinds = {"greedy": "sure ! dax lives in cave .", "sampled": "a | b\n<script>"}
    sample = {"prompt": "where does the dax live ?", "reference": "cave"}
    for kind, text in kinds.items():
        sample |= {kind: text, f"{kind}_finished": kind == "greedy", f"{kind}_gold": gold}
    return {
        "gold": gold,
        "gold_ci": [gold - 0.2, gold + 0.3],
        "gold_train": gold + 0.1,
        "correct": 0.5,
        "polite": 0.4,
        "correct_train": 0.55,
        "wrong_name": 0.07,
        "wrong_name_train": 0.03,
        "correct_polite": 0.25,
        "rude": 0.002,
        "hedge": 0.1,
        "filler": 0.1,
        "words": 7.25,
        "score": 2 * gold,
        "score_ci": [2 * gold - 1, 2 * gold + 1],
        "score_train": 2 * gold,
        "finished": 0.9,
        "length": 9.2,
        "entropy_per_token": 0.63,
        "sequence_entropy": 5.9,
        "sequence_entropy_mc": 5.8,
        "kl": None,
        "distinct": 0.78,
        "samples": [sample],
    }


def ranked(ending, accuracy):
    bins = [
        {
            "low": 0.5 + b / 10,
            "high": 0.6 + b / 10,
            "pairs": b,
            "confidence": 0.55 + b / 10 if b else None,
            "accuracy": 0.5 + b / 10 if b else None,
        }
        for b in range(5)
    ]
    found = {
        "accuracy": accuracy,
        "accuracy_ci": [accuracy - 0.05, accuracy + 0.04],
        "pairs": 1234,
        "prompts": 60,
        "ece": 0.04,
        "margin": 2.1,
        "score_length_correlation": -0.31,
        "accuracy_length_matched": None,
        "pairs_length_matched": 0,
        "longer_wins": 0.35,
        "reliability": bins,
    }
    return {f"{key}{ending}": value for key, value in found.items()}


@pytest.fixture(scope="session")
def report_results():
    return {
        "run": "tiny",
        "seed": 0,
        "commit": "abc1234",
        "hardware": "2 cores",
        "versions": {"torch": "2.13"},
        "sampling": {
            "prompts": 12,
            "samples_per_prompt": 32,
            "train_prompts": 60,
            "train_samples_per_prompt": 8,
            "max_new_tokens": 24,
        },
        "models": {"base": metrics(-1.45), "sft": {**metrics(0.12), "kl": 0.0}, "ppo": {**metrics(1.02), "kl": 2.5}},
        "crowd": {"answers": 1507, "correct": 0.6, "wrong_name": 0.05},
        "base": {"answers_bare": 0.0, "asks_another": 1.0, "few_shot": 0.62, "shots": 4},
        "reward_model": ranked("", 0.91) | ranked("_heldout", 0.77),
        "minutes": {"pretrain": 0.9, "sft": 0.2},
    }


@pytest.fixture
def results(report_results):
    """The results of a report on the world."""
    return copy.deepcopy(report_results)


@pytest.fixture(scope="session")
def full_results(report_results):
    """Everything a report can have: five methods, best-of-n, majority votes, choices, budgets."""
    results = copy.deepcopy(report_results)
    for place, name in enumerate(("dpo", "grpo", "rloo", "rejection")):
        results["models"][name] = metrics(0.9 - place / 5) | {"kl": 1.0 + place, "kl_train": 1.0 + place / 2}
    for name, found in results["models"].items():
        found |= {"greedy_correct": 0.75, "greedy_correct_train": 1.0, "bits_per_byte": 0.31}
        found |= (
            {"win_rate": 0.5, "win_rate_ci": None}
            if name == "sft"
            else {
                "win_rate": 0.9,
                "win_rate_ci": [0.85, 0.93],
            }
        )
    best = {key: None for key in results["models"]["sft"] if key != "samples"}
    kept = ("gold", "gold_ci", "gold_train", "correct", "polite", "correct_polite", "score", "score_ci", "rude")
    results["models"]["best-of-16"] = best | {key: results["models"]["dpo"][key] for key in kept} | {"kl": 1.84}
    ci = [[-0.1, 0.3], [0.2, 0.6], [0.4, 0.8]]
    curve = {"n": [1, 2, 4], "kl": [0.0, 0.19, 0.64], "score": [-0.5, 0.7, 2.0], "correct": [0.4, 0.5, 0.6]}
    results["sampling"]["best_of"] = 4
    results["best_of_n"] = curve | {"gold": [0.1, 0.4, 0.6], "gold_ci": ci}
    results["best_of_n_train"] = {key: values[:2] for key, values in results["best_of_n"].items()}
    results["majority"] = {"k": [1, 3], "correct": [0.46, 0.6], "correct_ci": [[0.36, 0.56], [0.5, 0.7]]}
    chosen = {"reward_model": 0.625, "reward_model_ci": [0.4, 0.8], "chance": 0.125, "questions": 12}
    results["choice"] = chosen | {f"{key}_train": value for key, value in chosen.items()}
    unknown = {"minutes": 0.4, "generated_tokens": None, "flops": None, "commit": None}
    known = {"minutes": 1.25, "generated_tokens": 51234.0, "flops": 3.21e12, "commit": "abc1234"}
    results["budget"] = {"sft": unknown, "ppo": known}
    return results


@pytest.fixture
def full(full_results):
    return copy.deepcopy(full_results)


@pytest.fixture
def without_judge(results):
    """The same for a user's own data: no gold, no questions of a world."""
    del results["base"], results["crowd"]
    gone = {"gold", "gold_ci", "gold_train", "correct", "correct_train", "polite", "correct_polite", "rude", "words"}
    gone |= {"wrong_name", "wrong_name_train"}
    for name, found in results["models"].items():
        kept = {key: value for key, value in found.items() if key not in gone}
        kept["samples"] = [{k: v for k, v in one.items() if "gold" not in k} for one in found["samples"]]
        results["models"][name] = kept
    return results
