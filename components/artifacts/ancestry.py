"""What the artifacts of a run were made from, back to the data, as a graph read from their cards."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from components.artifacts import lineage, listing
from components.artifacts.metadata import ArtifactError, load_config, read_card
from components.system.disk import present

_NONE: frozenset[str] = frozenset()


class Ancestor(NamedTuple):
    """A data set or an artifact.

    key: its fingerprint, or the hash of its content. facts: lines to read. parents: keys of what it was made from.
    folder: of an artifact that is still there.
    """

    key: str
    title: str
    facts: list[str]
    parents: list[str]
    folder: Path | None = None


class _Parent(BaseModel):
    stage: str
    content: str
    path: str = ""
    hub: str = ""


class _Card(BaseModel):
    stage: str
    content: str
    run: str = ""
    data: str = ""
    seed: int | None = None
    commit: str = ""
    parents: dict[str, _Parent] = {}
    metrics: dict[str, float | None] = {}
    inputs: dict[str, Any] = {}
    learning: dict[str, Any] = {}


def ancestors(exports: Iterable[Path]) -> list[Ancestor]:
    """The artifacts and all that they were made from, each after its parents; folders without a card are left out.

    A parent in another run is followed as long as its content is the one that the card names. Raises ArtifactError if a
    card is not one of ours.
    """
    cards = {export: card for export in exports if (card := card_of(export)) is not None}
    found: dict[str, Ancestor] = {}
    for export in lineage.in_order(cards):
        _add(found, export, cards[export], cards[export].run)
    return list(found.values())


def card_of(export: Path) -> _Card | None:
    """A folder's card; None if it has none. Raises ArtifactError if it is not one of ours."""
    content = read_card(export)
    try:
        return _Card.model_validate(content) if content else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{export.name}/card.json is not a card of Gradus: {where}: {first['msg']}") from None


def _add(found: dict[str, Ancestor], export: Path, card: _Card, run: str, descendants: frozenset[str] = _NONE) -> None:
    """Adds an artifact after its parents. descendants: contents that are being added, which a damaged card can name."""
    if card.content in found:
        return
    descendants |= {card.content}
    for parent in card.parents.values():
        if parent.content in found or parent.content in descendants:
            continue
        folder = Path(parent.path)
        other = card_of(folder) if parent.path and present(folder) else None
        if other is not None and other.content == parent.content:
            _add(found, folder, other, run, descendants)
        else:
            title = parent.hub or parent.stage
            facts = ["from the Hub"] if parent.hub else ["replaced or removed since"]
            found[parent.content] = Ancestor(parent.content, title, facts, [])
    if card.data:
        read = Ancestor(card.data, *_data(card), [])
        if card.data not in found or len(found[card.data].facts) < len(read.facts):  # a tokenizer's card counts nothing
            found[card.data] = read
    sources = [*(parent.content for parent in card.parents.values()), card.data]
    title = card.stage if card.run == run else f"{card.stage} of {card.run}"
    parents = [key for key in dict.fromkeys(sources) if key in found]
    found[card.content] = Ancestor(card.content, title, list(_facts(export, card)), parents, export)


def _data(card: _Card) -> tuple[str, list[str]]:
    """The title and facts of the data that an artifact was made from."""
    inputs = card.inputs
    records, tokens = card.metrics.get("data/records"), card.metrics.get("data/tokens")
    kind = str(inputs.get("data._target_", "")).rpartition(".")[2].removesuffix("Data").removesuffix("s").lower()
    if inputs.get("data.path"):
        source = "/".join(Path(str(inputs["data.path"])).parts[-2:])
    elif "data.world.kind" in inputs:
        source = f"built-in world, {inputs['data.world.kind']}"
    else:
        source = "a mixture" if any(name.startswith("data.mixture") for name in inputs) else "see card.json"
    facts = [source]
    if records is not None:
        facts.append(f"{records:,.0f} records" + ("" if tokens is None else f", {tokens:,.0f} tokens"))
    return f"{kind} data".strip(), facts


def _facts(export: Path, card: _Card) -> Iterator[str]:
    """Headline metric, verdict, size, and what making it took."""
    headline = listing.headline(card.model_dump())
    verdict = card.learning.get("verdict")
    if headline or verdict:
        yield ", ".join(filter(None, [headline, str(verdict or "")]))
    size = listing.readable_size(sum(file.stat().st_size for file in export.iterdir() if file.is_file()))
    if (export / "config.json").exists():
        size = f"{load_config(export)[0].num_parameters():,} parameters, {size}"
    yield size
    if (seconds := card.metrics.get("seconds")) is not None:
        yield f"{seconds / 60:.1f} minutes"
    made = [f"seed {card.seed}" if card.seed is not None else "", f"commit {card.commit}" if card.commit else ""]
    if any(made):
        yield ", ".join(filter(None, made))
