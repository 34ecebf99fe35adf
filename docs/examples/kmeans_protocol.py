"""A protocol in one file: each merged bank holds the k-means centres of the clients' rows.

A protocol is a subclass of `Protocol` that is registered under a name. As soon as its module is
imported, `merge.protocol` takes that name:

    import kmeans_protocol
    from fl.config import check_settings, default_settings
    from fl.engines.launch import launch

    changes = {"engine": "inline", "clients": 3, "out": "/tmp/k-means", "merge.protocol": "k-means"}
    launch(check_settings(default_settings() | changes))

Other engines import every module of fl/extensions: put the file there.
"""

import time
from collections.abc import Iterable

import numpy as np
from sklearn.cluster import KMeans

from fl.config import Settings
from fl.server.exchanges import ask_rows
from fl.server.federation import Federation
from fl.server.protocols import Protocol, register
from fl.server.state import ServerState
from src.federated.types import ClientBank, MergedBank


@register("k-means")
class KMeansProtocol(Protocol):
    """One round: all clients send rows, and the server clusters the rows of each bank."""

    @classmethod
    def problems(cls, settings: Settings) -> Iterable[str]:
        """Refuse settings that do not suit the protocol, before the run starts."""
        if settings.num_server_rounds > 1:
            yield "merge.protocol = k-means: it takes one round; set num-server-rounds = 1"

    def run_round(self, federation: Federation, state: ServerState) -> ServerState:
        """Ask for rows, cluster them, and return the state after the round.

        Without quotas, a client sends `merge.oversample` times the rows of its local bank.
        `ask_rows` decodes and checks them, and leaves out clients that fail or send anything else.
        """
        uploads = ask_rows(federation, state, quotas=None)
        state = state.with_uploads(uploads, state.round + 1)
        started = time.monotonic()
        banks = {
            name: self.cluster(list(of.values())) for name, of in state.banks_by_name().items()
        }
        return state.after_round(banks, federation.traffic, time.monotonic() - started)

    def cluster(self, uploads: list[ClientBank]) -> MergedBank:
        """The centres of all rows, as many as the clients' local banks have rows together.

        A centre is no patch, so nothing is known of what the bank covers: it has no certificate.
        """
        rows = np.concatenate([upload.features for upload in uploads]).astype(np.float32)  # [N, D]
        size = sum(upload.stats.share for upload in uploads)
        seed = self.settings.seed
        k_means = KMeans(size, init="random", n_init=1, max_iter=20, random_state=seed).fit(rows)
        return MergedBank(k_means.cluster_centers_.astype(np.float32))
