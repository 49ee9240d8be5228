"""A Flower message as the objects in which it travels between machines, and back.

Flower sends every array of a record as an object with a request of its own. A model has dozens, so
all arrays of a record are packed into one, which then travels in its chunks of a few MiB. Whoever
opens a parcel need not trust who made it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedshift.protocol.fleet import (
    MessageHead,
    ObjectTree,
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_id,
    get_object_tree,
    inflate_object_from_contents,
    iterate_object_tree,
    message_from_proto,
    message_to_proto,
    no_object_id_recompute,
    remove_content_from_message,
    validate_object_content,
)
from fedshift.protocol.flower import (
    Array,
    ArrayRecord,
    Message,
    RecordDict,
    set_message_id,
    with_content,
    with_error,
)

PACKED = "fedshift.packed"
"""The serialisation type of an array that holds all of a record."""
MOST_OBJECTS = 4096
"""Of a message: of a gigabyte of weights there are some two hundred."""
_DEEPEST = 8
_LENGTH = 8


@dataclass(frozen=True)
class Parcel:
    """A message in objects: its head (who, when, to what), the tree of its objects' ids, and their
    contents by id, the message's own last."""

    head: MessageHead
    tree: ObjectTree
    contents: dict[str, bytes]


class Wrapper:
    """Wraps messages, each record's arrays packed once, however many messages share them."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[ArrayRecord, ArrayRecord]] = {}

    def wrap(self, message: Message, known: Mapping[str, Any] | None = None) -> Parcel:
        """``message`` in objects; it gets its id. Those whose ids are ``known`` are left out."""
        if message.has_content():
            content = {name: self._pack(record) for name, record in message.content.items()}
            message = with_content(message, RecordDict(content))
        with no_object_id_recompute():
            set_message_id(message, message.object_id)
            objects = get_all_nested_objects(message)
            contents = {
                name: nested.deflate()
                for name, nested in objects.items()
                if known is None or name not in known
            }
            tree = get_object_tree(message)
        return Parcel(message_to_proto(remove_content_from_message(message)), tree, contents)

    def _pack(self, record: Any) -> Any:
        if not isinstance(record, ArrayRecord):
            return record
        # The record is kept, too: another one could get the same id.
        if id(record) not in self._packed:
            self._packed[id(record)] = record, pack(record)
        return self._packed[id(record)][1]


def ids(tree: ObjectTree) -> list[str]:
    """The ids of the objects of ``tree``, each once; raises ``ValueError`` when there are more than
    :data:`MOST_OBJECTS`, or when they are nested deeper than any message is."""
    found: dict[str, None] = {}
    _check_depth(tree, _DEEPEST)
    for count, node in enumerate(iterate_object_tree(tree)):
        if count > MOST_OBJECTS:
            raise ValueError(f"it holds more than {MOST_OBJECTS} objects")
        found[node.object_id] = None
    return list(found)


def announced(head: MessageHead, tree: ObjectTree) -> list[str]:
    """The ids of the objects that another machine says are those of the message ``head``, which
    comes last; raises ``ValueError`` as :func:`ids` does, and for a tree of another message."""
    found = ids(tree)
    if not found or found[-1] != head.metadata.message_id:
        raise ValueError("its objects are not those of a message")
    return found


def _check_depth(tree: ObjectTree, left: int) -> None:
    if not left:
        raise ValueError(f"its objects are nested more than {_DEEPEST} deep")
    for child in tree.children:
        _check_depth(child, left - 1)


def check_object(name: str, content: bytes) -> None:
    """Raise ``ValueError`` unless ``content`` has the hash ``name`` and is an object."""
    if get_object_id(content) != name:
        raise ValueError("an object is not what its hash says")
    try:
        validate_object_content(content)
    except Exception as error:
        raise ValueError("an object is none that is known") from error


def message_of(head: MessageHead) -> Message:
    """The message of ``head`` alone, to reply to when the rest of it cannot be had."""
    return message_from_proto(head)


def unwrap(head: MessageHead, contents: Mapping[str, bytes]) -> Message:
    """The message of ``head``, whose objects' ``contents`` have been checked one by one.

    Raises ``ValueError`` for a message that lacks an object, or whose objects are not those of a
    message.
    """
    try:
        for deflated in contents.values():
            _check_chunks(deflated)
        inflated = inflate_object_from_contents(head.metadata.message_id, dict(contents))
        message = message_of(head)
        if not isinstance(inflated, Message):
            raise ValueError("it is no message")
        if inflated.has_error():
            return with_error(message, inflated.error)
        content = {name: unpack(record) for name, record in inflated.content.items()}
        return with_content(message, RecordDict(content))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError("its objects are not those of a message") from error


def _check_chunks(content: bytes) -> None:
    """Raise ``ValueError`` for an array that names a chunk more often than a message may have
    objects: a few bytes could stand for terabytes."""
    kind, _, _ = get_object_head_values_from_object_content(content)
    if kind == "Array":
        body = json.loads(content[content.index(b"\0") + 1 :])
        if not isinstance(body, dict) or len(body.get("arraychunk_ids", ())) > MOST_OBJECTS:
            raise ValueError("an array is no list of chunks")


def pack(record: ArrayRecord) -> ArrayRecord:
    """``record`` as one array: a header of names, types and shapes, then the arrays' own bytes."""
    header = json.dumps(
        [[name, a.dtype, list(a.shape), a.stype, len(a.data)] for name, a in record.items()],
        separators=(",", ":"),
    ).encode()
    data = b"".join(
        (len(header).to_bytes(_LENGTH, "little"), header, *(a.data for a in record.values()))
    )
    return ArrayRecord({PACKED: Array("uint8", (len(data),), PACKED, data)})


def unpack(record: Any) -> Any:
    """Undo :func:`pack`; any other record is given back as it is.

    Raises ``ValueError`` for a packed record that is not what its header says.
    """
    if not isinstance(record, ArrayRecord) or list(record) != [PACKED]:
        return record
    packed = record[PACKED]
    if packed.stype != PACKED:
        return record
    data = memoryview(packed.data)
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    try:
        entries = json.loads(bytes(data[_LENGTH:start]))
        arrays = {}
        for entry in entries:
            if not _is_entry(entry) or entry[0] in arrays:
                raise ValueError("a packed array is described wrongly")
            name, dtype, shape, stype, size = entry
            arrays[name] = Array(dtype, tuple(shape), stype, bytes(data[start : start + size]))
            start += size
    except (TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("a packed record has no header") from error
    if start != len(data):
        raise ValueError("a packed record is not as long as its header says")
    return ArrayRecord(arrays)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 5:
        return False
    name, dtype, shape, stype, size = entry
    return (
        all(isinstance(text, str) for text in (name, dtype, stype))
        and isinstance(shape, list)
        and all(type(side) is int and side >= 0 for side in shape)
        and type(size) is int
        and size >= 0
    )
