"""A class for each pixel: masks on their way, heads, windows, scores against NumPy and others."""

import functools
import itertools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score

from supmim import cli, metrics, optimizer, sharding, step
from supmim import config as config_lib
from supmim.config import options
from supmim.data import crop, decode, images, inspection, masks, sources, stream
from supmim.data.augment import views
from supmim.data.sources import base, pairs, scenes
from supmim.errors import ConfigError, DataError, NumericsError
from supmim.evaluators import segmentation
from supmim.evaluators.lib import windows
from supmim.evaluators.lib.predictions import Predictions
from supmim.models import segmentation as heads
from supmim.report import segmentation as picture
from supmim.tasks import segmentation as task_module
from supmim.tasks.registry import TASKS
from tests.conftest import plain_readers, prepare, tiny_config
from tests.pictures import chunk, encoded, exif, packed, png_of, tiff

rng = np.random.default_rng(0)
SMALL = {
    "task": "segmentation", "data.train": "scenes:train", "data.image_size": 32,
    "data.rotate": 0.0, "data.shift": 0.0, "classifier.num_classes": 11, "batch_size": 8,
    "eval.evaluators": "segmentation", "checkpoint.keep_best_metric": "segmentation/miou",
    "encoder.patch_size": 4, "encoder.depth": 1, "segmentation.width": 8,
    "segmentation.dropout": 0.0,
}  # fmt: skip


def small_config(**changes):
    return tiny_config(**SMALL | changes)


def problems_of(**changes):
    with pytest.raises(ConfigError) as caught:
        small_config(**changes)
    return str(caught.value)


class Halves(base.Masked):
    """Left half 0 and class 0, right half white and class 1, of any size, with a mask as asked."""

    name, class_names = "halves", ("left", "right")

    def __init__(self, sizes, change=lambda mask: mask):
        self.sizes, self.change = sizes, change

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        height, width = self.sizes[index]
        mask = np.broadcast_to(np.arange(width) >= width // 2, (height, width)).astype(np.uint8)
        image = encoded(255 * mask, "PNG")
        return base.MaskedRecord(image, 0, f"pair {index}", self.change(mask))

    def __getitems__(self, index):
        return [self[int(i)] for i in index]


def png(mask):
    return encoded(mask, "PNG")


# Sources.


def test_a_scene_is_a_function_of_its_index_alone_and_no_digit_covers_another():
    train, test = (scenes.load(split, base.WHOLE) for split in ("train", "test"))
    again = pickle.loads(pickle.dumps(train))
    for index in (2999, 7, 0):
        record = train[index]
        np.testing.assert_array_equal(record.image, again[index].image)
        np.testing.assert_array_equal(record.mask, again[index].mask)
        assert (record.image[..., 0] >= scenes.INK).astype(bool).tolist() == (
            record.mask > 0
        ).tolist()
    assert train.fingerprint() == again.fingerprint() != test.fingerprint()
    both = {x.tobytes() for x in train.digits.image} & {x.tobytes() for x in test.digits.image}
    assert len(train.digits) + len(test.digits) == 1797 and len(both) <= 1
    for seed in range(50):
        places = scenes.free_places(np.random.default_rng(seed), 8)
        seen = np.zeros((scenes.SIDE, scenes.SIDE), int)
        for y, x in places:
            seen[y : y + 8, x : x + 8] += 1
        assert seen.max() == 1 and seen.sum() == 64 * len(places) and len(places) >= 3
        assert not np.any(np.array(places) % 2)


def test_what_scenes_hold_out_is_made_of_the_digits_held_out():
    train, held_out = sources.load(small_config(**{"data.train": "scenes:tune"}).data)
    assert (train.name, held_out.name) == ("scenes:tune", "scenes:validation")


def test_what_scenes_do_not_have_is_told_of_scenes():
    with pytest.raises(DataError, match=r"scenes:foo is not .*: it takes train, test, tune"):
        sources.find("scenes:foo", base.WHOLE, small_config().data)
    with pytest.raises(base.NothingHeldOut, match="scenes:test holds nothing out"):
        sources.find("scenes:test", base.HELD_OUT, small_config().data)


def folder_of(root, *names, mask=None):
    for name in names:
        for kind in ("images", "masks"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(12, 16, 3), dtype=np.uint8)).save(
            root / "images" / f"{name}.jpg"
        )
        ids = np.arange(12 * 16).reshape(12, 16) % 3 if mask is None else mask
        Image.fromarray(ids.astype(np.uint8)).save(root / "masks" / f"{name}.png")
    return f"pairs:{root}"


@pytest.mark.parametrize(
    "names", [["training/1", "training/2", "validation/3"], [str(i) for i in range(40)]]
)
def test_pairs_hold_out_validation_or_a_share_and_lose_none(tmp_path, names):
    spec = folder_of(tmp_path, *names)
    data = small_config(**{"data.train": spec, "data.mask_classes": 3, "data.holdout": 0.3}).data
    train, held_out = sources.load(data)
    assert sorted(train.names + held_out.names) == sorted(names) and len(held_out)
    whole = sources.find(spec, base.WHOLE, data)
    assert sources.num_shared(train, held_out) == 0
    assert sources.num_shared(whole, held_out) == (0 if len(names) == 3 else 12)
    evaluated = sources.find(spec, base.EVALUATED, data)
    assert evaluated.names == (held_out if len(names) == 3 else whole).names
    if len(names) == 3:
        assert held_out.names == ["validation/3"]
        assert sources.find(spec, base.WHOLE, data).names == train.names


def test_pairs_in_train_and_val_are_found_and_classes_have_names(tmp_path):
    for part in ("train", "val"):
        folder_of(tmp_path / part, part)
    (tmp_path / "classes.txt").write_text("sky\nroad\n\ncar\n")
    data = small_config(**{"data.train": f"pairs:{tmp_path}"}).data
    train, held_out = sources.load(data)
    assert (train.names, held_out.names) == (["train"], ["val"])
    assert train.class_names == held_out.class_names == ("sky", "road", "car")
    data = options.changed(data, mask_classes=4)
    with pytest.raises(DataError, match="names 3 classes, but config.data.mask_classes is 4"):
        sources.load(data)


def test_pairs_whose_held_out_images_are_all_trained_on_exit_3(tmp_path, capsys):
    for part in ("train", "val", "test"):
        folder_of(tmp_path / part, "1")
    (tmp_path / "train/images/2.heic").write_bytes(b"")
    (tmp_path / "val/images/1.jpg").write_bytes((tmp_path / "train/images/1.jpg").read_bytes())
    assert cli.run(["data", "check", f"pairs:{tmp_path}", "--mask-classes=3"]) == 3
    out, err = capsys.readouterr()
    assert "all its held-out images are in train too" in err
    assert "left out  .heic 1\n" in out and "not used    test\n" in out


def test_names_of_classes_are_utf_8_with_or_without_a_mark_or_the_line_is_told(tmp_path):
    data = small_config().data
    path = tmp_path / "classes.txt"
    path.write_bytes("sky\nstraße\n".encode("utf-8-sig"))
    assert pairs.class_names(path, data) == ["sky", "straße"]
    path.write_bytes("sky\nstraße\n".encode("latin-1"))
    with pytest.raises(DataError, match="classes.txt, line 2: this is not UTF-8"):
        pairs.class_names(path, data)


def test_classes_without_names_are_called_by_their_ids():
    assert masks.ids_of(3, 0) == [1, 2, 3] and masks.ids_of(3, 255) == [0, 1, 2]
    assert masks.ids_of(3, 1) == [0, 2, 3] and masks.ids_of(2, -1) == [0, 1]


# Masks.


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [(-1, [0, 1, 2, 3]), (0, [-1, 0, 1, 2]), (3, [0, 1, 2, -1]), (2, [0, 1, -1, 2])],
)
def test_classes_are_the_ids_without_the_ignored_one(ignored, expected):
    ids = np.array([[0, 1, 2, 3]], np.uint16)
    assert masks.to_classes("x", ids, 4, ignored).tolist() == [expected]


def ids_of_bits(bits):
    return (np.arange(90).reshape(9, 10) * 7919) % 2**bits


def of_bits(bits):
    """The same ids in all kinds of files that store them, some beside a grey palette."""
    ids, size = ids_of_bits(bits), (10, 9)
    grey = bytes(np.arange(2**bits).repeat(3).astype(np.uint8)) if bits <= 8 else b""
    colours = tuple(range(0, 2**16, 2 ** (16 - min(bits, 8))))
    low, high = packed(ids, bits), ids.astype(">u2").view(np.uint8)
    yield "png", png_of(size, high if bits == 16 else low, bits, 0)
    yield "tiff", tiff(size, low.tobytes() if bits < 16 else ids.astype("<u2").tobytes(), (bits,))
    if bits <= 8:
        yield "palette png", png_of(size, low, bits, 3, chunk(b"PLTE", grey))
        yield "palette tiff", tiff(size, low.tobytes(), (bits,), 3, f320=colours * 3)
        image = Image.fromarray(ids.astype(np.uint8))
        yield "bmp", encoded(image, "BMP")
        image.putpalette(grey)
        yield "palette bmp", encoded(image, "BMP")
        yield "gif", encoded(image, "GIF", optimize=False)
    if bits in (8, 16):
        yield "pgm", b"P5 10 9 %d\n" % (2**bits - 1) + (high if bits == 16 else low).tobytes()
        yield "32-bit tiff", tiff(size, ids.astype("<i4").tobytes(), (32,), f339=(2,))


MASKS = [(bits, *named) for bits in (1, 2, 4, 8, 16) for named in of_bits(bits)]


@pytest.mark.parametrize(("bits", "kind", "data"), MASKS, ids=lambda x: str(x)[:12])
def test_the_ids_of_a_mask_are_its_stored_values(bits, kind, data):
    np.testing.assert_array_equal(decode.decode_ids(data, 100), ids_of_bits(bits))


def test_a_12_bit_mask_keeps_its_ids():
    ids = ids_of_bits(12)
    data = tiff((10, 9), packed(ids, 12).tobytes(), (12,))
    np.testing.assert_array_equal(decode.decode_ids(data, 100), ids)


FEW = ids_of_bits(4).astype(np.uint8)
UNCERTAIN = "its numbers may be ids, or what they are shown as"
REFUSED = [
    (encoded(Image.fromarray(FEW).convert("RGB"), "PNG"), "must have one channel .* mode is RGB"),
    (encoded(Image.fromarray(FEW).convert("LA"), "PNG"), "must have one channel .* mode is LA"),
    (encoded(Image.fromarray(FEW), "WEBP", lossless=True), "must have one channel .* mode is RGB"),
    (tiff((10, 9), FEW.astype("<f4").tobytes(), (32,), f339=(3,)), "one channel .* mode is F"),
    (encoded(FEW, "JPEG"), "JPEG changes the ids"),
    (tiff((10, 9), FEW.tobytes(), (8,), 0), UNCERTAIN),
    (tiff((10, 9), FEW.tobytes(), (8,), f339=(2,)), UNCERTAIN),
    (encoded(Image.fromarray(FEW > 7), "PPM"), UNCERTAIN),
    (b"P5 10 9 15\n" + FEW.tobytes(), UNCERTAIN),
    (tiff((10, 9), (FEW.astype("<i2") - 2).tobytes(), (16,), f339=(2,)), "the id -2"),
    (tiff((10, 9), (FEW.astype("<i4") + 65521).tobytes(), (32,), f339=(2,)), "the id 65536"),
]


@pytest.mark.parametrize(("data", "why"), REFUSED)
def test_masks_whose_ids_are_uncertain_are_refused(data, why):
    with pytest.raises(decode.BadImage, match=why):
        decode.decode_ids(data, 100)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_mask_is_turned_upright_like_its_image(kind):
    data = encoded(FEW, kind, exif=exif(6))
    np.testing.assert_array_equal(decode.decode_ids(data, 100), np.rot90(FEW, 3))


def test_a_check_sees_the_ids_of_4_bit_masks(tmp_path, capsys):
    spec = folder_of(tmp_path, *map(str, range(20)))
    for path in (tmp_path / "masks").iterdir():
        ids = np.asarray(Image.open(path))
        path.write_bytes(png_of(ids.shape[::-1], packed(ids, 4), 4, 0))
    code, out, _ = check(capsys, spec, "--mask-classes=150")
    assert code == 0 and "ids of the masks: 0 to 2" in out


def test_ids_are_resized_by_the_nearest_as_pillow_does():
    ids = rng.integers(9, size=(13, 17)).astype(np.int16)
    for box in ((0.0, 0.0, 17.0, 13.0), (2.0, 1.5, 9.0, 12.0)):
        theirs = Image.fromarray(ids.astype(np.uint8)).resize((8, 8), Image.NEAREST, box=box)
        np.testing.assert_array_equal(crop.resize_ids(ids, box, 8), np.asarray(theirs))


def test_a_mask_is_cropped_flipped_and_moved_with_its_image():
    config = small_config(**{
        "data.crop": "inception", "data.flip": True, "data.rotate": 30.0, "data.shift": 3.0,
        "data.scale": 0.2, "data.area_min": 0.4, "data.ignore_label": 200,
    })  # fmt: skip
    source = Halves([(40, 60), (33, 32), (64, 50), (32, 32)] * 4, png)
    read = stream.Training(images.training(source, config.data), 0, 16, np.arange(16))
    batch, _ = read(0)
    assert batch["label_map"].dtype == np.int16
    found = jax.jit(TASKS["segmentation"].abstract(config).prepare)(batch)
    image, label_map = np.asarray(found.class_view[..., 0]), np.asarray(found.label_map)
    inside = label_map != masks.IGNORED
    sure = inside & ((image < 0.02) | (image > 0.98))
    assert sure.mean() > 0.5 and (label_map < 0).any()
    agree = (image > 0.5)[sure] == (label_map == 1)[sure]
    # Black also comes from outside of a moved image, half a pixel before the mask ends.
    assert agree.mean() > 0.99
    flipped = (label_map[:, 16, 4] == 1) & inside[:, 16, 4]
    assert 0 < flipped.sum() < 16


def test_a_pair_that_does_not_fit_is_an_error_and_an_unreadable_one_a_bad_record():
    data = small_config().data

    def read(change):
        return images.evaluation(Halves([(32, 32)] * 3, change), data).take([0, 1], [0, 0])

    message = "pair 0: its mask has 32 x 20 pixels, but the image has 32 x 32"
    with pytest.raises(DataError, match=message):
        read(lambda mask: png(mask[:20]))
    with pytest.raises(DataError, match=r"pair 0: its mask has the id 7 \(512 pixels\), which is "):
        read(lambda mask: png(7 * mask))
    for broken in (lambda mask: png(mask)[:60], lambda mask: FileNotFoundError(2, "No such file")):
        batch, bad = read(broken)
        assert set(bad) == {0, 1} and "its mask: " in bad[0].why and bad[0].name == "pair 0"
        assert (batch["label_map"] == masks.IGNORED).all()


def check(capsys, spec, *flags):
    code = cli.run(["data", "check", spec, *flags])
    return code, *capsys.readouterr()


def test_a_check_of_pairs_finds_what_a_training_refuses_and_tells_it_whole(tmp_path, capsys):
    spec = folder_of(tmp_path, *map(str, range(20)))
    code, out, _ = check(capsys, spec)
    assert code == 0 and "ids of the masks: 0 to 2" in out and "held out    nothing" not in out
    assert "no file says which of these ids are classes" in out
    code, out, err = check(capsys, spec, "--mask-classes=2")
    assert code == 3 and "masks with ids that are no class" in out
    assert "    images/0.jpg: 2\n" in out  # below the folder, however long its path is
    assert "have ids that are not one of 2 classes" in err
    assert check(capsys, spec, "--mask-classes=2", "--ignore-label=1")[0] == 0
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\nhole\n")
    code, out, _ = check(capsys, spec)
    assert code == 0 and "classes without a pixel, of 4: 1\n    hole" in out
    for number, code in ((0, 0), (1, 3)):  # one unreadable pair is no fault, two are
        mask = tmp_path / f"masks/{number}.png"
        Image.open(mask).save(mask.with_suffix(".jpg"))
        mask.unlink()
        found, out, err = check(capsys, spec)
        assert found == code and f"    images/{number}.jpg: its mask: " in out
        assert max(map(len, out.splitlines())) <= 80
    assert f"2 of 18 pairs of {spec}" in err and "can't be read, more than the 1 that" in err
    whole = " ".join(out.split())
    assert "JPEG changes the ids of a mask near its edges; store masks as PNG" in whole
    assert len(json.loads(check(capsys, spec, "--json")[1])) == 2


def test_a_check_of_pairs_tells_masks_of_which_no_pixel_counts(tmp_path, capsys):
    ignored = np.full((12, 16), 255)
    spec = folder_of(tmp_path, "1", mask=ignored)
    code, out, err = check(capsys, spec, "--mask-classes=2", "--ignore-label=255")
    assert code == 3 and "masks of which no pixel counts: 1" in out
    assert "no pixel of the masks" in err and "held out    nothing" in out
    folder_of(tmp_path, "2")
    code, out, err = check(capsys, spec, "--mask-classes=3", "--ignore-label=255")
    assert code == 0 and "masks of which no pixel counts: 1" in out


def test_ids_are_told_as_ranges():
    assert inspection.ranges([]) == "" and inspection.ranges([3]) == "3"
    assert inspection.ranges({0, 1, 2, 4, 5, 255}) == "0 to 2, 4, 5, 255"


# The task.


@functools.cache
def raw_batch():
    source = scenes.load("train", base.WHOLE)
    read = stream.Training(images.training(source, small_config().data), 0, 8, np.arange(8))
    return read(0)[0]


def programs(config):
    task = TASKS["segmentation"].create(config, None, None)
    tx = optimizer.create(config.optimizer, lambda _: 3e-3)
    make = functools.partial(step.create_state, task=task, tx=tx)
    return task, jax.jit(make)(jax.random.key(0)), tx


def test_parts_give_the_gradients_of_the_whole_batch_whatever_pixels_count():
    task, state, _ = programs(small_config())
    raw = dict(raw_batch())
    raw["label_map"] = raw["label_map"].copy()
    raw["label_map"][1] = masks.IGNORED
    raw["label_map"][2, :20] = masks.IGNORED
    batch, found = prepare(task, None, raw), []
    for parts in (1, 4):
        run = jax.jit(functools.partial(step.gradients, task.loss_fn, parts=parts))
        grads, totals = run(state.params, batch, jax.random.key(1))
        found.append((grads, metrics.summarize([totals])))
    for whole, split in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(split, whole, atol=1e-5)
    assert found[0][1]["classes_seen"] > 0.5 and np.isfinite(found[0][1]["loss"])


def test_ignored_pixels_and_padding_reach_no_loss_or_gradient():
    task, state, _ = programs(small_config())
    batch = prepare(task, None, raw_batch())
    batch = batch.replace(
        valid=(jnp.arange(8) < 4).astype(jnp.float32),
        label_map=batch.label_map.at[0].set(masks.IGNORED),
    )
    grad = jax.jit(jax.grad(task.loss_fn, has_aux=True))
    one = grad(state.params, batch, jax.random.key(1))
    other = batch.replace(
        class_view=batch.class_view.at[4:].set(9.0).at[0].set(0.5),
        label_map=batch.label_map.at[4:].set(3),
    )
    two = grad(state.params, other, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    nothing = batch.replace(label_map=jnp.full_like(batch.label_map, masks.IGNORED))
    grads, totals = grad(state.params, nothing, jax.random.key(1))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))
    assert metrics.summarize([totals])["loss"] == 0


def test_ignored_pixels_are_neither_right_nor_wrong():
    task, state, _ = programs(small_config())
    batch = prepare(task, None, raw_batch())
    upper = batch.replace(label_map=batch.label_map.at[:, 12:].set(masks.IGNORED))
    _, totals = jax.jit(task.loss_fn)(state.params, upper, jax.random.key(1))
    logits = jax.jit(task.predict)(state.params, raw_batch())["logits"]
    answer = task_module.upsampled(logits, 32).argmax(axis=-1)
    expected = (answer == batch.label_map)[:, :12].mean()
    np.testing.assert_allclose(metrics.summarize([totals])["pixel_accuracy"], expected, rtol=1e-5)
    assert expected > 0.01


def test_a_frozen_encoder_stays_and_drops_nothing_while_the_head_learns():
    config = small_config(**{"optimizer.frozen": "encoder", "encoder.dropout": 0.5,
                             "segmentation.dropout": 0.5})  # fmt: skip
    task, state, tx = programs(config)
    batch = prepare(task, None, raw_batch())
    run = jax.jit(functools.partial(step.train_step, task=task, tx=tx))
    after, _ = run(state, batch, jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], after.params["encoder"])
    head = after.params["segmentation"]["head"]["kernel"]
    assert np.abs(head - state.params["segmentation"]["head"]["kernel"]).max() > 1e-4
    config = config_lib.replaced(config, {"segmentation.dropout": 0.0})
    task = TASKS["segmentation"].create(config, None, None)
    loss = jax.jit(task.loss_fn)
    losses = [loss(state.params, batch, jax.random.key(i))[0] for i in (0, 1)]
    assert losses[0] == losses[1]


def test_four_blocks_are_those_of_beit_and_heads_have_their_sides():
    assert heads.tapped_blocks(12) == (3, 5, 7, 11) and heads.tapped_blocks(24) == (7, 11, 15, 23)
    assert heads.tapped_blocks(3) == (0, 1, 1, 2) and heads.tapped_blocks(1) == (0, 0, 0, 0)
    for head, side in (("linear", 5), ("multiscale", 20)):
        config = small_config(**{"data.image_size": 20, "segmentation.head": head,
                                 "encoder.pool": "cls"})  # fmt: skip
        task = TASKS["segmentation"].abstract(config)
        params = jax.eval_shape(task.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct((2, 20, 20, 1), np.uint8)
        logits = jax.eval_shape(task.predict, params, {"image": image})["logits"]
        assert logits.shape == (2, side, side, 11) and logits.dtype == np.float32


def test_pixels_of_a_token_lie_row_by_row():
    tokens = jnp.arange(16.0).reshape(1, 1, 2, 8)  # two tokens of 2 x 2 pixels of two values
    upper, lower = [[0, 1], [2, 3], [8, 9], [10, 11]], [[4, 5], [6, 7], [12, 13], [14, 15]]
    np.testing.assert_array_equal(heads.depth_to_space(tokens)[0], [upper, lower])


# Windows.


@pytest.mark.parametrize(("old", "new"), [(4, 16), (5, 13), (16, 5), (7, 7), (1, 3)])
def test_the_matrix_resizes_as_jax_does(old, new):
    theirs = jax.image.resize(jnp.eye(old), (new, old), "bilinear")
    np.testing.assert_allclose(windows.resize_matrix(old, new), theirs, atol=1e-6)


def test_a_window_that_covers_the_image_is_the_whole_image():
    logits = rng.normal(size=(1, 4, 4, 3)).astype(np.float32)
    whole = np.concatenate(list(windows.upsample(windows.grid(16, 16, 16, 5), logits, 16, 16)))
    theirs = jax.image.resize(jnp.asarray(logits[0]), (16, 16, 3), "bilinear")
    np.testing.assert_allclose(whole, theirs, atol=1e-5)
    larger = np.concatenate(list(windows.upsample(windows.grid(16, 16, 16, 5), logits, 40, 30)))
    theirs = jax.image.resize(theirs, (40, 30, 3), "bilinear")
    np.testing.assert_allclose(larger, theirs, atol=1e-5)


def test_logits_are_averaged_where_windows_overlap_and_every_pixel_is_in_one(monkeypatch):
    monkeypatch.setattr(windows, "MOST_LOGITS", 100)
    grid = windows.grid(13, 21, 8, 5)
    assert grid.rows == (0, 5) and grid.columns == (0, 5, 10, 13)
    assert windows.starts(8, 8, 5) == (0,) and windows.starts(16, 8, 8) == (0, 8)
    logits = rng.normal(size=(8, 2, 2, 3)).astype(np.float32)
    total, seen = np.zeros((13, 21, 3)), np.zeros((13, 21, 1))
    places = [(y, x) for y in grid.rows for x in grid.columns]
    for (y, x), one in zip(places, logits, strict=True):
        total[y : y + 8, x : x + 8] += jax.image.resize(one, (8, 8, 3), "bilinear")
        seen[y : y + 8, x : x + 8] += 1
    assert seen.min() == 1
    ours = np.concatenate(list(windows.upsample(grid, logits, 13, 21)))
    np.testing.assert_allclose(ours, total / seen, atol=1e-5)
    np.testing.assert_array_equal(windows.classes(grid, logits, 13, 21), ours.argmax(axis=-1))
    cut = grid.cut(np.arange(13 * 21).reshape(13, 21))
    assert cut.shape == (8, 8, 8) and cut[5, 0, 0] == 5 * 21 + 5


# Scores.


class Bright:
    """Says class 1 of bright places, at a quarter of the side."""

    frozen = None

    def predict(self, params, batch):
        image = jnp.asarray(batch["image"], jnp.float32)[..., :1] / 255
        small = jax.image.resize(image, (len(image), 8, 8, 1), "bilinear")
        return {"logits": jnp.concatenate([0.5 - small, small - 0.5], axis=-1)}


def evaluator_of(source, batch_size=4, devices=1, note=lambda met: None, **changes):
    config = small_config(**{"eval.pictures": 2} | changes)
    mesh = sharding.make_mesh(devices, 1, 1, devices=jax.devices()[:devices])
    seen = {"eval": images.evaluation(source, config.data)}
    readers = {"eval": plain_readers(note)}
    predictions = Predictions(Bright(), seen, batch_size, mesh, readers)
    return segmentation.Evaluator(predictions, config), predictions


@pytest.mark.parametrize(("batch_size", "devices"), [(4, 1), (16, 8)])
def test_every_pixel_that_counts_is_counted_once(monkeypatch, batch_size, devices):
    sizes = [(32, 32), (70, 40), (33, 90), (64, 64), (20, 25)]
    source = Halves(sizes, lambda mask: png(np.where(np.arange(len(mask))[:, None] < 3, 9, mask)))
    counts = []
    keep = segmentation.pixel_confusion
    monkeypatch.setattr(segmentation, "pixel_confusion",
                        lambda *args: counts.append(keep(*args)) or counts[-1])  # fmt: skip
    evaluator, predictions = evaluator_of(
        source, batch_size, devices, **{"data.ignore_label": 9, "segmentation.stride": 11}
    )
    results = evaluator.run({})
    assert [count.sum() for count in counts] == [(h - 3) * w for h, w in sizes]
    total = np.sum(counts, axis=0)
    share = total.sum(axis=1).max() / total.sum()
    assert results["floor/segmentation_pixel_accuracy"] == pytest.approx(share)
    assert results["segmentation/miou"] > 0.9 and predictions.unreadable() == {}


def test_processes_that_see_the_same_windows_are_counted_once_if_they_read_alike():
    evaluator, _ = evaluator_of(Halves([(32, 32)]))
    evaluator.groups = [sharding.Group([0, 2], np.arange(2)), sharding.Group([1], np.arange(2))]
    told = [[[[1]], [7]], [[[2]], []], [[[1]], [7]]]
    assert evaluator.one_per_group(told) == told[:2]
    told[2][1] = [8]
    with pytest.raises(DataError, match="not every process could read the same images"):
        evaluator.one_per_group(told)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_and_no_class(monkeypatch, wrong):
    right = Bright.predict

    def predict(self, params, batch):
        return jax.tree.map(
            lambda logits: logits.at[0, 2, 3, 1].set(wrong), right(self, params, batch)
        )

    monkeypatch.setattr(Bright, "predict", predict)
    evaluator, _ = evaluator_of(Halves([(32, 32)] * 3))
    with pytest.raises(NumericsError, match="halves: the logits of 1 of 3 windows are not finite"):
        evaluator.run({})


def test_scores_agree_with_scikit_learn_and_a_confusion_matrix_by_hand():
    truth, answer = rng.integers(-1, 5, (2, 40, 30))
    answer = np.maximum(answer, 0)
    confusion = segmentation.pixel_confusion(truth, answer, 5)
    by_hand = np.zeros((5, 5), int)
    for t, a in zip(truth.ravel(), answer.ravel(), strict=True):
        if t >= 0:
            by_hand[t, a] += 1
    np.testing.assert_array_equal(confusion, by_hand)
    counted = truth.ravel() >= 0
    flat = truth.ravel()[counted], answer.ravel()[counted]
    found = segmentation.summarize_confusion(confusion, tuple("abcde"))
    assert found["segmentation/miou"] == pytest.approx(jaccard_score(*flat, average="macro"))
    assert found["segmentation/pixel_accuracy"] == accuracy_score(*flat)
    each = jaccard_score(*flat, average=None)
    assert [found[f"segmentation/iou/{name}"] for name in "abcde"] == pytest.approx(each.tolist())


def test_a_class_that_is_nowhere_has_no_iou_and_one_only_answered_has_zero():
    confusion = np.diag([6, 0, 4])
    found = segmentation.summarize_confusion(confusion, ("a", "b", "c"))
    assert found["segmentation/miou"] == 1 and "segmentation/iou/b" not in found
    assert found["segmentation/classes_in_masks"] == 2 and found["floor/segmentation_miou"] == 0.3
    confusion[0, 1] = 6
    found = segmentation.summarize_confusion(confusion, ("a", "b", "c"))
    assert found["segmentation/iou/b"] == 0 and found["segmentation/miou"] == 0.5
    assert found["segmentation/mean_accuracy"] == 0.75


def test_masks_that_leave_no_pixel_are_an_error_and_unreadable_pairs_are_counted():
    told = []
    source = Halves([(32, 32)] * 4, lambda mask: png(np.full_like(mask, 9)))
    evaluator, _ = evaluator_of(source, **{"data.ignore_label": 9})
    with pytest.raises(DataError, match="halves: no pixel of its masks counts"):
        evaluator.run({})
    masks_left = iter([b"", *[png(np.zeros((32, 32), np.uint8))] * 3])
    source = Halves([(32, 32)] * 4, lambda mask: next(masks_left))
    segmentation_of, predictions = evaluator_of(source, note=told.extend)
    assert segmentation_of.run({})["segmentation/classes_in_masks"] == 1
    assert predictions.unreadable() == {"unreadable/eval": 1.0} and len(told) == 1


def test_the_picture_shows_ignored_pixels_white_and_classes_in_their_colours(tmp_path):
    image = np.zeros((8, 8, 1), np.uint8)
    truth = np.zeros((8, 8), np.int16)
    truth[:4], truth[:, 4:] = masks.IGNORED, 1
    plain, shown, _ = picture.pictures(image, truth, np.abs(truth))
    assert plain.shape == shown.shape == (8, 8, 3)
    assert (shown[0, 0] == 1).all() and not np.allclose(shown[7, 0], shown[7, 7])
    picture.draw(tmp_path / "x.png", [(image, truth, np.abs(truth))] * 3, ("a", "b"))
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_colours_of_classes_are_apart_from_each_other_from_grey_and_from_white():
    found = picture.colours()
    assert len(found) > 30

    def nearest(colours):
        all_of = np.concatenate([colours, [picture.GREY, picture.IGNORED]])
        distance = np.linalg.norm(all_of[:, None] - all_of, axis=-1)
        return distance[~np.eye(len(all_of), dtype=bool)].min()

    assert nearest(found[:11]) > 0.3 and nearest(found) > 0.15


@pytest.mark.parametrize("count", [3, 8, 11, 21])
def test_the_legend_is_read_row_by_row(count):
    patches = [Patch(label=str(i)) for i in range(count)]
    legend = Figure().legend(handles=picture.by_row(patches), ncols=picture.IN_A_ROW)
    columns = [
        [area.get_children()[1].get_text() for area in column.get_children()]
        for column in legend._legend_handle_box.get_children()
    ]
    rows = [name for row in itertools.zip_longest(*columns) for name in row if name is not None]
    assert rows == [str(i) for i in range(count)]


# Runs and their configs.


def test_what_does_not_go_together_is_told():
    assert "config.data.train=digits:train has no masks" in problems_of(
        **{"data.train": "digits:train"}
    )
    told = problems_of(**{"segmentation.window": 30, "segmentation.stride": 33, "data.mixup": 0.2,
                          "mim.mask_ratio": 0.9, "classifier.loss": "sigmoid",
                          "tokenizer.path": "x"})  # fmt: skip
    assert "window=30 is not divisible by config.encoder.patch_size=4; nearest: 28 or 32" in told
    assert "stride=33 exceeds the window of 30 pixels" in told
    for name in ("data.mixup=0.2", "mim.mask_ratio=0.9", "classifier.loss=", "tokenizer.path=x"):
        assert f"config.{name}" in told
    assert "are not for config.task=segmentation: leave them out" in told
    told = problems_of(**{"segmentation.window": 64})
    assert "exceeds the short side of 32 pixels" in told
    assert "set config.task=segmentation" in problems_of(**{
        "task": "supmim", "eval.evaluators": "knn", "checkpoint.keep_best": 0})  # fmt: skip


PRESET = """
from supmim import config as base
from tests.test_segmentation import small_config

def get_config():
    config = base.to_dict(small_config(total_epochs=1))
    config.optimizer.warmup_steps = config.classifier.num_classes = 0
    config.eval.batch_size = 16
    return config
"""


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "preset.py"
    path.write_text(PRESET)
    return [f"--config={path}"]


def test_a_run_trains_scores_draws_and_scores_again_what_it_missed(tmp_path, preset, capsys):
    workdir = tmp_path / "run"
    few = ["--config.data.limit=16", "--config.eval.evaluators=all"]
    args = [*preset, f"--workdir={workdir}", *few]
    assert cli.run(["train", *args]) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert {"segmentation/miou", "patch_knn/miou", "segmentation/iou/background",
            "floor/segmentation_miou"} <= results.keys()  # fmt: skip
    page = (workdir / "report.html").read_text()
    assert "segmentation.png" in page and "patch_knn.png" in page
    assert "iou/background" not in capsys.readouterr().out
    (workdir / "results.json").unlink()
    assert cli.run(["train", f"--workdir={workdir}"]) == 0
    assert json.loads((workdir / "results.json").read_text()) == results


def test_bad_pairs_exit_3_and_name_what_is_wrong(tmp_path, preset, capsys):
    spec = folder_of(tmp_path / "pairs", *map(str, range(20)))
    args = ["train", *preset, f"--config.data.train={spec}", "--config.data.channels=3",
            f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    assert cli.run(args) == 3
    assert "nothing says how many classes" in capsys.readouterr().err
    assert cli.run([*args, "--config.data.mask_classes=2"]) == 3
    told = capsys.readouterr().err
    assert "images/" in told and "the id 2" in told and "Traceback" not in told
    (tmp_path / "pairs/masks/7.png").unlink()
    assert cli.run([*args, "--config.data.mask_classes=3"]) == 3
    assert "masks has no mask for 1 of 20 images: 7" in capsys.readouterr().err


def test_a_store_takes_no_masks(tmp_path, capsys):
    assert cli.run(["data", "convert", "scenes:test", f"--out={tmp_path / 'store'}"]) == 3
    assert "has masks, which a store cannot hold" in capsys.readouterr().err


def test_labels_move_as_images_do_without_interpolation():
    data = small_config(**{"data.rotate": 25.0, "data.shift": 2.0}).data
    keys = views.example_keys(0, jnp.zeros(2, int), jnp.arange(2))
    ids = 7 * jnp.asarray(rng.integers(0, 5, (2, 32, 32)), jnp.int32)  # none between two others
    moved = jax.jit(lambda *args: views.label_geometry(*args, data, -1))(keys, ids)
    assert set(np.unique(moved)) == {-1, 0, 7, 14, 21, 28}
    still = small_config().data
    np.testing.assert_array_equal(views.label_geometry(keys, ids, still, -1), ids)
