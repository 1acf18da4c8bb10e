"""A reward model that is an automaton: its score is that of the state which a text leads to."""

import pytest
import torch

from components.models.attention.layout import pack
from components.rewards.table_reward import TableReward

# three ids; states: 0 start, 1 after a 1, 2 after 1 then 2; every other way leads back to 0
TRANSITIONS = torch.tensor([[0, 1, 0], [0, 1, 2], [0, 0, 0]])
SCORES = torch.tensor([0.0, 10.0, 20.0])


def table():
    return TableReward(TRANSITIONS, SCORES)


def test_a_token_is_scored_by_the_state_that_its_text_leads_to():
    assert table()(torch.tensor([[1, 2, 0], [2, 1, 1]])).tolist() == [[10, 20, 0], [0, 10, 10]]


def test_segments_that_continue_a_trunk_go_on_from_its_end_and_do_not_see_each_other():
    rows = pack([[[0, 1], [2], [1, 2], [0]]], row_length=8, filler=2)
    found = table()(rows.input_ids, rows.layout)
    assert found.tolist() == [[0, 10, 20, 10, 20, 0]]


def test_a_packed_row_scores_what_its_documents_score_alone():
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 3, (7,), generator=generator).tolist() for _ in range(13)]
    documents = [[text[:3], text[3:5], text[5:]] for text in texts]
    rows = pack(documents, row_length=20, filler=1)
    assert (rows.layout.segments == -1).any()  # filler too
    found = table()(rows.input_ids, rows.layout).flatten()
    for text, [(trunk, _), (first, _), (second, _)] in zip(texts, rows.spans):
        assert found[trunk : trunk + 3].tolist() == table()(torch.tensor([text[:3]]))[0].tolist()
        assert found[first : first + 2].tolist() == table()(torch.tensor([text[:5]]))[0, 3:].tolist()
        assert found[second : second + 2].tolist() == table()(torch.tensor([text[:3] + text[5:]]))[0, 3:].tolist()


def test_it_scores_in_single_precision_and_has_nothing_to_train():
    assert table()(torch.tensor([[1]])).dtype == torch.float32
    assert list(table().parameters()) == []


@pytest.mark.parametrize("transitions", [torch.tensor([[0, 1, 0]]), torch.tensor([[0], [1], [3]])])
def test_transitions_that_do_not_fit_the_states_are_refused(transitions):
    with pytest.raises(ValueError, match="TableReward"):
        TableReward(transitions, SCORES)
