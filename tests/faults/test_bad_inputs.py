"""Every bad input is one clear message, not a traceback, within seconds; nothing in it runs."""

import time
from itertools import chain
from pathlib import Path

import pytest

from tests.faults.bad_inputs import bad_artifacts, bad_checkpoints, bad_files, bad_records
from tests.faults.bad_settings import SETTINGS


def answer(case, folder: Path) -> str:
    """What was wrong with how a case was refused, "" if nothing."""
    folder.mkdir()
    began = time.monotonic()
    try:
        case(folder)
    except ValueError as error:
        if type(error).__module__.split(".")[0] != "components" or not 10 < len(str(error)) < 1000:
            return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "accepted"
    return "" if time.monotonic() - began < 10 else "took long"


@pytest.mark.parametrize("kind", ["records", "files", "artifacts", "checkpoints"])
def test_every_bad_input_is_refused_by_an_error_of_ours_with_one_message(kind, made, tmp_path):
    cases = {
        "records": bad_records,
        "files": bad_files,
        "checkpoints": bad_checkpoints,
        "artifacts": lambda: bad_artifacts(made),
    }[kind]()
    found = {name: answer(case, tmp_path / str(number)) for number, (name, case) in enumerate(cases)}
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_the_unchanged_artifact_is_taken(made, tmp_path):
    from tests.faults.bad_inputs import read_artifact

    read_artifact(lambda export: None, made, tmp_path)


def test_there_are_more_than_five_hundred_cases_each_by_a_name_of_its_own(made):
    names = [name for name, _ in chain(bad_records(), bad_files(), bad_artifacts(made), bad_checkpoints())]
    assert len(names) == len(set(names))
    assert len(names) + len(SETTINGS) > 500
