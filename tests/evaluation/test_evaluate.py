import json

import pytest
import torch

from components.data.batches import PreferenceBatch
from components.evaluation import evaluate as module
from components.evaluation.evaluate import evaluate_pipeline
from components.models.layout import pack

ALWAYS = {
    "finished", "length", "entropy_per_token", "sequence_entropy", "sequence_entropy_mc", "kl", "distinct", "samples",
}  # fmt: skip
JUDGED = {
    "gold", "gold_ci", "correct", "polite", "correct_polite", "rude", "hedge", "filler", "words", "gold_train",
    "correct_train",
}  # fmt: skip
SCORED = {"score", "score_ci", "score_train"}


def rankings(tokenizer):
    packed = pack([[[2, 300], [301, 4], [302, 303, 4]], [[2, 310], [311, 4], [312, 4]]], row_length=64, filler=0)
    spans = [span for document in packed.spans for span in document[1:]]
    return [PreferenceBatch(
        packed.input_ids, packed.layout, torch.tensor([start + length - 1 for start, length in spans]),
        torch.tensor([sum(document[0]) - 1 for document in packed.spans for _ in document[1:]]),
        torch.tensor([0, 0, 1, 1]), torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([n for _, n in spans]),
        torch.ones(4, dtype=torch.bool),
    )]  # fmt: skip


@pytest.fixture
def evaluate(new_model, reward, world, tokenizer, chat_prompts):
    def run(**changes):
        settings = {
            "models": {"base": new_model(0), "sft": new_model(1), "ppo": new_model(2)},
            "tokenizer": tokenizer, "reward": reward, "world": world, "prompts": chat_prompts("held_out"),
            "train_prompts": chat_prompts("train"), "seen": rankings(tokenizer), "heldout": rankings(tokenizer),
            "samples_per_prompt": 4, "max_new_tokens": 6, "seed": 0,
        }  # fmt: skip
        return evaluate_pipeline(**(settings | changes))

    return run


def test_a_world_run_has_every_figure_and_is_plain_json(evaluate):
    results = evaluate()
    assert set(results) == {"seed", "sampling", "models", "base", "reward_model"}
    assert list(results["models"]) == ["base", "sft", "ppo"]
    for figures in results["models"].values():
        assert set(figures) == ALWAYS | JUDGED | SCORED
        assert figures["gold_ci"][0] <= figures["gold"] <= figures["gold_ci"][1]
        assert figures["score_ci"][0] <= figures["score"] <= figures["score_ci"][1]
    assert set(results["base"]) == {"answers_bare", "asks_another", "few_shot", "shots"}
    ranked = {
        "accuracy", "accuracy_ci", "pairs", "prompts", "ece", "margin", "score_length_correlation",
        "accuracy_length_matched", "pairs_length_matched", "longer_wins", "reliability",
    }  # fmt: skip
    assert set(results["reward_model"]) == ranked | {f"{key}_heldout" for key in ranked}
    assert results["sampling"] == {
        "prompts": 3, "samples_per_prompt": 4, "train_prompts": 15, "train_samples_per_prompt": 1, "max_new_tokens": 6,
    }  # fmt: skip
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_kl_is_to_sft_and_the_base_model_has_none(evaluate):
    models = evaluate()["models"]
    assert models["base"]["kl"] is None
    assert models["sft"]["kl"] == 0
    assert models["ppo"]["kl"] > 0


def test_the_seed_decides_every_figure(evaluate):
    assert evaluate() == evaluate()
    assert evaluate(seed=1) != evaluate()


def test_the_base_model_goes_on_from_the_bare_question_and_others_answer_the_chat_prompt(
    evaluate, new_model, tokenizer, monkeypatch
):
    seen = []
    respond = module.respond

    def watched(model, tokenizer, prompts, plan, **options):
        seen.append(prompts)
        return respond(model, tokenizer, prompts, plan, **options)

    monkeypatch.setattr(module, "respond", watched)
    prompt = {"prompt": "who ?", "ids": tokenizer.render_prompt([{"role": "user", "content": "who ?"}])}
    evaluate(models={"base": new_model(0), "sft": new_model(1)}, world=None, prompts=[prompt], train_prompts=[])
    bare = [tokenizer.bos_id, *tokenizer.encode("who ?")]
    assert seen == [[bare], [bare], [prompt["ids"]], [prompt["ids"]]]  # drawn, then the likeliest


def test_the_base_models_prompt_is_cut_where_the_chat_prompt_was(tokenizer):
    cut = {"prompt": "one two three four five", "ids": [tokenizer.bos_id, 9, 9, 9]}
    [ids] = module.inputs("base", tokenizer, [cut])
    assert ids == [tokenizer.bos_id, *tokenizer.encode(cut["prompt"])[-3:]]


def test_users_own_prompts_have_a_score_and_no_gold(evaluate, tokenizer):
    messages = [{"role": "user", "content": "hello"}]
    prompts = [{"prompt": messages, "ids": tokenizer.render_prompt(messages)}] * 2
    results = evaluate(world=None, prompts=prompts, train_prompts=[], seen=None)
    assert "base" not in results
    for figures in results["models"].values():
        assert set(figures) == ALWAYS | SCORED - {"score_train"}
        assert set(figures["samples"][0]) == {
            "prompt", "reference", "greedy", "greedy_finished", "sampled", "sampled_finished",
        }  # fmt: skip
    assert results["models"]["sft"]["samples"][0]["prompt"] == "hello"
    assert results["reward_model"].keys() >= {"accuracy_heldout"} and "accuracy" not in results["reward_model"]


def test_without_a_reward_model_there_is_no_score(evaluate):
    results = evaluate(reward=None)
    assert "reward_model" not in results
    assert not SCORED & set(results["models"]["ppo"])


def test_one_question_has_no_interval(evaluate, chat_prompts):
    results = evaluate(prompts=chat_prompts("held_out")[:1])
    assert results["models"]["ppo"]["gold_ci"] is None


def test_samples_show_the_likeliest_answer_and_a_drawn_one_with_their_gold_score(evaluate, world):
    for sample in evaluate()["models"]["ppo"]["samples"]:
        assert world.find(sample["prompt"]).answer == sample["reference"]
        for kind in ("greedy", "sampled"):
            judged = world.judge(sample["prompt"], sample[kind], sample[f"{kind}_finished"])
            assert sample[f"{kind}_gold"] == judged.gold


def test_nothing_to_evaluate_is_refused(evaluate):
    with pytest.raises(ValueError, match="got 3 and 0"):
        evaluate(prompts=[])
