"""A node in a run: its settings, its number, its data, its model, and its clock."""

import time
from importlib.metadata import version
from pathlib import Path

from flwr.app import Context, Message

from fl.config import Settings, check_settings
from fl.results.progress import reporter
from fl.setup.inputs import SCORES, Split, build_model, open_split
from fl.wire.messages import CONFIG, Sender
from src.data import InspectionDataset
from src.data.partition import Partition
from src.federated.candidates import SHARED, Stage, by_bank, extract_features

PARTITION = "partition.json"


class CannotTakePart(ValueError):
    """Why a node can do nothing, in words that say nothing of its files."""


class Node:
    """This node in this run: its settings, number, data and model."""

    def __init__(self, message: Message, context: Context) -> None:
        config = dict(message.content[CONFIG])  # settings, and where the run directory is shared
        workspace = str(config.pop("workspace"))
        self.settings: Settings = check_settings(config)
        self.workspace = Path(workspace) if workspace else None
        self.number = node_number(context)
        self.model = build_model(self.settings)
        self.whole = open_split(self.settings, str(context.node_config.get("data-root", "")))
        self.own = self._own()
        self.progress: Stage = reporter(self.workspace, f"client {self.number}")

    def _own(self) -> Split:
        if self.workspace is None:
            return self.whole
        return self.whole.share(Partition.load(self.workspace / PARTITION), self.number)

    def extract(self, clock: "Clock") -> None:
        """Put the features of its training images into the cache.

        Raises:
            CannotTakePart: there are none.
        """
        if not len(self.own.train):
            raise CannotTakePart("it holds no training images")
        extract_features(self.model, self.own.train, self.progress("features"))
        clock.lap("features")

    def banks(self) -> dict[str, InspectionDataset]:
        """The training images of each bank that it has a part in."""
        return by_bank(self.own.train, self.settings.model_scope)

    def sender(self, clock: "Clock") -> Sender:
        """Who it is, and how long it took."""
        fingerprint = self.model.backbone.fingerprint
        return Sender(self.number, fingerprint, version("fedpatchcore"), clock.laps)

    def bank_of(self, name: str) -> str:
        """The bank that scores an object."""
        return SHARED if self.settings.model_scope == "shared" else name

    def place(self, side: str, name: str) -> Path | None:
        """Where scores of an object are left for the server, if it shares the run directory."""
        if self.workspace is None:
            return None
        return self.workspace / SCORES / side / name / f"{self.number}.safetensors"


def node_number(context: Context) -> int:
    """The client's number: its partition-id, which every node must have been given."""
    if "partition-id" not in context.node_config:
        raise CannotTakePart("this node has no partition-id: set it in its --node-config")
    return int(context.node_config["partition-id"])


class Clock:
    """Seconds of the stages of a job."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap under a stage."""
        now = time.monotonic()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self.last
        self.last = now
