"""The `gradus` command: what it prints, what it rejects and how."""

import contextlib
import json
import os
import pty
import queue
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components import cli
from components.artifacts import store
from tests.kit import tiny_models

ROOT = Path(cli.__file__).parent.parent


@pytest.fixture(scope="module")
def run_folder(small_tokenizer, tmp_path_factory):
    """logs/tiny with a tokenizer, a base model, a reward model and a policy that answers " yes" to everything."""
    header = small_tokenizer.render_prompt([{"role": "user", "content": ""}])[-1]
    policy = tiny_models.parrot(small_tokenizer, [header, *small_tokenizer.encode(" yes"), small_tokenizer.end_id])
    made = {
        "tokenizer": None,
        "pretrain": tiny_models.parrot(
            small_tokenizer, [*small_tokenizer.encode("anna lives"), small_tokenizer.eos_id]
        ),
        "rm": tiny_models.random_scalar(small_tokenizer.vocab_size),
        "ppo": policy,
    }
    folder = tmp_path_factory.mktemp("logs") / "tiny"
    for stage, model in made.items():
        card = {
            "stage": stage,
            "tokenizer": small_tokenizer.fingerprint,
            "seed": 7,
            "metrics": {"val/score": 1.23456},
            "parents": {"model": {"path": "logs/tiny/sft/export", "stage": "sft", "content": "abc123"}},
            "inputs": {"model.depth": 2},
        }
        store.write_artifact(folder / stage / "export", card=card, tokenizer=small_tokenizer, model=model)
    return folder


def gradus(*arguments, lines=""):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=lines)


def test_chat_answers_each_line_of_a_pipe_and_exits_0(run_folder):
    result = gradus("chat", run_folder / "ppo" / "export", lines="is it?\nsure?\n")
    assert (result.stdout, result.exit_code) == (" yes\n yes\n", 0)


def test_a_stages_folder_resolves_to_its_export(run_folder):
    assert gradus("chat", run_folder / "ppo", lines="a\n").stdout == " yes\n"


def test_a_base_model_continues_the_text_and_says_so(run_folder):
    result = gradus("chat", run_folder / "pretrain", lines="anna\n")
    assert result.stdout == "anna lives\n"
    assert "base model" in result.stderr


def test_the_same_seed_gives_the_same_conversation(small_tokenizer, tmp_path):
    model = tiny_models.random_model(small_tokenizer.vocab_size)
    store.write_artifact(tmp_path / "x", card={}, tokenizer=small_tokenizer, model=model)

    def answers(*options):
        result = gradus("chat", tmp_path / "x", "--max-new-tokens", 6, *options, lines="a\nb\n")
        assert result.exit_code == 0, result.stderr
        return result.stdout

    assert answers("--seed", 1) == answers("--seed", 1)
    assert answers("--seed", 1) != answers("--seed", 2)
    assert answers("--seed", 1, "--temperature", 0) == answers("--seed", 2, "--temperature", 0)


def test_show_prints_the_card_and_what_the_files_add(run_folder, small_tokenizer):
    result = gradus("show", run_folder / "ppo")
    model = store.load_causal_lm(run_folder / "ppo" / "export")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shown = [line.split(maxsplit=1) for line in result.stdout.splitlines() if len(line.split()) > 1]
    found = dict(reversed(shown))  # a parent's stage comes after the artifact's own
    assert result.exit_code == 0
    assert found["artifact"] == str(run_folder / "ppo" / "export")
    assert found["stage"] == "ppo"
    assert found["model"] == "language model"
    assert found["parameters"] == f"{parameters:,}"
    assert found["context"] == "128 tokens"
    assert found["tokenizer"] == f"{small_tokenizer.vocab_size} tokens, fingerprint {small_tokenizer.fingerprint}"
    assert found["val/score"] == "1.235"
    assert found["path"] == "logs/tiny/sft/export"
    assert found["seed"] == "7"
    assert "model.depth" not in found
    assert "model.depth" in gradus("show", run_folder / "ppo", "--inputs").stdout


def test_show_counts_a_reward_models_parameters(run_folder):
    model = store.load_scalar(run_folder / "rm" / "export")
    shown = gradus("show", run_folder / "rm").stdout
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" in shown
    assert "reward model" in shown


def test_show_reads_a_tokenizers_artifact_and_a_folder_without_a_card(run_folder, tmp_path):
    assert "340 tokens" in gradus("show", run_folder / "tokenizer").stdout
    (tmp_path / "config.json").write_text((run_folder / "rm" / "export" / "config.json").read_text())
    assert "made elsewhere" in gradus("show", tmp_path).stdout


def mistakes(folder):
    damaged = folder.parent / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / "config.json").write_text("{")
    return [
        (["chat", folder / "missing"], "missing does not exist"),
        (["show", folder / "missing"], "missing does not exist"),
        (["chat", folder / "ppo" / "export" / "card.json"], "is a file"),
        (["show", folder], f"stages below it: {folder / 'ppo'}"),
        (
            ["chat", folder / "rm"],
            f"reward model: it scores answers and does not write any. Chat with the policy that was "
            f"trained with it: gradus chat {folder.resolve() / 'ppo'}",
        ),
        (["chat", folder / "tokenizer"], "tokenizer without a model"),
        (["chat", damaged], "not JSON"),
        (["show", damaged], "not JSON"),
        (["chat", folder / "ppo", "--top-p", "0"], "top_p"),
    ]


def test_a_users_mistake_is_one_line_on_stderr_and_exit_status_1(run_folder):
    for arguments, expected in mistakes(run_folder):
        result = gradus(*arguments)
        assert (result.exit_code, result.stdout) == (1, ""), arguments
        assert result.stderr.startswith("gradus: ") and result.stderr.count("\n") == 1, result.stderr
        assert expected in result.stderr


def test_the_newest_language_model_of_the_run_is_suggested_instead_whatever_its_stage(run_folder, tmp_path):
    for stage in ("rm", "ppo"):
        shutil.copytree(run_folder / stage, tmp_path / stage)
    shutil.copytree(run_folder / "ppo", tmp_path / "mine")
    (tmp_path / "mine" / "export").touch()
    assert f"gradus chat {tmp_path / 'mine'}\n" in gradus("chat", tmp_path / "rm").stderr


HELP = """
import sys
from components.cli import main
sys.argv[1:] = ["--help"]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


def test_help_does_not_import_torch():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "chat" in done.stdout and "show" in done.stdout


@pytest.mark.slow
def test_the_module_chats_over_a_real_pipe(run_folder):
    command = [sys.executable, "-m", "components.cli", "chat", str(run_folder / "ppo")]
    done = subprocess.run(command, cwd=ROOT, input=b"is it?\n\xff\xfe\n/temperature x\n", capture_output=True)
    assert (done.stdout, done.returncode) == (b" yes\n yes\n", 0)
    assert done.stderr.count(b"\n") == 1 and b"expects a number" in done.stderr


def never_ending(tokenizer):
    """A model that says "y" for thousands of tokens, which leaves seconds to stop it."""
    header = tokenizer.render_prompt([{"role": "user", "content": ""}])[-1]
    (letter,) = tokenizer.encode("y")
    return tiny_models.parrot(tokenizer, [header, letter, letter], context=20_000)


AT_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that the terminal's Ctrl-C reaches this process
os.execv(sys.executable, [sys.executable, "-m", "components.cli", "chat", sys.argv[1]])
"""


@pytest.mark.slow
def test_at_a_terminal_control_c_stops_an_answer_and_then_the_chat(small_tokenizer, tmp_path):
    store.write_artifact(tmp_path / "x", card={}, tokenizer=small_tokenizer, model=never_ending(small_tokenizer))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_TERMINAL, str(tmp_path / "x")],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = ""

    def wait_for(text):
        nonlocal seen
        deadline = time.monotonic() + 300
        while text not in seen:
            assert time.monotonic() < deadline and process.poll() is None, f"no {text!r} in …{seen[-300:]!r}"
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        seen = seen.split(text, 1)[1]

    try:
        wait_for("you> ")
        os.write(ours, b"hello\n")
        wait_for("bot> yyy")
        os.write(ours, b"\x03")
        wait_for(" …")
        wait_for("you> ")
        for _ in range(15):  # again: the prompt shows a moment before the terminal listens, which drops a key
            os.write(ours, b"\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):  # long enough for a busy machine to end the process
                process.wait(20)
                break
        assert process.poll() == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_card_values_of_every_kind_are_printed():
    values = {"a": {"b": [1, 2], "c": {}}, "long": 0.123456, "none": []}
    assert list(cli.lines(values)) == ["a", "  b  1, 2", "  c  none", "long  0.1235", "none  none"]


def test_a_card_that_names_another_tokenizer_shows_both(run_folder, small_tokenizer, tmp_path):
    store.write_artifact(tmp_path / "x", card={"tokenizer": "deadbeef"}, tokenizer=small_tokenizer)
    shown = gradus("show", tmp_path / "x").stdout
    assert small_tokenizer.fingerprint in shown and "card's tokenizer  deadbeef" in shown


def test_chat_runs_on_the_given_device_and_names_one_that_is_not_available(run_folder):
    assert gradus("chat", run_folder / "ppo", "--device", "cpu", lines="a\n").stdout == " yes\n"
    for device in ("cuda:99", "nonsense"):
        result = gradus("chat", run_folder / "ppo", "--device", device, lines="a\n")
        assert result.exit_code == 1 and result.stderr.startswith(f"gradus: --device {device}: ")


def test_chat_takes_a_run_and_chats_with_its_newest_model_that_answers(run_folder, tmp_path):
    shutil.copytree(run_folder / "pretrain", tmp_path / "logs/mine/pretrain")
    answer = gradus("chat", "mine", "--logs", tmp_path / "logs", lines="anna\n")
    assert answer.stdout == "anna lives\n"
    shutil.copytree(run_folder / "ppo", tmp_path / "logs/mine/ppo")
    os.utime(tmp_path / "logs/mine/ppo/export", (1, 1))
    for run in ("mine", tmp_path / "logs/mine"):
        assert gradus("chat", run, "--logs", tmp_path / "logs", lines="a\n").stdout == " yes\n"


def test_chat_fetches_a_model_with_a_hub_name(run_folder, tmp_path, monkeypatch):
    asked = []

    def fetched(name, cache):
        asked.append((name, cache))
        return run_folder / "ppo" / "export"

    monkeypatch.setattr(cli.hub, "fetched", fetched)
    assert gradus("chat", "owner/name@main", "--logs", tmp_path, lines="a\n").stdout == " yes\n"
    assert asked == [("owner/name@main", tmp_path / "cache" / "models")]


def test_a_missing_folder_below_an_existing_one_is_not_a_hub_name(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    result = gradus("chat", "ppo/missing", lines="a\n")
    assert result.exit_code == 1 and "ppo/missing does not exist" in result.stderr


def test_the_version_is_that_of_pyproject():
    (written,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version")]
    result = gradus("--version")
    assert (result.exit_code, result.stdout) == (0, f"gradus {written.split(chr(34))[1]}\n")


def test_list_shows_every_stage_with_its_metric(run_folder):
    result = gradus("list", run_folder.parent)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and lines[0] == ["run", "stage", "metric", "size", "age"]
    assert ["tiny", "ppo", "val/score", "1.235"] in [line[:4] for line in lines]
    assert gradus("list", run_folder / "missing").stderr.startswith("gradus: ")


def test_the_system_text_precedes_the_conversation(run_folder, monkeypatch):
    from components.serving import terminal

    sessions = []
    monkeypatch.setattr(terminal, "run", lambda session, **settings: sessions.append(session))
    assert gradus("chat", run_folder / "ppo", "--system", "be kind").exit_code == 0
    assert sessions[0].system == "be kind"


def test_serve_names_the_models_of_a_run_and_a_single_one(run_folder, tmp_path):
    found = cli.folders_to_serve("tiny", run_folder.parent)
    assert set(found) == {"tiny/pretrain", "tiny/rm", "tiny/ppo"}
    assert cli.folders_to_serve(str(run_folder), tmp_path) == found
    for path in (run_folder / "rm", run_folder / "rm/export"):
        assert cli.folders_to_serve(str(path), tmp_path) == {"tiny/rm": run_folder / "rm/export"}
    shutil.copytree(run_folder / "ppo/export", tmp_path / "mine")
    assert cli.folders_to_serve(str(tmp_path / "mine"), tmp_path) == {"mine": tmp_path / "mine"}


def test_serve_refuses_two_models_of_one_name(run_folder, tmp_path):
    other = tmp_path / run_folder.name
    shutil.copytree(run_folder / "ppo", other / "ppo")
    with pytest.raises(ValueError, match=r"would both be served as tiny/ppo"):
        cli.all_to_serve([str(run_folder), str(other)], tmp_path)
    twice = cli.all_to_serve([str(run_folder), str(run_folder / "ppo")], tmp_path)
    assert twice == cli.folders_to_serve(str(run_folder), tmp_path)


def test_serve_gives_one_clear_message(run_folder, monkeypatch):
    pytest.importorskip("starlette")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = gradus("serve", run_folder, "--port", port)
    assert (
        result.exit_code == 1 and f"cannot listen on 127.0.0.1:{port}" in result.stderr and "--port 0" in result.stderr
    )
    assert "expected a text that is not empty" in gradus("serve", run_folder, "--api-key", " ").stderr
    result = gradus("serve", run_folder / "tokenizer", "--port", 0)
    assert result.exit_code == 1 and "no model that can be served" in result.stderr
    monkeypatch.delattr(sys.modules["components.serving"], "server")
    monkeypatch.delitem(sys.modules, "components.serving.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = gradus("serve", run_folder)
    assert result.exit_code == 1 and "needs the package uvicorn" in result.stderr and "[serve]" in result.stderr


@pytest.fixture
def services(monkeypatch):
    """The services that `gradus serve` would run, with its settings."""
    pytest.importorskip("uvicorn")
    from components.serving import server

    made = []
    monkeypatch.setattr(server, "run", lambda service, taken, **settings: made.append((service, settings)))
    yield made
    for service, _ in made:
        service.close()


def test_a_server_answers_to_its_own_address_and_to_the_names_it_is_given(run_folder, services):
    from starlette.testclient import TestClient

    from components.serving.api import new_app

    more = ["--allow-host", "Chat.example.com", "--allow-host", "other.example"]
    for host, options, allowed, refused in (
        ("127.0.0.2", [], ["127.0.0.2:80", "localhost", "127.0.0.1:8000", "[::1]:80"], ["chat.example.com"]),
        ("127.0.0.1", more, ["127.0.0.1", "chat.example.com", "OTHER.example:80"], ["127.0.0.2", "evil.example"]),
        ("0.0.0.0", [], ["anything.example"], []),
        ("0.0.0.0", more, ["chat.example.com", "localhost"], ["anything.example"]),
    ):
        result = gradus("serve", run_folder / "rm", "--host", host, "--port", 0, *options)
        assert result.exit_code == 0, result.stderr
        service, settings = services[-1]
        client = TestClient(new_app(service, hosts=settings["hosts"]))
        for name in allowed:
            assert client.get("/v1/models", headers={"host": name}).status_code == 200, (host, name)
        for name in refused:
            error = client.get("/v1/models", headers={"host": name}).json()["error"]
            assert name in error["message"] and "--allow-host" in error["message"]
    from components.serving import server

    for bad in ("chat.example.com:80", "https://chat.example.com", " "):
        result = gradus("serve", run_folder, "--allow-host", bad)
        assert result.exit_code == 1 and "expected a name without scheme and port" in result.stderr
    assert "[::1]" in server.names_of("::1", []) and "[fe80::1]" in server.names_of("::1", ["FE80::1"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_that_of_the_weights_and_of_the_copy_that_decodes(run_folder, services, dtype):
    import torch

    from components.serving.rows import Options, Request

    result = gradus("serve", run_folder, "--port", 0, "--device", "cpu", "--dtype", dtype)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(f"parameters in {dtype}") == 3
    [(service, _)] = services
    for served in service.served.values():
        assert {weight.dtype for weight in served.model.parameters()} == {getattr(torch, dtype)}
    served = service.served["tiny/ppo"]
    cache = service.engine.lanes["tiny/ppo"].batch._weights_of
    assert cache.head.dtype == getattr(torch, dtype)
    events = queue.Queue()
    prompt = served.chat_prompt([{"role": "user", "content": "a"}])
    for _ in range(2):  # a second row joins with the logits of the first
        service.engine.submit(
            "tiny/ppo", Request(prompt, Options(5, n=2, temperature=0.0), served.tokenizer, events.put)
        )
    said = []
    while sum(event.finish == "stop" for event in said) < 4:
        said.append(events.get(timeout=60))
    assert "".join(event.text for event in said) == 4 * " yes"
    scorer = service.served["tiny/rm"]
    assert isinstance(scorer.reward(prompt), float)
    assert gradus("chat", run_folder / "ppo", "--device", "cpu", "--dtype", dtype, lines="a\n").stdout == " yes\n"


def test_out_of_memory_is_one_line_that_says_what_to_try(run_folder, services, monkeypatch):
    import torch

    from components.models.heads import CausalLM

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "new_cache", full)
        for result in (gradus("serve", run_folder, "--port", 0), gradus("chat", run_folder / "ppo", lines="a\n")):
            assert result.exit_code == 1 and "copy" in result.stderr and "--dtype bfloat16" in result.stderr
            assert result.stderr.splitlines()[-1].startswith("gradus: out of memory on ")
    monkeypatch.setattr(torch.nn.Module, "to", full)
    for result in (gradus("serve", run_folder, "--port", 0), gradus("chat", run_folder / "ppo")):
        assert result.exit_code == 1 and "export, whose weights take" in result.stderr and not services
        assert result.stderr.startswith("gradus: out of memory on ")


@pytest.mark.slow
def test_serve_answers_and_ends_within_a_second_of_control_c(run_folder):
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "components.cli", "serve", str(run_folder), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=ROOT) as child:  # closes the pipes if an assertion fails
        try:
            lines = [child.stdout.readline() for _ in range(6)]
            call = shlex.split(lines[-1])
            assert call[0] == "curl" and "tiny/pretrain" in "".join(lines)
            request = urllib.request.Request(call[1], call[-1].encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as response:
                assert json.load(response)["object"] == "chat.completion"
            start = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=60)
            assert child.returncode == 0 and "chat/completions 200" in errors and time.monotonic() - start < 20
        finally:
            child.kill()
