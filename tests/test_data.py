"""Sources and the sample stream."""

import itertools

import jax
import numpy as np
import pytest

from supmim import sharding
from supmim.config import options
from supmim.data import data_identity, images, order, pipeline, run_sources, sources, stream
from supmim.data.sources import base
from supmim.errors import ConfigError, DataError
from tests.conftest import digits, plain_readers, tiny_config
from tests.test_tokenizer_training import small_config

DATA = tiny_config().data


def small(length=10, num_classes=3):
    image = np.arange(length, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    return base.InMemory("small", image, np.arange(length) % num_classes, "abc"[:num_classes])


def batches_of(source, batch_size, mesh, start, stop, data=DATA):
    seen = images.training(source, data)
    read = plain_readers(workers=pipeline.num_workers(source, data.workers))
    batches = pipeline.train_batches(seen, data.seed, batch_size, mesh, start, stop, read)
    return [{k: np.asarray(v) for k, v in batch.items()} for batch in batches]


def mesh_of(count):
    return sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=jax.devices()[:count])


def test_digits_splits_are_the_stated_ones():
    train, test = digits("train"), digits("test")
    tune, validation = digits("tune"), digits("validation")
    assert [len(s) for s in (train, test, tune, validation)] == [1500, 297, 1200, 300]

    def rows(*parts):
        return sorted(image.tobytes() for part in parts for image in part.image)

    assert rows(tune, validation) == rows(train)
    assert len(set(rows(train)) & set(rows(test))) == 0
    assert train.image.dtype == np.uint8 and train.image.max() == 240


def test_unknown_sources_and_wrong_sizes_are_told():
    with pytest.raises(DataError, match="did you mean digits"):
        sources.load(tiny_config(**{"data.train": "digit:train"}).data)
    with pytest.raises(DataError, match="it takes train, test"):
        sources.load(tiny_config(**{"data.train": "digits:val"}).data)
    with pytest.raises(ConfigError, match="--config.classifier.num_classes=10"):
        run_sources.load(tiny_config(**{"classifier.num_classes": 7}))


def test_the_number_of_classes_is_the_sources_unless_it_is_given():
    config, source, _ = run_sources.load(tiny_config(**{"classifier.num_classes": 0}))
    assert config.classifier.num_classes == len(source.class_names) == 10


@pytest.mark.parametrize(
    ("label", "told"),
    [([0, 1, 3], "record 2: label 3 is outside 0..2"), ([0, -1, 2], "record 1: label -1"),
     ([0.0, 1.0, 2.0], "float64; they must be integers")],
)  # fmt: skip
def test_labels_that_name_no_class_are_refused(label, told):
    with pytest.raises(DataError, match=told):
        base.InMemory("bad", np.zeros((3, 4, 4, 1), np.uint8), np.array(label), "abc")


def test_sample_n_is_fixed_by_the_seed_alone():
    """Law 4: an endless stream of reshuffled epochs, whatever the batch size or start."""
    source, mesh = small(), mesh_of(1)
    flat = np.concatenate([b["index"] for b in batches_of(source, 5, mesh, 0, 12)])
    epochs = flat.reshape(6, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(np.unique(epochs, axis=0)) == 6
    for batch_size in (2, 3, 4):
        other = batches_of(source, batch_size, mesh, 0, 60 // batch_size)
        np.testing.assert_array_equal(np.concatenate([b["index"] for b in other]), flat)
        position = np.concatenate([b["epoch"] for b in other])
        np.testing.assert_array_equal(position, np.arange(60) // 10)
    resumed = batches_of(source, 5, mesh, 7, 12)
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in resumed]), flat[35:])
    other_seed = tiny_config(**{"data.seed": 5}).data
    shuffled = batches_of(source, 5, mesh, 0, 12, other_seed)
    assert not (np.concatenate([b["index"] for b in shuffled]) == flat).all()


@pytest.mark.parametrize("length", [10, order.SHORT + 5])
def test_no_epoch_of_a_seed_is_an_epoch_of_its_neighbour(length):
    def starts(seed):
        places = np.arange(6)[:, None] * length + np.arange(10)
        records, epoch = order.Order(length, seed)(places.ravel())
        np.testing.assert_array_equal(epoch, np.arange(60) // 10)
        return set(map(tuple, records.reshape(6, 10).tolist()))

    found = [starts(seed) for seed in range(6)]
    assert len(set.union(*found)) == sum(map(len, found)) == 36


@pytest.mark.parametrize("length", [7, order.SHORT + 5])
def test_an_epoch_is_a_permutation_and_a_place_needs_no_other(length):
    records, _ = order.Order(length, 1)(np.arange(length, 2 * length))
    assert (np.sort(records) == np.arange(length)).all()
    some = np.array([5, 2 * length - 1, length, 0, length + 3])
    alone = np.concatenate([order.Order(length, 1)(place[None])[0] for place in some])
    np.testing.assert_array_equal(order.Order(length, 1)(some)[0], alone)
    np.testing.assert_array_equal(records[[length - 1, 0, 3]], alone[[1, 2, 4]])


def test_the_order_of_a_short_source_never_changes():
    """Runs are resumed with other versions of NumPy; raise STREAM_VERSION with these numbers."""
    records, _ = order.Order(10, 3)(np.arange(20))
    assert records.tolist() == [1, 5, 9, 0, 4, 7, 2, 8, 3, 6, 3, 0, 4, 8, 2, 7, 9, 6, 1, 5]


def test_images_and_labels_are_those_of_their_index():
    for batch in batches_of(small(), 5, mesh_of(1), 0, 4):
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["label"], batch["index"] % 3)


def test_reader_processes_give_the_same_stream():
    mesh = mesh_of(1)
    workers = tiny_config(**{"data.workers": 2}).data
    ours, theirs = (batches_of(small(), 5, mesh, 0, 6, data) for data in (DATA, workers))
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 8, 1), (4, 1, 2)])
def test_a_host_reads_the_rows_its_devices_hold(axes):
    mesh = sharding.make_mesh(*axes)
    seen = images.training(small(16), DATA)
    (batch,) = pipeline.train_batches(seen, DATA.seed, 8, mesh, 0, 1, plain_readers())
    plain = batches_of(small(16), 8, mesh_of(1), 0, 1)[0]
    np.testing.assert_array_equal(batch["index"], plain["index"])
    assert batch["index"].sharding.spec == sharding.batch_sharding(mesh).spec
    np.testing.assert_array_equal(pipeline.local_rows(8, mesh), np.arange(8))


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_share_the_rows_of_every_batch(num_hosts, monkeypatch):
    mesh, per_host = mesh_of(8), 8 // num_hosts

    def rows_of(host):
        held = set(mesh.devices.flat[host * per_host : (host + 1) * per_host])

        class Placement:
            def addressable_devices_indices_map(self, shape):
                everything = jax.sharding.NamedSharding(
                    mesh, jax.sharding.PartitionSpec(("data", "fsdp"))
                ).devices_indices_map(shape)
                return {d: i for d, i in everything.items() if d in held}

        monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Placement())
        return pipeline.local_rows(16, mesh)

    hosts = [rows_of(host) for host in range(num_hosts)]
    assert sorted(itertools.chain(*hosts)) == list(range(16))
    seen = images.training(small(), DATA)
    parts = [stream.Training(seen, 0, 16, rows)(3)[0]["index"] for rows in hosts]
    whole = stream.Training(seen, 0, 16, np.arange(16))(3)[0]["index"]
    np.testing.assert_array_equal(np.concatenate(parts)[np.argsort(np.concatenate(hosts))], whole)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 16])
def test_evaluation_reads_every_record_once(batch_size):
    """Law 8, the data side."""
    seen = images.evaluation(small(), DATA)
    batches = list(pipeline.eval_batches(seen, batch_size, mesh_of(1), plain_readers()))
    assert {batch["image"].shape[0] for batch in batches} == {batch_size}
    index, valid = (np.concatenate([b[k] for b in batches]) for k in ("index", "valid"))
    np.testing.assert_array_equal(index[valid > 0], np.arange(10))


def test_fingerprint_sees_pixels_labels_seed_and_batch():
    config = tiny_config()

    def fingerprint(source=None, eval_source=None, config=config):
        return data_identity.of(source or small(), eval_source or small(), config)

    renamed, reordered, relabelled = small(), small(), small()
    renamed.class_names, reordered.class_names = ("a", "b", "z"), ("b", "a", "c")
    relabelled.label = np.roll(relabelled.label, 1)
    base = fingerprint()
    assert fingerprint() == base
    for other in (
        fingerprint(small(9)),
        fingerprint(small(num_classes=2)),
        fingerprint(config=tiny_config(**{"data.seed": 1})),
        fingerprint(config=tiny_config(batch_size=48)),
        fingerprint(config=tiny_config(**{"data.crop": "inception"})),
        fingerprint(config=tiny_config(**{"data.aspect_min": 0.5})),
        fingerprint(config=tiny_config(**{"data.eval_resize": 9})),
        fingerprint(config=tiny_config(**{"data.exact_decoding": True})),
        fingerprint(eval_source=small(9)),
        fingerprint(renamed),
        fingerprint(reordered),
        fingerprint(relabelled),
        fingerprint(eval_source=relabelled),
    ):
        assert other != base
    of_tokenizer = small_config()
    base, other = fingerprint(config=of_tokenizer), fingerprint(renamed, config=of_tokenizer)
    assert base == other and "classes" not in base  # other names are no other tokenizer
    with pytest.raises(DataError, match="classes: was"):
        data_identity.check(fingerprint(), fingerprint(renamed))


def test_a_newer_option_is_in_no_identity_while_it_means_what_was_done_before():
    values = {path: option.default for path, option in options.OPTIONS.items()}
    before = options.identity(values, "crop")
    assert "data.exact_decoding" not in before and "data.crop" in before
    exact = options.identity(values | {"data.exact_decoding": True}, "crop")
    assert exact == before | {"data.exact_decoding": True}


def test_a_limit_takes_images_evenly_and_is_part_of_the_fingerprint():
    _, whole = sources.load(DATA)
    train, some = sources.load(tiny_config(**{"data.limit": 5}).data)
    assert len(train) == len(some) == 5 and len(whole) == 297
    every = [0, 74, 148, 222, 296]
    assert all((some[i].image == whole[n].image).all() for i, n in enumerate(every))
    assert [record.label for record in some.__getitems__([1, 4])] == list(whole.label[[74, 296]])
    assert some.fingerprint() != whole.fingerprint()
    _, more = sources.load(tiny_config(**{"data.limit": 9999}).data)
    assert len(more) == 297


def test_classes_in_another_order_are_refused():
    kept, turned = small(), small()
    turned.class_names = turned.class_names[::-1]
    with pytest.raises(DataError, match="number the same classes in another order"):
        sources.check_classes(kept, turned)


def test_a_sample_of_what_lies_in_memory_needs_no_reader():
    train, _ = sources.load(tiny_config(**{"data.limit": 5}).data)
    assert isinstance(train, base.Sample) and pipeline.num_workers(train, -1) == 0


def test_the_training_source_as_evaluation_source_is_evaluated_as_asked_and_not_trained_with():
    config = tiny_config(**{"data.eval": "digits:train"})
    train, evaluation = sources.load(config.data)
    assert evaluation.name == "digits:train" and sources.num_shared(train, evaluation) == 1500
    with pytest.raises(DataError, match="1,500 of 1,500 images of digits:train are in digits"):
        run_sources.load(config)


def test_images_that_two_sources_share_are_counted_and_told(capsys):
    tune, validation, test, train = map(digits, ("tune", "validation", "test", "train"))
    assert sources.num_shared(tune, validation) == sources.num_shared(train, test) == 0
    assert sources.num_shared(train, validation) == sources.num_shared(validation, train) == 300
    some = base.Sample(train, 100)
    assert sources.num_shared(some, some) == sources.num_shared(train, some) == 100
    renumbered = base.Renumbered(some, [*train.class_names, "ten"])
    assert sources.num_shared(renumbered, train) == 100
    assert run_sources.shared_images(train, test) == ("", False)
    told, every = run_sources.shared_images(validation, train)
    assert "300 of 1,500 images of digits:train are in digits:val" in told and not every
    changes = {"data.train": "digits:validation", "data.eval": "digits:train"}
    run_sources.load(tiny_config(**changes))
    assert f"warning     {told}\n" == capsys.readouterr().out
