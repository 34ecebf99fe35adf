"""Tables of text: shown by every page, written as CSV and Markdown by a study."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of text, and the same rows as numbers for a spreadsheet.

    Attributes:
        name: of its files.
        words: how many columns, from the left, are text; the others are aligned to the right.
        links: where the first cell of each row leads; "" for nowhere.
        strong: rows whose last text column reads so are emphasised.
        grouped: a first cell that repeats the one above is hidden.
        total: the last row is a total.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    name: str = ""
    numbers: Sequence[Mapping[str, Any]] = ()
    words: int = 1
    links: Sequence[str] = ()
    strong: str = ""
    grouped: bool = False
    total: bool = False


def as_csv(table: Table) -> str:
    """The table's numbers in full precision."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in table.numbers for key in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.numbers)
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """The table as a page shows it."""
    rule = ["---" if i < table.words else "---:" for i in range(len(table.heads))]
    lines = [table.heads, rule, *table.rows]
    body = "\n".join(f"| {' | '.join(c.replace('|', '&#124;') for c in line)} |" for line in lines)
    return f"{body}\n" + (f"\n{table.note}\n" if table.note else "")
