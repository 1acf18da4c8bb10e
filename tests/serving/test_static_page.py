"""The page that the server has at /: what is sent, and that it loads nothing from elsewhere."""

import re

import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from components.serving import static_page
from components.serving.api import new_app
from components.serving.engine import Engine
from components.serving.service import Service
from components.serving.static_page import FILES

FOREIGN = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w-]+\.[\w.-]+")
UNSAFE = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|\son\w+=|style=")


@pytest.fixture(scope="module")
def client():
    service = Service([], Engine({}))
    with TestClient(new_app(service, keys=["secret"])) as client:
        yield client


def test_the_page_needs_no_key_and_forbids_the_browser_whatever_is_not_its_own(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_of_the_page_is_served_and_names_no_other_site_and_parses_no_html(client, name):
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 200 and answer.content == FILES[name].read_bytes()
    assert not FOREIGN.search(answer.text) and not UNSAFE.search(answer.text)


def test_every_file_that_the_page_names_is_there_and_every_file_is_named():
    named = {"index.html"}
    for file in FILES.values():
        named |= set(re.findall(r"""(?:"page/|from "\./)([\w.]+)\"""", file.read_text(encoding="utf-8")))
    assert named == FILES.keys() == {file.name for file in static_page.FOLDER.iterdir()}


def test_every_id_that_is_named_is_there():
    text = FILES["index.html"].read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'\b(?:for|aria-controls|aria-labelledby)="([^"]+)"', text)) <= set(ids)
    for file in FILES.values():
        assert set(re.findall(r'byId\("([^"]+)"\)', file.read_text(encoding="utf-8"))) <= set(ids), file.name


@pytest.mark.parametrize("name", ["api.py", "../api.py", "%2e%2e/api.py", "..%2fapi.py", "none.js"])
def test_nothing_else_is_served(client, name):
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"
