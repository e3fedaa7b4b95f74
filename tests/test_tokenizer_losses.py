"""What a tokenizer is trained and judged by, against values worked out by hand or by SciPy."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter

from supmim import metrics
from supmim.errors import CheckpointError
from supmim.evaluators.lib import code_statistics
from supmim.tokenizers import codebook, losses, perceptual, quality
from supmim.tokenizers.discriminators import DISCRIMINATORS, blur_pool, minibatch_stddev


def close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def column(*values):
    """[n, 1, 1, 1]."""
    return jnp.array(values, jnp.float32).reshape(-1, 1, 1, 1)


# Losses.


def test_reconstruction_losses_are_means_of_each_image():
    image, decoded = (
        jnp.zeros((2, 1, 2, 1)),
        jnp.array([[1.0, 3.0], [0.0, 2.0]]).reshape(2, 1, 2, 1),
    )
    close(losses.l1(image, decoded), [2.0, 1.0])
    close(losses.l2(image, decoded), [5.0, 2.0])


def test_commitment_moves_latents_and_the_codebook_loss_codes():
    latents, codes = column(1.0, 2.0), column(4.0, 2.0)
    for loss, moved, left in ((losses.commitment, 0, 1), (losses.codebook, 1, 0)):
        close(loss(latents, codes), [9.0, 0.0])
        grads = jax.grad(lambda *x, loss=loss: loss(*x).sum(), argnums=(0, 1))(latents, codes)
        close(grads[moved].ravel(), [-6.0, 0.0] if moved == 0 else [6.0, 0.0])
        assert not grads[left].any()


def test_straight_through_is_the_code_with_the_gradient_of_the_latent():
    latents, codes = column(1.0), column(4.0)
    value, grads = jax.value_and_grad(
        lambda *x: (losses.straight_through(*x) ** 2).sum(), argnums=(0, 1)
    )(latents, codes)
    assert value == 16.0 and grads[0].item() == 8.0 and not grads[1].any()


def test_entropy_loss_is_sample_entropy_less_batch_entropy():
    """Two latents at distances 1 and 2 ln 3 apart: p = (3/4, 1/4) and (1/4, 3/4) by hand."""
    book = jnp.array([[0.0], [1.0]])
    offset = np.log(3) / 2  # distance to the other code less that to the own, at temperature 1
    latents = column(0.5 - offset, 0.5 + offset, 100.0)
    p = np.array([0.75, 0.25])
    expected = -(p * np.log(p)).sum() - np.log(2)
    found = losses.entropy(latents, book, jnp.array([1.0, 1.0, 0.0]), 1.0)
    close(found, expected, 1e-4)
    clear = losses.entropy(latents, book, jnp.array([1.0, 1.0, 0.0]), 0.001)
    close(clear, -np.log(2), 1e-4)  # every choice clear, both codes used alike: the least there is


def test_adversarial_losses_by_hand():
    real, fake = jnp.array([0.0, 2.0]), jnp.array([0.0, -3.0])
    of_generator, of_discriminator = losses.ADVERSARIAL["non_saturating"]
    close(of_generator(fake), [np.log(2), np.log1p(np.exp(3.0))])
    close(of_discriminator(real, fake),
          [2 * np.log(2), np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-3.0))])  # fmt: skip
    of_generator, of_discriminator = losses.ADVERSARIAL["hinge"]
    close(of_generator(fake), [0.0, 3.0])
    close(of_discriminator(real, fake), [1.0, 0.0])


def test_r1_is_the_squared_gradient_of_each_images_logit():
    image = jnp.arange(8.0).reshape(2, 2, 2, 1)
    close(losses.r1(lambda x: (x**2).sum(axis=(1, 2, 3)), image), [4 * 14.0, 4 * 126.0])


def test_lecam_costs_what_lies_beyond_the_other_sides_average():
    found = losses.lecam(jnp.array([2.0, -1.0]), jnp.array([0.0, 5.0]), 1.5, 0.5)
    close(found, [1.5**2 + 1.5**2, 0.0])


# The codebook.


def test_statistics_count_valid_latents_and_averages_follow_them():
    latents = jnp.array([[[1.0], [3.0]], [[5.0], [9.0]]])
    ids, candidate = jnp.array([[0, 0], [2, 1]]), jnp.array([[3, 0], [7, 1]])
    seen = codebook.statistics(latents, ids, candidate, jnp.array([1.0, 0.0]), 4)
    close(seen["count"], [2, 0, 0, 0])
    close(seen["total"], [[4], [0], [0], [0]])
    close(seen["offered"], [[3], [0], [0], [1]])
    close(seen["offers"], [1, 0, 0, 1])
    book = jnp.full((4, 1), 8.0)
    averages = codebook.average(codebook.initial_averages(book), seen, 0.9)
    close(averages["count"], [0.2, 0, 0, 0])
    close(codebook.means(averages, book), [[2], [8], [8], [8]])  # 4 / 2; the others stay


def test_revival_gives_dead_codes_their_candidate_and_leaves_the_others():
    book, offered = jnp.zeros((4, 1)), jnp.array([[1.0], [2.0], [3.0], [4.0]])
    averages = {"count": jnp.array([3.0, 1.0, 0.0, 0.0]), "total": jnp.zeros((4, 1))}
    seen = {"offered": offered, "offers": jnp.array([1.0, 1.0, 1.0, 0.0])}
    revived, after = codebook.revive(book, averages, seen, 0.5)
    close(revived, [[0], [0], [3], [0]])  # the mean is 1; the last was offered nothing
    close(after["count"], [3, 1, 1, 0])
    close(codebook.means(after, revived)[2], [3.0])
    same, _ = codebook.revive(book, averages, seen, 0.0)
    close(same, book)


def test_candidates_are_a_permutation_of_all_latents():
    drawn = codebook.candidates(jax.random.key(0), 3, 4)
    assert sorted(np.asarray(drawn).ravel().tolist()) == list(range(12))


# Quality.


def reference_ssim(x, y):
    """Of two images [S, S]: Wang et al. by SciPy's Gaussian, borders cut."""

    def window(image):
        return gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    mean_x, mean_y = window(x), window(y)
    variances = window(x * x) - mean_x**2 + window(y * y) - mean_y**2
    covariance = window(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    return (top / ((mean_x**2 + mean_y**2 + 1e-4) * (variances + 9e-4))).mean()


def test_ssim_equals_the_reference_and_is_1_for_equal_images():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(2, 16, 20, 3))
    decoded = np.clip(image + rng.normal(0, 0.2, image.shape), 0, 1)
    expected = [
        np.mean([reference_ssim(x[..., c], y[..., c]) for c in range(3)])
        for x, y in zip(image, decoded, strict=True)
    ]
    close(quality.ssim(jnp.float32(image), jnp.float32(decoded)), expected, 1e-4)
    close(quality.ssim(jnp.float32(image), jnp.float32(image)), [1, 1], 1e-5)
    assert set(quality.of(image[:, :10], decoded[:, :10])) == {"squared_error"}


def test_use_and_perplexity_of_codes_are_those_of_all_ids():
    found = code_statistics.code_usage(np.array([[0, 0, 5], [1, 1, 5]]), 8)
    assert found == {"code_usage": 3 / 8, "code_perplexity": pytest.approx(3.0)}
    found = code_statistics.code_usage(np.array([[2, 2, 2, 7]]), 8)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found == {"code_usage": 0.25, "code_perplexity": pytest.approx(np.exp(entropy))}


def test_psnr_is_of_the_mean_error_of_all_images():
    assert quality.psnr(0.01) == pytest.approx(20.0)
    steps = [{"psnr": metrics.Psnr(jnp.array(total), jnp.array(2.0))} for total in (0.0, 0.04)]
    assert metrics.summarize(steps)["psnr"] == pytest.approx(20.0)


# Discriminators.


@pytest.mark.parametrize("kind", DISCRIMINATORS)
@pytest.mark.parametrize("side", [8, 20])
def test_discriminators_take_any_side_and_padding_changes_no_logit(kind, side):
    image = jax.random.uniform(jax.random.key(0), (8, side, side, 3))
    valid = jnp.array([1.0] * 6 + [0.0] * 2)
    net = DISCRIMINATORS[kind](4)
    params = jax.jit(net.init)(jax.random.key(1), image, valid)
    apply = jax.jit(net.apply)
    logits = apply(params, image, valid)
    assert logits.shape[0] == 8 and logits.dtype == jnp.float32
    scribbled = apply(params, image.at[6:].set(9.0), valid)
    np.testing.assert_array_equal(logits[:6], scribbled[:6])


def test_blur_pool_halves_and_keeps_a_constant_inside():
    out = blur_pool(jnp.ones((1, 8, 7, 2)))
    assert out.shape == (1, 4, 4, 2)
    close(out[:, 1:-1, 1:-1], jnp.ones((1, 2, 2, 2)))


def test_images_of_a_group_share_how_much_they_differ():
    x = jnp.zeros((8, 1, 1, 1)).at[0].set(2.0)  # groups are rows 0 2 4 6 and 1 3 5 7
    found = minibatch_stddev(x, jnp.ones(8)).ravel()
    close(found[::2], [np.sqrt(0.75)] * 4, 1e-4)
    close(found[1::2], [0.0] * 4, 1e-3)
    halves = [minibatch_stddev(x[part::2], jnp.ones(4)).ravel() for part in (0, 1)]
    close(np.stack(halves, axis=1).ravel(), found)  # the parts of an accumulation see the same


# Perceptual distance.


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 1 / np.sqrt(np.prod(shape[1:]) or 1), shape).astype(np.float32)
        for name, shape in perceptual.shapes().items()
    }
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(weights, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest(), weights


def test_perceptual_distance_is_that_of_unit_features(vgg):
    weights = perceptual.load(*vgg[:2])
    image, other = jax.random.uniform(jax.random.key(0), (2, 1, 16, 16, 3))
    distance, features = jax.jit(perceptual.distance), jax.jit(perceptual.features)
    assert distance(weights, image, image).tolist() == [0.0]
    expected = sum(
        ((a / jnp.linalg.norm(a, axis=-1, keepdims=True)
          - b / jnp.linalg.norm(b, axis=-1, keepdims=True)) ** 2).sum(-1).mean()
        for a, b in zip(features(weights, image), features(weights, other), strict=True)
    )  # fmt: skip
    close(distance(weights, image, other), [expected], 1e-5)
    ones = {name: np.full(shape, 0.5, np.float32)
            for name, shape in perceptual.linear_shapes().items()}  # fmt: skip
    close(distance(weights | ones, image, other), [expected / 2], 1e-5)
    assert [x.shape[1] for x in features(weights, image)] == [16, 8, 4, 2, 1]


def test_vgg_sees_images_as_torchvision_normalises_them():
    weights = perceptual.zeros()
    for name in ("features.0.weight", "features.2.weight"):
        weights[name][[0, 1, 2], [0, 1, 2], 1, 1] = 1  # each colour is handed on as it is
    image = jnp.array([0.485 + 2 * 0.229, 0.456 + 3 * 0.224, 0.406 - 0.225]).reshape(1, 1, 1, 3)
    first = perceptual.features(weights, jnp.broadcast_to(image, (1, 16, 16, 3)))[0]
    close(first[0, 5, 7, :4], [2, 3, 0, 0], 1e-5)


def test_perceptual_weights_that_are_not_those_asked_for_are_refused(vgg, tmp_path):
    path, digest, weights = vgg
    with pytest.raises(CheckpointError, match=f"(?s){digest}.*{'0' * 64}"):
        perceptual.load(path, "0" * 64)
    with pytest.raises(CheckpointError, match="cannot be read"):
        perceptual.load(tmp_path / "nowhere", digest)
    broken = {name: value for name, value in weights.items() if name != "features.28.bias"}
    broken["features.0.weight"] = np.zeros((64, 1, 3, 3), np.float32)
    with pytest.raises(CheckpointError) as caught:
        perceptual.checked(broken, path)
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert ["features.28.bias", "missing", "(512,)"] in lines
    assert any(line[0] == "features.0.weight" for line in lines) and len(lines) == 4
