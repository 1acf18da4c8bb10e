"""stage=eval on the built-in world, of untrained models."""

import json

from omegaconf import open_dict

from components.artifacts import store
from components.launch.schema import check
from components.tasks import dispatch
from tests.kit.composed_configs import compose_config
from tests.kit.tiny_models import random_model


def test_before_there_is_a_reward_model_the_others_are_measured_without_it(small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ("pretrain", "sft"):
        model = random_model(small_tokenizer.vocab_size)
        store.write_artifact(f"logs/x/{stage}/export", card={"stage": stage}, tokenizer=small_tokenizer, model=model)
    few = ["stage.samples_per_prompt=2", "stage.max_prompts=2", "stage.best_of=4", "stage.max_new_tokens=4"]
    small = ["world.num_names=9", "text.num_documents=100", "run=x", "trainer=cpu"]
    cfg = compose_config(["stage=eval", "reads.tokenizer=logs/x/sft/export", "context=64", *few, *small])
    with open_dict(cfg):
        del cfg.reads.reward, cfg.reads.ppo  # ~reads.reward ~reads.ppo
    check(cfg)
    dispatch.run(cfg)
    results = json.loads((tmp_path / "logs/x/report/report.json").read_text())
    assert list(results["models"]) == ["base", "sft"]
    assert not {"reward_model", "best_of_n", "choice"} & results.keys()
    assert results["models"]["sft"]["gold"] < 0 and results["models"]["sft"].get("score") is None
