"""Your own protocols: server and clients import every module that is put here."""

import importlib
import pkgutil


def load_extensions() -> None:
    """Import every module of this folder, which registers what it defines."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
