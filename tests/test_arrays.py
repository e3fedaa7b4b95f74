"""Files of arrays from elsewhere: pickles are never opened, and bombs do not go off."""

import io
import json
import os
import pickle
import resource
import shlex
import struct
import subprocess
import sys
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from supmim.errors import CheckpointError
from supmim.interop import arrays


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


def archive(path, **members):
    """A zip of these files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/"), content)


def npy(array, shape=None):
    """The bytes of an npy file, whose header may state another shape."""
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def objects(canary):
    file = io.BytesIO()
    np.save(file, np.array([canary], object), allow_pickle=True)
    return file.getvalue()


GUISES = {
    "plain.pth": lambda canary: pickle.dumps(canary),
    "named.npz": lambda canary: pickle.dumps(canary, protocol=4),
    "named.safetensors": lambda canary: pickle.dumps(canary),
    "torch.pt": lambda canary: {"archive/data.pkl": pickle.dumps(canary), "archive/data/0": b"1"},
    "pytorch_model.bin": lambda canary: {"data.pkl": pickle.dumps(canary)},
    "mixed.npz": lambda canary: {"a.npy": npy(np.ones(3)), "data.pkl": pickle.dumps(canary)},
    "objects.npz": lambda canary: {"a.npy": npy(np.ones(3)), "b.npy": objects(canary)},
}


@pytest.mark.parametrize("name", GUISES)
def test_a_pickle_in_any_guise_is_refused_unopened_with_the_command_that_converts_it(
    name, tmp_path
):
    path, canary = tmp_path / name, tmp_path / "canary"
    content = GUISES[name](Canary(canary))
    if isinstance(content, dict):
        archive(path, **content)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="supmim opens none") as caught:
        arrays.read(path)
    told = str(caught.value)
    assert str(path) in told and "python -c" in told and not canary.exists()
    assert ("torch.load" in told) == (name != "objects.npz")


def test_a_pickle_of_the_first_protocol_is_no_file_of_arrays(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol=0))
    with pytest.raises(CheckpointError, match="is not a complete file"):
        arrays.read(tmp_path / "x")
    assert not (tmp_path / "canary").exists()


def test_the_command_that_converts_takes_a_hostile_path_as_a_path(tmp_path):
    path = tmp_path / 'it\'s $(touch canary) a "w".npz'
    np.savez(path, a=np.array([1.5, 2], object))
    with pytest.raises(CheckpointError) as caught:
        arrays.read(path)
    command = str(caught.value).partition("\n")[2].replace("python -c", f"{sys.executable} -c")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    np.testing.assert_array_equal(arrays.read(tmp_path / "weights.npz")["a"], np.float32([1.5, 2]))
    assert not (tmp_path / "canary").exists()


def test_archives_that_are_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(2**26, np.float32))
    with pytest.raises(CheckpointError, match="it would unpack to 268,435,584 bytes"):
        arrays.read(path)
    archive(path, **{f"{i}.npy": npy(np.ones(1)) for i in range(1001)})
    monkeypatch.setattr(arrays, "MOST_MEMBERS", 1000)
    with pytest.raises(CheckpointError, match="it has 1,001 members"):
        arrays.read(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as file:
        for value in (1.0, 2.0):
            file.writestr("a.npy", npy(np.full(3, value)))
    with pytest.raises(CheckpointError, match="it has 2 members, too many or two of one name"):
        arrays.read(path)
    for shape in ((2**40,), (2**31, 2**31, 2**31), (4,)):
        archive(path, **{"a.npy": npy(np.ones(3, np.float32), shape)})
        with pytest.raises(CheckpointError, match="is not a complete file"):
            arrays.read(path)


def safetensors(header, body=b"12341234", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", length or len(text)) + text + body


def one(shape, start, end):
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}}


@pytest.mark.parametrize(
    "content",
    [
        safetensors(one([1], 4, 8)),
        safetensors(one([4], 0, 16)),
        safetensors(one([2], 8, 0)),
        safetensors(one([2], -8, 0)),
        safetensors(one([2**40], 0, 2**42)),
        safetensors(one([2**63, 2**63], 0, 8)),
        safetensors({"a": one([1], 0, 4)["a"], "b": one([1], 0, 4)["a"]}),
        safetensors(one([2], 0, 8), length=2**62),
        safetensors(one([2], 0, 8), length=2**63 + 5),
        safetensors(b'{"a":' + b"[" * 10**6),
        safetensors(b'{"a":"' + b"x" * 10**6),
        safetensors(one([2], 0, 8))[:40],
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_a_damaged_header_of_safetensors_costs_neither_time_nor_memory(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError, match="is not a complete file of safetensors") as caught:
        arrays.read(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 500 and time.monotonic() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_half_precision_is_read_and_text_is_not(tmp_path):
    half = {"a": np.ones(3, ml_dtypes.bfloat16), "b": np.ones(3, np.float16)}
    save_file(half, tmp_path / "x.safetensors")
    found = arrays.read(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(found["a"].astype(np.float32), np.ones(3))
    np.savez(tmp_path / "x.npz", path=np.array(["a", "b"]))
    with pytest.raises(CheckpointError, match="path does not hold numbers"):
        arrays.read(tmp_path / "x.npz")
