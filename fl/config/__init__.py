"""Settings: their meaning and bounds, where they come from, what goes together."""

from fl.config.schema import (
    CHECKOUT,
    ConfigError,
    Scalar,
    Settings,
    check_settings,
    default_settings,
    parse_assignments,
    read_config,
)

__all__ = [
    "CHECKOUT",
    "ConfigError",
    "Scalar",
    "Settings",
    "check_settings",
    "default_settings",
    "parse_assignments",
    "read_config",
]
