"""The tables that a benchmark fills, as aligned text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from reward_model.terminal import visible


@dataclass(frozen=True)
class RatingRow:
    """Agreement on one dimension over rated clips; NaN where undefined.

    `coverage` is the share of labelled clips with a score. `pair_accuracy` is taken within prompts, on `num_pairs`
    pairs whose labels differ by at least the gap; `pair_random` is the accuracy of random scores on the same pairs.
    """

    dimension: str
    num_clips: int
    coverage: float
    srcc: float
    srcc_low: float
    srcc_high: float
    krcc: float
    plcc: float
    plcc_logistic: float
    rmse: float
    num_pairs: int
    pair_accuracy: float
    pair_random: float


@dataclass(frozen=True)
class RatingTable:
    """One row for each dimension; `parse_rate` is the share of well-formed reasoned answers (NaN for levels)."""

    rows: tuple[RatingRow, ...]
    parse_rate: float


@dataclass(frozen=True)
class PairRow:
    """Agreement on one dimension over labelled pairs; NaN where undefined.

    `accuracy` drops labelled ties. `with_ties` uses the frozen threshold; `oracle_accuracy` and `oracle_threshold` the
    threshold that is best on these labels, an upper bound. The `random_` values are those of random scores.
    `consistency` is the share of pairs with the same winner in both orders (comparator only).
    """

    dimension: str
    num_pairs: int
    coverage: float
    accuracy: float
    random_accuracy: float
    with_ties: float
    oracle_accuracy: float
    oracle_threshold: float
    random_oracle_accuracy: float
    consistency: float


@dataclass(frozen=True)
class PairTable:
    """One row for each dimension."""

    rows: tuple[PairRow, ...]


@dataclass(frozen=True)
class AttributionRow:
    """Agreement of the named faults of one dimension with the known ones, micro-averaged; NaN where undefined.

    `coverage` is the share of well-formed answers; `random_f1` is that of the same answers given to other clips.
    """

    dimension: str
    num_clips: int
    coverage: float
    precision: float
    recall: float
    f1: float
    random_f1: float


@dataclass(frozen=True)
class AttributionTable:
    """One row for each dimension."""

    rows: tuple[AttributionRow, ...]


Table = RatingTable | PairTable | AttributionTable


def format_table(table: Table) -> str:
    """Lay a table out as aligned text; an undefined value is a dash."""
    if not table.rows:
        return "no dimension has both a label and a score"
    text = format_rows([asdict(row) for row in table.rows])
    if isinstance(table, RatingTable) and not math.isnan(table.parse_rate):
        text += f"\nparse rate {table.parse_rate:.3f}"
    return text


def format_rows(rows: Sequence[Mapping[str, object]]) -> str:
    """Lay rows of the same names out under them, the first column to the left; an undefined value is a dash."""
    header = [visible(name.replace("_", " ")) for name in rows[0]]
    lines = [header, *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def to_json(table: Table) -> dict[str, object]:
    """Return a table as plain values, undefined ones as None."""
    plain: dict[str, object] = {"rows": [nulls(asdict(row)) for row in table.rows]}
    if isinstance(table, RatingTable):
        plain |= nulls({"parse_rate": table.parse_rate})
    return plain


def _text(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return visible(str(value))


def nulls(values: Mapping[str, object]) -> dict[str, object]:
    """Return `values` with None for every undefined number, as JSON wants it."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
