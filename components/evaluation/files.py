"""Results on disk: JSON that is whole or not there."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Written under another name and renamed. ValueError where a figure is not finite; then nothing is written."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    staging = file.with_name(f".writing-{file.name}")
    staging.write_text(text + "\n", encoding="utf-8")
    os.replace(staging, file)


def read_json(file: Path) -> dict[str, Any] | None:
    """What write_json wrote; None where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
