"""The ArrayRecord store: what it gives back, how it is made, and row I5, what it refuses."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from supmim import cli, sharding
from supmim.data import convert, decode, images, pipeline, sources
from supmim.data.sources import base, records
from supmim.data.sources.base import Record
from supmim.errors import DataError
from tests.conftest import digits, plain_readers, tiny_config
from tests.pictures import damaged, encoded, oriented, photo
from tests.test_folders import fill

DATA = tiny_config(**{"data.image_size": 8, "data.channels": 3, "data.crop": "inception"}).data
ALONE = convert.How(size=0, quality=90, raw=False, max_pixels=10**7)
SMALL = ALONE._replace(size=16)
RAW = SMALL._replace(raw=True)
MESH = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def cifar(root, parts=("train", "test"), per_class=12):
    """32 x 32 photographs as PNG: PART/CLASS/n.png."""
    for number, part in enumerate(parts):
        for label in "abc":
            for n in range(per_class):
                pixels = np.roll(photo(32, 32), 5 * n + ord(label) + 3 * number, axis=1)
                fill(root / part, f"{label}/{n}.png", data=encoded(pixels, "PNG"))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cifar(tmp_path_factory.mktemp("cifar"))


def converted(source, out, how=ALONE):
    """A store of one source."""
    out.mkdir(parents=True, exist_ok=True)
    convert.convert({"": source}, out, how, lambda line: None)
    return records.load(str(out), base.WHOLE)


def run(*args):
    return cli.run(["data", *map(str, args)])


class Few:
    """Images in memory, encoded or not."""

    def __init__(self, *found):
        self.name, self.class_names, self.found = "few", ("a", "b"), found

    def __len__(self):
        return len(self.found)

    def __getitem__(self, index):
        return Record(self.found[index], index % 2, f"image {index}")

    def __getitems__(self, index):
        return [self[i] for i in index]

    def fingerprint(self):
        return {"name": "few", "length": len(self)}


# What is stored is what comes back.


@pytest.mark.parametrize(
    "image",
    [b"", encoded(photo(), "PNG"), photo(), photo()[..., :1], np.zeros((1, 4000, 3), np.uint8)],
)
def test_a_record_comes_back_as_it_was(image):
    record = Record(image, 70_000, "grün/" + os.fsdecode(b"\xff\n.png"))
    found = records.unpack(records.pack(record))
    assert found[1:] == record[1:] and type(found.image) is type(image)
    np.testing.assert_array_equal(found.image, image)


def test_without_flags_the_bytes_are_those_of_the_files(folder, tmp_path):
    source = sources.find(f"folder:{folder}", base.KEPT, DATA)
    store = converted(source, tmp_path / "store")
    assert store.class_names == source.class_names and len(store) == len(source) == 36
    assert [store[i][:2] for i in range(36)] == [source[i][:2] for i in range(36)]
    assert store[3].name == source[3].name
    order = [35, 0, 7, 7, 12]
    assert store.__getitems__(order) == [store[i] for i in order]


def test_pixels_in_memory_stay_pixels(tmp_path):
    source = digits("test")
    store = converted(source, tmp_path / "digits")
    assert store.metadata.encoding == "raw"
    for mine, theirs in zip(store.__getitems__(range(297)), source, strict=False):
        np.testing.assert_array_equal(mine.image, theirs.image)
        assert mine.label == theirs.label


def test_a_folder_and_its_store_give_the_same_batches(folder, tmp_path):
    """Order, labels, pixels and split, in training and in evaluation."""
    assert run("convert", f"folder:{folder}", f"--out={tmp_path}") == 0

    def batches(kind):
        view = {"data.image_size": 8, "data.channels": 3, "data.crop": "inception"}
        data = tiny_config(**view, **{"data.train": kind}).data
        train, evaluation = sources.load(data)
        seen = images.training(train, data), images.evaluation(evaluation, data)
        trained = pipeline.train_batches(seen[0], 3, 8, MESH, 0, 9, plain_readers())
        return [*trained, *pipeline.eval_batches(seen[1], 8, MESH, plain_readers())]

    ours, theirs = batches(f"records:{tmp_path}"), batches(f"folder:{folder}")
    assert len(ours) == len(theirs) == 9 + 5
    held_out, kept = (records.load(str(tmp_path), p)[0] for p in (base.HELD_OUT, base.KEPT))
    assert held_out.image != kept.image
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_stores_of_the_same_images_are_known_at_any_size_and_evaluated_by_their_part(
    folder, tmp_path
):
    for name, flags in (("whole", ()), ("small", ("--size=8",))):
        assert run("convert", f"folder:{folder}", f"--out={tmp_path / name}", *flags) == 0
    whole, small = (
        {part: records.load(str(tmp_path / name), part) for part in (base.WHOLE, base.EVALUATED)}
        for name in ("whole", "small")
    )
    assert sources.num_shared(whole[base.WHOLE], small[base.WHOLE]) == 36
    assert sources.num_shared(whole[base.WHOLE], small[base.EVALUATED]) == 0
    assert whole[base.EVALUATED].name == f"records:{tmp_path / 'whole' / 'val'}"


def test_a_hash_split_is_kept(tmp_path):
    root = cifar(tmp_path / "whole", parts=("",))
    assert run("convert", f"folder:{root}", f"--out={tmp_path / 'out'}", "--holdout=0.3") == 0
    data = tiny_config(**{"data.holdout": 0.3}).data
    for part in (base.KEPT, base.HELD_OUT):
        mine = records.load(str(tmp_path / "out"), part, DATA)
        theirs = sources.find(f"folder:{root}", part, data)
        assert 0 < len(mine) == len(theirs) < 36
        assert [mine[i].image for i in range(len(mine))] == [r.image for r in theirs]


def test_processes_give_the_same_stream_from_any_step(folder, tmp_path):
    store = converted(sources.find(f"folder:{folder}", base.KEPT, DATA), tmp_path / "store")
    assert store[0].label == 0 and not pickle.loads(pickle.dumps(store))._readers
    seen = images.training(store, DATA)

    def read(start, workers):
        readers = plain_readers(workers=workers)
        return list(pipeline.train_batches(seen, 0, 5, MESH, start, 8, readers))

    for a, b in zip(read(3, 2), read(0, 0)[3:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_fingerprint_sees_how_and_what_was_converted_but_not_where(folder, tmp_path):
    source = sources.find(f"folder:{folder}", base.KEPT, DATA)
    here = converted(source, tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = records.load(str(tmp_path / "there"), base.WHOLE)
    assert there.fingerprint() == here.fingerprint()
    held_out = sources.find(f"folder:{folder}", base.HELD_OUT, DATA)
    for name, other in {
        "small": converted(source, tmp_path / "small", SMALL),
        "coarse": converted(source, tmp_path / "coarse", SMALL._replace(quality=50)),
        "raw": converted(source, tmp_path / "raw", RAW),
        "test": converted(held_out, tmp_path / "test"),
    }.items():
        assert other.fingerprint() != here.fingerprint(), name


# How images are made smaller.


def test_the_short_side_is_shrunk_upright_and_never_enlarged(tmp_path):
    tall, small = photo(64, 32), encoded(photo(12, 40), "PNG")
    store = converted(
        Few(encoded(tall, quality=95), oriented(photo(32, 64), 6), small, encoded(tall, "PNG")),
        tmp_path / "store", SMALL,
    )  # fmt: skip
    sizes = [decode.read_header(r.image, 10**6)[:2] for r in store.__getitems__(range(4))]
    assert sizes == [(32, 16), (32, 16), (12, 40), (32, 16)]
    assert [decode.kind(store[i].image)[0] for i in range(4)] == ["JPEG", "JPEG", "PNG", "JPEG"]
    assert store[2].image == small, "it was coded again for nothing"
    assert decode.read_header(store[1].image, 10**6).orientation == 1


def test_grey_stays_grey_and_the_quality_is_the_one_asked_for(tmp_path):
    grey, colour = encoded(photo(40, 40)[..., 0], "PNG"), encoded(photo(40, 40), "PNG")
    fine = converted(Few(grey, colour), tmp_path / "fine", SMALL._replace(quality=95))
    coarse = converted(Few(grey, colour), tmp_path / "coarse", SMALL._replace(quality=20))
    assert [decode.kind(fine[i].image)[1] for i in (0, 1)] == ["L", "RGB"]
    assert len(fine[1].image) > 1.2 * len(coarse[1].image)


def test_raw_pixels_are_those_of_a_resize_by_pillow(tmp_path):
    pixels = photo(48, 64)
    source = Few(encoded(pixels, "PNG"), encoded(pixels[..., 0], "PNG"))
    store = converted(source, tmp_path / "store", RAW)
    theirs = np.asarray(Image.fromarray(pixels).resize((21, 16), Image.Resampling.BICUBIC))
    assert store[0].image.shape == (16, 21, 3) and store[1].image.shape == (16, 21, 1)
    assert np.abs(store[0].image.astype(int) - theirs).max() <= 1


def test_bad_images_keep_their_place_and_are_listed(tmp_path, capsys):
    good = encoded(photo(), "PNG")
    for kind, data in damaged().items():
        out = tmp_path / kind
        out.mkdir()
        bad = convert.convert({"": Few(good, data, good)}, out, SMALL, lambda line: None)
        (found,) = bad[""]
        assert (found.index, found.name) == (1, "image 1") and found.why
        store = records.load(str(out), base.WHOLE)
        assert (store[1].image, store[1].name) == (b"", "image 1") and len(store) == 3
        assert images.evaluation(store, DATA).take([1], [0])[1][0].why == "empty file"


def test_too_many_bad_images_exit_3_with_a_whole_store(tmp_path, capsys):
    root = fill(tmp_path / "in", "a/1.png", "a/2.png", "b/3.png", data=encoded(photo(), "PNG"))
    fill(root, *(f"b/{number}.png" for number in (4, 5, 6, 7)), data=b"<html>")
    out = tmp_path / "out"
    args = ("convert", f"folder:{root}", f"--out={out}", "--size=16", "--holdout=0.5")
    for _ in range(2):
        assert run(*args) == 3
        told = capsys.readouterr()
        assert "can't be read, more than the 1 that" in told.err and "4.png" in told.out
    assert sum(len(records.load(str(out / part), base.WHOLE)) for part in ("train", "val")) == 7
    for number in (5, 6, 7):  # one in a part is reported
        (root / f"b/{number}.png").unlink()
    assert run(*args[:2], f"--out={tmp_path / 'other'}", *args[3:]) == 0
    assert "4.png" in capsys.readouterr().out


# A conversion that does not come to its end, or meets something else.


@pytest.fixture
def tiny_shards(monkeypatch):
    monkeypatch.setattr(convert, "SHARD_RECORDS", 5)


def test_shards_end_at_so_many_records_or_bytes(folder, tmp_path, monkeypatch, tiny_shards):
    source = sources.find(f"folder:{folder}", base.KEPT, DATA)
    store = converted(source, tmp_path / "a")
    assert [shard.count for shard in store.metadata.shards] == [5] * 7 + [1]
    for index in range(36):
        assert store[index].image == source[index].image
    names = [f"images-0000{n}-of-00008.array_record" for n in range(8)]
    assert sorted(os.listdir(tmp_path / "a")) == [*names, "metadata.json"]
    monkeypatch.setattr(convert, "SHARD_BYTES", 3 * len(records.pack(source[0])))
    assert {s.count for s in converted(source, tmp_path / "b").metadata.shards} <= {2, 3, 4, 1}


@pytest.mark.parametrize("shard", [0, 1, 4])
def test_a_conversion_that_dies_goes_on_and_ends_the_same(
    folder, tmp_path, monkeypatch, tiny_shards, shard
):
    source = sources.find(f"folder:{folder}", base.KEPT, DATA)
    whole = converted(source, tmp_path / "whole")
    written, replace = [], os.replace

    def dies(old, new):
        if str(new).endswith("array_record"):
            if len(written) == shard:
                raise KeyboardInterrupt
            written.append(new)
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            converted(source, tmp_path / "part")
    with pytest.raises(DataError, match="is not finished; the same `supmim data convert` command"):
        records.load(str(tmp_path / "part"), base.WHOLE)
    before = {path: os.stat(path).st_mtime_ns for path in written}
    store = converted(source, tmp_path / "part")
    assert {path: os.stat(path).st_mtime_ns for path in written} == before, "written again"
    assert store.metadata == whole.metadata
    assert sorted(os.listdir(tmp_path / "part")) == sorted(os.listdir(tmp_path / "whole"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 75)])
def test_a_killed_conversion_is_finished_by_the_same_command(tmp_path, number, code):
    root = cifar(tmp_path / "in", parts=("",), per_class=30)
    out = tmp_path / "out"
    slow = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from supmim import cli
from supmim.data import convert
convert.SHARD_RECORDS = 4
if sys.argv[1] == "slow":
    pack = convert.records.pack
    convert.records.pack = lambda record: (time.sleep(0.02), pack(record))[1]
sys.exit(cli.run(["data", "convert", "folder:{root}", "--out={out}"]))
"""
    child = subprocess.Popen([sys.executable, "-c", slow, "slow"], stdout=subprocess.PIPE)
    for _ in range(3):
        child.stdout.readline()
    child.send_signal(number)
    began = time.monotonic()
    assert child.wait() == code and time.monotonic() - began < 5
    child.stdout.close()
    assert (out / "train" / "conversion.json").is_file()
    done = subprocess.run([sys.executable, "-c", slow, "fast"], capture_output=True, text=True)
    assert done.returncode == 0 and "00002-of" not in done.stdout.split("\n")[0]
    assert len(records.load(str(out), base.KEPT)) + len(
        records.load(str(out), base.HELD_OUT)) == 90  # fmt: skip


def test_the_same_again_does_nothing_and_another_way_is_refused(folder, tmp_path, capsys):
    out = tmp_path / "out"
    args = ("convert", f"folder:{folder}", f"--out={out}")
    assert run(*args) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.array_record")}
    assert run(*args) == 0 and "is converted already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.array_record")} == before
    (out / "train/conversion.json").write_text("{}")  # it was killed just before the end
    assert run(*args) == 0 and not (out / "train/conversion.json").exists()
    for other in (["--size=8"], ["--raw"]):
        assert run(*args, *other) == 2
        assert "holds another conversion" in capsys.readouterr().err
    assert run("convert", "digits:train", f"--out={out}") == 2
    next(out.glob("val/*.array_record")).unlink()
    assert run(*args) == 3 and "it is missing" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run("convert", f"folder:{folder}", f"--out={tmp_path}") == 2
    assert "holds notes.txt" in capsys.readouterr().err
    assert run("convert", f"folder:{folder}", f"--out={folder}") == 2
    assert "which is not part of this conversion" in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir()) == ["lock", "test", "train"]
    (folder / "lock").unlink()


def test_a_full_disk_is_told_before_anything_is_written(folder, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    assert run("convert", f"folder:{folder}", f"--out={tmp_path / 'out'}") == 3
    assert "0.0 GB free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_disk_that_gives_back_something_else_is_noticed(folder, tmp_path, monkeypatch):
    close = convert.ArrayRecordWriter.close

    class Lying:
        def __init__(self, path, options):
            self.path, self.writer = path, convert_writer(path, options)

        def write(self, data):
            self.writer.write(data[:-1] + b"!")

        def close(self):
            close(self.writer)

    convert_writer = convert.ArrayRecordWriter
    monkeypatch.setattr(convert, "ArrayRecordWriter", Lying)
    with pytest.raises(DataError, match="reads back differently"):
        converted(sources.find(f"folder:{folder}", base.KEPT, DATA), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.array_record"))


# Row I5: damaged storage.


@pytest.fixture
def store(folder, tmp_path, tiny_shards):
    return converted(sources.find(f"folder:{folder}", base.KEPT, DATA), tmp_path / "store")


def shard_of(store, number):
    return os.path.join(store.root, store.metadata.shards[number].file)


def refused(store, told):
    """Opening or reading it says so."""
    with pytest.raises(DataError, match=told) as error:
        found = records.load(store.root, base.WHOLE)
        found.__getitems__(range(len(found)))
    return str(error.value)


def test_a_missing_a_shorter_and_a_longer_shard_are_named(store):
    path = shard_of(store, 2)
    whole = Path(path).read_bytes()
    for data in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"x"):
        Path(path).write_bytes(data)
        assert path in refused(store, rf"{len(data):,} of {len(whole):,} bytes")
    os.remove(path)
    assert path in refused(store, "it is missing")


def test_a_flipped_bit_names_shard_and_record_and_never_gives_wrong_bytes(store):
    path, expected = shard_of(store, 1), [store[i].image for i in range(36)]
    whole = Path(path).read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    spots = [*rng.integers(len(whole), size=40), whole.index(expected[7][-40:])]
    for spot in spots:
        flipped = bytearray(whole)
        flipped[spot] ^= 1 << int(rng.integers(8))
        Path(path).write_bytes(flipped)
        try:
            found = records.load(store.root, base.WHOLE)
            assert [r.image for r in found.__getitems__(range(36))] == expected
        except DataError as error:
            noticed += 1
            assert path in str(error) and error.exit_code == 3
    assert noticed > 5
    assert f"{path}, record 2: damaged" in str(refused(store, "record 2"))


def test_a_shard_of_another_store_is_noticed(store, folder, tmp_path):
    other = sources.find(f"folder:{folder}", base.HELD_OUT, DATA)
    other = converted(Few(*(other[i].image for i in range(3))), tmp_path / "other")
    shutil.copy(shard_of(other, 0), shard_of(store, 7))
    assert shard_of(store, 7) in refused(store, "3 records can be found")


def test_damage_met_by_a_reader_process_ends_the_run_with_the_same_words(store):
    path = shard_of(store, 0)
    whole = Path(path).read_bytes()
    spot = whole.index(store[1].image[-40:])
    Path(path).write_bytes(whole[:spot] + bytes([whole[spot] ^ 1]) + whole[spot + 1 :])
    seen = images.training(records.load(store.root, base.WHOLE), DATA)
    for workers in (0, 1):
        with pytest.raises(DataError, match="record 1: damaged"):
            list(pipeline.train_batches(seen, 0, 36, MESH, 0, 1, plain_readers(workers=workers)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 99}, "format 99"),
        ({"shards": 3}, "is damaged"),
        ({"extra": 1}, "is damaged"),
        ({"count": 10**12}, "its number of images is not that of its shards"),
    ],
)
def test_metadata_that_is_damaged_or_newer_is_told(store, change, told):
    path = Path(store.root) / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "metadata.json" in refused(store, told)
    path.write_text("[" * 100_000)
    assert "it is nested too deeply" in refused(store, "metadata.json is damaged")


def test_what_is_no_store_is_told(store, tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        records.load("/nowhere", base.WHOLE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is not a store: it has no metadata.json"):
        records.load(str(tmp_path / "empty"), base.WHOLE)
    with pytest.raises(base.NothingHeldOut, match="--config.data.eval=records:PATH"):
        records.load(store.root, base.HELD_OUT)


def test_sizes_and_formats_that_do_not_go_together_are_refused(folder, tmp_path, capsys):
    for flags in (["--quality=80"], ["--size=9", "--raw", "--quality=80"], ["--size=none"],
                  ["--size=8", "--quality=101"]):  # fmt: skip
        assert run("convert", f"folder:{folder}", f"--out={tmp_path}", *flags) == 2
    assert run("convert", f"folder:{folder}") == 2
    assert "--out=DIR" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("text", ["{}", "{", "[]"])
@pytest.mark.parametrize("file", ["metadata.json", "conversion.json"])
def test_a_foreign_or_damaged_note_in_out_is_told(tmp_path, capsys, text, file):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text(text)
    assert cli.run(["data", "convert", "digits:test", f"--out={tmp_path / 'out'}"]) == 2
    told = capsys.readouterr().err
    assert file in told and "choose another --out" in told


def test_a_store_of_a_newer_supmim_says_so(tmp_path):
    (tmp_path / "metadata.json").write_text('{"format": 2, "news": 1}')
    with pytest.raises(DataError, match="has format 2; this supmim reads 1"):
        records.load(str(tmp_path), base.WHOLE)
