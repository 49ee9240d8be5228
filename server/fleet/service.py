"""What the coordinator answers to each call of Flower's Fleet API, whichever way it came.

A request is signed by the site's key: Flower's nodes sign the time at which they ask, and so do
ours. Who asks is known before anything else of a request is read.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fedshift import __version__
from fedshift.protocol.fleet import (
    CALLS,
    INSTANCE,
    PUBLIC_KEY,
    SIGNATURE,
    TIMESTAMP,
    VERSION,
)
from fedshift.protocol.nodes import node_id
from fedshift.server.fleet import bundle
from fedshift.server.fleet.hub import Hub, Peer, Refusal

AHEAD_S = 5.0
BEHIND_S = 305.0
"""How far a site's clock may be off, as Flower has it."""
LONGEST_WAIT_S = 20.0
"""A waiting request is answered well within the 30 s after which clients give up."""
LARGEST_REQUEST = 16 * 2**20
"""Bytes; an object has at most some five MiB."""
_REFUSED = 1


class Denied(Exception):
    """The request is not served: an HTTP status, and why in words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words

    def to_json(self) -> str:
        """As Flower's nodes and ours read it."""
        return json.dumps({"code": self.status, "detail": self.words})


class Fleet:
    """The calls of the Fleet API on a hub."""

    def __init__(
        self,
        hub: Hub,
        *,
        clock: Callable[[], float] = time.time,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``clock`` tells the wall-clock time; ``log`` takes a line for each site that connects or
        leaves, and for each request that is denied."""
        self.hub = hub
        self._clock = clock
        self.log = log
        self._verified: dict[int, tuple[bytes, str, bytes]] = {}
        self._answers: dict[str, Callable[[Peer, Any], Any]] = {
            "DeactivateNode": self._deactivate,
            "SendNodeHeartbeat": self._heartbeat,
            "PullMessages": self._pull,
            "PullObject": self._pull_object,
            "PushMessages": self._push,
            "PushObject": self._push_object,
            "ConfirmMessageReceived": self._confirm,
            "GetRun": self._get_run,
            "GetFab": self._get_fab,
        }

    def authenticate(self, headers: Mapping[str, str], address: str) -> Peer:
        """Who asks; raises :class:`Denied`."""
        try:
            return self._authenticate(headers)
        except Denied as denied:
            self.log(f"{address} was denied: {denied.words}")
            raise

    def _authenticate(self, headers: Mapping[str, str]) -> Peer:
        version = headers.get(VERSION, "")
        if version and _release(version) != _release(__version__):
            raise Denied(
                426,
                f"this coordinator runs fedshift {__version__} and the site {version}: install the "
                "same release on both",
            )
        try:
            key = base64.b64decode(headers[PUBLIC_KEY], validate=True)
            signature = base64.b64decode(headers[SIGNATURE], validate=True)
            signed = headers[TIMESTAMP]
            ahead = datetime.datetime.fromisoformat(signed).timestamp() - self._clock()
        except (KeyError, ValueError, OverflowError, binascii.Error):
            raise Denied(401, "the request carries no signature of a site's key") from None
        peer = self.hub.peer(key)
        if peer is None:
            raise Denied(
                401,
                "the key is not enrolled here, or was revoked: `fedshift server enroll NAME "
                "site.pub` at the coordinator enrols it",
            )
        if not -BEHIND_S <= ahead <= AHEAD_S:
            by = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'}"
            raise Denied(
                401,
                f"the clock of site {peer.name} is {by} the coordinator's: set both by NTP (at "
                f"most {AHEAD_S:g} s ahead, {BEHIND_S:g} s behind)",
            )
        told = key, signed, signature
        if self._verified.get(peer.id) != told:
            _verify(*told)
            self._verified[peer.id] = told
        peer.version = version or "Flower's own node"
        return peer

    def answer(self, name: str, headers: Mapping[str, str], peer: Peer, body: bytes) -> bytes:
        """Answer the call ``name`` of ``peer``; raises :class:`Denied`."""
        try:
            return self._answer(name, headers, peer, body)
        except Denied as denied:
            # With 410 an agent learns that the coordinator began anew, which is no fault of it.
            if denied.status not in (410, 422):
                self.log(f"site {peer.name} was denied {name}: {denied.words}")
            raise

    def _answer(self, name: str, headers: Mapping[str, str], peer: Peer, body: bytes) -> bytes:
        call = CALLS[name]
        try:
            request = call.request.FromString(body)
        except Exception:
            raise Denied(400, f"the request is no {call.request.DESCRIPTOR.name}") from None
        claimed = getattr(request, "node", None)
        node = claimed.node_id if claimed is not None else getattr(request, "node_id", peer.id)
        if node not in (peer.id, node_id(peer.key)):
            raise Denied(401, "the request names a node of another key")
        instance = headers.get(INSTANCE, "")
        if name == "ActivateNode":
            return bytes(self._activate(peer, request, instance).SerializeToString())
        if instance != peer.instance:
            if peer.instance and instance:
                raise Denied(
                    409,
                    f"another agent took over with the key of site {peer.name}: one key serves one "
                    "agent; stop one of them, or enrol it under a name of its own",
                )
            raise Denied(410, "the agent has not been activated since the coordinator began")
        self.hub.heard(peer, len(body))
        try:
            found = self._answers[name](peer, request)
        except Refusal as refusal:
            raise Denied(422, str(refusal)) from refusal
        return bytes(found.SerializeToString())

    def _activate(self, peer: Peer, request: Any, instance: str) -> Any:
        if request.public_key != peer.key:
            raise Denied(401, "the request brings another key than the one it is signed with")
        anew = peer.instance not in ("", instance) and self.hub.met(peer)
        self.log(
            f"site {peer.name}: connected, version {peer.version}"
            + ("; its agent started anew, or two agents share its key" if anew else "")
        )
        self.hub.heard(peer, 0)
        self.hub.activate(peer, instance)
        return CALLS["ActivateNode"].response(node_id=peer.id)

    def _deactivate(self, peer: Peer, request: Any) -> Any:
        self.hub.deactivate(peer)
        self.log(f"site {peer.name}: left")
        return CALLS["DeactivateNode"].response()

    def _heartbeat(self, peer: Peer, request: Any) -> Any:
        return CALLS["SendNodeHeartbeat"].response(success=True)

    def _pull(self, peer: Peer, request: Any) -> Any:
        response = CALLS["PullMessages"].response()
        # Flower's own node asks every few seconds, and takes a slow answer for a lost one.
        wait_s = LONGEST_WAIT_S if peer.version == __version__ else 0.0
        found = self.hub.take(peer, wait_s)
        if found is not None:
            head, tree = found
            response.messages_list.append(head)
            response.message_object_trees.append(tree)
        return response

    def _pull_object(self, peer: Peer, request: Any) -> Any:
        content = self.hub.content(peer, request.object_id)
        return CALLS["PullObject"].response(
            object_found=content is not None,
            object_available=content is not None,
            object_content=content or b"",
        )

    def _push(self, peer: Peer, request: Any) -> Any:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise Denied(400, "the request holds no single reply")
        head, tree = request.messages_list[0], request.message_object_trees[0]
        response = CALLS["PushMessages"].response(session_id=head.metadata.message_id)
        try:
            missing = self.hub.announce(peer, head, tree)
            response.objects_to_push.extend(missing)
            response.results[head.metadata.message_id] = 0
        except Refusal:
            # No error: Flower's own node would end with it.
            response.results[head.metadata.message_id] = _REFUSED
        return response

    def _push_object(self, peer: Peer, request: Any) -> Any:
        stored = self.hub.put(peer, request.object_id, request.object_content)
        return CALLS["PushObject"].response(stored=stored)

    def _confirm(self, peer: Peer, request: Any) -> Any:
        return CALLS["ConfirmMessageReceived"].response()

    # What Flower's own node needs to start its app; ours never asks for either.

    def _get_run(self, peer: Peer, request: Any) -> Any:
        return bundle.described(request.run_id)

    def _get_fab(self, peer: Peer, request: Any) -> Any:
        found = bundle.handed_out(request.hash_str)
        if found is None:
            raise Denied(404, "there is no app of that hash")
        return found


def _release(version: str) -> str:
    """The part of a version in which two that understand each other agree."""
    return ".".join(version.split(".")[:2])


def _verify(key: bytes, signed: str, signature: bytes) -> None:
    try:
        public = load_pem_public_key(key)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError("no key on an elliptic curve")
        public.verify(signature, signed.encode(), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        raise Denied(401, "the request's signature is not one of its key") from None
