"""Records of answers that are labeled one by one, desirable or not, without a comparison."""

from collections.abc import Iterable
from typing import Any

from components.data.records import formats
from components.data.records.errors import FormatError, kind
from components.data.records.formats import Record, preference
from components.data.records.known_shapes import LABELS
from components.data.records.published import comparison

VOTES = {"up": True, "thumbs_up": True, "👍": True, "down": False, "thumbs_down": False, "👎": False}
WORDS = {"true": True, "false": False, **VOTES}  # a table of text has no booleans
COMPARED = ("chosen", "rejected", "ranks")


def chat(row: Any) -> Record:
    """A demonstration, as `formats.chat` reads it. Raises FormatError for one that is labeled as undesirable; a label's
    field with any other value, such as a class, is ignored."""
    labeled = row.items() if isinstance(row, dict) else ()
    bad = [name for name, value in labeled if name in LABELS and _known(value) is False]
    if bad:
        got = f"an answer labeled undesirable by {_quoted(bad)} (stage=kto learns from answers of both labels)"
        raise FormatError("a demonstration", got)
    return formats.chat(row)


def unpaired(row: Any) -> Record:
    """Labeled answers -> {"prompt": messages, "completions": [str, …], "labels": [bool | None, …], "tools"?}.

    Accepts {"prompt", "completion", "label"} and every other shape of a demonstration with a label, which is that of
    its last answer: a boolean, or a vote ("up", "down", "thumbs_up", "thumbs_down", 👍, 👎). The label's field can also
    be named kto_tag, thumbs or vote. Accepts comparisons without a label as well: an answer that is better than more of
    the others than it is worse than is desirable (of a pair, the chosen one), one for which it is the other way round
    is not, and one for which they balance has no label (None).
    """
    if not isinstance(row, dict):
        raise FormatError("a labeled answer as a JSON object", kind(row))
    row = {name: value for name, value in row.items() if value is not None}
    given = {name: _label(name, row[name]) for name in LABELS if name in row}
    compared = [name for name in COMPARED if name in comparison(row)]
    if not given:
        if not compared:
            expected = 'an answer with a "label" (true or false), or a comparison without one'
            raise FormatError(expected, f"fields {_quoted(row)}" if row else "no fields")
        return _of_comparison(preference(row))
    if compared:
        raise FormatError("a label or a comparison", f"both {_quoted(given)} and {_quoted(compared)}")
    if len(set(given.values())) > 1:
        raise FormatError("one label", f"different ones in {_quoted(given)}")
    record = formats.chat(row)
    *prompt, answer = (_unweighted(message) for message in record.pop("messages"))
    if answer["role"] != "assistant":
        raise FormatError("a dialogue that ends with the labeled answer", f"one that ends with {answer['role']}")
    completion = answer if answer.keys() > {"role", "content"} else answer["content"]
    return {"prompt": prompt, "completions": [completion], "labels": list(given.values())[:1], **record}


def _label(name: str, value: Any) -> bool:
    known = _known(value)
    if known is not None:
        return known
    raise FormatError(f'"{name}" as true or false, or a vote ({", ".join(VOTES)})', kind(value))


def _known(value: Any) -> bool | None:
    """The label that a value is; None if it is none."""
    return WORDS.get(value.strip().lower()) if isinstance(value, str) else value if isinstance(value, bool) else None


def _of_comparison(record: Record) -> Record:
    ranks = record["ranks"]
    balances = [sum((other > rank) - (other < rank) for other in ranks) for rank in ranks]
    labels = [balance > 0 if balance else None for balance in balances]
    kept: Record = {name: record[name] for name in ("prompt", "completions", "tools") if name in record}
    return {**kept, "labels": labels}


def _unweighted(message: Record) -> Record:
    return {name: value for name, value in message.items() if name != "weight"}


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
