"""A reader accepts or refuses, with one of our errors, any input that hypothesis generates."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from components.launch.choices import misnamed_choice
from components.launch.schema import ConfigError, check
from components.tokenizer.template import ChatTemplate
from tests.faults.bad_inputs import GOOD, read_artifact, read_records
from tests.kit.composed_configs import compose_config

pytestmark = pytest.mark.filterwarnings("ignore")  # of damaged files and odd values, by the libraries that read them
FEWER = settings(max_examples=8, derandomize=True, suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
KEYS = [
    "text",
    "messages",
    "prompt",
    "completion",
    "completions",
    "ranks",
    "chosen",
    "rejected",
    "instruction",
    "input",
    "output",
    "role",
    "content",
    "reference",
    "category",
]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "system"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4),
    max_leaves=12,
)
TEMPLATE_PARTS = st.sampled_from(
    [
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "{{ m['role'] }}",
        "{{ messages[0].content }}",
        "{{",
        "}}",
        "{% if m.role == 'user' %}",
        "{% else %}",
        "{% endif %}",
        "{{ bos_token }}",
        "{% set x = 'a' * 99 %}",
        "{{ x ~ x }}",
        "{{ messages | tojson }}",
        "{{ m.content | trim }}",
        "{% raw %}",
        "{% macro f() %}",
        "{% endmacro %}",
        "{{ f() }}",
        "{% generation %}",
        "{% endgeneration %}",
        "{{ ''.__class__ }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 1 // 0 }}",
        "\n",
        "<|end|>",
    ]
)


def takes_or_refuses(read: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            read(Path(folder))
        except ValueError as error:
            assert type(error).__module__.split(".")[0] == "components", repr(error)
            assert 10 < len(str(error)) < 2000


@FEW
@given(st.sampled_from(sorted(GOOD)), ANYTHING)
def test_a_record_of_anything(kind, record):
    content = json.dumps(record).encode()
    takes_or_refuses(lambda folder: read_records(kind, "data.jsonl", content, folder))


@FEW
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_good_record_with_one_field_of_anything(kind, data):
    record = dict(data.draw(st.sampled_from(GOOD[kind])))
    record[data.draw(st.sampled_from(sorted(record) + KEYS))] = data.draw(ANYTHING)
    takes_or_refuses(lambda folder: read_records(kind, "data.jsonl", json.dumps(record).encode(), folder))


@FEW
@given(
    st.sampled_from(sorted(GOOD)),
    st.sampled_from(["txt", "json", "jsonl", "jsonl.gz", "ndjson.bz2", "txt.xz", "json.zst", "parquet", "arrow"]),
    st.binary(),
)
def test_a_file_of_any_bytes(kind, ending, content):
    takes_or_refuses(lambda folder: read_records(kind, f"data.{ending}", content, folder))


@FEW
@given(data=st.data())
def test_an_artifact_one_of_whose_files_is_cut_or_changed_anywhere(made, data):
    name = data.draw(st.sampled_from(sorted(file.name for file in made.iterdir())))
    content = bytearray((made / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(["cut", "gone"]) | st.integers(0, 255))

    def damage(export: Path) -> None:
        if change == "gone":
            (export / name).unlink()
        elif change == "cut":
            (export / name).write_bytes(content[:place])
        else:
            content[place] = change
            (export / name).write_bytes(content)

    takes_or_refuses(lambda folder: read_artifact(damage, made, folder))


@FEW
@given(st.lists(TEMPLATE_PARTS | st.text(max_size=5), max_size=12).map("".join), ANYTHING)
def test_a_template_of_any_parts_and_messages_of_anything(source, messages):
    def read(_: Path) -> None:
        template = ChatTemplate(source, {"bos_token": "<bos>"})
        template.segments([{"role": "user", "content": "q"}], add_generation_prompt=True)
        template.segments(messages, add_generation_prompt=False)

    takes_or_refuses(read)


@FEWER
@given(
    st.sampled_from(
        [
            "seed",
            "trainer.max_steps",
            "stage.optimizer.lr",
            "data.batch_size",
            "model.hidden_size",
            "resume",
            "compile",
            "context",
            "+stage.x",
            "data.mixture",
            "paths.logs",
        ]
    ),
    st.text(max_size=12) | ANYTHING.map(str) | ANYTHING.map(json.dumps),
)
def test_an_override_of_anything(key, value):
    if misnamed_choice([f"{key}={value}"]):
        return
    try:
        check(compose_config(["stage=sft", f"{key}={value}"]))
    except (HydraException, OmegaConfBaseException, ConfigError):
        pass  # each is reported in a line or two by train.py
    except ValueError as error:
        assert type(error).__module__.split(".")[0] == "components", repr(error)


def test_the_artifact_is_taken_as_it_is(made, tmp_path):
    read_artifact(lambda export: None, made, tmp_path)
    shutil.rmtree(tmp_path / "export")
