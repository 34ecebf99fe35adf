"""Where settings come from: the defaults in pyproject.toml, TOML files and `--set key=value`."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from fl.config.schema import FIELDS, ConfigError, PathSetting, Scalar

CHECKOUT = Path(__file__).resolve().parents[2]
CLIENTS = 4  # of a simulation with clients = 0


def default_settings(checkout: Path = CHECKOUT) -> dict[str, Scalar]:
    """Every key with its default, from pyproject.toml.

    Raises:
        ConfigError: the package is not installed from a checkout.
    """
    path = checkout / "pyproject.toml"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: run fedpatchcore from a checkout of its repository"
        )
    return flatten_settings(tomllib.loads(path.read_text())["tool"]["flwr"]["app"]["config"])


def read_config(path: Path) -> dict[str, Scalar]:
    """Settings of a TOML file by dotted key.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML, or a value is no setting.
    """
    return flatten_settings(read_toml(path))


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"configuration file {path} does not exist") from error
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not TOML: {error}") from error


def flatten_settings(table: Mapping[str, object]) -> dict[str, Scalar]:
    """Nested tables as dotted keys.

    Raises:
        ConfigError: a value is a list, a date or the like.
    """
    flat: dict[str, Scalar] = {}
    for key, value in leaves(table):
        if not isinstance(value, get_args(Scalar)):
            raise ConfigError(f"{key}: a setting is a text, a number or true/false, not {value!r}")
        flat[key] = value
    return flat


def leaves(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of nested tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def parse_assignments(assignments: Iterable[str]) -> dict[str, Scalar]:
    """`key=value` words as settings. A value that is not TOML is text.

    Raises:
        ConfigError: a word has no `=`.
    """
    settings: dict[str, Scalar] = {}
    for word in assignments:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set {word}: write key=value")
        try:
            settings[key.strip()] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = value
    return settings


def with_absolute_paths(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings with every path made absolute from the current folder."""
    absolute = dict(settings)
    for key, value in settings.items():
        for mark in FIELDS[key].metadata if key in FIELDS else ():
            if isinstance(mark, PathSetting) and isinstance(value, str):
                absolute[key] = mark.absolute(value)
    return absolute
