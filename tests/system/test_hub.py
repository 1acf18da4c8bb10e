"""A model by its Hub name: what is requested, where it is stored, and how soon it fails without a network."""

import socket
import threading
import urllib.request

import huggingface_hub
import pytest
from omegaconf import OmegaConf

from components.system import hub
from components.system.hub import HubError, fetched
from components.tasks import dispatch


@pytest.fixture
def online(monkeypatch):
    """The library's online mode, independent of this machine's environment, without a proxy."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "getproxies", dict)


@pytest.fixture
def asked(monkeypatch):
    """The requests to the library, which has a safetensors model and a picture."""
    calls = []

    def snapshot(**place):
        calls.append(place)
        return f"{place['cache_dir']}/models--owner--name/snapshots/abc"

    files = ["config.json", "model.safetensors", "pytorch_model.bin", "picture.png"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name, revision: files)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    return calls


def test_without_a_network_a_name_fails_within_five_seconds_with_advice(online, monkeypatch, tmp_path):
    assert hub.PATIENCE < 5
    monkeypatch.setattr(hub, "PATIENCE", 0.1)
    answer = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: answer.wait())
    with pytest.raises(HubError, match="cannot be reached.*owner/name is not a local folder. Give a local folder"):
        fetched("owner/name", tmp_path)
    answer.set()  # nobody waited for it


def test_only_the_required_files_of_the_revision_are_downloaded(online, asked, tmp_path):
    folder = fetched("owner/name@v1.0", tmp_path)
    (call,) = asked
    assert (call["repo_id"], call["revision"], call["cache_dir"]) == ("owner/name", "v1.0", str(tmp_path))
    assert "*.safetensors" in call["allow_patterns"]
    assert not [p for p in call["allow_patterns"] if p.endswith((".bin", ".py", ".png")) or p == "*"]
    assert hub.name_of(folder) == "owner/name"


def test_old_files_are_downloaded_if_there_are_no_others(online, asked, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name, revision: ["pytorch_model.bin"])
    fetched("owner/name", tmp_path)
    assert "pytorch_model*.bin" in asked[0]["allow_patterns"]


def test_a_model_that_the_hub_does_not_have_is_reported(online, asked, monkeypatch, tmp_path):
    def missing(self, name, revision):
        raise OSError("404 Client Error")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", missing)
    with pytest.raises(HubError, match="cannot download the model owner/name from the Hub: 404.*local folder"):
        fetched("owner/name", tmp_path)


def test_offline_mode_looks_only_in_the_cache(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "reachable", None)  # not called
    fetched("owner/name", tmp_path)
    assert asked[0]["local_files_only"] is True


def test_a_folder_that_did_not_come_from_the_hub_has_no_hub_name():
    assert hub.name_of("logs/tiny/sft/export") == hub.name_of("x") == hub.name_of("some/snapshots/abc") == ""


def test_a_name_is_replaced_by_its_folder_everywhere_in_the_config(online, asked, tmp_path):
    (tmp_path / "here").mkdir()
    cfg = OmegaConf.create(
        {
            "paths": {"cache": str(tmp_path)},
            "model": {"path": "owner/name"},
            "artifacts": {"sft": "owner/name"},
            "reads": {"model": "owner/name", "other": str(tmp_path / "here")},
            "stage": {"model": {"path": "owner/name"}, "lists": [{"path": "owner/name"}, 1]},
        }
    )
    dispatch.fetch_models(cfg)
    folder = f"{tmp_path}/models/models--owner--name/snapshots/abc"
    assert cfg.reads.model == cfg.stage.model.path == cfg.stage.lists[0].path == cfg.model.path == folder
    assert cfg.artifacts.sft == folder and cfg.reads.other == str(tmp_path / "here")
    assert len(asked) == 1
