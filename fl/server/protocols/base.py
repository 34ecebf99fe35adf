"""What every protocol is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

from fl.config import Settings
from fl.server.federation import Federation
from fl.server.state import ServerState
from src.storage.run_metrics import PrivacyReport

RAW_BANK = (
    "Guarantee: none. The bank holds patch features of training images as they are, and tells "
    "whoever has it which images those were."
)

_protocols: dict[str, type["Protocol"]] = {}


class Protocol(ABC):
    """What a round does.

    Args:
        settings: of the run.
        out: the run directory.
    """

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out

    @classmethod
    def problems(cls, settings: Settings) -> Iterable[str]:
        """Settings that the protocol cannot run with, a sentence each."""
        return ()

    def is_complete(self, state: ServerState) -> bool:
        """Whether the merged banks need no further round."""
        return state.round >= self.settings.num_server_rounds

    @abstractmethod
    def run_round(self, federation: Federation, state: ServerState) -> ServerState:
        """Run the next round."""

    def merge_new_images(self, federation: Federation, state: ServerState) -> ServerState:
        """Add images that clients have gained since a run was complete; by default, none."""
        return state

    @property
    def has_unfinished_round(self) -> bool:
        """Whether `run_round` goes on from what an interrupted round left in the run directory."""
        return False

    def privacy_report(self) -> PrivacyReport:
        """What the run guarantees to whom."""
        return PrivacyReport(mechanism="none", guarantee=RAW_BANK)


def register(name: str) -> Callable[[type[Protocol]], type[Protocol]]:
    """Decorator: make a protocol known as `merge.protocol = name`."""

    def add(protocol: type[Protocol]) -> type[Protocol]:
        _protocols[name] = protocol
        return protocol

    return add


def registered() -> dict[str, type[Protocol]]:
    """Name -> protocol, of all that have been imported."""
    return dict(_protocols)
