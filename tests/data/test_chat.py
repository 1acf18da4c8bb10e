import pytest
import torch

from components.data.chat import ChatData
from components.data.records.errors import SourceError

USER = {"role": "user", "content": "q"}
RECORDS = [
    {
        "messages": [
            {"role": "user", "content": "x" * (i % 7 + 1)},
            {"role": "assistant", "content": f"answer {i}"},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": "z" * (i % 5)},
        ]
    }
    for i in range(40)
]


def built(common, write, records=RECORDS, **options) -> ChatData:
    data = ChatData(path=write("a.jsonl", records), **{"val_fraction": 0.0, **options}, **common)
    data.setup()
    return data


def counted(batch, tok) -> list[str]:
    """The text of the counted targets of every segment, in order."""
    said = []
    for row in range(len(batch.input_ids)):
        for segment in range(int(batch.layout.segments[row].max()) + 1):
            places = batch.mask[row] & (batch.layout.segments[row] == segment)
            said.append(tok.decode(batch.targets[row][places].tolist(), skip_special=False))
    return said


def test_only_the_assistants_text_and_its_end_of_turn_are_targets(common, write, tok):
    data = built(common, write, batch_size=7)
    said = [one for batch in data.train_dataloader() for one in counted(batch, tok)]
    assert sorted(said) == sorted(f"answer {i}<|end|>{'z' * (i % 5)}<|end|>" for i in range(40))


def test_every_target_is_the_next_token_of_the_same_dialogue(common, write, tok):
    for batch in built(common, write).train_dataloader():
        row, column = batch.mask.nonzero(as_tuple=True)
        assert (batch.targets[row, column] == batch.input_ids[row, column + 1]).all()
        assert (batch.layout.segments[row, column] == batch.layout.segments[row, column + 1]).all()
        assert (batch.targets[~batch.mask] == tok.pad_id).all()


def test_dialogues_are_packed_whole_and_see_only_themselves(common, write, tok):
    data = built(common, write, batch_size=40)
    [batch] = data.train_dataloader()
    found = []
    for row in range(len(batch.input_ids)):
        for segment in range(int(batch.layout.segments[row].max()) + 1):
            places = batch.layout.segments[row] == segment
            found.append(batch.input_ids[row][places].tolist())
            assert batch.layout.positions[row][places].tolist() == list(range(len(found[-1])))
    assert sorted(found) == sorted(tok.render(record["messages"]).ids for record in RECORDS)
    assert len(batch.input_ids) < 40 and batch.input_ids.shape[1] <= 64


def test_training_on_prompts_counts_every_token_except_the_first(common, write, tok):
    [batch] = built(common, write, train_on_prompt=True, batch_size=40).train_dataloader()
    assert int(batch.mask.sum()) == sum(len(tok.render(record["messages"]).ids) - 1 for record in RECORDS)


def test_a_long_dialogue_is_cut_at_its_end_and_gets_no_end_of_turn(common, write, tok, caplog):
    long = {"messages": [USER, {"role": "assistant", "content": "b" * 100}]}
    hopeless = {"messages": [{"role": "user", "content": "c" * 100}, {"role": "assistant", "content": "d"}]}
    data = built(common, write, [long, hopeless, {"messages": [USER, {"role": "assistant", "content": "e"}]}])
    assert data.counts["truncated"] == data.counts["dropped"] == 1
    assert "1 of 3 records truncated to the context of 64 tokens" in caplog.text
    assert "1 of 3 records dropped: no answer to learn from within the context" in caplog.text
    [batch] = data.train_dataloader()
    head = len(tok.render_prompt([USER]))
    assert sorted(counted(batch, tok)) == ["b" * (64 - head), "e<|end|>"]


def test_a_dialogue_cut_right_after_its_prompt_is_dropped(common, write, tok):
    records = [
        {"messages": [{"role": "user", "content": "c" * n}, {"role": "assistant", "content": "d"}]}
        for n in range(40, 80)
    ]
    data = built(common, write, records, batch_size=1)
    batches = list(data.train_dataloader())
    assert all(batch.mask.any() for batch in batches)
    fitting = sum(len(tok.render_prompt(record["messages"][:1])) < 64 for record in records)
    assert len(batches) == fitting == 40 - data.counts["dropped"]


def test_bytes_are_those_of_the_answers(common, write):
    [batch] = built(common, write, batch_size=40).train_dataloader()
    assert int(batch.num_bytes) == sum(len(f"answer {i}") + i % 5 for i in range(40))


def test_dialogues_with_the_same_opening_stay_on_one_side(common, write, tok):
    data = built(
        common,
        write,
        val_fraction=0.3,
        records=[{"prompt": f"question {i % 30}", "completion": str(i)} for i in range(90)],
    )

    assert len(data.val_examples) == 90 - len(data.train_examples) > 0
    assert all(len(examples) % 3 == 0 for examples in (data.train_examples, data.val_examples))
    batches = list(data.val_dataloader())
    assert sum(len(counted(batch, tok)) for batch in batches) == len(data.val_examples)


def test_messages_that_the_template_refuses_are_named_with_their_line(common, write, monkeypatch, tok):
    from components.data.records.errors import SourceError
    from components.tokenizer.codec import TokenizerError

    def refuse(self, messages):
        raise TokenizerError("the chat template rejects these messages")

    monkeypatch.setattr(type(tok), "render", refuse)
    with pytest.raises(SourceError, match=r"a\.jsonl:1: the chat template rejects"):
        built(common, write)


def test_a_batch_moves_to_another_device_whole(common, write):
    from lightning.fabric.utilities import move_data_to_device

    [batch] = built(common, write, batch_size=40).train_dataloader()
    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch) and type(moved.layout) is type(batch.layout)
    assert moved.layout.segments.device.type == moved.num_bytes.device.type == "meta"


def test_a_bad_answer_is_refused_with_the_stage_that_learns_from_it_or_skipped(common, write, caplog):
    labeled = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 3 != 1} for i in range(6)]
    expected = r"a.jsonl:2: expected a demonstration, got an answer labeled undesirable by 'label'.*stage=kto.*skip"
    with pytest.raises(SourceError, match=expected):
        built(common, write, labeled)
    data = built(common, write, labeled, on_malformed="skip")
    assert data.counts["records"] == 4 and data.counts["malformed"] == 2 and "stage=kto" in caplog.text


def test_columns_with_other_names_are_read_from_a_path_a_mixture_and_given_records(common, write):
    rows = [{"asked": f"question {i}", "reply": f"answer {i}"} for i in range(8)]
    columns, path = {"prompt": "asked", "completion": "reply"}, write("faq.jsonl", rows)
    expected = [text for row in rows for text in (row["asked"], row["reply"])]
    for settings in (
        {"path": path, "columns": columns},
        {"mixture": [{"path": path, "weight": 1, "columns": columns}]},
        {"records": rows, "columns": columns},
    ):
        data = ChatData(**common, val_fraction=0, **settings)
        assert list(data.texts()) == expected
