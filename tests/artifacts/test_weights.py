"""Weight files are data: no code in them runs, and no name in them leads outside the folder."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from components.artifacts.weights import WeightsError, drop_equal, from_gpt2, read_weights, to_gpt2


def read(folder):
    return read_weights(folder, torch.float32)


def index(folder, *names: str) -> None:
    weight_map = {f"w{n}": name for n, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_cannot_name_a_file_elsewhere(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    for place in (tmp_path / "secret.safetensors", folder / "a/b.safetensors"):
        save_file({"w0": torch.zeros(1)}, place)
    index(folder, name)
    with pytest.raises(WeightsError, match="expected the plain name of a file in the same folder"):
        read(folder)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", '{"weight_map": 3}', '{"weight_map": {"w": 3}}'])
def test_an_invalid_index_is_reported(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match="model.safetensors.index.json (is not an index|names the file 3)"):
        read(tmp_path)


def test_a_missing_shard_is_reported_by_name(tmp_path):
    save_file({"w0": torch.zeros(1)}, tmp_path / "a.safetensors")
    index(tmp_path, "a.safetensors", "b.safetensors")
    with pytest.raises(WeightsError, match="b.safetensors is missing: model.safetensors.index.json names it"):
        read(tmp_path)


class Trap:
    """A pickle that would make a folder when loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, zipped):
    torch.save({"w": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="something other than weights"):
        read(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"nonsense", b""])
def test_a_damaged_old_file_is_reported(tmp_path, content):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(WeightsError, match="pytorch_model.bin"):
        read(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_old_files_of_either_layout_are_read_in_the_requested_type(tmp_path, zipped):
    weights = {"w": torch.arange(6.0).view(2, 3).to(torch.bfloat16)}
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path)["w"]
    assert found.dtype == torch.float32 and found.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_weights_in_memory_do_not_change_with_their_file(tmp_path):
    save_file({"w": torch.ones(4)}, tmp_path / "model.safetensors")
    found = read(tmp_path)["w"]
    content = (tmp_path / "model.safetensors").read_bytes()
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(content[:-16] + bytes(16))
    assert found.tolist() == [1, 1, 1, 1]


def test_gpt2s_joined_and_transposed_matrices_become_three_with_outputs_first():
    # width 2: x @ W of theirs is x @ ours.T, q k v in the columns of W
    joined = torch.arange(12.0).view(2, 6)
    found = from_gpt2({"transformer.h.3.attn.c_attn.weight": joined, "h.3.attn.c_attn.bias": torch.arange(6.0)})
    start = "model.layers.3.self_attn"
    assert found[f"{start}.q_proj.weight"].tolist() == [[0, 6], [1, 7]]
    assert found[f"{start}.v_proj.weight"].tolist() == [[4, 10], [5, 11]]
    assert found[f"{start}.k_proj.bias"].tolist() == [2, 3]
    back = to_gpt2(found)
    assert back.keys() == {"transformer.h.3.attn.c_attn.weight", "transformer.h.3.attn.c_attn.bias"}
    assert torch.equal(back["transformer.h.3.attn.c_attn.weight"], joined)


def test_a_head_that_should_be_tied_but_differs_is_reported():
    weights = {"a": torch.zeros(2), "b": torch.zeros(2)}
    drop_equal(weights, "a", "b")
    assert weights.keys() == {"b"}
    with pytest.raises(WeightsError, match="tie_word_embeddings, but a differs from b"):
        drop_equal({"a": torch.ones(2), "b": torch.zeros(2)}, "a", "b")
