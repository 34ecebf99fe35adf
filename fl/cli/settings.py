"""fedpatchcore settings: every setting with its meaning, default and bounds."""

from __future__ import annotations

import json
import textwrap
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

import typer

from src.errors import UserError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PREFACE = """# Settings

`fedpatchcore settings --format markdown` writes this page. A setting goes into a TOML file
(`[merge]`, then `encoding = "int8"`), or onto the command line (`--set merge.encoding=int8`).
The defaults stand in `pyproject.toml`. `flwr run` needs absolute paths; `fedpatchcore` makes
relative ones absolute.
"""
TABLE = "| setting | default | values | meaning |\n| --- | --- | --- | --- |"
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
    from fl.config import FIELDS, default_settings
    from fl.config.checks import explain_unknown

    keys = [name for name in FIELDS if key in ("", name, _section(name))]
    if not keys:
        raise UserError(explain_unknown(key, {*FIELDS, *map(_section, FIELDS)}))
    defaults = {name: json.dumps(value) for name, value in default_settings().items()}
    if format_ is Format.text:
        typer.echo("\n\n".join(_entry(name, defaults[name], FIELDS[name]) for name in keys))
        return
    typer.echo(PREFACE)
    tables = []
    for section, names in groupby(keys, _section):
        rows = [
            f"| `{name}` | `{defaults[name]}` | {_values(FIELDS[name])} | "
            f"{FIELDS[name].description} |"
            for name in names
        ]
        tables.append("\n".join([f"## {section or 'Run'}\n", TABLE, *rows]))
    typer.echo("\n\n".join(tables))


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _entry(key: str, default: str, field: FieldInfo) -> str:
    wrapper = textwrap.TextWrapper(80, " " * 4, " " * 4, break_on_hyphens=False)
    paragraphs = (field.description or "", f"Values: {_values(field)}.")
    return "\n".join([f"{key} = {default}", *map(wrapper.fill, paragraphs)])


def _values(field: FieldInfo) -> str:
    """What a setting may be, in words: `a number above 0 and at most 1`."""
    from fl.config import PathSetting

    if get_origin(field.annotation) is Literal:
        return ", ".join(value or '""' for value in get_args(field.annotation))
    for mark in field.metadata:
        if isinstance(mark, PathSetting):
            return " or ".join(["a path", *mark.keywords])
    kinds: dict[object, str] = {bool: "true or false", int: "an integer", float: "a number"}
    limits = [
        f"{words} {'2^32' if limit == 2**32 else format(limit, 'g')}"
        for mark in field.metadata
        for name, words in BOUNDS.items()
        if (limit := getattr(mark, name, None)) is not None
    ]
    return " ".join([kinds.get(field.annotation, "text"), " and ".join(limits)]).strip()
