"""Shapes of published data sets, detected by the names of their fields."""

import pytest

from components.data.records import formats
from components.data.records.errors import FormatError
from components.data.records.trees import joined
from components.data.sources.source import Row


def said(*contents: str) -> list[dict]:
    """Messages by user and assistant in turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def turn(speaker: str, value) -> dict:
    return {"from": speaker, "value": value}


def node(role: str, text: str, *replies: dict, rank: int | None = None) -> dict:
    return {"role": role, "text": text, "rank": rank, "replies": list(replies)}


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        ([turn("human", "Hi"), turn("gpt", "Yes")], said("Hi", "Yes")),
        ([turn("gpt", "lost"), turn("human", "Hi"), turn("gpt", "Yes")], said("Hi", "Yes")),
        (
            [turn("system", "Be brief"), turn("human", "Hi"), turn("gpt", "Yes")],
            [{"role": "system", "content": "Be brief"}, *said("Hi", "Yes")],
        ),
        ([turn("user", "Hi"), turn("chatgpt", "Yes"), turn("human", "So?")], said("Hi", "Yes", "So?")),
    ],
)
def test_shared_conversations_become_messages_without_an_answer_that_lost_its_question(turns, messages):
    assert formats.chat({"id": "x_0", "conversations": turns}) == {"messages": messages}


@pytest.mark.parametrize(("context", "asked"), [("1 2", "Add\n\n1 2"), ("", "Add"), (None, "Add")])
def test_an_instruction_can_have_a_context_and_a_response(context, asked):
    row = {"instruction": "Add", "context": context, "response": "3", "category": "maths"}
    assert formats.chat(row) == {"messages": said(asked, "3")}
    assert formats.prompts(row)["prompt"] == said(asked)


def test_the_best_ranked_path_of_a_tree_is_used_without_an_unanswered_question():
    best = node("assistant", "Yes", node("prompter", "So?"), rank=0)
    tree = node("prompter", "Hi", node("assistant", "No", node("prompter", "Why?"), rank=1), best)
    assert formats.chat({"message_tree_id": "t", "prompt": tree}) == {"messages": said("Hi", "Yes")}
    best["replies"][0]["replies"] = [node("assistant", "Done"), node("assistant", "unranked too")]
    assert formats.chat({"message_tree_id": "t", "prompt": tree}) == {"messages": said("Hi", "Yes", "So?", "Done")}


def message(name: str, parent: str | None, role: str, rank: int | None = None, tree: str = "a") -> dict:
    return {"message_id": name, "parent_id": parent, "message_tree_id": tree, "role": role, "text": name, "rank": rank}


def test_rows_of_one_message_are_joined_to_trees_and_others_left_as_they_are():
    rows = [
        message("a", None, "prompter"),
        message("a1", "a", "assistant", 1),
        message("a2", "a", "assistant", 0),
        message("b", None, "prompter", tree="b"),
        message("b1", "b", "assistant", tree="b"),
        {"messages": []},
    ]
    found = list(joined(Row(f"f:{i}", value, i >= 3) for i, value in enumerate(rows)))
    assert [(row.where, row.held_out) for row in found] == [("f:0", False), ("f:3", True), ("f:5", True)]
    assert formats.chat(found[0].value) == {"messages": said("a", "a2")}
    assert formats.chat(found[1].value) == {"messages": said("b", "b1")}
    assert found[2].value == {"messages": []}


def test_a_message_whose_parent_is_missing_is_a_malformed_row():
    (found,) = joined([Row("f:1", message("a", None, "prompter")), Row("f:2", message("x", "gone", "assistant"))])
    assert isinstance(found.value, FormatError) and "parent of message x" in str(found.value)


POST = {"id": "t3_x", "post": "A story.", "title": "Help", "subreddit": "dating", "site": None, "article": None}
ARTICLE = {"id": "x", "post": None, "title": "News", "subreddit": None, "site": "cnn", "article": "It rained."}


@pytest.mark.parametrize(
    ("info", "asked"),
    [
        (POST, "SUBREDDIT: r/dating\n\nTITLE: Help\n\nPOST: A story.\n\nTL;DR:"),
        (ARTICLE, "Title: News\n\nArticle: It rained.\n\nTL;DR:"),
    ],
)
def test_a_choice_between_two_summaries_is_a_comparison_on_what_they_summarize(info, asked):
    summaries = [{"text": " short", "policy": "a"}, {"text": " long", "policy": "b"}]
    row = {"info": info, "summaries": summaries, "choice": 1}
    expected = {"prompt": said(asked), "completions": [" short", " long"], "ranks": [1.0, 0.0]}
    assert formats.preference(row) == expected
    assert formats.prompts(row)["prompt"] == said(asked)


@pytest.mark.parametrize(("labels", "ranks"), [(1, [0.0, 1.0]), (0, [1.0, 0.0])])
def test_labels_decide_which_of_two_references_is_better(labels, ranks):
    row = {"history": "Why?", "human_ref_A": "Because", "human_ref_B": "No idea", "labels": labels}
    assert formats.preference(row) == {"prompt": said("Why?"), "completions": ["Because", "No idea"], "ranks": ranks}


def test_files_of_code_are_text():
    assert formats.text({"content": "x = 1", "path": "a.py"}) == {"text": "x = 1"}
    assert formats.text({"content": "second", "text": "first"}) == {"text": "first"}


SUMMARIES = [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("normalize", "row", "complaint"),
    [
        (formats.chat, {"conversations": []}, 'non-empty list "conversations", got list'),
        (formats.chat, {"conversations": [turn("bard", "x")]}, r"conversations\[0\].from as one of human, .*'bard'"),
        (formats.chat, {"conversations": [turn("human", 5), turn("gpt", "x")]}, r"\[0\].content, got int 5"),
        (formats.chat, {"conversations": [turn("gpt", "x")]}, "non-empty list of messages"),
        (formats.chat, {"conversations": [turn("human", "a"), turn("human", "b")]}, "in turns"),
        (formats.chat, {"prompt": node("prompter", "Hi")}, "at least one message of the assistant"),
        (formats.chat, {"prompt": node("bot", "Hi")}, "a role of prompter, assistant in a tree"),
        (formats.preference, {"info": POST, "summaries": SUMMARIES, "choice": 2}, '"choice" as one of 0, 1, got int 2'),
        (formats.preference, {"info": POST, "summaries": SUMMARIES[:1], "choice": 0}, 'two "summaries"'),
        (formats.preference, {"info": {}, "summaries": SUMMARIES, "choice": 0}, '"post" or an "article"'),
        (
            formats.preference,
            {"history": "", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},
            "a non-empty string as the prompt",
        ),
        (formats.preference, {"history": "x", "human_ref_A": 3, "human_ref_B": "b", "labels": 1}, "two answers"),
        (formats.preference, {"history": "x", "human_ref_A": "a", "human_ref_B": "b", "labels": True}, "labels.*True"),
    ],
)
def test_what_is_wrong_with_such_a_record_is_said(normalize, row, complaint):
    with pytest.raises(FormatError, match=complaint):
        normalize(row)
