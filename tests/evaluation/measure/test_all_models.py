import json

import pytest
import torch

from components.data.batches import LMBatch, PreferenceBatch
from components.evaluation.measure import all_models as module
from components.evaluation.measure.all_models import Material, evaluate_pipeline
from components.evaluation.measure.bits import bits_per_byte
from components.evaluation.measure.policy import SamplePlan
from components.models.attention.layout import pack

ALWAYS = {
    "finished",
    "length",
    "entropy_per_token",
    "sequence_entropy",
    "sequence_entropy_mc",
    "kl",
    "distinct",
    "samples",
}
JUDGED = {
    "gold",
    "gold_ci",
    "correct",
    "polite",
    "correct_polite",
    "rude",
    "hedge",
    "filler",
    "words",
    "gold_train",
    "correct_train",
    "wrong_name",
    "wrong_name_train",
    "greedy_correct",
    "greedy_correct_train",
}
SCORED = {"score", "score_ci", "score_train"}
TRAINED = {"kl_train", "bits_per_byte"}
COMPARED = {"win_rate", "win_rate_ci"}


def rankings(tokenizer):
    packed = pack([[[2, 300], [301, 4], [302, 303, 4]], [[2, 310], [311, 4], [312, 4]]], row_length=64, filler=0)
    spans = [span for document in packed.spans for span in document[1:]]
    return [
        PreferenceBatch.of(
            input_ids=packed.input_ids,
            layout=packed.layout,
            last=torch.tensor([start + length - 1 for start, length in spans]),
            prompt_last=torch.tensor([sum(document[0]) - 1 for document in packed.spans for _ in document[1:]]),
            groups=torch.tensor([0, 0, 1, 1]),
            ranks=torch.tensor([0.0, 1.0, 1.0, 0.0]),
            lengths=torch.tensor([n for _, n in spans]),
            finished=torch.ones(4, dtype=torch.bool),
        )
    ]


def text_batch(tokenizer):
    packed = pack([[tokenizer.document("fev is red .")]], row_length=64, filler=tokenizer.pad_id)
    targets = packed.input_ids.roll(-1, dims=1)
    mask = packed.layout.real.clone()
    mask[:, -1] = False
    num_bytes = torch.tensor(tokenizer.byte_lengths)[targets[mask]].sum()
    return LMBatch.of(packed.input_ids, targets, mask, packed.layout, num_bytes)


@pytest.fixture
def evaluate(new_model, reward, world, tokenizer, chat_prompts):
    def run(seed=0, best_of=8, models=None, reward=reward, proxy=None, world=world, **changes):
        material = {
            "prompts": chat_prompts("held_out"),
            "train_prompts": chat_prompts("train"),
            "seen": rankings(tokenizer),
            "heldout": rankings(tokenizer),
            "text": [text_batch(tokenizer)],
        }
        models = models or {"base": new_model(0), "sft": new_model(1), "ppo": new_model(2)}
        return evaluate_pipeline(
            models,
            tokenizer,
            reward=reward,
            proxy=proxy,
            world=world,
            material=Material(**(material | changes)),
            plan=SamplePlan(samples_per_prompt=4, max_new_tokens=6, seed=seed),
            best_of=best_of,
        )

    return run


def test_a_world_run_has_every_metric_and_is_plain_json(evaluate):
    results = evaluate()
    assert set(results) == {
        "seed",
        "sampling",
        "models",
        "crowd",
        "base",
        "best_of_n",
        "best_of_n_train",
        "majority",
        "choice",
        "reward_model",
    }
    assert list(results["models"]) == ["base", "sft", "ppo"]
    for metrics in results["models"].values():
        assert set(metrics) == ALWAYS | JUDGED | SCORED | COMPARED | TRAINED
        low, high = metrics["gold_ci"] or (metrics["gold"], metrics["gold"])  # None if all questions agree
        assert low <= metrics["gold"] <= high
        assert metrics["score_ci"][0] <= metrics["score"] <= metrics["score_ci"][1]
    assert set(results["base"]) == {"answers_bare", "asks_another", "few_shot", "shots"}
    ranked = {
        "accuracy",
        "accuracy_ci",
        "pairs",
        "prompts",
        "ece",
        "margin",
        "score_length_correlation",
        "accuracy_length_matched",
        "accuracy_length_matched_ci",
        "pairs_length_matched",
        "longer_wins",
        "longer_wins_ci",
        "over_longer",
        "over_longer_ci",
        "reliability",
    }
    ranked |= {"name_accuracy", "name_accuracy_ci"}
    assert set(results["reward_model"]) == ranked | {f"{key}_heldout" for key in ranked}
    assert results["sampling"] == {
        "prompts": 6,
        "samples_per_prompt": 4,
        "train_prompts": 12,
        "train_samples_per_prompt": 1,
        "max_new_tokens": 6,
        "best_of": 8,
    }
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_kl_is_to_sft_and_the_base_model_has_none(evaluate):
    models = evaluate()["models"]
    assert models["base"]["kl"] is None
    assert models["sft"]["kl"] == 0
    assert models["ppo"]["kl"] > 0
    assert (models["base"]["kl_train"], models["sft"]["kl_train"]) == (None, 0) and models["ppo"]["kl_train"] > 0


def test_the_seed_decides_every_metric(evaluate):
    assert evaluate() == evaluate()
    assert evaluate(seed=1) != evaluate()


def test_the_base_model_continues_the_bare_question_and_others_answer_the_chat_prompt(
    evaluate, new_model, tokenizer, monkeypatch
):
    seen = []
    respond = module.respond

    def watched(model, tokenizer, prompts, plan, **options):
        seen.append(prompts)
        return respond(model, tokenizer, prompts, plan, **options)

    monkeypatch.setattr(module, "respond", watched)
    prompt = {"prompt": "who ?", "ids": tokenizer.render_prompt([{"role": "user", "content": "who ?"}])}
    models = {"base": new_model(0), "sft": new_model(1)}
    evaluate(models=models, world=None, prompts=[prompt], train_prompts=[], best_of=0)
    bare = [tokenizer.bos_id, *tokenizer.encode("who ?")]
    assert seen == [[bare], [bare], [prompt["ids"]], [prompt["ids"]]]  # sampled, then the likeliest


def test_the_base_models_prompt_is_cut_where_the_chat_prompt_was(tokenizer):
    cut = {"prompt": "one two three four five", "ids": [tokenizer.bos_id, 9, 9, 9]}
    [ids] = module.inputs("base", tokenizer, [cut])
    assert ids == [tokenizer.bos_id, *tokenizer.encode(cut["prompt"])[-3:]]


def test_users_own_prompts_have_a_score_and_no_gold(evaluate, tokenizer):
    messages = [{"role": "user", "content": "hello"}]
    prompts = [{"prompt": messages, "ids": tokenizer.render_prompt(messages)}] * 2
    results = evaluate(world=None, prompts=prompts, train_prompts=[], seen=None, text=())
    assert not {"base", "majority", "choice", "best_of_n_train"} & set(results)
    assert set(results["best_of_n"]) == {"n", "kl", "score"}
    for metrics in results["models"].values():
        assert set(metrics) == ALWAYS | SCORED - {"score_train"} | COMPARED
        assert set(metrics["samples"][0]) == {
            "prompt",
            "reference",
            "greedy",
            "greedy_finished",
            "sampled",
            "sampled_finished",
        }
    assert results["models"]["sft"]["samples"][0]["prompt"] == "hello"
    assert results["reward_model"].keys() >= {"accuracy_heldout"} and "accuracy" not in results["reward_model"]


def test_users_own_prompts_are_compared_with_sft_and_with_their_references_as_sampled_and_as_likeliest(
    evaluate, tokenizer, reward
):
    asked = [[{"role": "user", "content": text}] for text in ("hello", "who ?")]
    prompts = [{"prompt": messages, "ids": tokenizer.render_prompt(messages)} for messages in asked]
    prompts[1]["reference"] = "fev is red ."
    own = {"world": None, "prompts": prompts, "train_prompts": [], "seen": None, "text": (), "best_of": 0}
    results = evaluate(**own, proxy=reward)
    against, shown = results["against"], results["demonstrations"]
    assert {name: list(modes) for name, modes in against.items()} == {
        "demonstrations": ["sampled", "greedy"],
        "sft": ["sampled", "greedy"],
    }
    assert list(against["sft"]["greedy"]) == ["ppo"] and list(against["demonstrations"]["greedy"]) == ["sft", "ppo"]
    assert against["sft"]["sampled"]["ppo"]["win_rate"] == results["models"]["ppo"]["win_rate"]
    assert [against["sft"][how]["ppo"]["pairs"] for how in ("sampled", "greedy")] == [2 * 4 * 4, 2]
    assert against["demonstrations"]["sampled"]["ppo"]["pairs"] == 4
    assert (shown["length"], shown["prompts"]) == (len(tokenizer.answer("fev is red .")), 1)
    assert shown["score"] == shown["proxy_score"]  # here both reward models are the same
    assert results["models"]["ppo"]["proxy_score"] == results["models"]["ppo"]["score"]
    assert results["proxy"] == results["reward_model"]
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_without_a_reward_model_there_is_no_score(evaluate):
    results = evaluate(reward=None)
    assert not {"reward_model", "best_of_n", "choice"} & set(results)
    assert results["majority"]["k"] == [1, 3, 5]
    assert not SCORED & set(results["models"]["ppo"])


def test_one_question_has_no_interval(evaluate, chat_prompts):
    results = evaluate(prompts=chat_prompts("held_out")[:1])
    assert results["models"]["ppo"]["gold_ci"] is None


def test_samples_show_the_likeliest_answer_and_a_sampled_one_with_their_gold_scores(evaluate, world):
    for sample in evaluate()["models"]["ppo"]["samples"]:
        assert world.find(sample["prompt"]).answer == sample["reference"]
        for kind in ("greedy", "sampled"):
            judged = world.judge(sample["prompt"], sample[kind], sample[f"{kind}_finished"])
            assert sample[f"{kind}_gold"] == judged.gold


def test_sft_wins_half_against_itself_and_others_are_compared_with_it(evaluate):
    models = evaluate()["models"]
    assert (models["sft"]["win_rate"], models["sft"]["win_rate_ci"]) == (0.5, None)
    low, high = models["ppo"]["win_rate_ci"]
    assert 0 <= low <= models["ppo"]["win_rate"] <= high <= 1


def test_without_sft_nothing_is_compared_and_nothing_sampled_many_times(evaluate, new_model):
    results = evaluate(models={"ppo": new_model(2)})
    assert not COMPARED & set(results["models"]["ppo"])
    assert not {"best_of_n", "majority"} & set(results)


def test_the_best_of_16_is_among_the_models_with_the_metrics_that_it_has(evaluate):
    results = evaluate(best_of=64)
    row = results["models"]["best-of-16"]
    assert list(results["models"]) == ["base", "sft", "ppo", "best-of-16"]
    assert set(row) == set(results["models"]["sft"]) - {"samples"}
    known = {name for name, value in row.items() if value is not None}
    assert known == JUDGED - {"greedy_correct", "greedy_correct_train", "wrong_name_train"} | SCORED | COMPARED | {
        "finished",
        "length",
        "kl",
        "kl_train",
    }
    place = results["best_of_n"]["n"].index(16)
    assert row["gold"] == results["best_of_n"]["gold"][place]
    assert row["gold_ci"] == results["best_of_n"]["gold_ci"][place]
    assert row["gold_train"] == results["best_of_n_train"]["gold"][place]
    assert row["kl"] == pytest.approx(1.835089, abs=1e-6)
    assert row["score"] > results["best_of_n"]["score"][0]


def test_the_likeliest_answer_to_every_question_is_judged(evaluate, monkeypatch):
    judged = []

    def half(assessed):
        judged.append(len(assessed.judgments))
        return 0.5

    monkeypatch.setattr(module, "correct_share", half)
    metrics = evaluate()["models"]["ppo"]
    assert judged == [6, 12] * 3  # held-out and training questions, once each, of three models
    assert (metrics["greedy_correct"], metrics["greedy_correct_train"]) == (0.5, 0.5)


def test_bits_per_byte_are_those_of_the_text_read_alone(new_model, tokenizer):
    model, document = new_model(0), tokenizer.document("fev is red .")
    logprobs = model(torch.tensor([document]))[0].detach().double().log_softmax(-1)
    nats = -sum(float(row[token]) for row, token in zip(logprobs, document[1:], strict=False))
    num_bytes = sum(tokenizer.byte_lengths[token] for token in document[1:])
    found = bits_per_byte(model, [text_batch(tokenizer)] * 2)
    assert found == pytest.approx(nats / 0.6931471805599453 / num_bytes, rel=1e-5)


def test_text_without_anything_to_predict_is_refused(new_model):
    with pytest.raises(ValueError, match="found none in any batch"):
        bits_per_byte(new_model(0), [])


def test_nothing_to_evaluate_is_refused(evaluate):
    with pytest.raises(ValueError, match="got 3 and 0"):
        evaluate(prompts=[])
