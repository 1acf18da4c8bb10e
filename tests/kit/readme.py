"""The commands of README and of the pages in docs/."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README} | {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))
}


def blocks(text: str) -> list[str]:
    """The shell commands of a page, one string for each block of code, each command on one line."""
    return [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]


BLOCKS = [block for text in PAGES.values() for block in blocks(text)]  # README's first
LINES = [
    re.sub(r"\s+", " ", line.split(" # ")[0]).strip() for block in BLOCKS for line in block.splitlines() if line.strip()
]
TRAIN = list(dict.fromkeys(line for line in LINES if line.startswith("python train.py")))
