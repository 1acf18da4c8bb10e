"""Which techniques are measured on which prompts, and their figures by task."""

import pytest
import torch

pytest.importorskip("bm25s")

from components.prompting.best_of import Scored
from components.prompting.few_shot import FewShot
from components.prompting.retrieval import Retrieval
from components.prompting.technique import Answer, Answers, Tokens
from components.prompting.tool_use import ToolUse
from components.tasks.technique_scores import by_task, chosen_techniques
from components.world.exercises import Exercises
from tests.kit.composed_configs import compose_config


def chosen(techniques: str, world: str = "exercises"):
    cfg = compose_config(["stage=eval", f"world={world}", f"stage.techniques={techniques}"])
    return chosen_techniques(cfg, lambda name: lambda messages, answers: Scored([0.0] * len(answers)))


def test_an_entry_is_a_list_or_names_the_tasks_that_it_is_for():
    made = chosen("{all: [{name: self_consistency}], some: {tasks: [sums], techniques: [{name: reflection}]}}")
    assert made["all"].tasks is None and made["some"].tasks == ["sums"]
    assert [type(entry.techniques[0]).__name__ for entry in made.values()] == ["SelfConsistency", "Reflection"]


def test_documents_and_examples_can_be_the_worlds():
    lookup = "{name: lookup, documents: world}"
    made = chosen(
        f"{{read: [{{name: retrieval, documents: world}}], call: [{{name: tool_use, tools: [{lookup}]}}],"
        "shots: [{name: few_shot, examples: world}]}"
    )
    (read,), (call,), (shots,) = (entry.techniques for entry in made.values())
    world = Exercises()
    assert isinstance(read, Retrieval) and list(read.documents) == world.encyclopedia()
    assert isinstance(call, ToolUse) and world.rare[0].name in call.tools[0].result({"text": world.rare[0].name})
    assert isinstance(shots, FewShot) and list(shots.examples) == world.examples()


def test_what_an_entry_cannot_be_is_said_with_its_name():
    for entry in ("{tasks: [sums], kind: none}", "{tasks: sums, techniques: []}"):
        with pytest.raises(ValueError, match="x: expected a list, or {tasks: .*}, got {'tasks': "):
            chosen(f"{{x: {entry}}}")
    with pytest.raises(ValueError, match="x: documents: world: expected world=exercises, got world.kind facts"):
        chosen("{x: [{name: retrieval, documents: world}]}", "facts")


def test_figures_are_divided_by_task():
    """Right: 1, 0, 1, 1 with the technique and 0, 0, 1, 0 without, of which the first two are sums."""
    totals, alone = torch.tensor([1.0, 0, 1, 1]).double(), torch.tensor([0.0, 0, 1, 0]).double()
    made = [Answers([Answer("")], Tokens(read, 2 * read)) for read in (2, 4, 6, 8)]
    figures = by_task(totals, made, alone, ["sums", "sums", "facts", "facts"])
    assert (figures["score"], figures["gain"], figures["read"], figures["sampled"]) == (0.75, 0.5, 5, 10)
    sums, facts = figures["tasks"]["sums"], figures["tasks"]["facts"]
    assert (sums["score"], sums["gain"], sums["read"]) == (0.5, 0.5, 3)
    assert (facts["score"], facts["gain"], facts["sampled"]) == (1, 0.5, 14)
    assert "gain" not in by_task(totals, made, None, [""] * 4) and "tasks" not in by_task(totals, made, None, [""] * 4)
