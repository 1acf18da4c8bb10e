import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """No test finds artifacts in logs/ of the folder that the tests are started from, such as those of make demo."""
    monkeypatch.chdir(tmp_path)
