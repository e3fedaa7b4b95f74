"""patch_vq: good codes, the same each time, saved whole."""

import functools
import json
from hashlib import sha256
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from supmim import tokenizers
from supmim.errors import CheckpointError, ConfigError
from supmim.models import layers
from supmim.tokenizers import folder as folder_lib
from supmim.tokenizers import kmeans, patch_vq, vqgan
from supmim.tokenizers.patch_vq import PatchVQ
from tests.conftest import digits, tiny_config

FIT = {"codebook_size": 32, "patch_size": 2, "steps": 20, "seed": 0}


@pytest.fixture(scope="module")
def images():
    return digits("train").image[:400].astype(np.float32) / 255


@pytest.fixture(scope="module")
def tokenizer(images):
    return patch_vq.fit(images, **FIT)


def error_of(codes, images):
    patches = np.asarray(layers.patchify(jnp.asarray(images), 2)).reshape(-1, 1, 4)
    return ((patches - np.asarray(codes)[None]) ** 2).sum(axis=2).min(axis=1).mean()


def test_codes_are_as_good_as_scikit_learns(images, tokenizer):
    patches = np.asarray(layers.patchify(jnp.asarray(images), 2)).reshape(-1, 4)
    theirs = KMeans(32, n_init=1, max_iter=20, random_state=0).fit(patches).cluster_centers_
    assert error_of(tokenizer.codes, images) < 1.1 * error_of(theirs, images)


def test_fit_is_deterministic(images, tokenizer):
    np.testing.assert_array_equal(patch_vq.fit(images, **FIT).codes, tokenizer.codes)
    assert not (patch_vq.fit(images, **FIT | {"seed": 1}).codes == tokenizer.codes).all()


def test_ids_name_the_nearest_code_and_decode_to_it(images, tokenizer):
    ids = np.asarray(tokenizer.encode(jnp.asarray(images[:8])))
    patches = np.asarray(layers.patchify(jnp.asarray(images[:8]), 2))
    by_hand = ((patches[:, :, None] - np.asarray(tokenizer.codes)) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(ids, by_hand)
    decoded = tokenizer.decode(jnp.asarray(ids))
    assert decoded.shape == (8, 8, 8, 1)
    np.testing.assert_array_equal(tokenizer.encode(decoded), ids)


def test_no_code_stays_dead():
    rng = np.random.default_rng(0)
    blobs = rng.uniform(size=(8, 4)).repeat(50, axis=0) + 1e-3 * rng.normal(size=(400, 4))
    start = np.concatenate([np.zeros((7, 4)), blobs[:1]]) + 5 * np.eye(8)[:, :4]  # far from all
    codes = kmeans._lloyd(jnp.asarray(blobs), jnp.asarray(start), 20, False)
    nearest = ((blobs[:, None] - np.asarray(codes)) ** 2).sum(-1).argmin(-1)
    assert len(np.unique(nearest)) == 8


def test_more_codes_than_patches_is_told(images):
    with pytest.raises(ConfigError, match="exceeds the .* distinct patches"):
        patch_vq.fit(images[:2], **FIT | {"codebook_size": 1000})


def test_saved_tokenizer_comes_back_and_is_not_fitted_again(tmp_path, images, tokenizer):
    config = tiny_config(**{"tokenizer.codebook_size": 32})
    made_from = {"images": 400}
    load_or_fit = functools.partial(tokenizers.load_or_fit, config, tmp_path / "t")

    def fit(image=images):
        return patch_vq.fit(image, **FIT)

    first = load_or_fit(made_from, fit, needed=False)
    back = load_or_fit(made_from, lambda: pytest.fail("fitted again"), needed=True)
    np.testing.assert_array_equal(back.codes, first.codes)
    assert (back.patch_size, back.channels) == (2, 1)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        tokenizers.load_or_fit(config, tmp_path / "none", made_from, fit, needed=True)
    other = load_or_fit({"images": 200}, lambda: fit(images[:200]), needed=False)
    assert not (other.codes == first.codes).all()
    assert other.fingerprint() != first.fingerprint() == back.fingerprint()
    (tmp_path / "t/made_from.json").write_text("{")
    load_or_fit(made_from, fit, needed=False)


def save_old(tokenizer, folder):
    """As supmim once did."""
    sizes = {"patch_size": tokenizer.patch_size, "channels": tokenizer.channels}
    np.savez(folder / patch_vq.OLD_CODES, codes=np.asarray(tokenizer.codes), **sizes)
    digest = sha256((folder / patch_vq.OLD_CODES).read_bytes()).hexdigest()
    (folder / patch_vq.OLD_DIGEST).write_text(json.dumps({"sha256": digest}))


@pytest.mark.parametrize(
    ("save", "weights", "digest"),
    [(PatchVQ.save, folder_lib.WEIGHTS, folder_lib.NOTE),
     (save_old, patch_vq.OLD_CODES, patch_vq.OLD_DIGEST)],
    ids=["new", "old"],
)  # fmt: skip
@pytest.mark.parametrize("harm", ["flip", "truncate", "no digest"])
def test_a_damaged_tokenizer_is_refused(tmp_path, tokenizer, save, weights, digest, harm):
    save(tokenizer, tmp_path)
    file = tmp_path / weights
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif harm == "truncate":
        file.write_bytes(data[:100])
    else:
        (tmp_path / digest).unlink()
    told = "holds no tokenizer" if (harm, save) == ("no digest", PatchVQ.save) else "cannot be used"
    with pytest.raises(CheckpointError, match=told):
        patch_vq.load(tmp_path)


def test_an_old_file_of_another_size_or_shape_is_refused_whatever_its_digest(tmp_path, tokenizer):
    def refused(change, told):
        save_old(tokenizer, tmp_path)
        data = change((tmp_path / patch_vq.OLD_CODES).read_bytes())
        (tmp_path / patch_vq.OLD_CODES).write_bytes(data)
        digest = json.dumps({"sha256": sha256(data).hexdigest()})
        (tmp_path / patch_vq.OLD_DIGEST).write_text(digest)
        with pytest.raises(CheckpointError, match=told):
            patch_vq.load(tmp_path)

    shape = str(tokenizer.codes.shape).encode()
    refused(lambda data: data[: len(data) // 2], "cannot be used: File is not a zip file")
    refused(lambda data: data.replace(shape, b"{" * len(shape)), "cannot be used")
    refused(lambda data: data.replace(b"codes", b"other"), "codes is not a file in the archive")
    save_old(tokenizer.replace(channels=3), tmp_path)
    with pytest.raises(CheckpointError, match="its sizes do not match the shape of its codes"):
        patch_vq.load(tmp_path)
    save_old(tokenizer, tmp_path)
    few = mock.patch.object(patch_vq, "MOST_BYTES", 100)
    with few, pytest.raises(CheckpointError, match="its arrays have more than 100 bytes"):
        patch_vq.load(tmp_path)


@pytest.mark.parametrize(
    ("size", "value", "told"),
    [("num_res_blocks", 99_999_999, "1 level of 99,999,999 blocks need more than 36 arrays"),
     ("channel_multipliers", [1] * 500, "500 levels of 1 block need more than 36 arrays"),
     ("codebook_size", 2**63, "not whole numbers from 1 to"),
     ("filters", 0, "not whole numbers"), ("norm_groups", "a", "not whole numbers"),
     ("norm_groups", 3, "32 x 1 channels does not divide into 3 groups"),
     ("embedding_dim", 5, "do not match the shapes of its weights")],
)  # fmt: skip
def test_impossible_sizes_of_a_network_are_refused_at_once(tmp_path, size, value, told):
    network = vqgan.Network(filters=32, channel_multipliers=(1,), num_res_blocks=1,
                            embedding_dim=4, codebook_size=8)  # fmt: skip
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), vqgan.shapes(network))
    folder_lib.write(tmp_path, "vqgan", network.sizes | {size: value}, params, "a test")
    with pytest.raises(CheckpointError, match=told):
        vqgan.load(tmp_path)


def test_codes_in_the_old_format_are_read_and_replaced_by_the_new(tmp_path, images, tokenizer):
    config = tiny_config(**{"tokenizer.codebook_size": 32, "tokenizer.path": str(tmp_path)})
    save_old(tokenizer, tmp_path)
    old = tokenizers.load(config)
    assert old.fingerprint() == tokenizer.fingerprint() and old.options() == tokenizer.options()
    another = patch_vq.fit(images, **FIT | {"seed": 1})
    another.save(tmp_path)
    assert tokenizers.load(config).fingerprint() == another.fingerprint() != old.fingerprint()


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_codes_in_the_old_format_run_nothing_when_they_are_read(tmp_path):
    codes = np.array([Canary(tmp_path / "canary")], object)
    np.savez(tmp_path / patch_vq.OLD_CODES, codes=codes, patch_size=2, channels=1)
    digest = sha256((tmp_path / patch_vq.OLD_CODES).read_bytes()).hexdigest()
    (tmp_path / patch_vq.OLD_DIGEST).write_text(json.dumps({"sha256": digest}))
    with pytest.raises(CheckpointError, match="cannot be used"):
        patch_vq.load(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_sizes_that_are_not_those_of_the_codes_are_told(tmp_path, tokenizer):
    tokenizer.replace(patch_size=3).save(tmp_path)
    with pytest.raises(CheckpointError, match="its sizes do not match the shape of its codes"):
        patch_vq.load(tmp_path)
