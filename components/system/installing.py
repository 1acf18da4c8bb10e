"""The project as a package: its version, and the command that installs an extra.

Imports nothing heavy, since error messages everywhere name such commands.
"""

import shlex
from pathlib import Path

NAME = "gradus-lm"  # of the distribution; `gradus` on PyPI is another project
ROOT = Path(__file__).resolve().parents[2]


def command(extra: str) -> str:
    """The command that installs an extra of pyproject.toml from the checkout; the project is not on a package index."""
    if not _is_checkout():
        return f"pip install -e {shlex.quote(f'<checkout>[{extra}]')}"
    here = Path.cwd() == ROOT
    constraints = "constraints.txt" if here else str(ROOT / "constraints.txt")
    project = f"{'.' if here else ROOT}[{extra}]"
    return f"pip install -c {shlex.quote(constraints)} -e {shlex.quote(project)}"


def missing(what: str, package: str, extra: str) -> str:
    """An error message: `what` needs a package that is not installed; an extra of pyproject.toml includes it."""
    return f"{what} needs the package {package}, which is not installed. Install it: {command(extra)}"


def version() -> str:
    """The version in pyproject.toml, or that of the installed package if there is no checkout."""
    if _is_checkout():
        import tomllib

        return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    import importlib.metadata

    return importlib.metadata.version(NAME)


def _is_checkout() -> bool:
    return (ROOT / "pyproject.toml").is_file()
