"""Run a ServerApp and its clients in this process, without a SuperLink and without Ray.

The apps are the same as on the real engines and see the same things: each client has its own
Context, whose state lasts from message to message; messages are copied on their way; an exception
in a client reaches the server as an error reply. Clients run one after another, and timeouts are
not enforced.

    run_inline(server_app, client_app, run_config, [{"partition-id": 0, "num-partitions": 1}])
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Scalar = str | int | float | bool
T = TypeVar("T")

RUN_ID = 1
TASK_ID = 1
FIRST_NODE_ID = 1001  # unlike any partition id, so that code cannot confuse the two


def run_inline(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, Scalar],
    node_configs: Sequence[Mapping[str, Scalar]],
    *,
    seed: int | None = None,
) -> None:
    """Run the ServerApp with one client for each node config; raises what the ServerApp raises.

    `seed` shuffles nodes and replies, whose order the real engines do not guarantee either.
    """
    with _task_identity():
        grid = InlineGrid(client_app, run_config, node_configs, seed=seed)
        server_app(grid, _context(SUPERLINK_NODE_ID, {}, run_config))


class InlineGrid(Grid):
    """A grid whose clients answer at once, in this process."""

    def __init__(
        self,
        client_app: ClientApp,
        run_config: Mapping[str, Scalar],
        node_configs: Sequence[Mapping[str, Scalar]],
        *,
        seed: int | None = None,
    ) -> None:
        self._client_app = client_app
        self._contexts = {
            node_id: _context(node_id, node_config, run_config)
            for node_id, node_config in enumerate(node_configs, start=FIRST_NODE_ID)
        }
        self._replies: dict[str, Message] = {}
        self._order = None if seed is None else random.Random(seed)
        self._run = Run.create_empty(RUN_ID)

    @property
    def run(self) -> Run:
        return self._run

    def set_run(self, run: Run) -> None:
        self._run = run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return self._shuffled(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the addressed clients; returns the ids under which to pull their replies.

        Raises:
            ValueError: a message is addressed to an unknown node.
        """
        message_ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())  # as the engines do
            self._replies[message.metadata.message_id] = self._answer(message)
            message_ids.append(message.metadata.message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies to these messages; each reply can be pulled once."""
        ids = [message_id for message_id in message_ids if message_id in self._replies]
        return self._shuffled(self._replies.pop(message_id) for message_id in ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        if node_id not in self._contexts:
            raise ValueError(
                f"a message is addressed to node {node_id}, which is not in this federation of "
                f"nodes {sorted(self._contexts)}"
            )
        context = deepcopy(self._contexts[node_id])
        try:
            reply = deepcopy(self._client_app(deepcopy(message), context))
        except Exception as failure:
            return Message(_error(failure), reply_to=message)
        self._contexts[node_id] = context  # a failed call changes no state, as in the engines
        return reply

    def _shuffled(self, items: Iterable[T]) -> list[T]:
        items = list(items)
        if self._order is not None:
            self._order.shuffle(items)
        return items


def _error(failure: Exception) -> Error:
    """The error that a SuperNode sends for an exception of its ClientApp."""
    return Error(
        code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=f"{type(failure)}:<'{failure}'>"
    )


def _context(
    node_id: int, node_config: Mapping[str, Scalar], run_config: Mapping[str, Scalar]
) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=node_id,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(run_config),
    )


@contextmanager
def _task_identity() -> Iterator[None]:
    """Give this process the identity that Message requires, and restore the old one afterwards."""
    names = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
        RUN_ID,
        SUPERLINK_NODE_ID,
        TASK_ID,
    )
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
