"""Laws of the step: same twice, baseline is the baseline, padding and NaN change nothing."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from supmim import metrics, optimizer, sharding, step
from supmim.data import stream
from supmim.errors import ConfigError
from supmim.tasks.base import Prepared, Task
from supmim.tasks.supmim import SupMIM
from supmim.tokenizers.patch_vq import PatchVQ
from supmim.updates import spikes
from tests.conftest import digit_views, prepare, tiny_config

BATCH = 24


def task_of(**changes):
    config = tiny_config(batch_size=BATCH, **changes)
    codes = jax.random.uniform(jax.random.key(9), (16, 4))
    return SupMIM(config, PatchVQ(codes, 2, 1) if config.mim_weight else None), config


@functools.cache
def raw_batch(step_number=0, rows=BATCH):
    read = stream.Training(digit_views("train", tiny_config()), 0, rows, np.arange(rows))
    return read(step_number)[0]


@functools.lru_cache(maxsize=8)
def preparing(task):
    return jax.jit(functools.partial(prepare, task))


def prepared(task, step_number=0):
    return preparing(task)(task.frozen, raw_batch(step_number))


def loss_of(task):
    return lambda params, batch, rng: task.loss_fn(params, task.draw(batch, rng), rng)


def programs(task, config):
    """What makes a state, and the step."""
    tx = optimizer.create(config.optimizer, lambda _: 3e-3)
    return [
        jax.jit(functools.partial(function, task=task, tx=tx))
        for function in (step.create_state, step.train_step)
    ]


def trained(task, create, train, steps=3, seed=0):
    """The state after so many steps from a fresh one."""
    rng = jax.random.key(seed)
    state = create(rng)
    for number in range(steps):
        state, _ = train(state, prepared(task, number), rng)
    return state


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


STOCHASTIC = {
    "encoder.dropout": 0.1, "encoder.stochastic_depth": 0.1, "encoder.depth": 2, "data.mixup": 0.2,
    "optimizer.ema_decay": 0.9,
}  # fmt: skip


@pytest.mark.slow  # as runs that go on do (test_resume.py)
def test_same_seed_gives_the_same_parameters_bit_for_bit():
    """Law 1."""
    task, config = task_of(**STOCHASTIC)
    compiled = programs(task, config)
    first = trained(task, *compiled)
    assert_equal(first, trained(task, *programs(*task_of(**STOCHASTIC))))  # traced anew
    other = trained(task, *compiled, seed=1)
    assert not (other.params["encoder"]["embedding"]["kernel"]
                == first.params["encoder"]["embedding"]["kernel"]).all()  # fmt: skip


def test_mim_weight_zero_is_the_baseline_bit_for_bit():
    """Law 6: no decoder, no masked pass; the same as building both and multiplying by 0."""
    task, config = task_of(mim_weight=0.0, **STOCHASTIC)
    baseline = trained(task, *programs(task, config))
    assert set(baseline.params) == {"encoder", "classifier"} and task.frozen is None
    jaxpr = str(jax.make_jaxpr(loss_of(task))(baseline.params, prepared(task), jax.random.key(0)))
    assert "argsort" not in jaxpr and "sort[" not in jaxpr

    both, config = task_of(**STOCHASTIC)
    create, _ = programs(both, config)
    tx = optimizer.create(config.optimizer, lambda _: 3e-3)
    rng = jax.random.key(0)
    state = create(rng)

    @jax.jit
    def traced(state, batch, weight):
        both.mim_weight = weight
        return step.train_step(state, batch, rng, task=both, tx=tx)[0]

    for number in range(3):
        state = traced(state, prepared(both, number), jnp.zeros(()))
    assert "decoder" in state.params
    assert_equal({k: state.params[k] for k in baseline.params}, baseline.params)


def test_padding_changes_no_loss_metric_or_gradient():
    """Law 10."""
    task, _ = task_of(**{"data.mixup": 0.2})
    params = jax.jit(task.init)(jax.random.key(0))
    half = prepared(task).replace(valid=(jnp.arange(BATCH) < BATCH // 2).astype(jnp.float32))
    scribbled = half.replace(
        mim_view=half.mim_view.at[BATCH // 2 :].set(7.0),
        label=half.label.at[BATCH // 2 :].set(3),
        target_ids=half.target_ids.at[BATCH // 2 :].set(5),
    )
    grad = jax.jit(jax.grad(loss_of(task), has_aux=True))
    rng = jax.random.key(1)
    assert_equal(grad(params, half, rng), grad(params, scribbled, rng))


def test_means_over_a_padded_batch_are_those_of_the_valid_half():
    task, _ = task_of(mim_weight=0.0)
    params = jax.jit(task.init)(jax.random.key(0))
    batch = prepared(task)
    valid = (jnp.arange(BATCH) < 12).astype(jnp.float32)
    loss = jax.jit(loss_of(task))
    rng = jax.random.key(0)
    padded, _ = loss(params, batch.replace(valid=valid), rng)
    cut, _ = loss(params, jax.tree.map(lambda x: x[:12], batch), rng)
    np.testing.assert_allclose(padded, cut, rtol=1e-6)


@pytest.mark.parametrize("parts", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_a_batch_in_parts_has_the_gradients_and_metrics_of_the_whole(parts):
    task, _ = task_of(**{"data.mixup": 0.2})
    params = jax.jit(task.init)(jax.random.key(0))
    head = params["classifier"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    rng = jax.random.key(0)
    gradients, whole_gradients = (
        jax.jit(functools.partial(step.gradients, task.loss_fn, parts=count))
        for count in (parts, 1)
    )
    for padding in (0, 5):  # padded rows fall unevenly on the parts
        valid = (jnp.arange(BATCH) >= padding).astype(jnp.float32)
        batch = prepared(task).replace(valid=valid)
        drawn = task.draw(batch, rng)
        grads, totals = gradients(params, drawn, rng)
        whole, whole_totals = whole_gradients(params, drawn, rng)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), grads, whole
        )
        values, expected = metrics.summarize([totals]), metrics.summarize([whole_totals])
        for name in expected.keys() - ({"loss"} if padding else set()):
            np.testing.assert_allclose(values[name], expected[name], rtol=1e-5, err_msg=name)


class Noise(Task):
    """A task whose gradient is noise, which remembers the keys that it was given."""

    def __init__(self):
        self.keys = []

    def init(self, rng):
        return {"w": {"kernel": jnp.ones(8)}}

    def draw(self, batch, rng):
        self.keys.append(rng)
        return super().draw(batch, rng)

    def loss_fn(self, params, batch, rng, step=0):
        noise = jax.random.normal(rng, (8,))
        loss = (params["w"]["kernel"] * noise).sum()
        totals = {"noise": metrics.Sum(noise), "squared": metrics.Sum(noise**2)}
        return loss, totals | {"loss": metrics.scalar(loss)}


def test_every_step_and_every_part_draws_anew():
    task, tx = Noise(), optimizer.create(tiny_config().optimizer, lambda _: 0.1)
    rng, batch = jax.random.key(0), Prepared(valid=jnp.ones(4))
    state = step.create_state(rng, task, tx)
    seen = []
    for _ in range(2):
        state, totals = step.train_step(state, batch, rng, task=task, tx=tx)
        seen.append(totals["noise"].value)
    assert not (seen[0] == seen[1]).any() and task.keys[0] != task.keys[1]
    _, totals = step.gradients(task.loss_fn, state.params, task.draw(batch, rng), rng, parts=2)
    sums, squares = totals["noise"].value, totals["squared"].value
    assert (jnp.abs(sums**2 - 2 * squares) > 1e-6).all()  # equal if both parts drew the same


def test_the_loss_is_the_weighted_sum_of_both_terms():
    task, _ = task_of(class_weight=0.5, mim_weight=2.0)
    params = jax.jit(task.init)(jax.random.key(0))
    loss, totals = jax.jit(loss_of(task))(params, prepared(task), jax.random.key(0))
    terms = metrics.summarize([totals])
    expected = 0.5 * terms["class_loss"] + 2.0 * terms["mim_loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_masked_modelling_alone_has_the_same_token_loss_and_leaves_the_classifier():
    (joint, _), (alone, _) = task_of(), task_of(class_weight=0.0)
    params, batch, rng = jax.jit(joint.init)(jax.random.key(0)), prepared(joint), jax.random.key(0)
    grads, totals = jax.jit(jax.grad(loss_of(alone), has_aux=True))(params, batch, rng)
    of_joint = jax.jit(loss_of(joint))(params, batch, rng)[1]
    terms, expected = metrics.summarize([totals]), metrics.summarize([of_joint])
    assert "class_loss" not in terms and "train_top1" not in terms
    np.testing.assert_allclose(terms["mim_loss"], expected["mim_loss"], rtol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["classifier"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads["encoder"]))


def flops(function, *arguments):
    """Multiply-adds of all products in the compiled-for program, scans aside."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_inference_costs_what_the_baseline_costs():
    """Law 7."""

    def cost(**changes):
        task, _ = task_of(**changes)
        params = jax.jit(task.init)(jax.random.key(0))
        return flops(functools.partial(step.eval_step, forward=task.predict), params, raw_batch())

    assert cost() == cost(mim_weight=0.0) == cost(**{"mim.hidden": "mask_token"}) > 0


def test_masked_pass_costs_less_than_a_full_one():
    def cost(**changes):
        task, _ = task_of(**changes)
        params = jax.jit(task.init)(jax.random.key(0))
        return flops(loss_of(task), params, prepared(task), jax.random.key(0))

    assert cost(mim_weight=0.0) < cost(**{"mim.passes": "one"}) < cost()
    assert cost() < cost(**{"mim.hidden": "mask_token"})


def kinds_of_masking():
    """All; those that leave out no pair of choices run without -m slow."""
    maskings = ["random", "block", "units", "variable"]
    for number, masking in enumerate(maskings):
        for hidden in (0, 1):
            for passes in (0, 1):
                marks = [] if (number + hidden + passes) % 2 else [pytest.mark.slow]
                yield pytest.param(
                    ["two", "one"][passes], masking, ["drop", "mask_token"][hidden], marks=marks
                )


@pytest.mark.parametrize(("passes", "masking", "hidden"), [*kinds_of_masking()])
def test_every_kind_of_masking_has_finite_losses_and_reaches_every_parameter(
    passes, masking, hidden
):
    task, _ = task_of(**{
        "mim.passes": passes, "mim.masking": masking, "mim.hidden": hidden, "mim.ratio_mean": 0.8,
    })  # fmt: skip
    params = jax.jit(task.init)(jax.random.key(0))
    head = params["classifier"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    grad = jax.jit(jax.grad(loss_of(task), has_aux=True))
    grads, totals = grad(params, prepared(task), jax.random.key(0))
    values = metrics.summarize([totals])
    assert all(np.isfinite(list(values.values())))
    assert abs(values["mim_loss"] - np.log(16)) < 1.5
    norms = {jax.tree_util.keystr(p): float(jnp.abs(g).max())
             for p, g in jax.tree_util.tree_leaves_with_path(grads)}  # fmt: skip
    still = [name for name, norm in norms.items() if norm == 0]
    assert not [n for n in still if not ("key" in n and "bias" in n)], still


@pytest.mark.parametrize("level", [0, 128])
@pytest.mark.parametrize("target", ["tokens", "pixels", "normalized_pixels"])
def test_black_images_have_finite_losses_and_gradients_with_every_target(target, level):
    """Patches of a single value have no spread to divide by."""
    task, _ = task_of(**{"mim.target": target})
    raw = raw_batch()
    flat = {**raw, "image": np.full_like(raw["image"], level)}
    batch = jax.jit(functools.partial(prepare, task))(task.frozen, flat)
    grad = jax.jit(jax.grad(loss_of(task), has_aux=True))
    params = jax.jit(task.init)(jax.random.key(0))
    grads, totals = grad(params, batch, jax.random.key(0))
    assert all(np.isfinite(list(metrics.summarize([totals]).values())))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_ratio_zero_has_token_loss_zero():
    task, _ = task_of(**{"mim.mask_ratio": 0.0})
    params = jax.jit(task.init)(jax.random.key(0))
    loss, totals = jax.jit(loss_of(task))(params, prepared(task), jax.random.key(0))
    assert metrics.summarize([totals])["mim_loss"] == 0.0 and np.isfinite(loss)


def test_class_view_is_mixed_and_mim_view_is_not():
    task, _ = task_of(**{"data.mixup": 0.5})
    seen = {}

    def spy(method, params, image, *args, rng):
        seen[method] = image
        return SupMIM.apply(task, method, params, image, *args, rng=rng)

    task.apply = spy
    batch = prepared(task)
    loss_of(task)(jax.jit(task.init)(jax.random.key(0)), batch, jax.random.key(0))
    np.testing.assert_array_equal(seen["predict_tokens"], batch.mim_view)
    assert not (seen["classify"] == batch.mim_view).all()


def test_targets_are_the_ids_of_the_mim_view():
    task, _ = task_of()
    batch = prepared(task)
    np.testing.assert_array_equal(batch.target_ids, task.frozen.encode(batch.mim_view))


def test_sigmoid_loss_and_label_smoothing_act():
    def loss(**changes):
        task, _ = task_of(mim_weight=0.0, **changes)
        params = jax.jit(task.init)(jax.random.key(0))
        return float(jax.jit(loss_of(task))(params, prepared(task), jax.random.key(0))[0])

    np.testing.assert_allclose(loss(), np.log(10), rtol=1e-5)
    np.testing.assert_allclose(loss(**{"classifier.loss": "sigmoid"}), 10 * np.log(2), rtol=1e-5)
    weighted = {"classifier.head_bias": -2.0, "classifier.loss": "sigmoid"}
    smooth = loss(**weighted, **{"classifier.label_smoothing": 0.5})
    assert abs(smooth - loss(**weighted)) < 1e-4 and smooth != 10 * np.log(2)


# Cheaper passes.


def head_at_random(task):
    """New parameters, with a classifier that does not start at 0."""
    params = jax.jit(task.init)(jax.random.key(0))
    head = params["classifier"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    return params


def test_dropped_patches_cannot_reach_the_class_loss_and_no_mask_is_another():
    task, _ = task_of(**{"class_pass.keep": 0.75})
    params, rng = head_at_random(task), jax.random.key(0)
    drawn = task.draw(prepared(task), rng)
    keep = np.asarray(drawn.class_mask.ids_keep)
    assert keep.shape == (BATCH, 12)
    seen = (keep[:, :, None] == np.arange(16)).any(axis=1)
    scores = jax.jit(jax.grad(
        lambda image: task.class_pass(params, drawn.replace(class_view=image), rng).sum()
    ))(drawn.class_view)  # fmt: skip
    by_patch = jnp.abs(scores).reshape(BATCH, 4, 2, 4, 2, 1).max(axis=(2, 4, 5)).reshape(BATCH, 16)
    np.testing.assert_array_equal(by_patch > 0, seen)
    other = task.draw(prepared(task), jax.random.key(1)).class_mask
    assert not (np.sort(keep) == np.sort(other.ids_keep)).all()
    hidden = np.asarray(drawn.token_mask.mask > 0)
    assert 0.3 < (hidden & seen).mean() < 0.45  # the two masks are drawn apart


def test_rows_that_are_not_masked_reach_no_token_loss_and_all_reach_the_class_loss():
    task, _ = task_of(**{"mim.row_share": 0.5})
    params, rng = jax.jit(task.init)(jax.random.key(0)), jax.random.key(0)
    drawn = task.draw(prepared(task), rng)
    skipped = jnp.arange(BATCH) % 2 == 1
    poisoned = drawn.replace(mim_view=jnp.where(skipped[:, None, None, None], jnp.nan,
                                                drawn.mim_view))  # fmt: skip
    whole, _ = task_of()
    losses, losses_of_whole = jax.jit(task.loss_fn), jax.jit(whole.loss_fn)
    assert_equal(losses(params, drawn, rng), losses(params, poisoned, rng))
    even = jax.tree.map(lambda x: x[::2], drawn)
    found, all_rows, of_even = (
        metrics.summarize([program(params, batch, rng)[1]])
        for program, batch in (
            (losses, drawn),
            (losses_of_whole, drawn),
            (losses_of_whole, even),
        )
    )
    np.testing.assert_allclose(found["mim_loss"], of_even["mim_loss"], rtol=1e-5)
    np.testing.assert_allclose(found["code_usage"], of_even["code_usage"], rtol=1e-5)
    assert found["mim_loss"] != all_rows["mim_loss"]
    np.testing.assert_allclose(found["class_loss"], all_rows["class_loss"], rtol=1e-6)


def test_a_training_has_masked_passes_in_its_share_of_the_steps_alone():
    """Outside nothing reaches the decoder, and the metrics are those of the steps inside."""
    changes = {"mim.start_share": 0.25, "mim.end_share": 0.6, "optimizer.weight_decay": 0.0}
    inner, config = task_of(**changes)
    task = SupMIM(config, inner.frozen, total_steps=8)  # steps 2, 3 and 4 of 0 to 7
    create, train = programs(task, config)
    rng = jax.random.key(0)
    state, seen, moved = create(rng), [], []
    for number in range(8):
        after, totals = train(state, prepared(task, number), rng)
        pairs = zip(*map(jax.tree.leaves, (state.params, after.params)), strict=True)
        assert all(np.isfinite(a).all() for _, a in pairs)
        head = ["decoder", "head", "bias"]
        before_and_after = (
            functools.reduce(lambda tree, key: tree[key], head, one.params)
            for one in (state, after)
        )
        moved.append(not np.array_equal(*before_and_after))
        seen.append(totals)
        state = after
    values = [metrics.summarize([totals]) for totals in seen]
    inside = [number for number, one in enumerate(values) if "mim_loss" in one]
    assert inside == [number for number, one in enumerate(values) if "token_accuracy" in one]
    assert inside == [2, 3, 4] and moved.index(True) == 2
    for number in (0, 7):
        assert values[number]["loss"] == values[number]["class_loss"]
    of_all = metrics.summarize(seen)
    expected = np.mean([values[number]["mim_loss"] for number in inside])
    np.testing.assert_allclose(of_all["mim_loss"], expected, rtol=1e-5)


def test_a_step_with_its_masked_pass_is_that_of_a_training_that_always_has_one():
    windowed, _ = task_of(**{"mim.start_share": 0.5})
    always, _ = task_of()
    params, rng = head_at_random(always), jax.random.key(0)
    drawn = always.draw(prepared(always), rng)
    expected, found = (
        jax.jit(jax.grad(task.loss_fn, has_aux=True))(params, drawn, rng, 7)
        for task in (always, windowed)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), expected, found
    )


def test_a_training_too_short_for_a_masked_pass_is_told():
    config = tiny_config(**{"mim.start_share": 0.96})
    with pytest.raises(ConfigError, match="leave none of 10 steps with a masked pass"):
        SupMIM(config, None, total_steps=10)
    assert SupMIM(config, None, total_steps=100).masked_steps == range(96, 100)
    tiny = tiny_config(mim_weight=0.0, **{"mim.start_share": 0.96})
    assert SupMIM(tiny, None, total_steps=10).model.decoder is None


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_masked_pass_learns_what_the_full_pass_answers(kind):
    weights = {"mim.soft_target_weight": 0.5, "mim_weight": 2.0, "classifier.loss": kind}
    task, _ = task_of(**weights)
    full, masked = jax.random.normal(jax.random.key(2), (2, BATCH, 10))
    batch = prepared(task)

    def loss(full, masked):
        return task.soft_target_terms(masked, full, batch)[0]

    to_full, to_masked = jax.grad(loss, argnums=(0, 1))(full, masked)
    assert not to_full.any()
    answers = (jax.nn.softmax if kind == "softmax" else jax.nn.sigmoid)(full)
    own = (jax.nn.softmax if kind == "softmax" else jax.nn.sigmoid)(masked)
    np.testing.assert_allclose(to_masked, 0.5 * (own - answers) / BATCH, atol=1e-6)
    params = head_at_random(task)
    found, totals = jax.jit(loss_of(task))(params, batch, jax.random.key(0))
    terms = metrics.summarize([totals])
    expected = terms["class_loss"] + 2.0 * terms["mim_loss"] + 0.5 * terms["soft_target_loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_loss_on_all_patches_is_the_mean_over_hidden_and_visible_ones():
    def found(loss_on):
        task, _ = task_of(**{"mim.loss_on": loss_on, "mim.mask_ratio": 0.75})
        drawn = task.draw(prepared(task), jax.random.key(0))
        seen = (drawn.mim_view, drawn.token_mask)
        apply = jax.jit(functools.partial(task.apply, "predict_tokens"))
        predicted = apply(params, *seen, rng=jax.random.key(0))
        terms = jax.jit(task.mim_terms)(predicted, drawn)[1]
        return predicted, drawn, metrics.summarize([terms])

    params = jax.jit(task_of()[0].init)(jax.random.key(0))
    _, _, on_hidden = found("hidden")
    predicted, drawn, on_all = found("all")
    ids = jnp.take_along_axis(drawn.target_ids, drawn.token_mask.ids_shuffle, axis=1)
    each = optax.softmax_cross_entropy_with_integer_labels(predicted, ids)
    np.testing.assert_allclose(on_all["mim_loss"], each.mean(), rtol=1e-5)
    np.testing.assert_allclose(on_hidden["mim_loss"], each[:, 4:].mean(), rtol=1e-5)
    assert on_all["token_accuracy"] == on_hidden["token_accuracy"]


# The optimizer.


def test_decay_moves_kernels_alone():
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)},
              "positions": jnp.ones((3, 2)), "stack": {"kernel": jnp.ones((3, 2, 2))}}  # fmt: skip
    learned = ("positions", "cls", "mask_token", "probe")
    params["encoder"] = {name: jnp.ones((3, 2)) for name in learned}
    config = tiny_config(**{"optimizer.weight_decay": 0.5}).optimizer
    tx = optimizer.create(config, lambda _: 0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params, step=0)
    moved = jax.tree.map(lambda u: float(jnp.abs(u).max()), updates)
    np.testing.assert_allclose(moved["a"]["kernel"], 0.05, rtol=1e-6)
    np.testing.assert_allclose(moved["stack"]["kernel"], 0.05, rtol=1e-6)
    assert moved["a"]["bias"] == moved["a"]["scale"] == moved["positions"] == 0
    assert moved["encoder"] == dict.fromkeys(learned, 0)


def test_the_states_of_adamw_are_where_optax_has_them():
    config = tiny_config().optimizer
    params = {"w": {"kernel": jnp.ones(3)}}
    adamw = optax.adamw(lambda _: 1.0, mask=optimizer.decay_mask)
    optax_own = spikes.watched(optax.chain(optax.clip_by_global_norm(1.0), adamw), 6.0, False)
    ours = optimizer.create(config, lambda _: 1.0).init(params)
    assert jax.tree.structure(ours) == jax.tree.structure(optax_own.init(params))


def test_decoupled_decay_follows_the_schedule_and_not_the_learning_rate():
    params, schedule = {"w": {"kernel": jnp.full(3, 2.0)}}, lambda step: 0.01 * (step + 1) / 2
    moved = {}
    for name, decay in (("adam_decoupled", 0.25), ("adamw", 0.25)):
        config = tiny_config(**{
            "optimizer.name": name, "optimizer.weight_decay": decay, "optimizer.learning_rate": 0.01
        }).optimizer  # fmt: skip
        tx = optimizer.create(config, schedule)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params, step=0)
        moved[name] = float(updates["w"]["kernel"][0])
    np.testing.assert_allclose(moved["adam_decoupled"], -0.25 * 0.5 * 2.0, rtol=1e-5)
    np.testing.assert_allclose(moved["adamw"], -0.25 * 0.005 * 2.0, rtol=1e-5)


def test_lamb_moves_each_kernel_in_proportion_to_its_norm():
    config = tiny_config(**{"optimizer.name": "lamb", "optimizer.weight_decay": 0.1}).optimizer
    tx = optimizer.create(config, lambda _: 0.5)
    key = jax.random.key(0)
    kernels = jax.random.normal(key, (3, 4, 2)) * jnp.array([1.0, 10.0, 0.0]).reshape(3, 1, 1)
    unrolled = {f"block_{i}": {"kernel": kernels[i], "bias": kernels[i, 0]} for i in range(3)}
    stacked = {"stack": {"kernel": kernels, "bias": kernels[:, 0]}}
    steps = {}
    for name, params in (("unrolled", {"x": unrolled}), ("stacked", {"x": stacked})):
        gradient = jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1, params)
        steps[name], _ = tx.update(gradient, tx.init(params), params, step=0)
    for i, (size, kernel) in enumerate(zip((1, 1, 0), kernels, strict=True)):
        update = steps["unrolled"]["x"][f"block_{i}"]
        np.testing.assert_allclose(steps["stacked"]["x"]["stack"]["kernel"][i], update["kernel"],
                                   rtol=1e-5)  # fmt: skip
        if size:  # |update| = learning rate x |parameter|
            np.testing.assert_allclose(
                jnp.linalg.norm(update["kernel"]), 0.5 * jnp.linalg.norm(kernel), rtol=1e-5
            )
        np.testing.assert_allclose(jnp.abs(update["bias"]), 0.5, rtol=1e-3)  # plain Adam


def test_muon_makes_matrices_of_the_blocks_orthogonal_and_leaves_the_rest_to_adam():
    task, _ = task_of()
    params = jax.jit(task.init)(jax.random.key(0))
    names = [sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    gradient = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size) ** 1.5).reshape(p.shape), params)

    changes = {"optimizer.weight_decay": 0.0, "optimizer.clip_norm": 0.0}
    config = tiny_config(**{"optimizer.name": "muon"} | changes).optimizer
    nesterov = optax.nadam(0.5, config.b1, config.b2)
    muon, adam = (
        dict(zip(names, jax.tree.leaves(updates), strict=True))
        for tx in (optimizer.create(config, lambda _: 0.5), optax.with_extra_args_support(nesterov))
        for update in [jax.jit(functools.partial(tx.update, step=0))]
        for updates, _ in [update(gradient, tx.init(params), params)]
    )
    matrices = {name for name in names if "/blocks/" in name and name.endswith("kernel")}
    assert len(matrices) == 6 * 2  # of the encoder's block and the decoder's
    given = dict(zip(names, jax.tree.leaves(gradient), strict=True))
    for name, found in muon.items():
        if name not in matrices:
            np.testing.assert_allclose(found, adam[name], rtol=1e-6, err_msg=name)
            continue
        rows = 16 if not name.endswith("mlp/down/kernel") else 32
        matrix, sent = (x.reshape(rows, -1) for x in (found, given[name]))
        sizes = jnp.linalg.svd(matrix / (0.5 * 0.2 * max(matrix.shape) ** 0.5), compute_uv=False)
        assert sizes.min() > 0.6 and sizes.max() < 1.3, name
        assert (matrix * sent).sum() < 0, name


def test_the_first_moment_is_kept_in_its_dtype():
    task, config = task_of(mim_weight=0.0, **{"optimizer.moment_dtype": "bfloat16"})
    state = trained(task, *programs(task, config), steps=1)
    mu, nu = (optax.tree_utils.tree_get(state.opt_state, name) for name in ("mu", "nu"))
    assert {leaf.dtype for leaf in jax.tree.leaves(mu)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((nu, state.params))} == {jnp.dtype("float32")}


def test_schedule_warms_up_and_ends_at_zero():
    schedule = optimizer.schedule(tiny_config(**{"optimizer.warmup_steps": 4}).optimizer, 20)
    share = {"optimizer.warmup_steps": 0, "optimizer.warmup_share": 0.2}
    as_share = optimizer.schedule(tiny_config(**share).optimizer, 20)
    assert [float(as_share(n)) for n in range(20)] == [float(schedule(n)) for n in range(20)]
    values = [float(schedule(n)) for n in range(21)]
    np.testing.assert_allclose(values[:5], np.arange(5) * 1e-3 / 4, rtol=1e-5)
    assert max(values) == values[4] and values[20] < 1e-9
    np.testing.assert_allclose(values[12], 0.5e-3, rtol=1e-5)


def test_clipping_limits_the_global_norm():
    params = {"w": {"kernel": jnp.zeros(4)}}
    gradient = {"w": {"kernel": jnp.full(4, 50.0)}}

    def moment(clip):
        tx = optimizer.create(tiny_config(**{"optimizer.clip_norm": clip}).optimizer, lambda _: 1.0)
        _, state = tx.update(gradient, tx.init(params), params, step=0)
        return optax.tree_utils.tree_get(state, "mu")["w"]["kernel"]

    np.testing.assert_allclose(jnp.linalg.norm(moment(1.0)), 0.1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(moment(0.0)), 10.0, rtol=1e-5)


def test_average_follows_the_parameters_with_its_decay():
    tx = optimizer.average_params(0.9)
    params, by_hand = {"w": jnp.zeros(())}, 0.0
    state = tx.init(params)
    for n in range(50):
        updates, state = tx.update({"w": jnp.ones(())}, state, params)
        params = optax.apply_updates(params, updates)
        rate = min(0.9, (1 + n) / (10 + n))
        by_hand = rate * by_hand + (1 - rate) * (n + 1)
        np.testing.assert_allclose(state.average["w"], by_hand, rtol=1e-5)


def test_what_is_evaluated_is_the_average_and_the_rest_as_it_is():
    tx = optimizer.create(tiny_config(**{"optimizer.ema_decay": 0.9}).optimizer, lambda _: 0.1)
    head, encoder = {"head": {"kernel": jnp.ones(3)}}, {"encoder": {"kernel": jnp.ones(3)}}
    updates, opt_state = tx.update(head, tx.init(head), head, step=0)
    moved = optax.apply_updates(head, updates)
    state = step.State(jnp.ones((), jnp.int32), moved | encoder, opt_state)
    found = optimizer.evaluated_params(state)  # the first average is 0.1 old + 0.9 new
    expected = 0.1 * head["head"]["kernel"] + 0.9 * moved["head"]["kernel"]
    np.testing.assert_allclose(found["head"]["kernel"], expected, rtol=1e-6)
    assert found["encoder"] is encoder["encoder"]


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted():
    task, config = task_of(**{"optimizer.ema_decay": 0.9})
    create, program = programs(task, config)
    rng = jax.random.key(0)
    state = create(rng)
    good = prepared(task)
    state, _ = program(state, good, rng)
    bad = good.replace(mim_view=good.mim_view.at[0, 0, 0, 0].set(jnp.nan))
    for count in range(1, 8):  # optax's own limit would let one through
        after, totals = program(state, bad, rng)
        assert_equal(after.params, state.params)
        assert_equal(optimizer.evaluated_params(after), optimizer.evaluated_params(state))
        assert_equal(optax.tree_utils.tree_get(after.opt_state, "mu"),
                     optax.tree_utils.tree_get(state.opt_state, "mu"))  # fmt: skip
        assert int(totals["skipped_in_a_row"].value) == count and int(after.step) == count + 1
        state = after
    state, totals = program(state, good, rng)
    assert int(totals["skipped_in_a_row"].value) == 0
    assert int(totals["skipped_steps"].value) == 7
    assert not (jax.tree.leaves(state.params)[0] == jax.tree.leaves(after.params)[0]).all()


def test_the_learning_rate_is_that_of_the_step_though_updates_were_skipped():
    """Adam moves by the learning rate itself where every gradient is 1."""
    config = tiny_config(**{"optimizer.weight_decay": 0.0, "optimizer.clip_norm": 0.0}).optimizer
    schedule = optimizer.schedule(config, 20)
    tx = optimizer.create(config, schedule)

    def loss_fn(params, batch, rng, step):
        loss = (batch * params["w"]["kernel"]).sum()
        return loss, {"loss": metrics.scalar(loss)}

    task = types.SimpleNamespace(
        fixed=(),
        init=lambda rng: {"w": {"kernel": jnp.zeros(2)}},
        draw=lambda batch, rng: batch,
        loss_fn=loss_fn,
        after_update=lambda params, totals: (params, totals),
    )
    run = jax.jit(functools.partial(step.train_step, rng=jax.random.key(0), task=task, tx=tx))
    state, skipped = step.create_state(jax.random.key(0), task, tx), (3, 4, 11)
    for number in range(20):
        after, _ = run(state, jnp.full(2, jnp.nan if number in skipped else 1.0))
        moved = state.params["w"]["kernel"] - after.params["w"]["kernel"]
        expected = 0.0 if number in skipped else schedule(number)
        np.testing.assert_allclose(moved, np.full(2, expected), rtol=1e-3, atol=1e-8)
        state = after
