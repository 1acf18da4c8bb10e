"""Exports opened by other programs, from another folder than the one they were made in."""

import shutil
import warnings

import pytest
import torch

from components.artifacts.store import load_causal_lm, read_card, write_artifact
from components.models.lora import LoRA
from tests.kit import tiny_models

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        return pytest.importorskip("transformers")


TALK = [{"role": "user", "content": "where does anna live?"}, {"role": "assistant", "content": "in paris."}]


@torch.no_grad()
def test_a_pipeline_scores_the_text_of_a_chat_as_it_is_scored_here(
    transformers, tmp_path, small_tokenizer, monkeypatch
):
    model = tiny_models.random_scalar(small_tokenizer.vocab_size)
    write_artifact(tmp_path / "made/export", card={"stage": "rm"}, tokenizer=small_tokenizer, model=model)
    moved = shutil.move(tmp_path / "made/export", tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "made")
    pipe = transformers.pipeline("text-classification", model=str(moved), device="cpu")
    text = pipe.tokenizer.apply_chat_template(TALK, tokenize=False)
    ids = small_tokenizer.render(TALK).ids
    assert pipe.tokenizer(text)["input_ids"] == ids  # the template's bos, without a second one
    [scored] = pipe([text], function_to_apply="none")
    assert scored["score"] == pytest.approx(float(model(torch.tensor([ids]))[0, -1]), abs=1e-5)


def test_a_pipeline_continues_with_a_language_model_that_was_moved(transformers, tmp_path, small_tokenizer):
    model = tiny_models.parrot(small_tokenizer, [small_tokenizer.render_prompt(TALK[:1])[-1], small_tokenizer.end_id])
    write_artifact(tmp_path / "export", card={"stage": "sft"}, tokenizer=small_tokenizer, model=model)
    moved = shutil.copytree(tmp_path / "export", tmp_path / "copy")
    pipe = transformers.pipeline("text-generation", model=str(moved), device="cpu")
    told = pipe(TALK[:1], max_new_tokens=3, do_sample=False)
    assert told[0]["generated_text"][-1]["role"] == "assistant"


@torch.no_grad()
def test_peft_finds_the_base_of_exported_adapters_from_any_folder(transformers, tmp_path, small_tokenizer, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    base = tiny_models.random_model(small_tokenizer.vocab_size)
    write_artifact("base", card={"stage": "sft"}, tokenizer=small_tokenizer, model=base)
    model = load_causal_lm("base")
    model.adapt(LoRA(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "down_proj"]))
    for parameter in model.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    card = {"stage": "dpo", "parents": {"model": {"path": "base", "content": read_card("base")["content"]}}}
    write_artifact("export", card=card, tokenizer=small_tokenizer, model=model)
    shutil.move("export/adapter", tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "elsewhere").eval()
    ids = torch.tensor([small_tokenizer.render_prompt(TALK[:1])])
    torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-5, rtol=1e-5)
