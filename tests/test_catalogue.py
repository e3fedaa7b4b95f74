"""TFDS data sets, made here without network and without TensorFlow."""

import importlib.util
import io
import pickle
import shutil
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from supmim import cli, sharding
from supmim.data import images, pipeline, prepare, sources
from supmim.data import tensorflow_stand_in as stand_in
from supmim.data.sources import base, catalogue, pairs
from supmim.errors import DataError
from tests.conftest import plain_readers, tiny_config
from tests.pictures import encoded, photo
from tests.test_folders import fill

VIEW = {"data.image_size": 8, "data.channels": 3}
SPLITS = {"train": 12, "validation": 6, "test": 3}


class TinyBirds(tfds.core.GeneratorBasedBuilder):
    """Photographs of three classes, with a mask each."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = SPLITS

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.features())
        )

    def features(self):
        return {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["wren", "kite", "coot"]),
            "file_name": tfds.features.Text(),
        }

    def _split_generators(self, dl_manager):
        return {name: self.made(name, count) for name, count in self.SPLITS.items()}

    def _generate_examples(self):
        raise NotImplementedError

    def made(self, split, count):
        for i in range(count):
            yield i, self.example(f"{split}{i}.jpg", picture(i), i % 3)

    def example(self, name, data, label):
        return {"image": io.BytesIO(data), "label": label, "file_name": name}


class TinyScenes(TinyBirds):
    """Image and mask, no class."""

    SPLITS = {"train": 4}

    def features(self):
        return {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "annotation": tfds.features.Image(encoding_format="png", shape=(None, None, 1)),
        }

    def example(self, name, data, label):
        side = Image.open(io.BytesIO(data)).size[::-1]
        return {"image": io.BytesIO(data), "annotation": np.full((*side, 1), label, np.uint8)}


class TinyDigits(TinyBirds):
    """Arrays, which TFDS encodes itself, and nothing but a training split."""

    SPLITS = {"train": 4}

    def features(self):
        label = tfds.features.ClassLabel(num_classes=4)
        return {"image": tfds.features.Image(shape=(8, 8, 1)), "label": label}

    def example(self, name, data, label):
        return {"image": np.full((8, 8, 1), 40 + label, np.uint8), "label": label}


class TinyTensors(TinyBirds):
    """Asks TensorFlow for something that only it can do."""

    def made(self, split, count):
        from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

        tf.audio.decode_wav(b"")
        yield 0, {}


def picture(i):
    return encoded(photo(20, 16 + i), quality=90)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """TFDS's folder, with the data sets above prepared through the verb's own code."""
    folder = tmp_path_factory.mktemp("tfds")
    for name in ("tiny_birds", "tiny_scenes", "tiny_digits"):
        prepare.prepare(name, str(folder), lambda line: None)
    return folder


def data_of(tfds_dir, **changes):
    return tiny_config(**VIEW, **{"data.tfds_dir": str(tfds_dir)}, **changes).data


def find(tfds_dir, spec, part=base.WHOLE):
    return sources.find(spec, part, data_of(tfds_dir))


def run(*args):
    return cli.run(["data", *map(str, args)])


def by_name(split):
    return {split[i].name: split[i] for i in range(len(split))}


# Reading.


def test_records_are_the_files_with_labels_and_names(tfds_dir):
    found = find(tfds_dir, "tiny_birds:train")
    assert found.class_names == ("wren", "kite", "coot") and len(found) == 12
    records = by_name(found)
    assert set(records) == {f"train{i}.jpg" for i in range(12)}
    for i in range(12):
        assert records[f"train{i}.jpg"] == (picture(i), i % 3, f"train{i}.jpg")
    order = [11, 0, 3, 3]
    assert found.__getitems__(order) == [found[i] for i in order]


@pytest.mark.parametrize("spec", ["tfds:tiny_birds:train", "tiny_birds:1.0.0:train", "folder"])
def test_a_data_set_is_found_by_kind_name_version_and_folder(tfds_dir, spec):
    spec = f"tfds:{tfds_dir}/tiny_birds/1.0.0:train" if spec == "folder" else spec
    assert find(tfds_dir, spec).fingerprint() == find(tfds_dir, "tiny_birds:train").fingerprint()


def test_what_is_held_out_is_validation_or_else_test(tfds_dir):
    assert len(find(tfds_dir, "tiny_birds:train", base.HELD_OUT)) == 6
    assert len(find(tfds_dir, "tiny_birds:train[:50%]", base.KEPT)) == 6
    assert len(find(tfds_dir, "tiny_birds:train+test", base.KEPT)) == 15
    for spec in ("tiny_birds:test", "tiny_digits:train", "tiny_birds:train[:9]+validation"):
        with pytest.raises(base.NothingHeldOut, match="data.eval=tfds:NAME:SPLIT"):
            find(tfds_dir, spec, base.HELD_OUT)


@pytest.mark.parametrize(
    ("train", "other", "shared"),
    [("train", "train[9:]", 3), ("train[:9]", "train[7:]", 2), ("train[:9]", "train[9:]", 0),
     ("train", "test", 0), ("test+train", "train[50%:]+validation", 6)],
)  # fmt: skip
def test_records_that_two_parts_of_splits_share_are_counted(tfds_dir, train, other, shared):
    found = (find(tfds_dir, f"tiny_birds:{split}") for split in (train, other))
    assert sources.num_shared(*found) == shared


def test_parts_of_a_split_are_its_records(tfds_dir):
    whole, part = find(tfds_dir, "tiny_birds:train"), find(tfds_dir, "tiny_birds:train[5:9]")
    assert [part[i] for i in range(4)] == [whole[i] for i in range(5, 9)]
    assert part.fingerprint() != whole.fingerprint()


def test_arrays_come_back_as_files(tfds_dir):
    found = find(tfds_dir, "tiny_digits:train")
    seen = images.evaluation(found, tiny_config().data)
    batch, bad = seen.take(range(4), [0] * 4)
    assert not bad and found[0].name == "tfds:tiny_digits/1.0.0:train, record 0"
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], 40 + batch["label"])


def test_reader_processes_get_the_folder_and_give_the_same_stream(tfds_dir):
    found = find(tfds_dir, "tiny_birds:train")
    assert found[0].label in (0, 1, 2)
    assert "reader" not in pickle.loads(pickle.dumps(found)).__dict__
    seen, mesh = images.training(found, data_of(tfds_dir)), sharding.make_mesh(
        1, 1, 1, devices=jax.devices()[:1])  # fmt: skip

    def read(start, workers):
        readers = plain_readers(workers=workers)
        return list(pipeline.train_batches(seen, 0, 4, mesh, start, 5, readers))

    for a, b in zip(read(2, 1), read(0, 0)[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_fingerprint_does_not_know_the_place(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tiny_birds", tmp_path / "tiny_birds")
    here, there = find(tfds_dir, "tiny_birds:train"), find(tmp_path, "tiny_birds:train")
    assert here.fingerprint() == there.fingerprint() and here.directory != there.directory
    assert here.fingerprint() != find(tfds_dir, "tiny_birds:validation").fingerprint()


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damaged_shards_are_named(tfds_dir, tmp_path, damage):
    """Row I5, for data sets that TFDS wrote."""
    shutil.copytree(tfds_dir / "tiny_birds", tmp_path / "tiny_birds")
    (path,) = tmp_path.rglob("*train.array_record*")
    data = path.read_bytes()
    spot = data.index(picture(3)[-40:])
    flipped = data[:spot] + bytes([data[spot] ^ 1]) + data[spot + 1 :]
    path.write_bytes({"truncated": data[:-9], "flipped": flipped, "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(DataError, match="damaged") as error:
        found = find(tmp_path, "tiny_birds:train")
        assert damage != "missing", "a run would meet it in its middle"
        found.__getitems__(range(12))
    assert str(path) in str(error.value)
    if damage == "flipped":
        place = next(i for i, r in enumerate(intact(tfds_dir)) if r.name == "train3.jpg")
        assert f"{path}, record {place}: damaged" in str(error.value)


def intact(tfds_dir):
    found = find(tfds_dir, "tiny_birds:train")
    return found.__getitems__(range(len(found)))


# What can't be read is told with the next command.


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("digit:train", "did you mean digits"),
        ("fodler:/x", "did you mean folder"),
        ("imagenet2013:train", "did you mean imagenet2012"),
        ("tiny_birds", "names no split; write tfds:tiny_birds:train"),
        ("tiny_birds:trian", "has no split trian: it takes train, .*; did you mean train"),
        ("tfds:/nowhere:train", "holds no data set of TFDS"),
        ("cifar10:train", "supmim data prepare cifar10 --tfds-dir="),
        ("cifar10/odd:train", "TFDS has no cifar10/odd"),
        ("tiny_scenes:train", r"exactly one class label; its features are .*annotation \(Image\)"),
    ],
)
def test_what_can_not_be_read_is_told(tfds_dir, spec, told):
    with pytest.raises(DataError, match=told):
        find(tfds_dir, spec)


def test_a_data_set_in_another_format_is_told(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tiny_birds", tmp_path / "tiny_birds")
    info = tmp_path / "tiny_birds/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="is prepared as tfrecord, which has no random access"):
        find(tmp_path, "tiny_birds:train")


def test_a_missing_split_and_different_classes_are_told(tfds_dir):
    with pytest.raises(DataError, match="different classes"):
        sources.load(data_of(tfds_dir, **{"data.train": "tiny_birds:train", "data.eval":
                                          "tiny_digits:train"}))  # fmt: skip


# imagenet2012: files that are fetched by hand, some of them in odd formats.


def tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """Tiny archives of ImageNet's structure, with one of its CMYK files and its only PNG."""
    cmyk = encoded(Image.fromarray(photo()).convert("CMYK"), quality=95)
    files = {
        "ILSVRC2012_img_train.tar": tar({
            "n01739381.tar": tar({"n01739381_1309.JPEG": cmyk, "n01739381_1.JPEG": picture(0)}),
            "n02105855.tar": tar({"n02105855_2933.JPEG": encoded(photo(), "PNG")}),
        }),
        "ILSVRC2012_img_val.tar": tar(
            {f"ILSVRC2012_val_{i:08}.JPEG": picture(i) for i in range(1, 4)}
        ),
    }  # fmt: skip
    folder = tmp_path / "downloads/manual"
    for name, data in files.items():
        fill(folder, name, data=data)
    sizes = {name: len(data) for name, data in files.items()}
    monkeypatch.setitem(catalogue.MANUAL_FILES, "imagenet2012", sizes)
    monkeypatch.setattr(prepare, "BYTES", {})
    return folder


def test_imagenet_is_prepared_from_its_archives_without_tensorflow(tars, tmp_path, monkeypatch):
    from tensorflow_datasets.core import shuffle

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)  # as it shuffles above a gigabyte
    assert run("prepare", "imagenet2012", f"--tfds-dir={tmp_path}") == 0
    train, held_out = sources.load(data_of(tmp_path, **{"data.train": "imagenet2012:train"}))
    assert (len(train), len(held_out), len(train.class_names)) == (3, 3, 1000)
    found = by_name(train)
    assert found["n01739381_1.JPEG"].image == picture(0)
    assert train.class_names[found["n02105855_2933.JPEG"].label] == "n02105855"
    for name in ("n01739381_1309.JPEG", "n02105855_2933.JPEG"):
        again = Image.open(io.BytesIO(found[name].image))
        assert (again.format, again.mode) == ("JPEG", "RGB")
        assert np.abs(np.asarray(again).astype(int) - photo()).mean() < 12
    assert by_name(held_out)["ILSVRC2012_val_00000002.JPEG"].image == picture(2)
    assert run("prepare", "imagenet2012", f"--tfds-dir={tmp_path}") == 0  # nothing to do


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_missing_archives_are_named_with_folder_and_size(tars, tmp_path, capsys, monkeypatch, verb):
    monkeypatch.undo()
    (tars / "ILSVRC2012_img_val.tar").unlink()
    assert run(verb, "imagenet2012", f"--tfds-dir={tmp_path}") == 3
    told = capsys.readouterr().err
    assert str(tars) in told and f"supmim data prepare imagenet2012 --tfds-dir={tmp_path}" in told
    assert "ILSVRC2012_img_train.tar  147,897,477,120 bytes: " in told and "are there" in told
    assert "ILSVRC2012_img_val.tar  6,744,924,160 bytes: missing" in told
    assert not (tmp_path / "imagenet2012").exists()


def test_a_truncated_archive_is_told_and_leaves_nothing(tars, tmp_path, capsys, monkeypatch):
    path = tars / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:4000])
    assert run("prepare", "imagenet2012", f"--tfds-dir={tmp_path}") == 3
    assert "ILSVRC2012_img_train.tar" in capsys.readouterr().err
    monkeypatch.setitem(catalogue.MANUAL_FILES["imagenet2012"], path.name, 4000)
    assert run("prepare", "imagenet2012", f"--tfds-dir={tmp_path}") == 3
    assert "imagenet2012 can't be prepared: ReadError" in capsys.readouterr().err
    assert not list((tmp_path / "imagenet2012").glob("*5.1.0"))


def test_a_full_disk_is_told_before_the_work(tars, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "BYTES", {"imagenet2012": 10**18})
    assert run("prepare", "imagenet2012", f"--tfds-dir={tmp_path}") == 3
    assert "takes up to 1000000000 GB" in capsys.readouterr().err


def test_what_needs_tensorflow_after_all_is_told(tmp_path, capsys):
    assert run("prepare", "tiny_tensors", f"--tfds-dir={tmp_path}") == 3
    told = capsys.readouterr().err
    assert "asks TensorFlow for tf.audio" in told
    assert "tfds build tiny_tensors --file_format=array_record" in told


def test_the_stand_in_is_gone_afterwards():
    from tensorflow_datasets.core.utils import lazy_imports_utils

    with stand_in.in_place():
        assert lazy_imports_utils.tensorflow.io.gfile.exists("/")
    assert "_module" not in vars(lazy_imports_utils.tensorflow)
    assert importlib.util.find_spec("tensorflow") is None and "tensorflow" not in sys.modules


def test_files_are_read_and_written_as_gfile_does(tmp_path):
    files = stand_in.GFILE
    files.makedirs(tmp_path / "b/c")
    with files.GFile(tmp_path / "b/x.txt", "w") as file:
        file.write("grün")
    files.copy(tmp_path / "b/x.txt", tmp_path / "b/a.txt")
    assert files.listdir(tmp_path / "b") == ["a.txt", "c", "x.txt"]
    assert files.glob(tmp_path / "b/*.txt") == [str(tmp_path / f"b/{n}.txt") for n in "ax"]
    assert files.isdir(tmp_path / "b/c") and not files.exists(tmp_path / "b/z")
    files.remove(tmp_path / "b/a.txt")
    with files.GFile(tmp_path / "b/x.txt", "rb") as file:
        assert file.read() == "grün".encode()


# Row U2: interrupted, killed, and again.

SLOW = """
import sys, threading, time
import tests.test_catalogue as t
from supmim import cli
if sys.argv[1] == "slow":
    def made(self, split, count):
        threading.Thread(target=time.sleep, args=(60,)).start()  # a download that goes on
        for i in range(10**6):
            print("making", flush=True)
            time.sleep(0.05)
            yield i, self.example(f"{i}", t.picture(i % 5), 0)
    t.TinyBirds.made = made
sys.argv = ["supmim", "data", "prepare", "tiny_birds", f"--tfds-dir={sys.argv[2]}"]
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(2, 75), (9, -9)])
def test_an_interrupted_preparation_ends_in_5_seconds_and_the_next_is_clean(tmp_path, number, code):
    script = [sys.executable, "-c", SLOW]
    child = subprocess.Popen(
        [*script, "slow", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while child.stdout.readline() != "making\n":
        pass
    child.send_signal(number)
    began = time.monotonic()
    _, told = child.communicate()
    assert child.returncode == code and time.monotonic() - began < 5
    assert number == 9 or "the same command continues it" in told
    left = list((tmp_path / "tiny_birds").glob("incomplete.*"))
    assert bool(left) == (number == 9)
    assert run("prepare", "tiny_birds", f"--tfds-dir={tmp_path}") == 0
    assert not list((tmp_path / "tiny_birds").glob("incomplete.*"))
    assert len(find(tmp_path, "tiny_birds:train")) == 12


# Images with masks.


def test_masks_are_found_by_name_and_the_ids_are_those_of_the_palette(tmp_path):
    index = Image.fromarray(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) % 7)
    index.putpalette(list(range(256)) * 3)
    fill(tmp_path, "images/a/x.jpg", "images/y.JPG", data=encoded(photo()))
    fill(tmp_path, "masks/a/x.png", "masks/y.png", "masks/z.png", data=encoded(index, "PNG"))
    found = pairs.load(str(tmp_path), base.WHOLE, data_of(tmp_path))
    assert len(found) == 2 and found.names == ["a/x", "y"]
    name = str(tmp_path / "images/a/x.jpg")
    assert found[0] == (encoded(photo()), 0, name, encoded(index, "PNG"))
    assert pickle.loads(pickle.dumps(found)).fingerprint() == found.fingerprint()
    assert run("check", f"pairs:{tmp_path}") == 0


def test_missing_wrong_and_damaged_masks_are_listed(tmp_path, capsys):
    fill(tmp_path, "images/1.jpg", "images/2.jpg", "images/3.jpg", data=encoded(photo()))
    assert run("check", f"pairs:{tmp_path}") == 3
    assert "has no folders images and masks" in capsys.readouterr().err
    fill(tmp_path, "annotations/1.png", data=encoded(photo()[:9, :, 0], "PNG"))
    assert run("check", f"pairs:{tmp_path}") == 3
    assert "annotations has no mask for 2 of 3 images: 2, 3" in capsys.readouterr().err
    fill(tmp_path, "annotations/2.png", data=encoded(photo(), "PNG"))
    fill(tmp_path, "annotations/3.png", data=encoded(photo()[..., 0], "PNG")[:80])
    assert run("check", f"pairs:{tmp_path}") == 3
    told = capsys.readouterr()
    assert "unreadable: 2\n" in told.out and "masks of another size: 1\n" in told.out
    assert f"2 of 3 pairs of pairs:{tmp_path} can't be read, more than the 1 " in told.err
    assert f"1 mask of pairs:{tmp_path} differs in size from the image" in told.err
    with pytest.raises(DataError, match="there is no such folder"):
        pairs.load(str(tmp_path / "none"), base.WHOLE, data_of(tmp_path))


def test_a_tfds_set_with_masks_gives_pairs(tfds_dir, capsys):
    found = pairs.load("tiny_scenes:train", base.WHOLE, data_of(tfds_dir))
    masks = {int(np.asarray(Image.open(io.BytesIO(found[i].mask))).max()) for i in range(4)}
    assert len(found) == 4 and masks == {0, 1, 2}
    assert run("check", "pairs:tiny_scenes:train", f"--tfds-dir={tfds_dir}") == 0
    assert "ids of the masks: 0 to 2" in capsys.readouterr().out
    with pytest.raises(DataError, match="does not have exactly one image and one mask"):
        pairs.load("tiny_birds:train", base.WHOLE, data_of(tfds_dir))
