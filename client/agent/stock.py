"""The site as an app of Flower's own node (``flower-supernode``), which starts a process a message.

The node's config says what ``fedshift client`` is told by options: ``--node-config
"site='hospital-1' data='/data/MANIFEST.tsv' state='/var/lib/fedshift' policy='policy.yaml'"``.
"""

from __future__ import annotations

from pathlib import Path

from fedshift.client.agent.folder import own_settings
from fedshift.client.agent.options import policy_of
from fedshift.client.agent.site import Site
from fedshift.client.policy import Policy
from fedshift.protocol.flower import (
    ArrayRecord,
    ClientApp,
    Context,
    Message,
    RecordDict,
    ServerApp,
    with_content,
)
from fedshift.protocol.parcel import pack, unpack

app = ClientApp()
server = ServerApp()
"""A bundle must name one; the coordinator of a deployment is `fedshift server`."""


def _relay(message: Message, context: Context) -> Message:
    told = context.node_config
    site = Site(
        str(told["site"]),
        own_settings(str(told["data"])),
        Policy.from_config(policy_of(Path(str(told["policy"])) if "policy" in told else None)),
        Path(str(told["state"])),
    )
    content = RecordDict({name: unpack(record) for name, record in message.content.items()})
    reply = site.handle(with_content(message, content))
    if reply.has_content():
        packed = {
            name: pack(record) if isinstance(record, ArrayRecord) else record
            for name, record in reply.content.items()
        }
        return with_content(reply, RecordDict(packed))
    return reply


for _register in (app.train, app.evaluate, app.query):
    _register()(_relay)
