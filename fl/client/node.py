"""A client's node in a run: its settings, its number, its data and its model."""

from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from flwr.app import Context, Message

from fl.config import Settings, check_settings
from fl.setup.data import Split, open_split
from fl.setup.model import build_model
from fl.wire.envelope import CONFIG, Sender
from fl.workspace.directory import PARTITION, save_scores
from fl.workspace.progress import Clock, reporter
from src.data import InspectionDataset
from src.data.partition import Partition
from src.evaluation.score_set import ScoreSet
from src.federated.bank_set import BankSet, split_by_bank
from src.federated.candidates import Stage, extract_features


class CannotTakePart(ValueError):
    """A reason why a node cannot do its part; it never names the node's files."""


class Node:
    """This node in this run.

    Attributes:
        settings: of the run.
        workspace: the run directory if server and clients share it, else None.
        number: the client's number.
        model: with an empty bank, or the bank of an earlier message.
        all_data: all images of a simulation; in a deployment the node's own.
        data: the images of this client.
        progress: where to report progress.
        clock: seconds of this message's stages.
    """

    def __init__(self, message: Message, context: Context) -> None:
        config = dict(message.content[CONFIG])  # the settings, and the workspace
        workspace = str(config.pop("workspace"))
        self.settings: Settings = check_settings(config)
        self.workspace = Path(workspace) if workspace else None
        self.number = node_number(context)
        self.model = build_model(self.settings)
        self.all_data = open_split(self.settings, str(context.node_config.get("data-root", "")))
        self.data = self._share()
        self.progress: Stage = reporter(self.workspace, f"client {self.number}")
        self.clock = Clock()

    def _share(self) -> Split:
        if self.workspace is None:
            return self.all_data
        return self.all_data.share(Partition.load(self.workspace / PARTITION), self.number)

    @cached_property
    def train_by_bank(self) -> BankSet[InspectionDataset]:
        """The client's training images by the bank they belong to."""
        return split_by_bank(self.data.train, self.settings.model_scope)

    def extract_train_features(self) -> None:
        """Put the features of the training images into the cache.

        Raises:
            CannotTakePart: there are no training images.
        """
        if not len(self.data.train):
            raise CannotTakePart("it holds no training images")
        extract_features(self.model, self.data.train, self.progress("features"))
        self.clock.lap("features")

    def sender(self) -> Sender:
        """This client as the sender of a reply, with the seconds so far."""
        fingerprint = self.model.backbone.fingerprint
        return Sender(self.number, fingerprint, version("fedpatchcore"), self.clock.laps)

    def save_scores(self, side: str, name: str, scores: ScoreSet) -> None:
        """Leave scores of an object for the server if it shares the run directory."""
        if self.workspace is not None:
            save_scores(self.workspace, side, name, self.number, scores)


def node_number(context: Context) -> int:
    """The client's number, its partition-id.

    Raises:
        CannotTakePart: the node was started without one.
    """
    if "partition-id" not in context.node_config:
        raise CannotTakePart("this node has no partition-id: set it in its --node-config")
    return int(context.node_config["partition-id"])
