import pytest
from omegaconf import OmegaConf

from components.data.loading.fitting import fit_answers, fit_prompt
from components.data.preference import PreferenceData
from components.data.records.errors import SourceError
from components.data.sources.origin import fingerprint_of
from tests.kit.composed_configs import compose_config

RECORDS = [
    {"prompt": f"question {i}", "completions": [f"best {i}", f"mid {i}", "worst"], "ranks": [1, 2, 3]}
    for i in range(30)
]


def built(common, write, records=RECORDS, **options) -> PreferenceData:
    data = PreferenceData(path=write("a.jsonl", records), **{"val_fraction": 0.0, **options}, **common)
    data.setup()
    return data


def answers(batch) -> list[list[int]]:
    flat = batch.input_ids.flatten().tolist()
    ends = zip(batch.last.tolist(), batch.lengths.tolist(), strict=True)
    return [flat[last - length + 1 : last + 1] for last, length in ends]


def test_last_points_at_the_end_of_turn_of_every_answer(common, write, tok):
    for batch in built(common, write, batch_size=8).train_dataloader():
        assert (batch.input_ids.flatten()[batch.last] == tok.end_id).all()
        assert batch.finished.all()
        for ids, group, rank in zip(answers(batch), batch.groups.tolist(), batch.ranks.tolist(), strict=True):
            word = {1: "best", 2: "mid", 3: "worst"}[int(rank)]
            assert tok.decode(ids[:-1]).startswith(word) and ids.count(tok.end_id) == 1
            assert group == batch.groups.tolist().index(group) // 3


def test_a_prompt_appears_once_before_its_answers_which_continue_it(common, write, tok):
    [batch] = built(common, write, batch_size=30).train_dataloader()
    segments, parents = (field.flatten() for field in (batch.layout.segments, batch.layout.parents))
    width = batch.input_ids.shape[1]
    for last, group, ids in zip(batch.last.tolist(), batch.groups.tolist(), answers(batch), strict=True):
        row = last // width
        trunk = parents[last]
        assert trunk >= 0
        places = batch.layout.segments[row] == trunk
        prompt = batch.input_ids[row][places]
        assert (batch.layout.parents[row][places] == -1).all()
        assert batch.layout.positions.flatten()[last] == len(prompt) + len(ids) - 1
        assert set(parents[batch.last[batch.groups == group]].tolist()) == {int(trunk)}
        number = tok.decode(prompt.tolist()).split()[-1]
        assert prompt.tolist() == tok.render_prompt([{"role": "user", "content": f"question {number}"}])
        assert tok.decode(ids).split()[-1] in (number, "worst")
    assert int((segments >= 0).sum()) == sum(map(len, answers(batch))) + sum(
        len(tok.render_prompt([{"role": "user", "content": r["prompt"]}])) for r in RECORDS
    )


def test_rankings_are_never_torn_apart(common, write):
    for batch in built(common, write, batch_size=4).train_dataloader():
        assert (batch.groups.bincount() == 3).all()


def test_at_most_so_many_answers_spread_from_best_to_worst(common, write, tok):
    record = {"prompt": "q", "completions": list("dbeac"), "ranks": [4, 2, 5, 1, 3]}
    [batch] = built(common, write, [record], max_completions=3).train_dataloader()
    assert [tok.decode(ids) for ids in answers(batch)] == ["e", "a", "c"]
    assert batch.ranks.tolist() == [5, 1, 3]
    with pytest.raises(ValueError, match="max_completions: got 1"):
        built(common, write, max_completions=1)


def test_a_record_carries_its_category_and_an_empty_one_where_it_has_none(common, write):
    named = {"prompt": "q", "chosen": "a", "rejected": "b", "category": "letters"}
    data = built(common, write, [named, *RECORDS])
    assert sorted(record["category"] for [record] in data.train_examples) == [""] * 30 + ["letters"]


def test_records_in_which_nothing_is_better_are_dropped_and_counted(common, write, caplog):
    tied = {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 2]}
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    data = built(common, write, [tied, same, *RECORDS])
    assert data.counts["dropped"] == 2 and len(data.train_examples) == 30
    assert "1 of 32 records dropped: all answers are equal" in caplog.text
    assert "1 of 32 records dropped: all answers have the same rank" in caplog.text
    assert "records dropped\n" not in caplog.text  # said once


def test_pairs_of_one_prompt_share_a_batch_and_stay_groups_of_their_own(common, write):
    pairs = [{"prompt": f"q{i % 10}", "chosen": f"y{i}", "rejected": f"n{i}"} for i in range(40)]
    data = built(common, write, pairs, group_by_prompt=True, batch_size=2)
    batches = list(data.train_dataloader())
    assert len(batches) == 5
    for batch in batches:
        assert (batch.groups.bincount() == 2).all() and len(batch.last) == 2 * 4 * 2
        prompts = data.tokenizer.decode(batch.input_ids.flatten().tolist())
        asked = {f"q{i}" for i in range(10) if f"q{i}" in prompts}
        assert len(asked) == 2
    assert len(list(built(common, write, pairs, batch_size=2).train_dataloader())) == 20


def test_no_prompt_is_in_training_and_validation(common, write):
    pairs = [{"prompt": f"q{i % 50}", "chosen": f"y{i}", "rejected": f"n{i}"} for i in range(200)]
    data = built(common, write, pairs, val_fraction=0.2)

    def prompts(examples) -> set[tuple]:
        return {tuple(examples[i][0]["prompt"]) for i in range(len(examples))}

    train, held_out = prompts(data.train_examples), prompts(data.val_examples)
    assert train.isdisjoint(held_out) and len(train) + len(held_out) == 50 and held_out
    assert sum(len(batch.last) for batch in data.val_dataloader()) == 2 * 4 * len(held_out)


def test_a_long_answer_is_cut_at_its_end_and_gets_no_end_of_turn(common, write, tok):
    record = {"prompt": "q", "chosen": "y" * 100, "rejected": "no"}
    data = built(common, write, [record])
    [batch] = data.train_dataloader()
    head = len(tok.render_prompt([{"role": "user", "content": "q"}]))
    assert data.counts["truncated"] == 1
    assert batch.finished.tolist() == [False, True]
    assert [tok.decode(ids, skip_special=False) for ids in answers(batch)] == ["y" * (64 - head), "no<|end|>"]


def test_a_long_prompt_is_cut_before_answers_are_but_not_below_half(tok):
    asked = [{"role": "user", "content": "q" * 100}]
    head = tok.render_prompt(asked)[:2]
    tail = len(tok.render_prompt(asked)) - 102  # what follows the question
    short = fit_answers(tok, asked, ["y" * 9, "n"], 64)  # 10 tokens with the end of turn leave 54
    assert len(short.prompt) == 54 and short.prompt[:2] == head
    assert short.finished == [True, True] and short.cut
    assert tok.decode(short.prompt) == "q" * (54 - 2 - tail)
    long = fit_answers(tok, asked, ["y" * 50, "n"], 64)
    assert len(long.prompt) == 32 and [len(a) for a in long.answers] == [32, 2]
    assert long.finished == [False, True]
    whole = fit_answers(tok, [{"role": "user", "content": "q"}], ["y"], 64)
    assert not whole.cut and whole.prompt == tok.render_prompt([{"role": "user", "content": "q"}])


def test_whole_old_turns_go_before_the_last_question_is_touched(tok):
    system = {"role": "system", "content": "sys"}
    roles = {"a": "user", "b": "assistant", "c": "user"}
    turns = [{"role": role, "content": name * 10} for name, role in roles.items()]
    whole = tok.render_prompt([system, *turns])
    assert fit_prompt(tok, [system, *turns], len(whole)) == (whole, False)
    assert fit_prompt(tok, [system, *turns], len(whole) - 1) == (tok.render_prompt([system, turns[2]]), True)
    assert fit_prompt(tok, turns, len(whole) - 10) == (tok.render_prompt(turns[2:]), True)
    for limit in (1, 2, 3, 9):
        assert len(fit_prompt(tok, turns, limit)[0]) == limit


def test_a_ranking_longer_than_the_context_widens_the_rows_and_stays_whole(common, write):
    record = {"prompt": "q", "completions": [f"{i}" * 30 for i in range(6)], "ranks": list(range(6))}
    [batch] = built(common, write, [record]).train_dataloader()
    assert batch.input_ids.shape[0] == 1 and batch.input_ids.shape[1] > 6 * 30 and batch.finished.all()


def test_demonstrations_are_the_best_answers_of_the_training_records_by_default(common, write, tok):
    data = built(common, write, num_demonstrations=12, batch_size=5)
    batches = list(data.demonstration_batches())
    assert [len(batch.last) for batch in batches] == [5, 5, 2]
    for batch in batches:
        assert batch.groups.tolist() == list(range(len(batch.last)))
        assert all(tok.decode(ids).startswith("best") for ids in answers(batch))
        assert (batch.input_ids.flatten()[batch.last] == tok.end_id).all()
    again = list(built(common, write, num_demonstrations=12, batch_size=5).demonstration_batches())
    assert [b.input_ids.tolist() for b in again] == [b.input_ids.tolist() for b in batches]


def test_bad_answers_are_no_demonstrations(common, write):
    bad = write("bad.jsonl", [{"prompt": "q", "completion": "a", "label": False}])
    with pytest.raises(SourceError, match="labeled undesirable by 'label'.*stage=kto"):
        list(built(common, write, demonstrations=bad).demonstration_batches())


def test_demonstrations_can_come_from_chat_records(common, write, tok):
    chat = write(
        "chat.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": "hello"},
                    {"role": "assistant", "content": "shown"},
                    {"role": "user", "content": "thanks"},
                ]
            },
        ],
    )
    [batch] = built(common, write, demonstrations=chat).demonstration_batches()
    assert [tok.decode(ids) for ids in answers(batch)] == ["shown"]
    with pytest.raises(ValueError, match="needs data.world"):
        list(built(common, write, demonstrations="world").demonstration_batches())


def test_the_world_gives_rankings_and_validates_on_its_held_out_questions(common):
    world = {"seed": 1, "num_names": 12, "held_out_share": 0.25, "noise": 0.0}
    data = PreferenceData(
        world=world,
        comparisons=60,
        completions=4,
        val_fraction=0.1,
        demonstrations="world",
        num_demonstrations=9,
        **common | {"context": 256},
    )
    data.setup()
    assert data.counts["records"] == 66
    assert len(data.train_examples) + len(data.val_examples) == 66 - data.counts["dropped"]
    assert 0 < len(data.val_examples) <= 6
    train = {tuple(data.train_examples[i][0]["prompt"]) for i in range(len(data.train_examples))}
    assert train.isdisjoint({tuple(data.val_examples[i][0]["prompt"]) for i in range(len(data.val_examples))})
    assert sum(len(batch.last) for batch in data.demonstration_batches()) == 9


def test_equal_answers_are_one_answer_of_their_mean_rank(common, write, tok, caplog):
    records = [
        {"prompt": "q", "completions": ["same", "same", "no"], "ranks": [0, 1, 2]},
        {"prompt": "q", "completions": ["a", "b", "a"], "ranks": [0, 1, 5]},
        {"prompt": "q", "completions": ["a", "b", "a"], "ranks": [0, 1, 2]},  # better and worse equally often
    ]
    data = built(common, write, records)
    kept = [data.train_examples[i][0] for i in range(len(data.train_examples))]
    found = {tuple(tok.decode(ids) for ids in record["completions"]): record["ranks"] for record in kept}
    assert found == {("same", "no"): [0.5, 2.0], ("a", "b"): [2.5, 1.0]}
    assert (data.counts["merged"], data.counts["dropped"], data.counts["tied"]) == (2, 1, 1)
    assert "2 of 3 records with equal answers, merged into one with their mean rank" in caplog.text
    assert "1 of 3 records dropped: all answers have the same rank" in caplog.text


def test_answers_that_are_equal_or_equal_once_cut_are_not_a_comparison(common, write, caplog):
    records = [
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "q", "chosen": "y" * 100, "rejected": "y" * 100 + "n"},
        *RECORDS,
    ]
    data = built(common, write, records)
    assert (data.counts["dropped"], data.counts["equal"], data.counts["equal_once_cut"]) == (2, 1, 1)
    assert "1 of 32 records dropped: all answers are equal" in caplog.text
    assert "1 of 32 records dropped: all answers are equal once cut to the context" in caplog.text
    with pytest.raises(ValueError, match="no usable record.*'equal': 1"):
        built(common, write, records[:1])


def test_records_that_contradict_another_stay_and_are_counted(common, write, caplog):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    turned = {"prompt": "q", "chosen": "b", "rejected": "a"}
    ranking = {"prompt": "q", "completions": ["c", "b", "a"], "ranks": [0, 1, 2]}
    data = built(common, write, [pair, pair, turned, {**turned, "prompt": "p"}, ranking])
    assert len(data.train_examples) == 5 and data.counts["contradicting"] == 2
    assert "2 of 5 records rank two answers in the opposite order of an earlier record, and are kept" in caplog.text


def prompts_of(examples) -> set[tuple[int, ...]]:
    return {tuple(record["prompt"]) for example in examples for record in example}


def test_two_parts_share_no_prompt_and_hold_out_the_same_ones(common, write):
    options = [{"val_fraction": 0.2, "train_part": part} for part in ([0, 0.5], [0.5, 1], None)]
    first, second, whole = (built(common, write, RECORDS * 2, **chosen) for chosen in options)
    both = prompts_of(first.train_examples), prompts_of(second.train_examples)
    assert both[0] and both[1] and not both[0] & both[1]
    assert both[0] | both[1] == prompts_of(whole.train_examples)
    assert len(first.train_examples) == 2 * len(both[0])
    held_out = [prompts_of(data.val_examples) for data in (first, second, whole)]
    assert held_out[0] == held_out[1] == held_out[2] != set()


def test_overlong_comparisons_are_left_out_instead_of_cut(common, write, caplog):
    records = [*RECORDS, {"prompt": "long", "chosen": "x" * 100, "rejected": "no"}]
    kept = built(common, write, records)
    assert kept.counts["truncated"] == 1 and len(kept.train_examples) == 31
    dropped = built(common, write, records, overlong="drop")
    assert dropped.counts["overlong"] == 1 and len(dropped.train_examples) == 30
    assert not dropped.counts["truncated"] and not dropped.counts["dropped"]
    assert "1 of 31 records left out: longer than the context of 64 tokens" in caplog.text
    assert all(batch.finished.all() for batch in dropped.train_dataloader())


def test_the_content_of_demonstrations_is_part_of_what_comparisons_are(common, write):
    path = write("p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])

    def fingerprint(demonstrations):
        return PreferenceData(path=path, demonstrations=demonstrations, **common).fingerprint()

    shown = write("d.jsonl", [{"prompt": "q", "completion": "a"}])
    before = fingerprint(shown)
    assert before != fingerprint(None) == fingerprint("world")
    settings = compose_config(["stage=rm", "data=preference", f"data.path={path}", f"data.demonstrations={shown}"]).data
    assert fingerprint_of(OmegaConf.to_container(settings)) == before
    write("d.jsonl", [{"prompt": "q", "completion": "other"}])
    assert fingerprint(shown) != before
    with pytest.raises(SourceError, match=r"no such file or folder\. Set data\.demonstrations to one that exists"):
        fingerprint("nowhere.jsonl")
