"""Protocols: what a round does. Each is a class in a file of its own, found by its name here.

A protocol of your own is one more file in `fl.extensions`: docs/how-to/own-protocol.md has a
complete example.
"""

import importlib
import pkgutil

from fl.config import ConfigError, Settings
from fl.extensions import load_extensions
from fl.server.protocols.base import Protocol, register, registered

__all__ = ["Protocol", "protocol_class", "register"]


def protocol_class(settings: Settings) -> type[Protocol]:
    """The protocol that the settings ask for, after it has checked them.

    A private mechanism brings its own protocol; `merge.protocol` names any other.

    Raises:
        ConfigError: an unknown protocol, or settings that it cannot run with.
    """
    load_extensions()
    protocols = registered()
    name = settings.merge_protocol if settings.privacy_mechanism == "none" else "private"
    if name not in protocols:
        raise ConfigError(f"merge.protocol = {name}: choose one of {', '.join(sorted(protocols))}")
    problems = list(protocols[name].problems(settings))
    if problems:
        raise ConfigError("\n".join(problems))
    return protocols[name]


for _module in pkgutil.iter_modules(__path__):  # each registers its protocol
    importlib.import_module(f"{__name__}.{_module.name}")
