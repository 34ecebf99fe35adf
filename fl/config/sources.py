"""Where settings come from: the defaults in pyproject.toml, TOML files and `--set key=value`."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from fl.config.schema import FIELDS, ConfigError, PathSetting, Scalar

CHECKOUT = Path(__file__).resolve().parents[2]
CLIENTS = 4  # simulated where clients = 0


def default_settings(checkout: Path = CHECKOUT) -> dict[str, Scalar]:
    """Every key with its default, from pyproject.toml.

    Raises:
        ConfigError: the package does not stand in a checkout.
    """
    path = checkout / "pyproject.toml"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: run fedpatchcore from a checkout of its repository"
        )
    return flatten_settings(tomllib.loads(path.read_text())["tool"]["flwr"]["app"]["config"])


def read_config(path: Path) -> dict[str, Scalar]:
    """Settings of a TOML file by key; nested tables become dotted keys.

    Raises:
        ConfigError: no such file, one that cannot be read, not TOML, or a value that is a list.
    """
    return flatten_settings(read_toml(path))


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a TOML file.

    Raises:
        ConfigError: no such file, one that cannot be read, or not TOML.
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
        ConfigError: a value that no setting has.
    """
    flat: dict[str, Scalar] = {}
    for name, value in leaves(table):
        if not isinstance(value, get_args(Scalar)):
            raise ConfigError(f"{name}: a setting is a text, a number or true/false, not {value!r}")
        flat[name] = value
    return flat


def leaves(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys of nested tables, and what stands there."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def parse_assignments(assignments: Iterable[str]) -> dict[str, Scalar]:
    """`key=value` words as settings; a value that is not TOML is taken as text.

    Raises:
        ConfigError: a word without `=`.
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
    """Settings whose paths are absolute, because the apps run in a folder of their own."""
    absolute = dict(settings)
    for key, value in settings.items():
        for mark in FIELDS[key].metadata if key in FIELDS else ():
            if isinstance(mark, PathSetting) and isinstance(value, str):
                absolute[key] = mark.absolute(value)
    return absolute
