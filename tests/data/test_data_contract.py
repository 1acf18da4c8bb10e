"""What is read of a data module is declared, with defaults, so nothing asks a module whether it has an attribute."""

import pytest
from lightning import LightningDataModule

from components.data.chat import ChatData
from components.data.data_contract import NO_DATA, DataContract, data_of
from components.data.preference import PreferenceData
from components.data.prompts import PromptsData
from components.data.text import TextData
from components.world.table_world import TableWorld
from components.world.world import World
from tests.kit.tiny_stages import PROMPTS, attached, fit_prompts, ppo, trainer


@pytest.mark.parametrize("kind", [TextData, ChatData, PreferenceData, PromptsData])
def test_every_data_module_declares_what_is_read_of_it(kind):
    assert issubclass(kind, DataContract)


def test_prompts_say_how_they_are_asked_and_other_data_say_that_they_are_not(common):
    prompts, chat = PromptsData(prompts_per_rollout=3, max_prompt=5, **common), ChatData(**common)
    assert (prompts.prompts_per_rollout, prompts.max_prompt, prompts.pretraining) == (3, 5, None)
    assert (chat.prompts_per_rollout, chat.max_prompt, chat.pretraining) == (None, None, None)
    assert chat.judge_responses([{}], [[1]], [True]) == {} and list(chat.demonstration_batches()) == []


def test_a_trainer_with_loaders_only_has_no_data():
    stage = attached(ppo())
    assert data_of(stage.trainer) is NO_DATA and stage.data is NO_DATA
    assert stage.sample_texts() == []
    fit_prompts(ppo(), 1, prompts=PROMPTS)  # without a judge or text


def test_a_data_module_that_declares_nothing_is_refused_in_one_sentence():
    run = trainer(max_steps=1)
    run.datamodule = LightningDataModule()
    with pytest.raises(ValueError, match="data: got LightningDataModule, expected one of components.data, or a module"):
        data_of(run)


def test_either_world_says_what_of_its_judgments_is_averaged():
    world, table = World(), TableWorld()
    asked, rows = world.questions("train")[0], table.rewards["A"]
    assert world.judge(asked.text, world.statement(asked), True).metrics() == {
        "gold": 1.0,
        "correct": True,
        "wrong_name": False,
    }
    best = max(rows, key=rows.__getitem__)
    assert table.judge("A", best, True).metrics() == {"gold": rows[best], "correct": True}
