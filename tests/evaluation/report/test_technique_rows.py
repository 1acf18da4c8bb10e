"""Rows and the picture of techniques: by task if the prompts have tasks, else all prompts together."""

from components.evaluation.report import plots_techniques
from components.evaluation.report.technique_rows import TechniqueRow, rows_of

LOW, HIGH = ({"score": score, "score_ci": None, "read": 8, "sampled": 4 + 40 * score} for score in (0.25, 0.75))


def test_without_tasks_a_technique_is_a_row():
    models = {"sft": {"one sample": LOW, "votes": HIGH}, "ppo": {"one sample": HIGH}}
    assert list(rows_of(models)) == [
        TechniqueRow("sft", "", "one sample", LOW),
        TechniqueRow("sft", "", "votes", HIGH),
        TechniqueRow("ppo", "", "one sample", HIGH),
    ]


def test_with_tasks_a_technique_has_a_row_in_each_that_it_was_measured_on():
    every = {**HIGH, "tasks": {"sums": LOW, "facts": HIGH}}
    models = {"sft": {"one sample": every, "format": {**LOW, "tasks": {"facts": LOW}}}}
    assert list(rows_of(models)) == [
        TechniqueRow("sft", "sums", "one sample", LOW),
        TechniqueRow("sft", "facts", "one sample", HIGH),
        TechniqueRow("sft", "facts", "format", LOW),
    ]


def test_the_picture_has_a_panel_for_each_task():
    tasks = {"sums": LOW, "facts": HIGH, "rare": HIGH}
    figure = plots_techniques.draw({"sft": {"one sample": {**LOW, "tasks": tasks}}})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Score, sums", "Score, facts", "Score, rare"]
    (axes,) = plots_techniques.draw({"sft": {"one sample": LOW, "votes": HIGH}}).axes
    (points,) = (line for line in axes.lines if line.get_marker() == "o")
    assert list(points.get_xdata()) == [8 + 14, 8 + 34] and list(points.get_ydata()) == [0.25, 0.75]
