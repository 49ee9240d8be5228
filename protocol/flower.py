"""What all parts use of Flower (flwr is pinned exactly), less public names included; beside it,
:mod:`fedshift.protocol.fleet` holds what a deployment needs more.

It turns Flower's telemetry and update check off before the first import.
"""

from __future__ import annotations

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "Error",
    "FlowerStrategy",
    "Grid",
    "Message",
    "MetricRecord",
    "RecordDict",
    "Run",
    "ServerApp",
    "correct_source",
    "flower_strategies",
    "identify_server",
    "set_message_id",
    "shallow_copy",
    "with_content",
    "with_error",
]

SERVER_NODE_ID = 1


def identify_server(run_id: int) -> None:
    """Tell Flower which run this process coordinates; ``Message`` cannot be built without it."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID
    TaskIdentity.task_id = 1


def set_message_id(message: Message, message_id: str) -> None:
    """Give ``message`` the identity that its reply will refer to."""
    message.metadata.__dict__["_message_id"] = message_id


def correct_source(reply: Message, node_id: int) -> None:
    """Set which node ``reply`` came from: Flower's error replies may carry the server's own id."""
    reply.metadata.__dict__["_src_node_id"] = node_id


def shallow_copy(message: Message) -> Message:
    """Copy ``message`` with its own RecordDict, sharing the immutable array bytes.

    Built-in strategies put one RecordDict into all their messages.
    """
    return with_content(message, RecordDict(dict(message.content)))


def with_content(message: Message, content: RecordDict) -> Message:
    """A message of the same identity as ``message``, with ``content``."""
    # Flower's constructor takes metadata; its overloads do not say so.
    return Message(content=content, metadata=message.metadata)  # type: ignore[call-overload]


def with_error(reply: Message, error: Error) -> Message:
    """``reply`` with ``error`` in the place of its content."""
    return Message(error=error, metadata=reply.metadata)  # type: ignore[call-overload]
