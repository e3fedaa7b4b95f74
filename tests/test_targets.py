"""Cached target ids are those that a run would compute; whatever else is in the folder is told."""

import itertools
import json
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from supmim import assemble, cli, sharding, train
from supmim.commands import data_tokens
from supmim.data import images, pipeline, run_sources, stream
from supmim.errors import ConfigError, DataError, Interrupted, SupmimError
from supmim.planning import program
from supmim.runtime.preemption import StopSignal
from supmim.target_ids import files, identity
from supmim.tasks.registry import TASKS
from supmim.tasks.supmim import SupMIM
from supmim.tokenizers import online
from supmim.tokenizers.patch_vq import PatchVQ
from tests.conftest import plain_readers, tiny_config
from tests.files import Files
from tests.test_bad_input import DAMAGED

pytestmark = pytest.mark.usefixtures("all_undrawn")

ON = SimpleNamespace(requested=False)  # nobody asks to stop
EPOCHS, LENGTH = 2, 60


def config_of(**changes):
    small = {
        "batch_size": 24, "total_epochs": EPOCHS, "data.limit": LENGTH, "data.rotate": 20.0,
        "tokenizer.microbatch": 2, "encoder.depth": 1, "eval.evaluators": "classification",
        "checkpoint.keep_best": 0,
    }  # fmt: skip
    return tiny_config(**small | changes)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(files, "FILE_BYTES", 12 * 25)  # 25 rows of 16 ids of 4 bits and a CRC


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FILE_BYTES", 12 * 25)
        data_tokens.write(config_of(), out, ON)
    return out


def opened(folder, **changes):
    """The cache as a run opens it; its source, task and config."""
    config = config_of(**{"data.targets": str(folder)} | changes)
    _, source, _ = run_sources.load(config)
    task = TASKS[config.task].create(config, images.training(source, config.data), folder)
    return identity.open_for(config, source, task.fingerprint()), source, task, config


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.ids"))}


# Rows.


@pytest.mark.parametrize("codes", [2, 3, 64, 1000, 1024, 16_384, 65_536])
def test_ids_come_back_from_as_few_bits_as_they_need(codes):
    ids = np.random.default_rng(codes).integers(0, codes, (7, 49))
    ids[0] = codes - 1
    layout = files.layout(7, 49, codes)
    packed = files.pack(ids, layout.bits)
    assert packed.shape[1] + files.CRC_BYTES == layout.row_bytes
    assert packed.shape[1] == -(-49 * int(np.ceil(np.log2(codes))) // 8)
    found = files.unpack(packed, layout.bits, 49)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids)


def test_files_hold_the_stated_size():
    layout = files.Layout(1_281_167, 256, 1024, 1)
    assert layout.row_bytes == 324
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FILE_BYTES", 2**26)
        layout = files.layout(1_281_167, 256, 1024)
    parts = list(layout.parts(7))
    assert layout.rows_per_file * layout.row_bytes <= 2**26 and len(parts) == 7
    assert [(p.epoch, p.start) for p in parts[:2]] == [(7, 0), (7, layout.rows_per_file)]
    assert parts[-1].stop == 1_281_167 and parts[0].name == "epoch-00007-00000-of-00007.ids"


# The laws.


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_cached_ids_are_those_computed_at_any_batch_size_and_number_of_devices(folder, devices):
    cache, source, task, config = opened(folder)
    mesh = sharding.make_mesh(-1, 1, 1, devices=jax.devices()[:devices])
    tokenize = online.Tokenize(task.tokenize, mesh, config.tokenizer.microbatch)
    for batch_size in (8, 40):
        both = (
            pipeline.train_batches(
                images.training(source, config.data, images.NO_SECOND, read), config.data.seed,
                batch_size, mesh, 0, EPOCHS * LENGTH // batch_size, plain_readers(),
            )
            for read in (None, cache)
        )  # fmt: skip
        seen = set()
        for ours, theirs in zip(*both, strict=True):
            computed = tokenize(task.frozen, ours)["target_ids"]
            np.testing.assert_array_equal(computed, theirs["target_ids"])
            seen |= set(map(int, theirs["epoch"]))
        assert seen == {0, 1}


def test_reader_processes_read_the_same_ids(folder):
    cache, source, _, config = opened(folder)
    cache.read([0], [0])  # its open files stay here
    seen = images.training(source, config.data, images.NO_SECOND, cache)
    read = stream.Training(seen, 0, 24, np.arange(24))
    thread, processes = (pipeline.read_steps(read, 0, 4, plain_readers(workers=n)) for n in (0, 1))
    for ours, theirs in zip(thread, processes, strict=True):
        np.testing.assert_array_equal(ours["target_ids"], theirs["target_ids"])


def trained(config, workdir, monkeypatch, stop_after=None):
    """The state at the end; with stop_after it is stopped there once, and goes on."""
    if stop_after:
        with monkeypatch.context() as patch:
            steps = itertools.count()
            patch.setattr(StopSignal, "asked", lambda self: next(steps) == stop_after)
            with pytest.raises(Interrupted):
                train.train_and_evaluate(config, workdir)
    train.train_and_evaluate(config, workdir)
    return ocp.load(workdir / "checkpoints" / str(EPOCHS * LENGTH // config.batch_size))


@pytest.mark.slow  # test_unlabelled.py has it for images with labels and without
def test_a_run_that_reads_its_ids_ends_bit_for_bit_like_one_that_computes_them(
    folder, tmp_path, monkeypatch
):
    """Also when it is stopped in mid-epoch and goes on."""
    online_end = trained(config_of(), tmp_path / "online", monkeypatch)
    config = config_of(**{"data.targets": str(folder), "steps_per_call": 1})
    with monkeypatch.context() as patch:
        patch.setattr(online.Tokenize, "__call__", lambda self, frozen, batch, count: batch)
        cached_end = trained(config, tmp_path / "cached", monkeypatch, stop_after=2)
    jax.tree.map(np.testing.assert_array_equal, cached_end, online_end)


def test_the_step_is_one_program_wherever_ids_come_from(folder):
    _, _, _, config = opened(folder)
    texts = []
    for made in (config, config_of()):
        mesh = assemble.mesh_of(made)
        with jax.set_mesh(mesh):
            real = program.build(made, mesh)
            texts.append(real.train_steps.lower(*real.arguments).as_text())
    assert texts[0] == texts[1]


def test_runs_with_other_seeds_batches_and_losses_share_a_cache(folder):
    for changes in ({"seed": 5}, {"batch_size": 8}, {"mim.passes": "one"}, {"total_epochs": 1},
                    {"mim.mask_ratio": 0.75}, {"data.mixup": 0.2}):  # fmt: skip
        assert opened(folder, **changes)[0] is not None
    assert opened(folder, mim_weight=0.0)[0] is None


def test_cached_ids_cost_no_tokenizer(folder):
    costs = []
    for changes in ({}, {"data.targets": str(folder)}):
        config = config_of(**changes)
        mesh = assemble.mesh_of(config)
        with jax.set_mesh(mesh):
            costs.append(program.count_flops(program.build(config, mesh)))
    assert costs[0]["tokenize"] > 0 == costs[1]["tokenize"]
    assert costs[0]["executed"] == costs[1]["executed"]


def test_an_image_that_cannot_be_read_is_replaced_with_the_ids_of_its_substitute(tmp_path):
    view = {"data.image_size": 8, "data.channels": 3, "data.crop": "inception", "data.workers": 0}
    config = config_of(**view, **{"data.bad_share": 0.05})
    codes = jax.random.uniform(jax.random.key(9), (16, 12))
    task, source = SupMIM(config, PatchVQ(codes, 2, 3)), Files(at3=DAMAGED["truncated"])
    cache = files.Cache(tmp_path, files.layout(20, 16, 16), 0, "")
    parts = cache.missing(2)
    seen = images.training(source, config.data)
    strict = config_of(**view, **{"data.bad_share": 0.0})
    with pytest.raises(DataError, match=r"1 of 20 images of .* --config.data.bad_share=0 al"):
        data_tokens.write_files(strict, cache, seen, task, parts, ON)
    assert '"index": 3,' in (tmp_path / "bad_records.jsonl").read_text()
    assert data_tokens.write_files(config, cache, seen, task, parts, ON) == 2  # once in each epoch
    read = images.training(source, config.data, images.NO_SECOND, cache)
    batches = (stream.Training(x, 0, 20, np.arange(20)) for x in (seen, read))
    for ours, theirs in zip(*(map(batch, range(2)) for batch in batches), strict=True):
        assert 3 not in theirs[0]["index"]
        computed = task.tokenize(task.frozen, ours[0])["target_ids"]
        np.testing.assert_array_equal(computed, theirs[0]["target_ids"])
    with pytest.raises(DataError, match=r"row 3 \(image 3\) has no ids: the image could not be"):
        cache.read([0], [3])  # it can be read now: black's ids are not its own


# Writing.


def test_a_cache_written_in_two_goes_is_that_of_one(folder, tmp_path):
    class After:
        def __init__(self, count):
            self.left = count

        @property
        def requested(self):
            self.left -= 1
            return self.left < 0

    for count in (1, 3, 4):
        with pytest.raises(Interrupted, match="to continue:\n  supmim data tokens"):
            data_tokens.write(config_of(), tmp_path, After(count))
    assert 0 < len(files_of(tmp_path)) < len(files_of(folder)) and list(tmp_path.glob("*.part"))
    data_tokens.write(config_of(), tmp_path, ON)
    assert files_of(tmp_path) == files_of(folder) and not list(tmp_path.glob("*.part"))


def test_a_disk_that_is_full_is_told(tmp_path):
    os.symlink("/dev/full", tmp_path / "epoch-00000-00000-of-00003.ids.part")
    with pytest.raises(DataError, match="part cannot be written: No space left on device"):
        data_tokens.write(config_of(), tmp_path, ON)


def test_the_shares_of_two_hosts_are_the_cache_of_one(folder, tmp_path):
    whole, source, task, config = opened(folder)
    parts = [part for epoch in range(EPOCHS) for part in whole.layout.parts(epoch)]
    cache = files.Cache(tmp_path, whole.layout, whole.seed, "")
    seen = images.training(source, config.data)
    shares = [data_tokens.share(parts, host, 2) for host in range(2)]
    assert sorted(itertools.chain(*shares)) == parts and not set(shares[0]) & set(shares[1])
    for share in shares:
        data_tokens.write_files(config, cache, seen, task, share, ON)
    assert files_of(tmp_path) == files_of(folder)


def test_more_epochs_extend_a_cache(folder, tmp_path):
    data_tokens.write(config_of(total_epochs=1), tmp_path, ON)
    before = files_of(tmp_path)
    with pytest.raises(DataError, match="3 files are missing") as error:
        opened(tmp_path)
    assert f"supmim data tokens --config=FILE.py --out={tmp_path} --config.total_epochs=2" in str(
        error.value
    )
    data_tokens.write(config_of(), tmp_path, ON)
    assert files_of(tmp_path) == files_of(folder) and before.items() <= files_of(tmp_path).items()


def test_a_tokenizer_that_is_there_is_taken_and_not_fitted_again(folder, tmp_path):
    before = json.loads((folder / files.METADATA).read_text())["same"]["tokenizer"]
    data_tokens.write(config_of(**{"tokenizer.fit_steps": 1}), folder, ON)
    assert json.loads((folder / files.METADATA).read_text())["same"]["tokenizer"] == before
    with pytest.raises(DataError, match="data.rotate: the cache has 20.0, the run 5.0"):
        data_tokens.write(config_of(**{"data.rotate": 5.0}), folder, ON)


# What does not belong together.


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.seed": 1}, "data.seed: the cache has 0, the run 1"),
        ({"data.limit": 30}, "images: sample: the cache has 60, the run 30"),
        ({"data.shift": 2.0}, "data.shift: the cache has 1.0, the run 2.0"),
        ({"data.exact_decoding": True}, "data.exact_decoding: the cache has False, the run True"),
        ({"data.crop": "inception"}, "data.crop: the cache has 'none', the run 'inception'"),
        ({"tokenizer.microbatch": 3}, "tokenizer.microbatch: the cache has 2, the run 3"),
        ({"encoder.patch_size": 1, "tokenizer.image_size": 16},
         "tokens of an image: the cache has 16, the run 64"),
    ],
)  # fmt: skip
def test_a_run_of_other_views_or_codes_is_refused_by_field(folder, changes, told):
    with pytest.raises(DataError) as error:
        opened(folder, **changes)
    assert told in str(error.value) and error.value.exit_code == 3
    assert "--config.data.targets=DIR to its folder; to compute one:\n  supmim data tokens" in str(
        error.value
    )
    flag = told.partition(":")[0] + "=" + told.partition("has ")[2].partition(",")[0].strip("'")
    an_option = told.startswith(("data.", "tokenizer."))
    assert ("To train with these ids" in str(error.value)) == an_option
    assert (f"these ids:\n  --config.{flag}\n" in str(error.value)) == an_option


def test_another_tokenizer_is_refused(folder, tmp_path):
    with pytest.raises(SupmimError, match=r"tokenizer.codebook_size: .*16.* 32"):
        opened(folder, **{"tokenizer.codebook_size": 32})
    PatchVQ(jax.random.uniform(jax.random.key(1), (16, 4)), 2, 1).save(tmp_path)
    with pytest.raises(DataError, match="  tokenizer: the cache has") as error:
        opened(folder, **{"tokenizer.path": str(tmp_path)})
    assert f"ids:\n  --config.tokenizer.path={folder / 'tokenizer'}\n" in str(error.value)
    assert opened(folder, **{"tokenizer.path": str(folder / "tokenizer")})[0] is not None


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_folder_without_a_cache_is_told(tmp_path, content):
    if content:
        (tmp_path / files.METADATA).write_text(content)
    with pytest.raises(DataError, match="made by\n  supmim data tokens"):
        opened(tmp_path)


def test_a_folder_that_is_not_there_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, where in ((tmp_path / "ids", ""), ("ids", f" in {tmp_path}, the")):
        with pytest.raises(DataError) as error:
            opened(folder)
        told = str(error.value)
        assert f"config.data.targets={folder}: there is no such folder{where}" in told
        assert "set --config.data.targets=DIR to their new place" in told
        assert told.endswith(f":\n  supmim data tokens --config=FILE.py --out={folder}")


HARMS = ("flip ids", "flip crc", "swap rows", "another epoch", "truncate", "delete")


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_told_at_the_read_that_meets_it(folder, tmp_path, harm):
    cache, *_ = opened(folder)
    for name, data in files_of(folder).items():
        (tmp_path / name).write_bytes(data)
    file = tmp_path / "epoch-00001-00001-of-00003.ids"
    data = bytearray(file.read_bytes())
    row = slice(4 * 12, 5 * 12)  # image 29
    if harm.startswith("flip"):
        data[row.start + (3 if "ids" in harm else 11)] ^= 4
    elif harm == "swap rows":
        data[row], data[:12] = data[:12], data[row]
    elif harm == "another epoch":
        data = bytearray((tmp_path / "epoch-00000-00001-of-00003.ids").read_bytes())
    file.write_bytes(data[:-1] if harm == "truncate" else data)
    if harm == "delete":
        file.unlink()
    copy = files.Cache(tmp_path, cache.layout, cache.seed, cache.again)
    np.testing.assert_array_equal(copy.read([0, 0], [29, 3]), cache.read([0, 0], [29, 3]))
    with pytest.raises(DataError) as error:
        copy.read([0, 1], [29, 29])
    told = str(error.value)
    assert error.value.exit_code == 3 and f"rm {file}\n  supmim data tokens" in told
    assert ("row 4 (image 29)" in told) == (harm not in ("truncate", "delete"))
    if harm in ("truncate", "delete"):
        assert [part.name for part in copy.missing(2)] == [file.name]


def test_a_file_of_another_cache_of_the_same_layout_is_refused_by_row(folder, tmp_path):
    data_tokens.write(config_of(**{"tokenizer.fit_steps": 2, "total_epochs": 1}), tmp_path, ON)
    own, whole = opened(tmp_path, total_epochs=1)[0], opened(folder)[0]
    assert own.layout == whole.layout
    name = "epoch-00000-00001-of-00003.ids"
    (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert not own.missing(1)
    with pytest.raises(DataError, match=rf"{name}.*row 4 \(image 29\).*of another cache"):
        own.read([0, 0], [3, 29])


def test_ids_from_elsewhere_are_told_with_how_many_are_the_same(folder, tmp_path, capsys):
    cache, source, task, config = opened(folder)
    mesh = sharding.make_mesh(-1, 1, 1)
    tokenize = online.Tokenize(task.tokenize, mesh, config.tokenizer.microbatch)

    def told():
        identity.log_agreement(config, source, cache, task.frozen, tokenize, mesh)
        return capsys.readouterr().out

    assert told() == ""
    path = folder / files.METADATA
    before = path.read_text()
    metadata = json.loads(before)
    metadata["made_on"] = [{"device": "TPU v9", "jaxlib": "9.9"}]
    path.write_text(json.dumps(metadata))
    assert "made on TPU v9 with jaxlib 9.9: 100.00% of the ids of the first batch" in told()
    task.frozen = task.frozen.replace(codes=task.frozen.codes[::-1])
    assert "100.00%" not in told()
    path.write_text(before)


# The command.


def test_what_no_cache_can_be_made_of_is_told(tmp_path, capsys):
    preset = tmp_path / "preset.py"
    preset.write_text(
        "from supmim import config as base\nfrom tests.test_targets import config_of\n\n\n"
        "def get_config():\n    return base.to_dict(config_of())\n"
    )

    def run(*flags):
        code = cli.run(["data", "tokens", *flags])
        return code, capsys.readouterr().err

    given = f"--config={preset}", f"--out={tmp_path / 'ids'}"
    assert run(given[0])[0] == 2
    code, told = run(*given, "--config.mim.target=pixels")
    assert code == 2 and "predicts no ids" in told
    code, told = run(*given, "--config.tokenizer.codebook_size=70000")
    assert code == 2 and "65536 codes" in told
    (tmp_path / "ids").mkdir(exist_ok=True)
    (tmp_path / "ids" / "thesis.txt").write_text("mine")
    code, told = run(*given)
    assert code == 2 and "thesis.txt, which is not part of a cache of target ids" in told
    assert "Traceback" not in told and os.listdir(tmp_path / "ids") != []
    with pytest.raises(ConfigError, match="convert, tokens; not 'token'"):
        cli.parse("data", ["token"])
