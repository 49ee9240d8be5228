"""The names of Flower that a deployment needs beside those of :mod:`fedshift.protocol.flower`: the
messages of its Fleet API, and how a message becomes objects that travel one by one.

They move between Flower's releases, and a simulation needs none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedshift.protocol import flower as _flower  # noqa: F401  It silences Flower before its import.

# isort: split
from flwr.app.error import Error
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.message_pb2 import Message as MessageHead
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)

__all__ = [
    "CALLS",
    "INSTANCE",
    "MEDIA_TYPE",
    "PUBLIC_KEY",
    "SERVICE",
    "SIGNATURE",
    "TIMESTAMP",
    "VERSION",
    "Call",
    "Error",
    "MessageHead",
    "Node",
    "ObjectTree",
    "get_all_nested_objects",
    "get_object_head_values_from_object_content",
    "get_object_id",
    "get_object_tree",
    "inflate_object_from_contents",
    "iterate_object_tree",
    "message_from_proto",
    "message_to_proto",
    "no_object_id_recompute",
    "remove_content_from_message",
    "validate_object_content",
]

SERVICE = "flwr.proto.Fleet"
MEDIA_TYPE = "application/protobuf"
PUBLIC_KEY = FLEET_HTTP_PUBLIC_KEY_HEADER
SIGNATURE = FLEET_HTTP_SIGNATURE_HEADER
TIMESTAMP = TIMESTAMP_HEADER
VERSION = "fedshift-version"
INSTANCE = "fedshift-instance"
"""The headers of a request: who asks, since when the signature holds, with which version and from
which of its processes (a node of Flower's own sends neither)."""


@dataclass(frozen=True)
class Call:
    """One call of the Fleet API: its name, its path over HTTP and its messages' types."""

    name: str
    path: str
    request: type[Any]
    response: type[Any]


CALLS = {
    name: Call(name, f"/v1/fleet/{path}", request, response)
    for name, path, request, response in (
        (
            "ActivateNode",
            "activate-node",
            fleet_pb2.ActivateNodeRequest,
            fleet_pb2.ActivateNodeResponse,
        ),
        (
            "DeactivateNode",
            "deactivate-node",
            fleet_pb2.DeactivateNodeRequest,
            fleet_pb2.DeactivateNodeResponse,
        ),
        (
            "SendNodeHeartbeat",
            "send-node-heartbeat",
            heartbeat_pb2.SendNodeHeartbeatRequest,
            heartbeat_pb2.SendNodeHeartbeatResponse,
        ),
        (
            "PullMessages",
            "pull-messages",
            fleet_pb2.PullMessagesRequest,
            fleet_pb2.PullMessagesResponse,
        ),
        (
            "PushMessages",
            "push-messages",
            fleet_pb2.PushMessagesRequest,
            fleet_pb2.PushMessagesResponse,
        ),
        ("GetRun", "get-run", run_pb2.GetRunRequest, run_pb2.GetRunResponse),
        ("GetFab", "get-fab", fab_pb2.GetFabRequest, fab_pb2.GetFabResponse),
        (
            "PushObject",
            "push-object",
            message_pb2.PushObjectRequest,
            message_pb2.PushObjectResponse,
        ),
        (
            "PullObject",
            "pull-object",
            message_pb2.PullObjectRequest,
            message_pb2.PullObjectResponse,
        ),
        (
            "ConfirmMessageReceived",
            "confirm-message-received",
            message_pb2.ConfirmMessageReceivedRequest,
            message_pb2.ConfirmMessageReceivedResponse,
        ),
    )
}
