"""A whole run: rounds until the merged banks are complete, then the evaluation.

What a round does is the protocol's (`fl.server.protocols`); how clients are asked is the
federation's (`fl.server.federation`).
"""

from fl.server.checkpoint import Checkpoint
from fl.server.exchanges import evaluate
from fl.server.federation import Federation
from fl.server.protocols import Protocol
from fl.server.state import ServerState


def run_rounds(
    federation: Federation, protocol: Protocol, checkpoint: Checkpoint, resume: bool = False
) -> ServerState:
    """Run a protocol to its end, and broadcast and evaluate the merged banks.

    Args:
        federation: the clients.
        protocol: what a round does.
        checkpoint: where the state is kept after each round.
        resume: go on from the state kept there; images that clients have gained since the last
            round are merged too.

    Raises:
        ConfigError: there is no state to go on from.
        RoundFailed: fewer clients than min-clients came through an exchange.
    """
    state = checkpoint.load() if resume else ServerState()
    federation.traffic = state.traffic
    if protocol.is_complete(state):
        state = protocol.merge_new_images(federation, state)
        checkpoint.save(state)
    while not protocol.is_complete(state):
        state = protocol.run_round(federation, state)
        checkpoint.save(state)
    return evaluate(federation, state)
