"""Settings: their meaning and bounds, where they come from, what goes together."""

from fl.config.checks import check_settings
from fl.config.schema import FIELDS, ConfigError, PathSetting, Scalar, Settings, affects, identity
from fl.config.sources import (
    CHECKOUT,
    CLIENTS,
    default_settings,
    flatten_settings,
    leaves,
    parse_assignments,
    read_config,
    read_toml,
    with_absolute_paths,
)

__all__ = [
    "CHECKOUT",
    "CLIENTS",
    "FIELDS",
    "ConfigError",
    "PathSetting",
    "Scalar",
    "Settings",
    "affects",
    "check_settings",
    "default_settings",
    "flatten_settings",
    "identity",
    "leaves",
    "parse_assignments",
    "read_config",
    "read_toml",
    "with_absolute_paths",
]
