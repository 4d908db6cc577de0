"""Pickles of numpy arrays: what detectron2 and Caffe2 wrote comes back, and nothing that a file names is called."""

import copyreg
import os
import pickle
import random
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detr_container.engine.checkpoint import load
from detr_container.engine.weight_files import load_weights

KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", ">f4", ">i8")
NUMBERS = np.arange(24).reshape(2, 3, 4)


def written(folder: Path, content: object, protocol: int = 4) -> Path:
    path = folder / "R-50.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_become_tensors_and_the_rest_stays(tmp_path: Path, protocol: int) -> None:
    arrays = {kind: NUMBERS.astype(kind) for kind in KINDS}
    turned = {"columns": NUMBERS[0].T, "spaced": NUMBERS[..., ::2], "axes": NUMBERS.transpose(1, 2, 0)}
    odd = {"none": np.zeros((0, 3), "f4"), "one": np.float32(2.5), "point": np.array(7), "same": arrays["f4"]}
    content = {
        "model": arrays | turned | odd,
        "__author__": "Caffe2",
        "matching_heuristics": True,
        "more": [OrderedDict(a=b"\x00\xff", b=(1, -2.5, None)), np.int64(3)],
    }
    found = load(written(tmp_path, content, protocol))
    for name, array in (arrays | turned | {"none": odd["none"], "point": odd["point"]}).items():
        expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")).copy())
        assert found["model"][name].dtype == expected.dtype, name
        assert torch.equal(found["model"][name], expected), name
    assert found["model"]["one"] == 2.5
    assert found["more"] == [{"a": b"\x00\xff", "b": (1, -2.5, None)}, 3]
    assert (found["__author__"], found["matching_heuristics"]) == ("Caffe2", True)
    # It can be written to, unlike the bytes of the file.
    found["model"]["f4"].add_(1)


def test_what_python_2_wrote(tmp_path: Path) -> None:
    """Its text is bytes, and its bytes are text: the names of Caffe2's blobs and the numbers in them."""
    numbers = np.array([1.5, -200.0], "<f4")
    words = b"".join(
        [
            b"\x80\x02}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89U\x08" + numbers.tobytes() + b"tbs.",
        ]
    )
    (tmp_path / "old.pkl").write_bytes(words)
    assert torch.equal(load(tmp_path / "old.pkl")["conv1_w"], torch.tensor([1.5, -200.0]))


class Trap:
    """Runs code when it is unpickled as Python does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder / "ran"),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_code_is_run(tmp_path: Path, protocol: int) -> None:
    path = written(tmp_path, {"model": {"w": np.zeros(2)}, "extra": Trap(tmp_path)}, protocol)
    with pytest.raises(
        ValueError, match=r"R-50\.pkl contains a posix\.mkdir, .*could run code.* save its arrays alone"
    ):
        load(path)
    assert not (tmp_path / "ran").exists()
    # As Python itself would.
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": np.array(["text"])}, r"contains a numpy\.dtype\('U4'\)"),
        ({"w": np.array([{}], dtype=object)}, r"contains a numpy\.dtype\('O8'\)"),
        ({"w": torch.zeros(2)}, r"contains a torch\._utils\._rebuild_tensor_v2"),
        ({"w": np.zeros(2, "M8[s]")}, r"contains a numpy\.dtype\('M8'\)"),
        ({(1, 2): 3}, "is damaged or no pickle of weights"),
        ({"w": {1, 2}}, "is damaged or no pickle of weights"),
        ([1, 2], "holds a list, not a checkpoint"),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_list_within_itself_is_refused_and_one_that_is_there_twice_is_not(tmp_path: Path) -> None:
    shared: list[Any] = [1]
    assert load(written(tmp_path, {"a": shared, "b": shared})) == {"a": [1], "b": [1]}
    shared.append(shared)
    with pytest.raises(ValueError, match="damaged or no pickle"):
        load(written(tmp_path, {"a": shared}))
    # Lists of lists of ... that double each time would be 2 ** 60 numbers if each were copied.
    nested: Any = [1]
    for _ in range(60):
        nested = [nested, nested]
    assert len(load(written(tmp_path, {"a": nested}))["a"]) == 2


def test_what_a_file_does_to_the_readers_own_functions(tmp_path: Path) -> None:
    """A state for what stands for a function must not change the function, for the next file."""
    words = b"\x80\x02}X\x01\x00\x00\x00acnumpy\nndarray\n}X\x05\x00\x00\x00_makeK\x01sbs."
    (tmp_path / "bad.pkl").write_bytes(words)
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged or no pickle"):
            load(tmp_path / "bad.pkl")
    assert torch.equal(load(written(tmp_path, {"w": np.ones(3)}))["w"], torch.ones(3, dtype=torch.float64))


def test_an_array_of_another_size_than_its_bytes_is_refused(tmp_path: Path) -> None:
    good = pickle.dumps({"w": np.arange(6, dtype="f4").reshape(2, 3)}, protocol=2)
    assert good.count(b"K\x02K\x03\x86") == 1
    for shape in (b"K\x02K\x04\x86", b"J\xff\xff\xff\xffK\x03\x86", b"K\x00K\x03\x86", b"X\x01\x00\x00\x00aK\x03\x86"):
        (tmp_path / "bad.pkl").write_bytes(good.replace(b"K\x02K\x03\x86", shape))
        with pytest.raises(ValueError, match="damaged or no pickle"):
            load(tmp_path / "bad.pkl")


def test_damage_is_an_error_in_words_and_takes_no_memory(tmp_path: Path) -> None:
    """Every cut, and one byte after the other: as it was, another value, or one line."""
    good = pickle.dumps({"model": {"w": np.ones((3, 2), "f4"), "b": np.zeros(3, "f4")}, "__author__": "x"}, protocol=4)
    path, draw = tmp_path / "damaged.pkl", random.Random(0)
    damaged = [good[:length] for length in range(1, len(good))]
    damaged += [good[:at] + bytes([draw.randrange(256)]) + good[at + 1 :] for at in range(len(good)) for _ in range(4)]
    # The place of a memo, which Python's reader in C makes room for: 64 GB.
    damaged.append(b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"X\x01\x00\x00\x00aK\x01s.")
    messages = []
    for data in damaged:
        path.write_bytes(data)
        try:
            load(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > len(damaged) / 2
    assert not any("\n" in message for message in messages)


def test_a_file_of_torch_may_be_called_so(tmp_path: Path) -> None:
    state = {"model": {"w": torch.ones(2)}}
    for new in (True, False):
        torch.save(state, tmp_path / "model.pkl", _use_new_zipfile_serialization=new)
        assert torch.equal(load(tmp_path / "model.pkl")["model"]["w"], torch.ones(2))
    with pytest.raises(FileNotFoundError, match=r"did you mean model\.pkl\?"):
        load(tmp_path / "modell.pkl")


def test_extensions_of_python_are_names_as_well(tmp_path: Path) -> None:
    copyreg.add_extension("posix", "mkdir", 0x70)
    try:
        path = written(tmp_path, {"extra": Trap(tmp_path)}, 2)
        assert b"mkdir" not in path.read_bytes()
        with pytest.raises(ValueError, match=r"contains a posix\.mkdir"):
            load_weights(path)
    finally:
        copyreg.remove_extension("posix", "mkdir", 0x70)
    assert not (tmp_path / "ran").exists()
