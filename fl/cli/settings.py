"""fedpatchcore settings: every setting with its meaning, default and bounds."""

from __future__ import annotations

import textwrap
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

import typer

from src.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fl.config import Scalar

WIDTH = 80
PREFACE = """# Settings

`fedpatchcore settings --format markdown` writes this page. A setting goes into a TOML file
(`[merge]`, then `encoding = "int8"`), or onto the command line (`--set merge.encoding=int8`).
The defaults stand in `pyproject.toml`. `flwr run` needs absolute paths; `fedpatchcore` makes
relative ones absolute.
"""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Format(StrEnum):
    """How the settings are printed."""

    text = "text"
    markdown = "markdown"


def settings(
    key: Annotated[
        str, typer.Argument(metavar="[KEY]", help="a setting such as seed, or a section: merge")
    ] = "",
    format_: Annotated[Format, typer.Option("--format", help="text or markdown")] = Format.text,
) -> None:
    """List the settings with meaning, default and bounds."""
    keys = _select(key)
    typer.echo(_as_markdown(keys) if format_ is Format.markdown else _as_text(keys))


def _select(key: str) -> list[str]:
    """A setting, the settings of a section, or all of them.

    Raises:
        UserError: neither a setting nor a section.
    """
    from fl.config import FIELDS
    from fl.config.checks import explain_unknown

    keys = [name for name in FIELDS if key in ("", name, _section(name))]
    if not keys:
        raise UserError(explain_unknown(key, {*FIELDS, *map(_section, FIELDS)}))
    return keys


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _as_text(keys: Iterable[str]) -> str:
    from fl.config import FIELDS, default_settings

    defaults = default_settings()
    indent = " " * 4
    entries = []
    for key in keys:
        values = textwrap.fill(f"Values: {_values(key)}.", WIDTH, **_indented(indent))
        meaning = textwrap.fill(FIELDS[key].description or "", WIDTH, **_indented(indent))
        entries.append(f"{key} = {_toml(defaults[key])}\n{meaning}\n{values}")
    return "\n\n".join(entries)


def _indented(indent: str) -> dict:
    return {"initial_indent": indent, "subsequent_indent": indent, "break_on_hyphens": False}


def _as_markdown(keys: Sequence[str]) -> str:
    from fl.config import FIELDS, default_settings

    defaults = default_settings()
    parts = [PREFACE]
    for section, names in groupby(keys, _section):
        rows = [
            f"| `{key}` | `{_toml(defaults[key])}` | {_values(key)} | {FIELDS[key].description} |"
            for key in names
        ]
        head = ["| setting | default | values | meaning |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([f"## {section or 'Run'}", "", *head, *rows, ""]))
    return "\n".join(parts).rstrip()


def _values(key: str) -> str:
    """What a setting may be, in words: `a number above 0 and at most 1`."""
    from fl.config import FIELDS, PathSetting

    field = FIELDS[key]
    if get_origin(field.annotation) is Literal:
        return ", ".join(value or '""' for value in get_args(field.annotation))
    for mark in field.metadata:
        if isinstance(mark, PathSetting):
            return " or ".join(["a path", *mark.keywords])
    kinds: dict[object, str] = {bool: "true or false", int: "an integer", float: "a number"}
    limits = [
        f"{words} {_number(getattr(mark, name))}"
        for mark in field.metadata
        for name, words in BOUNDS.items()
        if hasattr(mark, name)
    ]
    return " ".join([kinds.get(field.annotation, "text"), " and ".join(limits)]).strip()


def _number(value: float) -> str:
    return "2^32" if value == 2**32 else f"{value:g}"


def _toml(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
