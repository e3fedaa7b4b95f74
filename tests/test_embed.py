"""The verbs embed, search, predict, draw and export, on one tiny run and on files of any kind."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import supmim
from supmim import cli
from supmim.commands import draw, embed, search
from supmim.data.sources import base, folders, given
from supmim.data.sources.base import InMemory
from supmim.errors import CheckpointError, ConfigError, DataError, NumericsError
from supmim.interop import embeddings
from tests.conftest import digits, tiny_config
from tests.pictures import encoded, photo, png_bomb

DATA = tiny_config().data
HOSTILE = "a\x1b[31m\nb.png"
CHANGES = {"data.limit": 192, "optimizer.warmup_steps": 1, "encoder.depth": 1,
           "eval.evaluators": "classification", "checkpoint.keep_best": 0}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, all_undrawn):
    """A workdir after two steps."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.py").write_text(
        "from tests.conftest import tiny_preset\n"
        f"def get_config():\n    return tiny_preset(**{CHANGES!r})\n"
    )
    args = ["train", f"--config={folder}/tiny.py", f"--workdir={folder}/run"]
    assert cli.run(args) == 0
    return f"{folder}/run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten digits as PNGs, flat and in a folder, a picture of one pixel, and three that are none."""
    root = tmp_path_factory.mktemp("photos")
    (root / "deep/er").mkdir(parents=True)
    for i in range(10):
        folder = root / "deep/er" if i % 2 else root
        Image.fromarray(digits("test").image[i, ..., 0]).save(folder / f"{i}.png")
    (root / "dot.png").write_bytes(encoded(photo(1, 1), "PNG"))
    (root / "empty.png").write_bytes(b"")
    (root / "bomb.png").write_bytes(png_bomb())
    (root / HOSTILE).write_bytes(b"GIF89a")
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def embedded(run, photos, tmp_path_factory):
    """The file of embeddings of these, and what the command printed."""
    out = tmp_path_factory.mktemp("embedded") / "photos.npz"
    done = printed_by(["embed", f"--model={run}", f"--images={photos}", f"--out={out}"])
    return out, done


def printed_by(args):
    """What a command prints, run in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert cli.run(args) == 0
    return text.getvalue()


def fails(capsys, code, *args):
    capsys.readouterr()
    assert cli.run(args) == code
    return capsys.readouterr().err


def arrays(file):
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


# What a SOURCE may be.


def test_a_source_is_a_folder_a_file_a_glob_or_a_data_source(photos, monkeypatch):
    whole = given.find(str(photos), DATA)
    assert len(whole) == 14 and whole.class_names == (folders.NO_CLASS,)
    names = [whole.name_of(i) for i in range(len(whole))]
    assert names == sorted(names) and str(photos / "deep/er/1.png") in names
    assert all(whole[i].name == name for i, name in enumerate(names))
    one = given.find(str(photos / "0.png"), DATA)
    assert [one.name_of(i) for i in range(len(one))] == [str(photos / "0.png")]
    some = given.find(f"{photos}/[02]*.png", DATA)
    assert [some.name_of(i) for i in range(len(some))] == [f"{photos}/0.png", f"{photos}/2.png"]
    monkeypatch.chdir(photos)
    assert given.find("0.png", DATA).name_of(0) == "0.png"
    assert given.find("deep", DATA).name_of(0) == "deep/er/1.png"
    test = given.find("digits:test", DATA)
    assert len(test) == 297 and test.name_of(5) == test[5].name
    assert base.Sample(test, 2).name_of(1) == test[296].name


def test_the_fingerprint_of_files_changes_with_their_names_and_sizes(tmp_path):
    found = []
    for name, size in (("a.png", 3), ("b.png", 3), ("b.png", 4)):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / name).write_bytes(bytes(size))
        found.append(given.find(str(folder), DATA).fingerprint()["sha256"])
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nowhere", "nowhere: there is no such file or folder"),
        ("./no:where", "there is no such file or folder"),
        ("{photos}/*.tif", "no file matches"),
        ("{photos}/empty", "has no files that end like an image: .bmp"),
        ("digits:tset", "did you mean test?"),
    ],
)
def test_a_source_without_images_is_told(photos, spec, told):
    (photos / "empty").mkdir(exist_ok=True)
    with pytest.raises(DataError) as error:
        given.find(spec.format(photos=photos), DATA)
    assert told in str(error.value)


def test_a_slice_of_a_split_is_a_data_source_and_no_glob(photos, monkeypatch):
    asked = []
    monkeypatch.setattr(given.sources, "find", lambda spec, *rest, **_: asked.append(spec))
    given.find("imagenet2012:validation[:10%]", DATA)
    given.find(f"folder:{photos}", DATA)
    assert asked == ["imagenet2012:validation[:10%]", f"folder:{photos}"]
    monkeypatch.chdir(photos)
    (photos / "a:b.png").write_bytes(b"")
    assert len(given.find("a:[b].png", DATA)) == 1
    (photos / "a:b.png").unlink()


def test_what_is_no_file_is_not_opened(run, tmp_path):
    """A pipe without a writer would wait forever."""
    os.mkfifo(tmp_path / "pipe.png")
    model = supmim.load(run)
    for path in (tmp_path / "pipe.png", tmp_path, "a\0b.png"):
        with pytest.raises(DataError, match="cannot be read: it is not a file"):
            model.embed([path])


# embed


def test_embed_writes_what_embed_returns_and_lists_what_it_cannot_read(run, photos, embedded):
    out, printed = embedded
    stored, model = arrays(out), supmim.load(run)
    assert stored.keys() == {"embedding", "path", "model"}
    assert stored["embedding"].dtype == np.float32 and stored["embedding"].shape == (11, 16)
    readable = sorted(str(p) for p in photos.rglob("*.png") if p.stat().st_size > 6)
    readable.remove(str(photos / "bomb.png"))
    assert stored["path"].tolist() == readable and str(stored["model"]) == model.sha256
    expected = model.embed(readable, progress=lambda done, total: None)
    np.testing.assert_allclose(stored["embedding"], expected, atol=1e-6)
    lines = [line for line in printed.splitlines() if line.startswith("unreadable")]
    assert len(lines) == 3 and "\x1b" not in printed
    assert any("65000 x 65000 pixels are more" in line for line in lines)
    assert any(r"a\x1b[31m\nb.png: " in line for line in lines)
    assert "embedding of 11 images, float32; 3 unreadable left out" in printed
    assert not embeddings.folder_of(out).exists()


def test_embed_writes_features_of_patches_in_half_precision(run, photos, tmp_path):
    out = tmp_path / "patches.npz"
    args = [f"--model={run}", f"--images={photos}/[0-9].png", f"--out={out}"]
    printed_by(["embed", *args, "--features=patches", "--dtype=float16"])
    stored = arrays(out)
    assert stored["embedding"].dtype == np.float16 and stored["embedding"].shape == (5, 4, 4, 16)
    paths = stored["path"].tolist()
    expected = supmim.load(run).patch_features(paths, progress=lambda done, total: None)
    np.testing.assert_array_equal(stored["embedding"], expected.astype(np.float16))


@pytest.mark.parametrize("lost", [False, True])
def test_embed_goes_on_where_it_was_killed_and_writes_the_same_bytes(
    run, tmp_path, monkeypatch, lost
):
    """A shard per batch; the process ends while the third is written, and the first may be lost."""
    monkeypatch.setattr(embed, "BATCH_SIZE", 32)
    monkeypatch.setattr(embeddings, "BLOCK_BYTES", 1)
    args = ["embed", f"--model={run}", "--images=digits:test"]
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    assert cli.run([*args, f"--out={whole}"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(embeddings.Partial, "write", killed_after(2))
        with pytest.raises(RuntimeError, match="killed"):
            cli.run([*args, f"--out={out}"])
    assert not out.exists()
    if lost:
        min(embeddings.folder_of(out).glob("*.npz")).unlink()
    starts = computed_from(monkeypatch)
    assert cli.run([*args, f"--out={out}"]) == 0
    assert starts == [0 if lost else 64] and out.read_bytes() == whole.read_bytes()
    with zipfile.ZipFile(out) as archive:
        assert {member.date_time[0] for member in archive.infolist()} == {1980}
    assert not embeddings.folder_of(out).exists()


def test_unreadable_images_of_every_part_are_listed_once(run, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "BATCH_SIZE", 8)
    monkeypatch.setattr(embeddings, "BLOCK_BYTES", 1)  # a part per batch; batches are read ahead
    (tmp_path / "many").mkdir()
    for i in range(40):
        file = tmp_path / f"many/{i:02}.png"
        if i % 7:
            Image.fromarray(digits("test").image[i, ..., 0]).save(file)
        else:
            file.write_bytes(b"")
    args = [f"--model={run}", f"--images={tmp_path}/many", f"--out={tmp_path}/x.npz"]
    printed = printed_by(["embed", *args]).splitlines()
    listed = [line.split("/")[-1] for line in printed if line.startswith("unreadable")]
    assert listed == [f"{i:02}.png: empty file" for i in range(0, 40, 7)]


def test_embed_goes_on_after_a_kill_while_its_parts_are_joined(run, tmp_path, monkeypatch):
    """The last batch is not full: it must not be computed and written twice."""
    monkeypatch.setattr(embed, "BATCH_SIZE", 32)
    args = ["embed", f"--model={run}", "--images=digits:test"]
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    assert cli.run([*args, f"--out={whole}"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(embeddings.Partial, "join", killed)
        with pytest.raises(RuntimeError, match="killed"):
            cli.run([*args, f"--out={out}"])
    assert cli.run([*args, f"--out={out}"]) == 0
    assert out.read_bytes() == whole.read_bytes()


def killed(*_):
    raise RuntimeError("killed")


def killed_after(count):
    """Partial.write that dies in the next shard, half of which it leaves."""
    write = embeddings.Partial.write

    def killed(self, start, *rest):
        if len(self.shards()) == count:
            (self.folder / f"{start:012}-x.npz.part").write_bytes(b"half")
            raise RuntimeError("killed")
        write(self, start, *rest)

    return killed


def computed_from(monkeypatch):
    """The first image of each call of Model.outputs from now on."""
    starts, outputs = [], supmim.Model.outputs

    def noted(self, *args, start=0, **rest):
        starts.append(start)
        return outputs(self, *args, start=start, **rest)

    monkeypatch.setattr(supmim.Model, "outputs", noted)
    return starts


def test_ctrl_c_writes_what_was_computed(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed, "BATCH_SIZE", 64)
    out = tmp_path / "out.npz"

    class Pressed(embed.StopSignal):
        def __enter__(self):
            self.requested = True
            return self

    monkeypatch.setattr(embed, "StopSignal", Pressed)
    told = fails(capsys, 75, "embed", f"--model={run}", "--images=digits:test", f"--out={out}")
    assert "stopped after 64 of 297 images; the same command goes on" in told
    assert [file.name for file in sorted(embeddings.folder_of(out).glob("*.npz"))] == [
        "000000000000-000000000064.npz"
    ]


def test_a_part_of_other_embeddings_is_refused_with_what_differs(
    run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.npz"
    args = ["embed", "--images=digits:test", f"--out={out}"]
    with monkeypatch.context() as patched:
        patched.setattr(embeddings.Partial, "write", killed_after(0))
        with pytest.raises(RuntimeError):
            cli.run([*args, f"--model={run}"])
    told = fails(capsys, 2, *args, f"--model={run}", "--dtype=float16")
    assert "holds a part of other embeddings, with another dtype. Delete it" in told
    monkeypatch.setattr(supmim.Model, "sha256", "0" * 64)
    told = fails(capsys, 2, *args, f"--model={run}")
    assert "holds a part of other embeddings, with another model. Delete it" in told


def test_embed_refuses_what_it_cannot_write_or_read(run, photos, embedded, capsys):
    model, images = f"--model={run}", f"--images={photos}"
    told = fails(capsys, 2, "embed", model, images, "--out=x.npy")
    assert "--out=x.npy must end in .npz" in told
    assert "exists already" in fails(capsys, 2, "embed", model, images, f"--out={embedded[0]}")
    told = fails(capsys, 2, "embed", model, images, "--out=x.npz", "--features=tokens")
    assert "<embedding|patches>" in told
    told = fails(capsys, 4, "embed", "--model=nowhere", images, "--out=x.npz")
    assert "nowhere does not exist: give a workdir" in told
    out = photos.parent / "none.npz"
    told = fails(capsys, 3, "embed", model, f"--images={photos}/empty.png", f"--out={out}")
    assert "none of its 1 image can be read" in told
    assert not out.exists() and not embeddings.folder_of(out).exists()
    told = fails(capsys, 2, "embed", model, images, f"--out={embedded[0]}/x/y.npz")
    assert "cannot write to the out" in told


def test_values_that_are_not_finite_are_told_with_their_image():
    source = InMemory("made", np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, int), ("a",))
    values = np.array([[1.0], [70000.0]], np.float32)
    assert embed.checked(values, np.array([0, 2]), source) is values
    with np.errstate(over="ignore"), pytest.raises(NumericsError, match="record 2 .*float32"):
        embed.checked(values.astype(np.float16), np.array([0, 2]), source)


def test_values_too_large_for_half_precision_are_told_once(run, tmp_path, monkeypatch, capsys):
    def large(self, *_, **__):
        yield np.arange(2), np.array([[1.0], [70000.0]], np.float32)

    monkeypatch.setattr(supmim.Model, "outputs", large)
    args = ["embed", f"--model={run}", "--images=digits:test", f"--out={tmp_path}/x.npz"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = fails(capsys, 5, *args, "--dtype=float16")
    assert told.count("\n") == 1 and "record 1 are not finite in float16; try --dtype=float" in told


def test_files_of_others_beside_the_parts_stay(tmp_path):
    other = embeddings.folder_of(tmp_path / "x.npz") / "my-notes.npz"
    other.parent.mkdir()
    other.write_bytes(b"")
    assert embeddings.Partial(tmp_path / "x.npz", {}).shards() == [] and other.exists()


GROWTH = """
import resource, sys
import numpy as np
from unittest import mock
from supmim import cli
from supmim.data.sources import given
from supmim.data.sources.base import InMemory
from supmim.interop import embeddings

embeddings.BLOCK_BYTES = 2**20
def made(count):
    image = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return InMemory("made", image, np.zeros(count, int), ("a",))

for count in (2048, {count}):
    with mock.patch.object(given, "find", lambda spec, data: made(count)):
        args = ["--model={run}", "--images=made:all", f"--out={folder}/{{count}}.npz"]
        assert cli.run(["embed", *args, "--features=patches"]) == 0
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""


@pytest.mark.parametrize("count", [10_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_images(run, tmp_path, count):
    """1 KiB of features for each image: 10 or 50 MB that would be held, if all were held."""
    script = GROWTH.format(run=run, folder=tmp_path, count=count)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, many = (float(line.split()[1]) for line in done.stdout.splitlines() if "peak" in line)
    assert many - few < 6
    with zipfile.ZipFile(tmp_path / f"{count}.npz") as archive:
        assert archive.getinfo("embedding.npy").file_size > 1024 * count


READERS = """
from supmim import cli, model
from supmim.commands import embed
model.FEW, embed.BATCH_SIZE = 0, 8
raise SystemExit(cli.run(["embed", "--model={run}", "--images={folder}", "--out={folder}.npz"]))
"""


def test_reader_processes_end_without_a_word(run, tmp_path):
    """Python warns of shared memory that is still held when the process ends."""
    (tmp_path / "many").mkdir()
    for i in range(64):
        Image.fromarray(digits("test").image[i, ..., 0]).save(tmp_path / f"many/{i}.png")
    script = READERS.format(run=run, folder=tmp_path / "many")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


# search


def test_search_ranks_by_cosine_and_draws_a_strip(run, photos, embedded, tmp_path):
    query, picture = photos / "4.png", tmp_path / "made/strip.png"
    args = [f"--model={run}", f"--embeddings={embedded[0]}", f"--query={query}"]
    printed = printed_by(["search", *args, "--top=3", f"--picture={picture}"])
    stored = arrays(embedded[0])
    row = stored["path"].tolist().index(str(query))
    unit = stored["embedding"] / np.linalg.norm(stored["embedding"], axis=1, keepdims=True)
    cosine = unit @ unit[row]
    best = np.argsort(-cosine, kind="stable")[:3]
    lines = printed.splitlines()
    assert lines[:3] == [
        f"{n:3}  {cosine[i]:7.4f}  {stored['path'][i]}" for n, i in enumerate(best, 1)
    ]
    assert lines[3] == f"picture     {picture}"
    with Image.open(picture) as drawn:
        assert drawn.width > 300
    assert len(printed_by(["search", *args]).splitlines()) == 10


def test_blocks_and_ties_do_not_change_the_ranking(tmp_path, monkeypatch):
    """Exact: against all cosines at once, from float16 too."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100, 4)).astype(np.float16)
    rows[50] = 2 * rows[7]  # the same direction: the first comes first
    file = tmp_path / "e.npz"
    np.savez_compressed(file, embedding=rows, path=[f"{i}" for i in range(100)], model="m")
    monkeypatch.setattr(embeddings, "BLOCK_BYTES", 8 * 7)
    blocks = list(embeddings.read(file).blocks())
    assert [len(block) for block in blocks] == [7] * 14 + [2]
    np.testing.assert_array_equal(np.concatenate(blocks), rows.astype(np.float32))
    query = rows[7].astype(np.float32)
    cosine, row = search.nearest(blocks, query, 20)
    full = rows.astype(np.float32)
    expected = full @ query / np.linalg.norm(full, axis=1) / np.linalg.norm(query)
    assert row.tolist()[:2] == [7, 50] and sorted(row) == sorted(np.argsort(-expected)[:20])
    np.testing.assert_allclose(cosine, expected[row], rtol=1e-6)
    assert len(search.nearest(blocks, query, 1000)[1]) == 100
    with pytest.raises(NumericsError, match="zero or not finite"):
        search.nearest([np.zeros((1, 4), np.float32)], query, 3)


def test_search_refuses_another_model_patches_and_an_unreadable_query(
    run, photos, embedded, tmp_path, capsys
):
    stored, query = arrays(embedded[0]), f"--query={photos}/0.png"
    args = ["search", f"--model={run}"]
    other = tmp_path / "other.npz"
    np.savez(other, **stored | {"model": np.array("f" * 64)})
    told = fails(capsys, 2, *args, f"--embeddings={other}", query)
    assert "of another model: its parameters have the digest ffffffffffff..." in told
    patches = tmp_path / "patches.npz"
    np.savez(patches, **stored | {"embedding": np.zeros((11, 4, 4, 16), np.float32)})
    told = fails(capsys, 2, *args, f"--embeddings={patches}", query)
    assert "holds features of patches" in told and "--features=embedding" in told
    for bad, why in (("empty.png", "empty file"), ("bomb.png", "pixels"), ("no.png", "No such")):
        told = fails(capsys, 3, *args, f"--embeddings={embedded[0]}", f"--query={photos}/{bad}")
        assert f"{bad} cannot be read" in told and why in told
    assert "--top=0" in fails(capsys, 2, *args, f"--embeddings={other}", query, "--top=0")
    (tmp_path / "folder.png").mkdir()
    for picture in (tmp_path / "found.jpg", tmp_path / "found", tmp_path / "folder.png"):
        args_of_picture = f"--embeddings={embedded[0]}", query, f"--picture={picture}"
        told = fails(capsys, 2, *args, *args_of_picture)
        assert f"--picture={picture} must be a file that ends in .png" in told


class Canary:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_file_that_holds_no_embeddings_is_refused_and_no_pickle_is_opened(embedded, tmp_path):
    stored, canary = arrays(embedded[0]), tmp_path / "canary"
    for name in ("embedding", "path", "model"):
        objects = np.array([Canary(canary)], object)
        np.savez(tmp_path / f"{name}_object.npz", **stored | {name: objects})
        np.savez(tmp_path / f"{name}_gone.npz", **{k: v for k, v in stored.items() if k != name})
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Canary(canary)))
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "fewer.npz", **stored | {"path": stored["path"][1:]})
    np.savez(
        tmp_path / "none.npz",
        **stored | {"path": stored["path"][:0], "embedding": np.zeros((0, 16))},
    )
    np.savez_compressed(tmp_path / "bomb.npz", **stored | {"path": np.full(11, "x" * 2_000_000)})
    for file in [*tmp_path.glob("*.npz"), tmp_path / "missing.npz", tmp_path]:
        with pytest.raises(
            CheckpointError, match="cannot be read as a file of embeddings|has arrays of Python"
        ):
            embeddings.read(file)
    assert not canary.exists()
    damaged = bytearray(embedded[0].read_bytes())
    damaged[200] ^= 1  # a number
    (tmp_path / "flipped.npz").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="CRC"):
        list(embeddings.read(tmp_path / "flipped.npz").blocks())


# predict


def test_predict_prints_what_predict_returns(run, photos, capsys):
    model = supmim.load(run)
    paths = sorted(map(str, photos.glob("[0-9].png")))
    expected = model.predict(paths, top=2, progress=lambda done, total: None)
    capsys.readouterr()
    args = ["predict", f"--model={run}", f"--images={photos}/[0-9].png", "--top=2"]
    assert cli.run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{path}  {', '.join(f'{name} {100 * p:.1f} %' for name, p in best)}"
        for path, best in zip(paths, expected, strict=True)
    ]
    assert cli.run([*args, "--json"]) == 0
    for line, path, best in zip(capsys.readouterr().out.splitlines(), paths, expected, strict=True):
        found = json.loads(line)
        assert found["path"] == path
        assert [(one["name"], one["probability"]) for one in found["classes"]] == [
            (name, pytest.approx(p)) for name, p in best
        ]


def test_predict_tells_what_it_cannot_read_and_escapes_names(run, photos, capsys):
    capsys.readouterr()
    assert cli.run(["predict", f"--model={run}", f"--images={photos}"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 11 and len(err.splitlines()) == 3
    assert "\x1b" not in out + err and r"a\x1b[31m\nb.png: " in err
    told = fails(capsys, 3, "predict", f"--model={run}", f"--images={photos}/empty.png")
    assert "none of its 1 image can be read" in told


def test_a_model_without_a_head_is_not_asked_to_predict(run, photos, tmp_path, capsys):
    model = supmim.load(run)
    headless = supmim.Model(model.config, {"encoder": model.params["encoder"]}, (), "headless")
    with pytest.raises(ConfigError, match="headless has no classifier, so it cannot predict"):
        headless.predict([str(photos / "0.png")])


# draw


def test_draw_fills_in_at_each_ratio_and_colours_patches(run, tmp_path, monkeypatch):
    rows = {}
    monkeypatch.setattr(draw.decoded, "draw", lambda path, found: rows.update(found))
    args = [f"--model={run}", "--images=digits:test", f"--out={tmp_path}/drawn"]
    printed = printed_by(["draw", *args, "--ratios=0.25,0.75"])
    filled, own = "filled in from predicted tokens", "tokenizer's own reconstruction"
    assert list(rows) == [
        "original", "25 % hidden", f"25 % hidden, {filled}", "75 % hidden",
        f"75 % hidden, {filled}", own,
    ]  # fmt: skip
    assert all(pictures.shape[:3] == (draw.MOST, 8, 8) for pictures in rows.values())
    chosen = digits("test").image[base.evenly(297, draw.MOST)] / np.float32(255)
    np.testing.assert_array_equal(rows["original"], chosen)
    colour = np.float32(draw.reconstructions.HIDDEN)
    masks = {n: (rows[f"{n} % hidden"] == colour).all(-1) for n in (25, 75)}
    assert {n: round(100 * x.mean()) for n, x in masks.items()} == {25: 25, 75: 75}
    assert (masks[75] | ~masks[25]).all()  # what is hidden at one ratio is hidden at a larger too
    for number, mask in masks.items():  # what is visible is as the tokenizer has it
        seen = rows[f"{number} % hidden, {filled}"][~mask]
        np.testing.assert_allclose(seen, rows[own][~mask], atol=1e-6)
    assert printed.count("image       digits:test, record") == draw.MOST
    assert (tmp_path / "drawn/patches.png").is_file()


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("masking", ["variable", "block", "units"])
def test_a_ratio_is_hidden_whatever_the_masking(masking, ratio):
    config = tiny_config(**{"mim.masking": masking})
    task = draw.SupMIM.abstract(draw.hiding(config, ratio))
    mask = np.asarray(task.draw_mask(jax.random.key(1), 3).mask)
    unit = config.mim.unit**2 if masking == "units" else 1
    assert abs(mask.mean(axis=1) - ratio).max() <= unit / config.grid**2


def test_draw_without_a_decoder_says_why_and_draws_components(run, photos, tmp_path, capsys):
    exported = tmp_path / "exported"
    printed_by(["export", f"--model={run}", "--to=big_vision", f"--out={exported}"])
    args = ["draw", f"--model={exported}", f"--images={photos}", f"--out={tmp_path}/drawn"]
    told = fails(capsys, 2, *args)
    assert "has no decoder to fill in patches: only the workdir of a run holds one" in told
    assert "add --ratios=" in told
    printed = printed_by([*args, "--ratios="])
    assert ": empty file, left out" in printed
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["patches.png"]


@pytest.mark.parametrize("text", ["half", "0", "1", "0.5,0.99", "nan"])
def test_ratios_that_hide_no_patch_or_all_are_refused(text):
    with pytest.raises(ConfigError, match="--ratios="):
        draw.parsed(text, tiny_config())
    assert draw.parsed("", tiny_config()) == ()


# export


@pytest.mark.parametrize("to", ["timm", "big_vision", "stablehlo"])
def test_export_prints_what_was_written_and_how_it_agrees(run, tmp_path, to):
    out = tmp_path / to
    printed = printed_by(["export", f"--model={run}", f"--to={to}", f"--out={out}"])
    lines = printed.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("written")} == {
        str(file) for file in out.iterdir()
    }
    assert f"parameters  {supmim.load(run).num_parameters:,} of" in printed
    difference = float(printed.partition("outputs ")[2].partition("\n")[0])
    assert difference <= 1e-5 and "SHA-256     " in printed
    assert len(printed.strip().rpartition("\n\n")[2].splitlines()) == 3


def test_export_does_not_write_over_anything(run, photos, capsys):
    for out in (photos, photos / "0.png"):
        told = fails(capsys, 2, "export", f"--model={run}", f"--out={out}")
        assert "is not an empty folder" in told or "cannot write" in told
    told = fails(capsys, 2, "export", f"--model={run}", "--out=/proc/nowhere/x")
    assert "cannot write to /proc/nowhere/x.part: No such file" in told
    assert os.path.getsize(photos / "0.png") > 6
