"""Packing, requests, and files that are either whole or absent."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest

from fedshift import UserError
from fedshift.protocol import messages, storage
from fedshift.protocol.flower import Array, ArrayRecord, ConfigRecord, RecordDict
from fedshift.protocol.messages import Action, Instruction, pack_arrays, unpack_arrays


def test_arrays_come_back_with_their_bits_types_and_shapes() -> None:
    arrays: messages.Arrays = {
        "zero-d": np.array(3, np.int64),
        "half": np.array([[1.5, -0.0], [np.inf, 6e-8]], np.float16),
        "counter": np.array([2**53 + 1], np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "column order": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    }
    back = messages.unpack_arrays(messages.pack_arrays(arrays))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()
        assert back[name].flags.writeable


def test_bank_keeps_sites_and_statistics_apart() -> None:
    bank = {"a": {"mean": np.ones(2)}, "b": {"mean": np.zeros(2), "style::code": np.ones(1)}}
    back = messages.unpack_bank(messages.pack_bank(bank))
    assert {site: set(kept) for site, kept in back.items()} == {
        "a": {"mean"},
        "b": {"mean", "style::code"},
    }
    np.testing.assert_array_equal(back["b"]["mean"], np.zeros(2))


def test_instruction_survives_a_flower_record() -> None:
    instruction = Instruction(
        action=Action.FIT,
        seed=7,
        round=3,
        arm="local",
        method={"name": "supervised", "lr": 4e-3, "augmentation": {"flip": False}},
        task={"name": "segmentation", "parts": ["lumière", "b"]},
        steps=5,
        kept=("net/a", "net/b"),
        rules={"proximal": {"mu": 0.1}},
        splits=("val",),
        stage="no_adaptation",
    )
    assert Instruction.from_record(instruction.to_record()) == instruction
    assert instruction.action.message_type == "train"


def test_rules_keep_the_order_in_which_they_act() -> None:
    asked = Instruction(action=Action.FIT, seed=0, rules={"sharpness": {}, "harmonised": {}})
    found = Instruction.from_record(asked.to_record())
    assert list(found.rules) == ["sharpness", "harmonised"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"action": "train.steal", "seed": 1}'])
def test_a_record_that_is_no_instruction_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no instruction"):
        Instruction.from_record(ConfigRecord({"instruction": text}))


def test_content_bytes_counts_arrays_numbers_and_text() -> None:
    content = messages.answer(
        "ab",
        arrays=messages.pack_arrays({"w": np.zeros(10, np.float32)}),
        metrics={"x": 1.0, "y": [1, 2, 3]},
    )
    record = content["arrays"]
    assert isinstance(record, ArrayRecord)
    packed = len(record["w"].data)
    assert packed >= 40
    # 8 a number; "ab" and the details "{}" are two characters each.
    assert messages.content_bytes(content) == packed + 8 + 24 + 2 + 2
    assert messages.content_bytes(RecordDict()) == 0


def test_a_kill_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    storage.write_atomic(path, "old")

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(Killed):
        storage.write_atomic(path, "new and longer")
    assert path.read_text() == "old"


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    path = tmp_path / "a.json"
    storage.write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    holder: object = os if where == "fsync" else Path
    monkeypatch.setattr(holder, where, full)
    with pytest.raises(UserError, match=r"a\.json is full.*run the same command again$"):
        storage.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_another_write_error_is_told_from_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError, match=r"cannot write .*/a \(Input/output error\)"):
        storage.write_atomic(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == []


def test_equal_tensors_give_equal_files_in_any_order(tmp_path: Path) -> None:
    first: messages.Arrays = {"b": np.arange(3), "a": np.ones((2, 2), np.float32), "0": np.array(5)}
    storage.write_tensors(tmp_path / "1", first)
    storage.write_tensors(tmp_path / "2", {name: first[name] for name in reversed(list(first))})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    back = storage.read_tensors(tmp_path / "1")
    assert list(back) == sorted(first)
    for name, array in first.items():
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("keep", [0, 5, 40])
def test_a_damaged_tensor_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "round_0001.safetensors"
    storage.write_tensors(path, {"a": np.ones(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"round_0001\.safetensors is not a readable"):
        storage.read_tensors(path)


def test_keep_lines_drops_the_unwanted_and_the_half_written(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"round": 1, "é": 1}\n{"round": 2}\n{"round": 3}\n{"round": 2, "si')
    storage.keep_lines(path, lambda line: line["round"] <= 2)
    assert path.read_text() == '{"round": 1, "é": 1}\n{"round": 2}\n'
    storage.keep_lines(tmp_path / "absent", lambda line: True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(7, np.int64),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
    ],
)
def test_arrays_are_packed_as_flower_packs_them(array: np.ndarray) -> None:
    packed = pack_arrays({"x": array})["x"]
    flowers = Array(np.ascontiguousarray(array).reshape(array.shape))
    assert (packed.dtype, tuple(packed.shape), packed.stype) == (
        flowers.dtype,
        tuple(flowers.shape),
        flowers.stype,
    )
    assert packed.data == flowers.data
    for record in (ArrayRecord({"x": packed}), ArrayRecord({"x": flowers})):
        found = unpack_arrays(record)["x"]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)
        assert found.flags.writeable


def test_an_array_in_another_layout_is_refused() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(array))
    foreign = Array("float32", (2, 3), "numpy.ndarray", buffer.getvalue())
    with pytest.raises(ValueError, match="bytes are not those of float32"):
        unpack_arrays(ArrayRecord({"x": foreign}))


def test_an_array_whose_bytes_are_cut_short_is_refused() -> None:
    packed = pack_arrays({"x": np.zeros(4, np.float32)})["x"]
    cut = Array(packed.dtype, packed.shape, packed.stype, packed.data[:-3])
    with pytest.raises(ValueError):
        unpack_arrays(ArrayRecord({"x": cut}))
