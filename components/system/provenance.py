"""The commit, package versions and hardware that made an artifact."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROSE = (":(exclude)docs", ":(exclude)*.md")  # a run depends on none of it, and the pages of results are made of runs


def versions() -> dict[str, str]:
    """Versions of Python and the packages that a result depends on."""
    names = ("torch", "lightning", "hydra-core", "datasets", "sentencepiece", "torchmetrics")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def commit() -> str:
    """The project's commit, with '+' if tracked files other than documentation differ; '' outside of git."""
    git = ["git", "-C", str(ROOT)]
    status = [*git, "status", "--porcelain", "-uno"]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*status, "--", ".", *PROSE], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.strip() + ("+" if changed.strip() else "")


def hardware() -> str:
    """The processor and, if there is one, the accelerator."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    threads = torch.get_num_threads()
    parts = [f"{threads} thread{'s' if threads > 1 else ''} of {name}"]
    if torch.cuda.is_available():
        parts.insert(0, f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    return ", ".join(parts)
