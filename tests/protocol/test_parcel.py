"""A message comes out of its objects as it went in, and nothing else comes out of others."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from fedshift.protocol import parcel
from fedshift.protocol.fleet import ObjectTree, get_object_id
from fedshift.protocol.flower import Array, ArrayRecord, Error, Message, RecordDict
from fedshift.protocol.messages import Action, Instruction, pack_arrays, request, view_array
from fedshift.protocol.parcel import Parcel, Wrapper

DTYPES = ("float32", "float64", "float16", "int64", "uint8", "bool")


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {f"net/{dtype}": (100 * rng.normal(size=(3, 5))).astype(dtype) for dtype in DTYPES}
    return {**found, "net/scalar": np.array(7, dtype="int64"), "net/empty": np.zeros((0, 4), "f4")}


def message(record: ArrayRecord, node: int = 2) -> Message:
    content = request(Instruction(Action.FIT, seed=1), record)
    return Message(content=content, dst_node_id=node, message_type="train", group_id="3")


def opened(packed: Parcel) -> Message:
    for name, content in packed.contents.items():
        parcel.check_object(name, content)
    return parcel.unwrap(packed.head, packed.contents)


def test_a_message_survives_the_way_with_every_kind_of_array() -> None:
    sent = message(pack_arrays(arrays()))
    found = opened(Wrapper().wrap(sent))
    assert found.metadata.dst_node_id == 2 and found.metadata.group_id == "3"
    assert found.metadata.message_id == sent.metadata.message_id != ""
    record = found.content["arrays"]
    assert list(record) == list(arrays())
    for name, array in arrays().items():
        np.testing.assert_array_equal(view_array(record[name]), array)
        assert record[name].data == sent.content["arrays"][name].data
    assert found.content["config"] == sent.content["config"]


def test_an_error_survives_the_way() -> None:
    asked = opened(Wrapper().wrap(message(pack_arrays(arrays()))))
    found = opened(Wrapper().wrap(Message(Error(102, "no data"), reply_to=asked)))
    assert found.has_error() and (found.error.code, found.error.reason) == (102, "no data")
    assert found.metadata.reply_to_message_id == asked.metadata.message_id


def test_a_model_that_many_messages_share_is_packed_and_travels_once() -> None:
    record = pack_arrays(arrays())
    wrapper, known = Wrapper(), {}
    first = wrapper.wrap(message(record, 2), known)
    known.update(first.contents)
    second = wrapper.wrap(message(record, 3), known)
    assert len(parcel.ids(second.tree)) == len(parcel.ids(first.tree))
    assert list(second.contents) == [second.head.metadata.message_id]
    assert max(map(len, second.contents.values())) < 500


def test_the_same_arrays_have_the_same_objects_in_another_message() -> None:
    """What lets a site keep the chunks of the last model."""
    first = Wrapper().wrap(message(pack_arrays(arrays())))
    again = Wrapper().wrap(message(pack_arrays(arrays())))
    large = {name for name, content in first.contents.items() if b"ArrayChunk" in content[:20]}
    assert large and large <= set(again.contents)


def test_a_model_of_many_tensors_travels_in_few_objects() -> None:
    many = {f"layer_{i}": np.full((4, 4), i, "float32") for i in range(200)}
    assert len(Wrapper().wrap(message(pack_arrays(many))).contents) == 6


def header(record: ArrayRecord) -> tuple[list, bytes]:
    data = record[parcel.PACKED].data
    size = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:size]), data[size:]


def repacked(entries: object, rest: bytes) -> ArrayRecord:
    head = json.dumps(entries).encode()
    data = len(head).to_bytes(8, "little") + head + rest
    return ArrayRecord({parcel.PACKED: Array("uint8", (len(data),), parcel.PACKED, data)})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entries, rest: (entries, rest[:-1]),
        lambda entries, rest: (entries, rest + b"x"),
        lambda entries, rest: (entries + entries, rest),
        lambda entries, rest: ({"a": 1}, rest),
        lambda entries, rest: ([[*entries[0][:4], -1], *entries[1:]], rest),
        lambda entries, rest: ([[*entries[0][:2], [-1], *entries[0][3:]], *entries[1:]], rest),
        lambda entries, rest: ([[None, *entries[0][1:]], *entries[1:]], rest),
        lambda entries, rest: (5, rest),
    ],
)
def test_a_packed_record_that_is_not_what_its_header_says_is_refused(
    spoil: Callable[..., tuple[object, bytes]],
) -> None:
    entries, rest = header(parcel.pack(pack_arrays(arrays())))
    assert parcel.unpack(repacked(entries, rest)) == pack_arrays(arrays())
    with pytest.raises(ValueError, match="packed"):
        parcel.unpack(repacked(*spoil(entries, rest)))


def test_a_header_that_is_longer_than_the_record_is_refused() -> None:
    data = (2**62).to_bytes(8, "little") + b"[]"
    with pytest.raises(ValueError):
        parcel.unpack(ArrayRecord({parcel.PACKED: Array("uint8", (10,), parcel.PACKED, data)}))


def test_an_object_is_what_its_hash_says_or_refused() -> None:
    packed = Wrapper().wrap(message(pack_arrays(arrays())))
    name, content = next(iter(packed.contents.items()))
    with pytest.raises(ValueError, match="hash"):
        parcel.check_object(name, content + b"x")
    with pytest.raises(ValueError, match="none that is known"):
        parcel.check_object(get_object_id(b"garbage"), b"garbage")


def test_a_message_that_lacks_an_object_is_refused() -> None:
    packed = Wrapper().wrap(message(pack_arrays(arrays())))
    for name in packed.contents:
        with pytest.raises(ValueError):
            parcel.unwrap(
                packed.head, {key: c for key, c in packed.contents.items() if key != name}
            )


def test_an_array_that_names_one_chunk_a_million_times_is_refused() -> None:
    packed = Wrapper().wrap(message(pack_arrays(arrays())))
    contents = dict(packed.contents)
    name = next(name for name, content in contents.items() if content.startswith(b"Array "))
    head, _, body = contents[name].partition(b"\0")
    node = json.loads(body)
    node["arraychunk_ids"] = [0] * 1_000_000
    body = json.dumps(node).encode()
    kind, children, _ = head.split(b" ")
    contents[name] = b" ".join((kind, children, str(len(body)).encode())) + b"\0" + body
    with pytest.raises(ValueError, match="no list of chunks"):
        parcel.unwrap(packed.head, contents)


def test_a_tree_without_end_is_refused() -> None:
    deep = ObjectTree(object_id="a")
    for _ in range(20):
        deep = ObjectTree(object_id="a", children=[deep])
    with pytest.raises(ValueError, match="deep"):
        parcel.ids(deep)
    wide = ObjectTree(
        object_id="a", children=[ObjectTree(object_id=str(i)) for i in range(parcel.MOST_OBJECTS)]
    )
    with pytest.raises(ValueError, match="more than"):
        parcel.ids(ObjectTree(object_id="b", children=[wide]))


def test_a_record_that_is_not_packed_stays_as_it_is() -> None:
    record = pack_arrays(arrays())
    assert parcel.unpack(record) is record
    assert parcel.unpack(RecordDict()) == RecordDict()
