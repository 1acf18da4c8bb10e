"""What the report card says in words and tables, in reading order; without matplotlib, which its pictures need."""

from collections.abc import Iterator

from components.evaluation.report import learning, receipts, tables
from components.evaluation.report.card import Results, Table

SECTIONS = (  # with the picture below each
    (tables.against_table, ""),
    (learning.learning_table, ""),
    (tables.best_of_n_table, "best_of_n"),
    (tables.majority_table, "majority"),
    (tables.choice_table, "choice"),
    (tables.reward_table, "reward_model"),
    (tables.proxy_table, ""),
    (tables.budget_table, ""),
    (receipts.receipts_table, ""),
)


def tables_of(results: Results) -> Iterator[tuple[Table, str]]:
    """The tables after the one of models, each with the name of its picture ("": none)."""
    for table_of, picture in SECTIONS:
        table = table_of(results)
        if table is not None:
            yield table, picture


def provenance(results: Results) -> list[str]:
    """The commit, seed, hardware and versions that the report was made with."""
    lines = [f"{key}: {results[key]}" for key in ("commit", "seed", "hardware") if results.get(key) is not None]
    versions = results.get("versions") or {}
    if versions:
        lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return lines
