"""A template's output is the same on every day, on every machine and in every process."""

import os
import subprocess
import sys
from datetime import datetime

import pytest

from components.tokenizer import date, tokenizer
from components.tokenizer.codec import TokenizerError
from components.tokenizer.date import DAY, FIELDS, strftime_now
from components.tokenizer.exact import ExactCodec
from components.tokenizer.template import ChatTemplate
from components.tokenizer.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "Why?"}]
DATED = "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"


def written(source: str) -> str:
    return "".join(text for text, _ in ChatTemplate(source, {}).segments(TALK, add_generation_prompt=False))


def test_the_date_is_a_stated_one_and_not_todays():
    template = "{{ strftime_now('%A %-d %B %Y, %d.%m.%y') }}: {{ messages[0].content }}"
    assert written(template) == "Friday 26 July 2024, 26.07.24: Why?"
    assert DAY == "2024-07-26"


def test_every_field_is_strftimes_own_of_that_day_in_the_language_of_the_c_locale():
    for field, value in FIELDS.items():
        assert datetime(2024, 7, 26).strftime(f"%{field}") == value, field
    assert strftime_now("100%% %H:%M") == "100% 00:00"


def test_the_format_may_be_given_by_name_as_in_transformers():
    assert written("{{ strftime_now(format='%Y') }} {{ messages[0].content }}") == "2024 Why?"


@pytest.mark.parametrize("form", ["%Q", "% d", "100%"])
def test_an_unknown_field_is_refused(form):
    with pytest.raises(TokenizerError, match="not a field of strftime"):
        strftime_now(form)


def test_the_fingerprint_covers_the_date_of_a_template_that_writes_it(small_tokenizer, monkeypatch):
    dated = Tokenizer(Loose(small_tokenizer.codec), DATED).fingerprint
    plain = small_tokenizer.fingerprint
    monkeypatch.setattr(tokenizer, "DAY", "2030-01-01")
    assert Tokenizer(Loose(small_tokenizer.codec), DATED).fingerprint != dated
    assert Tokenizer(small_tokenizer.codec, small_tokenizer.chat_template).fingerprint == plain


class Loose(ExactCodec):
    """A codec whose template is checked when a chat is rendered."""

    strict = False

    def __init__(self, codec: ExactCodec) -> None:
        super().__init__(codec.model_bytes)


@pytest.mark.parametrize(
    "expression",
    [
        "raise_exception",
        "messages[0].items",
        "messages | map(attribute='content')",
        "[messages[0].items]",
        "'at ' ~ messages[0].get",
        "messages[0].items | string",
        "[strftime_now] | join(' ')",
        "' '.join([messages[0].keys])",
        "namespace(a=1)",
        "(messages[0].keys() - {'a': 1}.keys()) | list",
    ],
)
def test_a_text_that_depends_on_a_memory_address_is_refused(expression):
    with pytest.raises(TokenizerError, match="not text|no order"):
        written("{{ " + expression + " }}{{ messages[0].content }}")


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("[1, 2.5, none, true, {'a': ('b',)}]", "[1, 2.5, None, True, {'a': ('b',)}]"),
        ("missing", ""),
        ("messages[0].keys()", "dict_keys(['role', 'content'])"),
        ("(3 - 1) ~ 'x'", "2x"),
        ("messages | map(attribute='role') | join(', ')", "user"),
    ],
)
def test_values_are_written_as_ever(expression, text):
    assert written("{{ " + expression + " }}|{{ messages[0].content }}") == f"{text}|Why?"


def test_another_process_with_another_clock_language_and_hashes_writes_the_same():
    program = (
        "import locale; locale.setlocale(locale.LC_ALL, '')\n"
        "from components.tokenizer.template import ChatTemplate\n"
        "source = \"{{ strftime_now('%c %p') }}{{ {'b': 1, 'a': 2} }}{{ messages[0].content }}\"\n"
        "print(ChatTemplate(source, {}).segments([{'role': 'user', 'content': 'Why?'}], add_generation_prompt=False))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"TZ": zone, "LC_ALL": language, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for zone, language, seed in (("Pacific/Kiritimati", "C.UTF-8", "1"), ("America/New_York", "C", "2"))
    }
    assert len(told) == 1 and "Fri Jul 26 00:00:00 2024 AM" in told.pop()
    assert date.strftime_now("%c") == "Fri Jul 26 00:00:00 2024"
