"""Data in buckets: it is copied to this machine once, and read as if it had always been here."""

import functools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from supmim import cli
from supmim import config as config_lib
from supmim.commands import data_tokens
from supmim.data import convert, data_identity, prepare, run_sources, sources
from supmim.data.images import training
from supmim.data.sources import base, pairs
from supmim.errors import BucketError, ConfigError, DataError
from supmim.storage import buckets, copy_once, paths
from supmim.target_ids import files as id_files
from supmim.target_ids import identity
from supmim.tasks.registry import TASKS
from supmim.train import train_and_evaluate
from supmim.workdir import files
from tests.bucket_servers import BUCKET
from tests.conftest import digits, tiny_config
from tests.test_buckets import equal_leaves, newest
from tests.test_records import ALONE
from tests.test_targets import ON

pytestmark = pytest.mark.usefixtures("all_undrawn")


@pytest.fixture
def source(scheme_and_server, server, request):
    """The name of an empty folder in the bucket."""
    folder = f"{scheme_and_server[0]}://{BUCKET}/{abs(hash(request.node.name))}"
    paths.delete(paths.path(folder))
    return folder


WANTED = {"x": 0, "a/y": 999, "a/z": 1000, "a/b/w": 4321}


def put(folder, name, content):
    buckets.filesystem(folder[:2]).pipe_file(f"{folder}/{name}", content)


@pytest.fixture
def filled(source, monkeypatch):
    """The same folder with files of WANTED sizes, which are read in blocks of 1000 bytes."""
    monkeypatch.setattr(buckets, "BLOCK", 1000)
    for name, size in WANTED.items():
        put(source, name, np.random.default_rng(size).bytes(size))
    return source


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths.files_below(Path(folder))}


def in_bucket(source):
    return {
        name: buckets.filesystem(source[:2]).cat_file(f"{source}/{name}")
        for name in buckets.listed(paths.path(source))
    }


def read(server):
    """The requests that read content, rather than list names; forget all."""
    met = [path for method, path in server.met if method == "GET"]
    server.met.clear()
    return [path for path in met if "alt=media" in path or "/download/" in path
            or not ("list-type=2" in path or "/o?" in path or "/o/" in path)]  # fmt: skip


def note_of(copy):
    return Path(f"{copy}.json")


# Copies.


def test_a_folder_is_copied_once(filled, server, tmp_path, capsys):
    server.met.clear()
    copy = copy_once.local(filled, str(tmp_path))
    assert len(read(server)) == 1 + 1 + 5
    assert contents(copy) == in_bucket(filled) and set(contents(copy)) == set(WANTED)
    assert f"copied 4 files, 0.01 MB, of {filled} to {copy}" in capsys.readouterr().err
    server.met.clear()
    assert copy_once.local(f"{filled}/", str(tmp_path)) == copy
    assert not read(server) and not capsys.readouterr().err
    there = copy_once.local(filled, str(tmp_path / "other"))
    assert Path(there).name == Path(copy).name == copy_once.name_of(filled)
    beside = {path.name.removeprefix(Path(copy).name) for path in tmp_path.iterdir()}
    assert beside == {"", ".json", ".lock", "other"}
    assert copy_once.name_of(filled) != copy_once.name_of(filled + "1")
    assert copy_once.local(str(tmp_path), "") == str(tmp_path)


def test_empty_objects_that_stand_for_folders_are_left_out(filled, server, tmp_path):
    """Consoles make them for new folders."""
    for name in ("a/", "empty/", ""):
        key = f"{filled}/{name}".split("/", 3)[3]
        if filled.startswith("gs"):
            asked = {"uploadType": "media", "name": key}
            where = f"{server.upstream}/upload/storage/v1/b/{BUCKET}/o"
            requests.post(where, params=asked, data=b"", timeout=30).raise_for_status()
        else:
            buckets.filesystem("s3").call_s3("put_object", Bucket=BUCKET, Key=key, Body=b"")
    copy = copy_once.local(filled, str(tmp_path))
    assert set(contents(copy)) == set(WANTED)


def test_processes_of_one_host_make_one_copy(filled, server, tmp_path):
    server.met.clear()
    server.delay = 0.05
    with ThreadPoolExecutor(3) as pool:
        copies = set(pool.map(lambda _: copy_once.local(filled, str(tmp_path)), range(3)))
    server.delay = 0.0
    assert len(copies) == 1 and len(read(server)) == 7
    assert contents(copies.pop()) == in_bucket(filled)


@pytest.mark.parametrize("killed", [False, True])
def test_what_was_copied_before_an_interruption_is_not_copied_again(
    filled, server, tmp_path, monkeypatch, killed
):
    monkeypatch.setattr(buckets, "PARALLEL", 1)
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "PATIENCE", 0.2)
        get = buckets.get

        def breaks(source, to, size, advance):
            server.away = source.name == "z"
            get(source, to, size, advance)

        patch.setattr(buckets, "get", breaks)
        with pytest.raises(BucketError, match="a bucket could not be reached"):
            copy_once.local(filled, str(tmp_path))
    server.away = False
    (copy,) = (path for path in tmp_path.iterdir() if path.name == copy_once.name_of(filled))
    assert {"a/b/w", "a/y"} <= set(contents(copy)) and not (copy / "a/z").exists()
    if killed:
        note_of(copy).unlink()
    server.met.clear()
    assert copy_once.local(filled, str(tmp_path)) == str(copy)
    reads = read(server)
    assert reads and all("z" in path.split("?")[0] for path in reads)
    assert contents(copy) == in_bucket(filled) and not Path(f"{copy}.part").exists()


def test_an_old_file_of_the_same_size_is_not_taken_for_the_new_one(filled, tmp_path, monkeypatch):
    """Although the bucket states no digest, and the copy was interrupted."""
    copy = Path(copy_once.local(filled, str(tmp_path)))
    listed, get = buckets.listed, buckets.get

    def in_parts(folder, version="old"):
        return {
            name: stored._replace(digest=f"etag:{version if name == 'a/y' else 'same'}-2")
            for name, stored in listed(folder).items()
        }

    def broken(*_):
        raise BucketError("it was away")

    with monkeypatch.context() as patch:
        patch.setattr(buckets, "listed", in_parts)
        copy_once.local(filled, str(tmp_path))
        put(filled, "a/y", b"n" * 999)
        patch.setattr(buckets, "listed", functools.partial(in_parts, version="new"))
        patch.setattr(buckets, "get", broken)
        with pytest.raises(BucketError):
            copy_once.local(filled, str(tmp_path))
        assert not (copy / "a/y").exists()
        patch.setattr(buckets, "get", get)
        copy_once.local(filled, str(tmp_path))
    assert contents(copy) == in_bucket(filled)


def test_objects_that_changed_are_copied_again_and_gone_ones_deleted(filled, server, tmp_path):
    copy = copy_once.local(filled, str(tmp_path))
    put(filled, "a/y", b"n" * 999)
    put(filled, "new", b"new")
    buckets.filesystem(filled[:2]).rm_file(f"{filled}/a/b/w")
    server.met.clear()
    copy_once.local(filled, str(tmp_path))
    assert len(read(server)) == 2
    assert contents(copy) == in_bucket(filled) and contents(copy)["a/y"] == b"n" * 999
    assert not (Path(copy) / "a/b").exists()


@pytest.mark.parametrize("note", ["missing", "damaged", "kept"])
def test_a_damaged_file_of_the_right_size_is_noticed_without_a_note(filled, tmp_path, note):
    copy = copy_once.local(filled, str(tmp_path))
    whole = contents(copy)
    (Path(copy) / "a/y").write_bytes(b"d" * 999)
    if note == "missing":
        note_of(copy).unlink()
    if note == "damaged":
        note_of(copy).write_text("[]")
    copy_once.local(filled, str(tmp_path))
    assert (contents(copy) == whole) == (note != "kept")
    (Path(copy) / "a/y").write_bytes(b"d" * 998)
    copy_once.local(filled, str(tmp_path))
    assert contents(copy) == whole


def test_objects_without_a_checkable_digest_are_known_by_their_size(
    source, server, tmp_path, scheme_and_server, monkeypatch
):
    """Those of S3 that were uploaded in parts, and a change of them."""
    if scheme_and_server[0] == "gs":
        pytest.skip("Google's have a CRC-32C")
    system = buckets.filesystem("s3")
    place = dict(zip(("Bucket", "Key"), f"{source}/big"[5:].split("/", 1), strict=True))
    for content in (b"a", b"b"):
        of = place | {"UploadId": system.call_s3("create_multipart_upload", **place)["UploadId"]}
        made = system.call_s3("upload_part", **of, PartNumber=1, Body=content * 9)
        parts = {"Parts": [{"PartNumber": 1, "ETag": made["ETag"]}]}
        system.call_s3("complete_multipart_upload", **of, MultipartUpload=parts)
        assert buckets.listed(paths.path(source))["big"].digest.startswith("etag:")
        copy = copy_once.local(source, str(tmp_path))
        assert contents(copy) == {"big": content * 9}
    note_of(copy).unlink()
    server.met.clear()
    copy_once.local(source, str(tmp_path))
    assert not read(server)


def test_the_checksum_of_googles_composed_objects_is_checked(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"123456789")
    checksum = buckets._digest({"crc32c": "4waSgw==", "etag": "x"})  # the CRC's check value
    assert buckets.Stored(9, checksum).agrees(file)
    assert not buckets.Stored(8, checksum).agrees(file)
    file.write_bytes(b"123456780")
    assert not buckets.Stored(9, checksum).agrees(file)
    assert buckets._digest({"md5Hash": "AAE=", "crc32c": "x"}) == "md5:0001"


@pytest.mark.parametrize("times", [1, 2])
def test_content_that_is_not_what_the_bucket_says_is_an_error(filled, tmp_path, monkeypatch, times):
    """After one more try."""
    get, damaged = buckets.get, []

    def damages(source, to, size, advance):
        get(source, to, size, advance)
        if source.name == "z" and len(damaged) < times:
            damaged.append(to.write_bytes(b"d" * size))

    monkeypatch.setattr(buckets, "get", damages)
    if times == 1:
        assert contents(copy_once.local(filled, str(tmp_path))) == in_bucket(filled)
        return
    with pytest.raises(DataError, match=r"/a/z does not have the digest that its bucket") as error:
        copy_once.local(filled, str(tmp_path))
    assert error.value.exit_code == 3
    copy = tmp_path / copy_once.name_of(filled)
    assert not (copy / "a/z").exists()
    assert contents(copy_once.local(filled, str(tmp_path))) == in_bucket(filled)


def test_the_etag_of_an_encrypted_object_is_not_taken_for_its_md5(
    source, tmp_path, monkeypatch, scheme_and_server
):
    if scheme_and_server[0] == "gs":
        pytest.skip("Google's MD5 is that of the content")
    put(source, "plain", b"x")
    system = buckets.filesystem("s3")
    system.pipe_file(f"{source}/secret", b"x", ServerSideEncryption="aws:kms")
    found = {
        name: buckets.etag_is_md5(paths.path(f"{source}/{name}")) for name in ("plain", "secret")
    }
    assert found == {"plain": True, "secret": False}
    wrong = {"secret": buckets.Stored(1, "md5:" + "0" * 32)}
    monkeypatch.setattr(buckets, "listed", lambda folder: wrong)
    assert contents(copy_once.local(source, str(tmp_path))) == {"secret": b"x"}


def test_a_disk_that_is_too_small_is_told_before_anything_is_copied(
    filled, server, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=6319))
    server.met.clear()
    with pytest.raises(DataError, match=r"takes 0.01 MB more, and .* has 0.01 MB free: make room"):
        copy_once.local(filled, str(tmp_path))
    assert not read(server)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=6320))
    copy_once.local(filled, str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    copy_once.local(filled, str(tmp_path))  # which needs nothing


def test_folders_that_cannot_be_copied_are_told(filled, server, tmp_path, monkeypatch):
    scheme = filled[:2]
    with pytest.raises(DataError, match=f"there is nothing in {filled}/b; check its name"):
        copy_once.local(f"{filled}/b", str(tmp_path))
    with pytest.raises((BucketError, DataError), match=rf"{scheme}://nowhere"):
        copy_once.local(f"{scheme}://nowhere/x", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder for --config.data.local_copy"):
        copy_once.local(filled, str(tmp_path / "file"))
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "listed", lambda folder: {"../../x": buckets.Stored(0, "etag:")})
        with pytest.raises(DataError, match="cannot be a file name; rename it"):
            copy_once.local(filled, str(tmp_path))

    def refuses(folder):
        raise BucketError("a bucket refuses a request: 403", fault="R27")

    monkeypatch.setattr(buckets, "listed", refuses)
    with pytest.raises(BucketError, match=r"cannot be used .*log in with") as error:
        copy_once.local(filled, str(tmp_path))
    assert error.value.exit_code == 4


# Sources.


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The digits as a store of two parts, on this machine."""
    out = tmp_path_factory.mktemp("store")
    parts = {"train": digits("train"), "val": digits("test")}
    convert.convert(parts, out, ALONE, lambda line: None)
    return out


def upload(folder, to):
    paths.upload(folder, paths.path(to))
    return to


def trained(where, workdir, **changes):
    config = tiny_config(**{
        "data.train": where, "total_steps": 2, "optimizer.warmup_steps": 0,
        "eval.evaluators": "classification", "checkpoint.keep_best": 0, "encoder.depth": 1,
        "mim_weight": 0.0, **changes,
    })  # fmt: skip
    train_and_evaluate(config, workdir)
    return newest(workdir), files.read_results(workdir)


def test_a_training_from_a_bucket_is_that_from_a_disk(
    store, source, server, tmp_path, scheme_and_server
):
    """Nothing is said of S3, which gives the same files."""
    if scheme_and_server[0] == "s3":
        pytest.skip("it trains for half a minute")
    upload(store, f"{source}/digits")
    where, copies = f"records:{source}/digits", {"data.local_copy": str(tmp_path / "copies")}
    here = trained(f"records:{store}", tmp_path / "here", **{"data.workers": 0})
    there = trained(where, tmp_path / "there", **copies)
    assert equal_leaves(here[0], there[0]) and here[1] == there[1]
    assert files.read_config(tmp_path / "there").data.train == where
    notes = [files.read_notes(tmp_path / place)["data"] for place in ("here", "there")]
    for part in ("train", "eval"):
        one, other = (note[part] for note in notes)
        assert one["digest"] == other["digest"] and other["name"].startswith(where)


def test_a_run_may_go_on_with_another_place_for_its_copies(store, source, tmp_path):
    upload(store, f"{source}/digits")
    configs = [
        tiny_config(**{"data.train": f"records:{source}/digits", "data.local_copy": place})
        for place in (str(tmp_path / "here"), str(tmp_path / "there"))
    ]
    assert config_lib.resume_differences(*configs) == []
    one, other = (data_identity.of(*sources.load(x.data), x) for x in configs)
    assert one == other and len(list(tmp_path.glob("*/*/train"))) == 2


def test_a_store_has_the_name_that_the_user_gave(store, source, tmp_path):
    upload(store, f"{source}/digits")
    data = tiny_config(**{"data.local_copy": str(tmp_path)}).data
    train, held_out = sources.find_both(f"records:{source}/digits/", data)
    assert (train.name, held_out.name) == tuple(
        f"records:{source}/digits/{part}" for part in ("train", "val")
    )
    here = sources.find_both(f"records:{store}", data)
    assert [s.fingerprint() for s in (train, held_out)] == [s.fingerprint() for s in here]
    assert Path(train.root).is_relative_to(tmp_path) and len(held_out) == len(digits("test"))
    unlabelled = tiny_config(**{
        "data.unlabelled": f"records:{source}/digits/val", "data.local_copy": str(tmp_path),
        "mim.passes": "two",
    }).data  # fmt: skip
    assert sources.load(unlabelled)[0].unlabelled.name == f"records:{source}/digits/val"


def test_only_the_named_data_set_of_tfds_is_copied(source, server, tmp_path):
    from tests import test_catalogue  # registers its data sets

    for name in ("tiny_birds", "tiny_scenes"):
        prepare.prepare(name, str(tmp_path / "tfds"), lambda line: None)
    upload(tmp_path / "tfds", f"{source}/tfds")
    data = tiny_config(**test_catalogue.VIEW, **{
        "data.tfds_dir": f"{source}/tfds", "data.local_copy": str(tmp_path / "copies"),
    }).data  # fmt: skip
    server.met.clear()
    found = sources.find("tiny_birds:train", base.WHOLE, data)
    assert not any("tiny_scenes" in path for path in read(server))
    here = test_catalogue.find(tmp_path / "tfds", "tiny_birds:train")
    assert found.fingerprint() == here.fingerprint() and found.name == here.name
    assert [found[i] for i in range(12)] == [here[i] for i in range(12)]
    (copy,) = (path for path in (tmp_path / "copies").iterdir() if path.is_dir())
    assert copy.name.startswith("-".join(f"{source}/tfds/tiny_birds/1.0.0".split("/")[2:]))
    masked = pairs.load("tiny_scenes:train", base.WHOLE, data)
    assert len(masked) == 4
    folder = f"tfds:{source}/tfds/tiny_birds/1.0.0:validation"
    assert len(sources.find(folder, base.WHOLE, data)) == 6
    with pytest.raises(DataError, match="tiny_bees holds no data set of TFDS"):
        sources.find("tiny_bees:train", base.WHOLE, data)
    put(f"{source}/tfds", "tiny_birds/2.0.0/dataset_info.json", b"{}")
    with pytest.raises(DataError, match=r"several data sets: 1.0.0, 2.0.0; name one, as NAME"):
        sources.find("tiny_birds:train", base.WHOLE, data)
    assert len(sources.find("tiny_birds:1.0.0:train", base.WHOLE, data)) == 12
    with pytest.raises(DataError, match="names no split"):
        sources.find(f"tfds:{source}/tfds/tiny_birds/1.0.0", base.WHOLE, data)


def test_a_cache_of_target_ids_is_copied_and_for_its_tokenizer_alone_only_that(
    source, server, tmp_path
):
    small = {"total_steps": 2, "optimizer.warmup_steps": 0, "data.limit": 200,
             "eval.evaluators": "classification",
             "checkpoint.keep_best": 0}  # fmt: skip
    (tmp_path / "ids").mkdir()
    data_tokens.write(tiny_config(**small), tmp_path / "ids", ON)
    upload(tmp_path / "ids", f"{source}/ids")
    config = tiny_config(**small, **{
        "data.targets": f"{source}/ids", "data.local_copy": str(tmp_path / "copies"),
    })  # fmt: skip
    server.met.clear()
    tokenizer = identity.with_tokenizer(config).tokenizer.path
    assert contents(tokenizer) == contents(tmp_path / "ids/tokenizer")
    assert not any(".ids" in path for path in read(server))
    _, images, _ = run_sources.load(config)
    task = TASKS[config.task].create(config, training(images, config.data), tmp_path / "run")
    cache = identity.open_for(config, images, task.fingerprint())
    copy = tmp_path / "copies" / copy_once.name_of(f"{source}/ids")
    assert contents(copy) == contents(tmp_path / "ids") and (copy / id_files.METADATA).is_file()
    assert cache is not None and cache.folder == str(copy)


# Refusals.

MOUNT_OR_COPY = (
    "is in a bucket: read it through a mount (gcsfuse, mountpoint-s3), or set "
    "--config.data.local_copy=DIR, where it is copied once"
)


@pytest.mark.parametrize("spec", ["records:gs://b/x", "records:s3://b/x", "tfds:gs://b/x:train"])
def test_a_source_in_a_bucket_needs_a_mount_or_a_place_for_its_copy(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(copy_once, "_update", lambda source, copy: None)
    with pytest.raises(DataError) as error:
        sources.find(spec, base.WHOLE, tiny_config().data)
    where = spec.partition(":")[2].removesuffix(":train")
    assert str(error.value) == f"{where} {MOUNT_OR_COPY}" and error.value.exit_code == 3


def test_options_that_name_buckets_need_one_too():
    for path in ("data.tfds_dir", "data.targets"):
        with pytest.raises(ConfigError) as error:
            tiny_config(**{path: "gs://b/x"})
        assert f"config.{path}=gs://b/x {MOUNT_OR_COPY}" in str(error.value)
        tiny_config(**{path: "gs://b/x", "data.local_copy": "copies"})
    with pytest.raises(ConfigError, match="data.local_copy is gs://b: a folder or file on this ma"):
        tiny_config(**{"data.local_copy": "gs://b"})


@pytest.mark.parametrize("spec", ["folder:gs://b/x", "pairs:s3://b/x", "gs://b/x"])
def test_folders_of_image_files_in_a_bucket_are_always_refused(spec):
    data = tiny_config(**{"data.local_copy": "copies"}).data
    told = "are not read one by one; mount the bucket .* `supmim data convert folder:PATH"
    for part in (base.WHOLE, base.HELD_OUT):
        with pytest.raises(DataError, match=f"^{spec}: .*{told}"):
            sources.find(spec, part, data)
    with pytest.raises(DataError, match=told):
        sources.find_both(spec, data)


def test_images_given_by_a_bucket_are_refused():
    from supmim.data.sources import given

    with pytest.raises(DataError, match="^gs://b/x: .*mount the bucket"):
        given.find("gs://b/x", tiny_config().data)


def test_the_data_verb_takes_a_place_for_the_copy(store, source, tmp_path, capsys):
    upload(store, f"{source}/digits")
    spec = f"records:{source}/digits"
    assert cli.run(["data", "check", spec]) == 3
    assert "set --local-copy=DIR, where it is copied once" in capsys.readouterr().err
    assert cli.run(["data", "check", spec, f"--local-copy={tmp_path}"]) == 0
    assert f"source    {spec}/train" in capsys.readouterr().out
