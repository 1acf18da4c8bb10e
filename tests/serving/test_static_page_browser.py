"""The page in a real browser, against a real server of tiny models. Skipped without Playwright or a browser."""

import json
import os
import re
import shutil
import socket
import string
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("playwright")
pytest.importorskip("uvicorn")

import uvicorn
from playwright.sync_api import expect, sync_playwright

from components.serving.api import new_app
from components.serving.engine import Engine
from components.serving.served import Served
from components.serving.service import Service
from components.serving.votes import Votes
from components.tokenizer.tokenizer import StreamDecoder
from tests.kit import tiny_models
from tests.kit.carded_run import write_run

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow(minutes=2),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path; CHROMIUM can name one"),
]
expect.set_options(timeout=60_000)  # milliseconds, on a busy machine
LONG = string.ascii_letters[::-1]
ANSWER = " paris, naïve<b>東"


class RunningServer:
    """A server in a thread, that can be stopped and started again on its port."""

    def __init__(self, models, tokenizer, keys=(), votes=None, folder=Path()):
        self.models, self.tokenizer, self.keys, self.votes, self.folder = models, tokenizer, keys, votes, folder
        self.port = 0
        self.start()

    def start(self):
        stages = {"base": "pretrain", "slow": "sft", "parrot": "ppo", "rm": "rm"}
        served = [Served(f"run/{n}", model, self.tokenizer, self.folder, stages[n]) for n, model in self.models.items()]
        engine = Engine({one.name: one.model for one in served if one.generates}, most_rows=8)
        self.service = Service(served, engine, votes=self.votes and Votes(self.votes))
        taken = socket.socket()
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", self.port))
        self.port = taken.getsockname()[1]
        taken.listen()
        app = new_app(self.service, keys=self.keys, hosts=["127.0.0.1"])
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=0))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [taken]})
        self.thread.start()

    def stop(self):
        self.service.engine.stop()
        self.server.should_exit = True
        self.thread.join()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture(scope="module")
def models(small_tokenizer):
    header = small_tokenizer.render_prompt([{"role": "user", "content": ""}])[-1]
    answer = [header, *small_tokenizer.encode(ANSWER), small_tokenizer.end_id]
    size = small_tokenizer.vocab_size
    return {
        "base": tiny_models.random_model(size),
        "slow": tiny_models.parrot(small_tokenizer, [header, *small_tokenizer.encode(LONG), small_tokenizer.end_id]),
        "parrot": tiny_models.parrot(small_tokenizer, answer),
        "rm": tiny_models.random_scalar(size),
    }


@contextmanager
def opened(browser, address, **settings):
    """A page, which must report no error of its own."""
    context = browser.new_context(**{"viewport": {"width": 360, "height": 740}, **settings})
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield page
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    context.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(models, small_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    run = write_run(folder / "<i>tiny<")
    server = RunningServer(models, small_tokenizer, votes=folder / "votes.jsonl", folder=run / "ppo/export")
    yield server
    server.stop()


@pytest.fixture
def page(browser, server):
    with opened(browser, server.address) as page:
        page.wait_for_selector("#chat-model option", state="attached")
        yield page


def say(page, text, box="#chat-text"):
    page.fill(box, text)
    page.press(box, "Enter")


def texts(page):
    return page.locator(".turn .text").all_text_contents()


def test_a_chat_is_streamed_retried_and_edited_and_shows_markup_as_text(page):
    page.select_option("#chat-model", "run/parrot")
    say(page, "<img src=x onerror=alert(1)>")
    page.wait_for_selector("text=Answered.")
    assert texts(page) == ["<img src=x onerror=alert(1)>", ANSWER]
    page.get_by_role("button", name="Retry").click()
    page.wait_for_selector("text=Answered.")
    say(page, "and bob?")
    expect(page.locator(".turn")).to_have_count(4)
    page.wait_for_selector("text=Answered.")
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edited message").fill("anna?")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Answered.")
    assert texts(page) == ["anna?", ANSWER]


def test_an_answer_by_a_technique_says_how_it_came_about(page):
    page.select_option("#chat-model", "run/parrot")
    page.select_option("#chat-technique", "the most frequent of 5")
    say(page, "where does anna live?")
    page.wait_for_selector("text=Answered.")
    assert texts(page) == ["where does anna live?", ANSWER]
    page.get_by_text("How it came about").click()
    expect(page.locator(".trace li")).to_have_text(f"self_consistency: {ANSWER.strip()} ×5")
    page.select_option("#chat-technique", "the best of 8 by run/rm")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".trace li")).to_have_text(re.compile("best_of_n: the highest of 8 scores"))


def test_an_answer_of_more_than_10_000_characters_and_its_trace_stay_inside_the_page(page, monkeypatch):
    push = StreamDecoder.push
    monkeypatch.setattr(StreamDecoder, "push", lambda decoder, token: 800 * push(decoder, token))
    page.select_option("#chat-model", "run/parrot")
    page.select_option("#chat-technique", "the most frequent of 5")
    say(page, "where does anna live?")
    page.wait_for_selector("text=Answered.")
    assert len(texts(page)[1]) == 800 * len(ANSWER)
    page.get_by_text("How it came about").click()
    expect(page.locator(".trace li")).to_contain_text("×5")


def test_an_answer_is_stopped_and_what_was_said_stays(page, server):
    page.select_option("#chat-model", "run/slow")
    pause = server.models["slow"].model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(0.2))
    say(page, "where does anna live?")
    expect(page.locator(".turn .text").nth(1)).to_have_text(re.compile("...."))
    page.keyboard.press("Escape")
    page.wait_for_selector("text=Stopped.")
    pause.remove()
    assert 3 < len(texts(page)[1]) < len(LONG)
    expect(page.locator("#chat-send")).to_have_text("Send")


def test_enter_during_an_answer_stops_nothing_and_keeps_the_text(page, server):
    page.select_option("#chat-model", "run/slow")
    pause = server.models["slow"].model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(0.05))
    say(page, "where does anna live?")
    expect(page.locator(".turn .text").nth(1)).to_have_text(re.compile("...."))
    say(page, "and bob?")
    page.wait_for_selector("text=Answered.")
    pause.remove()
    assert texts(page)[1] == LONG and page.locator("#chat-text").input_value() == "and bob?"
    page.press("#chat-text", "Enter")
    expect(page.locator(".turn")).to_have_count(4)


def test_an_edited_message_stops_the_answer_that_began_meanwhile(page, server):
    page.select_option("#chat-model", "run/parrot")
    say(page, "where does anna live?")
    page.wait_for_selector("text=Answered.")
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edited message").fill("anna?")
    page.select_option("#chat-model", "run/slow")
    pause = server.models["slow"].model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(0.2))
    say(page, "and bob?")
    expect(page.locator(".turn .text").nth(2)).to_have_text(re.compile("...."))
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Send again").click()
    pause.remove()
    expect(page.locator(".turn")).to_have_count(2)
    page.wait_for_selector("text=Answered.")
    assert texts(page) == ["anna?", LONG]


def test_an_answer_that_failed_before_it_began_is_not_part_of_the_conversation(page):
    page.select_option("#chat-model", "run/parrot")
    say(page, "anna " * 500)
    page.wait_for_selector("text=maximum context length")
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "and bob?")
    assert asked.value.post_data_json["messages"] == [{"role": "user", "content": "and bob?"}]
    page.wait_for_selector("text=Answered.")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_role("button", name="Retry").first.click()
    assert asked.value.post_data_json["messages"][0]["content"].startswith("anna anna")


def test_a_setting_between_the_arrows_steps_is_sent(page):
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0.333")
    page.get_by_label("Top p").fill("0.975")
    page.select_option("#chat-model", "run/parrot")
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "hello")
    assert (asked.value.post_data_json["temperature"], asked.value.post_data_json["top_p"]) == (0.333, 0.975)


def test_side_by_side_says_what_was_stopped_and_what_failed(page, server):
    page.get_by_role("tab", name="Side by side").click()
    page.get_by_role("checkbox", name="run/base").uncheck()
    pause = server.models["slow"].model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(0.2))
    say(page, "where does anna live?", "#side-text")
    expect(page.locator(".answer").first.locator(".token").nth(3)).to_be_attached()
    page.locator("#side-send").click()
    expect(page.locator("#side-status")).to_have_text("Stopped.")
    pause.remove()
    page.route(
        "**/v1/chat/completions",
        lambda route: (
            route.continue_()
            if "slow" in route.request.post_data
            else route.fulfill(status=500, json={"error": {"message": "broken"}})
        ),
    )
    say(page, "where does anna live?", "#side-text")
    expect(page.locator("#side-status")).to_have_text("1 of 2 have answered.")
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/score", lambda route: route.fulfill(status=400, json={"error": {"message": "too long"}}))
    say(page, "where does anna live?", "#side-text")
    expect(page.locator("#side-status")).to_have_text("All have answered.")
    expect(page.locator(".answer .failure").first).to_have_text("too long")


def test_a_refusal_of_the_server_is_shown_as_it_says_it(browser, server):
    with opened(browser, f"http://localhost:{server.port}/health") as page:
        assert "--allow-host" in page.content()
    with opened(browser, server.address) as page:
        page.route(
            "**/v1/models", lambda route: route.fulfill(status=403, json={"error": {"message": "not called so"}})
        )
        page.reload()
        expect(page.locator("#connection")).to_have_text("not called so")


def test_a_setting_out_of_range_is_not_sent(page):
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("3")
    say(page, "hello")
    assert texts(page) == []
    page.get_by_label("Temperature").fill("0")
    page.reload()
    page.get_by_text("Settings").click()
    assert page.get_by_label("Temperature").input_value() == "0"


def test_models_answer_side_by_side_with_alternatives_by_keyboard(page):
    page.get_by_role("tab", name="Side by side").focus()
    page.keyboard.press("Enter")
    assert page.locator("#side-models input:checked").count() == 3
    page.get_by_role("checkbox", name="run/slow").uncheck()
    with page.expect_request("**/v1/completions") as continued:
        say(page, "where does anna live?", "#side-text")
    assert continued.value.post_data_json["prompt"] == "where does anna live?"
    page.wait_for_selector("text=All have answered.")
    assert "Base model: it continues the text" in page.get_by_role("article", name="run/base").text_content()
    answers = page.locator(".answer")
    assert answers.locator("h3").all_text_contents() == ["run/base", "run/parrot"]
    parrot = answers.nth(1)
    assert parrot.locator("[role=listbox]").text_content() == ANSWER
    numbers = parrot.locator("dt").all_text_contents()
    assert numbers == ["tokens", "seconds", "entropy ≈", "reward"]
    parrot.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    assert parrot.locator(".token").nth(1).evaluate("token => token === document.activeElement")
    assert page.locator("#alternatives tr").count() >= 5
    page.keyboard.press("Escape")
    assert page.locator("#alternatives").is_hidden()


def test_a_blind_vote_by_key_is_kept_as_a_preference_and_then_says_who_answered(page, server):
    page.get_by_role("tab", name="Blind A/B").click()
    page.get_by_role("group", name="at random").get_by_label("run/base").uncheck()
    say(page, "where does anna live?", "#blind-text")
    expect(page.locator("#blind-status")).to_contain_text("Which is better?")
    titles = page.locator("#blind-answers h3")
    assert titles.all_text_contents() == ["A", "B"]
    shown = page.locator("#blind-answers .text").all_text_contents()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#blind-status")).to_contain_text("Kept:")
    [record] = map(json.loads, server.votes.read_text().splitlines())
    assert record["prompt"] == [{"role": "user", "content": "where does anna live?"}]
    assert record["completions"] == shown and record["ranks"] == [1, 0]
    assert titles.all_text_contents() == [f"{letter}: {model}" for letter, model in zip("AB", record["models"])]
    expect(page.locator("#blind-strengths tbody tr")).to_have_count(2)
    assert page.locator("#blind-strengths tbody th").first.text_content() == record["models"][1]


def test_a_thumb_is_kept(page, server):
    page.select_option("#chat-model", "run/parrot")
    say(page, "where does anna live?")
    page.get_by_role("button", name="Bad answer").click()
    page.wait_for_selector("text=The vote is kept.")
    [record] = map(json.loads, server.votes.with_name("thumbs.jsonl").read_text().splitlines())
    assert (record["completion"], record["label"]) == (ANSWER, False)


def test_a_run_is_shown_with_lineage_and_curves_and_what_it_lacks_and_markup_as_text(page):
    page.get_by_role("tab", name="The run").click()
    nodes = page.locator("#run-nodes li")
    expect(nodes).to_have_count(7)
    assert nodes.locator("h3").all_text_contents()[:3] == ["text data", "tokenizer", "pretrain"]
    assert nodes.locator(".from").all_text_contents()[-1] == "from sft, rm"
    assert "texts/<b>mine.jsonl" in page.locator("#run-nodes").text_content()
    assert page.locator("#run-name option").all_text_contents() == ["<i>tiny<"]
    assert page.locator("#run-notes li").count() == 1 and not page.locator("#run-report").is_visible()
    curve = page.get_by_role("slider", name="pretrain: loss")
    curve.focus()
    page.keyboard.press("Home")
    assert curve.get_attribute("aria-valuetext") == "step 1, train/loss 3, val/loss –"
    page.keyboard.press("ArrowRight")
    assert curve.get_attribute("aria-valuetext") == "step 2, train/loss 2, val/loss –"


def test_a_dead_server_is_said_and_recovered_from(browser, models, small_tokenizer):
    server = RunningServer(models, small_tokenizer)
    try:
        with opened(browser, server.address) as page:
            page.wait_for_selector("text=Connected.")
            page.select_option("#chat-model", "run/parrot")
            server.stop()
            say(page, "hello")
            page.wait_for_selector("text=Trying again")
            server.start()
            page.wait_for_selector("text=Connected again.")
            assert page.locator("#chat-model").input_value() == "run/parrot"
            page.get_by_role("button", name="Retry").click()
            page.wait_for_selector("text=Answered.")
            assert texts(page) == ["hello", ANSWER]
    finally:
        server.stop()


def test_a_key_is_asked_for_and_used(browser, models, small_tokenizer):
    server = RunningServer(models, small_tokenizer, keys=["secret"])
    try:
        with opened(browser, server.address) as page:
            for key, shown in (("wrong", "Incorrect API key"), ("secret", "Connected.")):
                page.get_by_label("This server needs an API key").fill(key)
                page.keyboard.press("Enter")
                page.wait_for_selector(f"text={shown}")
            assert page.locator("#chat-model option").count() == 3
    finally:
        server.stop()
