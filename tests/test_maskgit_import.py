"""Published layouts, written from random weights: read, they compute what their network does.

No published weights can be had in a test. The networks below are computed once more in NumPy, from
the file's own names and [out, in, h, w] kernels, as PyTorch computes them.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import save_file

from supmim import cli
from supmim.errors import CheckpointError
from supmim.interop import maskgit
from supmim.tokenizers import folder, taming, vqgan

LEVELS, BLOCKS, FILTERS, DIM, CODES = (1, 2, 2), 2, 32, 8, 12
NETWORK = {"filters": FILTERS, "channel_multipliers": LEVELS, "num_res_blocks": BLOCKS,
           "embedding_dim": DIM, "codebook_size": CODES, "channels": 3}  # fmt: skip
SIDE = 16
rng = np.random.default_rng(0)
IMAGE = rng.uniform(size=(1, SIDE, SIDE, 3)).astype(np.float32)


# The public networks over a dict of tensors, [B, C, h, w], float64.


def convolve(w, name, x, stride=1, pad=None):
    kernel = w[f"{name}.weight"].astype(np.float64)
    reach = kernel.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), *(pad or ((reach, reach), (reach, reach)))))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride].transpose(1, 4, 5, 0, 2, 3)
    y = np.tensordot(kernel, windows, axes=3).swapaxes(0, 1)
    bias = w.get(f"{name}.bias", np.zeros(len(kernel)))
    return y + bias[:, None, None]


def norm(w, name, x):
    groups = x.reshape(len(x), 32, -1)
    centred = groups - groups.mean(axis=2, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + 1e-6)
    weight, bias = (w[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias"))
    return scaled.reshape(x.shape) * weight + bias


def swish(x):
    return x / (1 + np.exp(-x))


def block(w, name, x, shortcut_of_input):
    y = convolve(w, f"{name}.conv1", swish(norm(w, f"{name}.norm1", x)))
    y = convolve(w, f"{name}.conv2", swish(norm(w, f"{name}.norm2", y)))
    if f"{name}.nin_shortcut.weight" in w:
        x = convolve(w, f"{name}.nin_shortcut", x if shortcut_of_input else y)
    return x + y


def attend(w, name, x):
    y = norm(w, f"{name}.norm", x)
    query, key, value = (convolve(w, f"{name}.{n}", y).reshape(*x.shape[:2], -1) for n in "qkv")
    scores = np.einsum("bci,bcj->bij", query, key) / np.sqrt(x.shape[1])
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    mixed = np.einsum("bcj,bij->bci", value, weights).reshape(x.shape)
    return x + convolve(w, f"{name}.proj_out", mixed)


def halve(x):
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean(axis=(3, 5))


def double(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)


def muse(w, image):
    """MaskGitVQGAN: latents, and pictures of latents."""
    x = convolve(w, "encoder.conv_in", image)
    for level in range(len(LEVELS)):
        for i in range(BLOCKS):
            x = block(w, f"encoder.down.{level}.block.{i}", x, shortcut_of_input=False)
        x = x if level == len(LEVELS) - 1 else halve(x)
    for i in range(BLOCKS):
        x = block(w, f"encoder.mid.{i}", x, shortcut_of_input=False)
    latents = convolve(w, "encoder.conv_out", swish(norm(w, "encoder.norm_out", x)))
    x = convolve(w, "decoder.conv_in", quantized(w, latents))
    for i in range(BLOCKS):
        x = block(w, f"decoder.mid.{i}", x, shortcut_of_input=False)
    for level in reversed(range(len(LEVELS))):
        for i in range(BLOCKS):
            x = block(w, f"decoder.up.{level}.block.{i}", x, shortcut_of_input=False)
        x = convolve(w, f"decoder.up.{level}.upsample_conv", double(x)) if level else x
    return latents, convolve(w, "decoder.conv_out", swish(norm(w, "decoder.norm_out", x)))


def tamed(w, image):
    """VQModel of taming-transformers, whose images are in [-1, 1]."""
    last = len(LEVELS) - 1
    x = convolve(w, "encoder.conv_in", 2 * image - 1)
    for level in range(len(LEVELS)):
        for i in range(BLOCKS):
            x = block(w, f"encoder.down.{level}.block.{i}", x, shortcut_of_input=True)
            x = attend(w, f"encoder.down.{level}.attn.{i}", x) if level == last else x
        if level < last:
            name = f"encoder.down.{level}.downsample.conv"
            x = convolve(w, name, x, stride=2, pad=((0, 1), (0, 1)))
    x = tamed_middle(w, "encoder", x)
    x = convolve(w, "encoder.conv_out", swish(norm(w, "encoder.norm_out", x)))
    latents = convolve(w, "quant_conv", x)
    x = convolve(w, "post_quant_conv", quantized(w, latents))
    x = tamed_middle(w, "decoder", convolve(w, "decoder.conv_in", x))
    for level in reversed(range(len(LEVELS))):
        for i in range(BLOCKS + 1):
            x = block(w, f"decoder.up.{level}.block.{i}", x, shortcut_of_input=True)
            x = attend(w, f"decoder.up.{level}.attn.{i}", x) if level == last else x
        x = convolve(w, f"decoder.up.{level}.upsample.conv", double(x)) if level else x
    x = convolve(w, "decoder.conv_out", swish(norm(w, "decoder.norm_out", x)))
    return latents, (x + 1) / 2


def tamed_middle(w, side, x):
    x = block(w, f"{side}.mid.block_1", x, shortcut_of_input=True)
    x = attend(w, f"{side}.mid.attn_1", x)
    return block(w, f"{side}.mid.block_2", x, shortcut_of_input=True)


def quantized(w, latents):
    return w["quantize.embedding.weight"][ids_of(w, latents)].transpose(0, 3, 1, 2)


def ids_of(w, latents):
    codes = w["quantize.embedding.weight"].astype(np.float64)
    return ((latents[..., None] - codes.T[:, None, None]) ** 2).sum(axis=1).argmin(axis=-1)


# Their files.


def add(tensors, name, out, into, side=3, bias=True):
    tensors[f"{name}.weight"] = rng.normal(0, 1 / (side * into**0.5), (out, into, side, side))
    if bias:
        tensors[f"{name}.bias"] = rng.normal(0, 0.3, out)


def add_norm(tensors, name, width):
    tensors[f"{name}.weight"] = rng.normal(1, 0.3, width)
    tensors[f"{name}.bias"] = rng.normal(0, 0.3, width)


def add_block(tensors, name, out, into, bias, shortcut_of_input):
    add_norm(tensors, f"{name}.norm1", into)
    add(tensors, f"{name}.conv1", out, into, bias=bias)
    add_norm(tensors, f"{name}.norm2", out)
    add(tensors, f"{name}.conv2", out, out, bias=bias)
    if out != into:
        add(tensors, f"{name}.nin_shortcut", out, into if shortcut_of_input else out, 1, bias)


def add_attention(tensors, name, width):
    add_norm(tensors, f"{name}.norm", width)
    for layer in ("q", "k", "v", "proj_out"):
        add(tensors, f"{name}.{layer}", width, width, 1)


def muse_tensors():
    widths, tensors = [FILTERS * level for level in LEVELS], {}
    layer = functools.partial(add_block, tensors, bias=False, shortcut_of_input=False)
    add(tensors, "encoder.conv_in", FILTERS, 3, bias=False)
    into = FILTERS
    for level, width in enumerate(widths):
        for i in range(BLOCKS):
            layer(f"encoder.down.{level}.block.{i}", width, into)
            into = width
    for side in ("encoder", "decoder"):
        for i in range(BLOCKS):
            layer(f"{side}.mid.{i}", into, into)
    add_norm(tensors, "encoder.norm_out", into)
    add(tensors, "encoder.conv_out", DIM, into, 1)
    add(tensors, "decoder.conv_in", into, DIM)
    for level, width in reversed(list(enumerate(widths))):
        for i in range(BLOCKS):
            layer(f"decoder.up.{level}.block.{i}", width, into)
            into = width
        if level:
            add(tensors, f"decoder.up.{level}.upsample_conv", width, width)
    return finished(tensors, into)


def taming_tensors():
    widths, last, tensors = [FILTERS * level for level in LEVELS], len(LEVELS) - 1, {}
    layer = functools.partial(add_block, tensors, bias=True, shortcut_of_input=True)
    add(tensors, "encoder.conv_in", FILTERS, 3)
    into = FILTERS
    for level, width in enumerate(widths):
        for i in range(BLOCKS):
            layer(f"encoder.down.{level}.block.{i}", width, into)
            into = width
            if level == last:
                add_attention(tensors, f"encoder.down.{level}.attn.{i}", width)
        if level < last:
            add(tensors, f"encoder.down.{level}.downsample.conv", width, width)
    for side in ("encoder", "decoder"):
        layer(f"{side}.mid.block_1", into, into)
        add_attention(tensors, f"{side}.mid.attn_1", into)
        layer(f"{side}.mid.block_2", into, into)
    add_norm(tensors, "encoder.norm_out", into)
    add(tensors, "encoder.conv_out", DIM, into)
    add(tensors, "quant_conv", DIM, DIM, 1)
    add(tensors, "post_quant_conv", DIM, DIM, 1)
    add(tensors, "decoder.conv_in", into, DIM)
    for level, width in reversed(list(enumerate(widths))):
        for i in range(BLOCKS + 1):
            layer(f"decoder.up.{level}.block.{i}", width, into)
            into = width
            if level == last:
                add_attention(tensors, f"decoder.up.{level}.attn.{i}", width)
        if level:
            add(tensors, f"decoder.up.{level}.upsample.conv", width, width)
    return finished(tensors, into)


def finished(tensors, into):
    add_norm(tensors, "decoder.norm_out", into)
    add(tensors, "decoder.conv_out", 3, into)
    tensors["quantize.embedding.weight"] = rng.normal(size=(CODES, DIM))
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def with_codes_among_its_latents(tensors, compute):
    """Ids would otherwise be few: random latents lie on one side of random codes."""
    latents = compute(tensors, IMAGE.transpose(0, 3, 1, 2))[0].transpose(0, 2, 3, 1)
    codes = rng.permutation(latents.reshape(-1, DIM))[:CODES]
    return tensors | {"quantize.embedding.weight": codes.astype(np.float32)}


MUSE = with_codes_among_its_latents(muse_tensors(), muse)
TAMING = with_codes_among_its_latents(taming_tensors(), tamed)


def flax_tree():
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32),
        vqgan.shapes(vqgan.Network(**NETWORK)),
    )


def saved(tmp_path, tensors, name="weights.safetensors"):
    save_file(tensors, tmp_path / name)
    return tmp_path / name


def test_mages_weights_are_open_muses_by_other_names(tmp_path):
    def renamed_one(name):
        name = name.replace("upsample_conv", "upsample.conv")
        return name.replace(".mid.0.", ".mid.block_1.").replace(".mid.1.", ".mid.block_2.")

    renamed = {renamed_one(name): tensor for name, tensor in MUSE.items()}
    assert len(renamed.keys() - MUSE) == 2 * 2 * 6 + 2 * 2
    mage = maskgit.read(saved(tmp_path, renamed, "mage"))
    assert mage.layout == "MAGE (PyTorch)"
    assert mage.tokenizer.network == vqgan.Network(**NETWORK)
    params = maskgit.read(saved(tmp_path, MUSE)).tokenizer.params
    jax.tree.map(np.testing.assert_array_equal, mage.tokenizer.params, params)


@pytest.mark.parametrize(
    ("tensors", "compute", "network"),
    [(MUSE, muse, vqgan.Network), (TAMING, tamed, taming.Network)],
)
def test_pytorch_weights_compute_what_their_network_computes(tmp_path, tensors, compute, network):
    imported = maskgit.read(saved(tmp_path, tensors))
    tokenizer = imported.tokenizer
    assert tokenizer.network == network(**NETWORK) and not imported.left_out
    latents, pictures = compute(tensors, IMAGE.transpose(0, 3, 1, 2))
    ours = jax.jit(lambda image: tokenizer.apply("latents", image))(IMAGE)
    expected = latents.transpose(0, 2, 3, 1)
    assert abs(ours - expected).max() < 1e-4 * expected.std()
    ids = ids_of(tensors, latents)
    assert len(np.unique(ids)) > 8
    np.testing.assert_array_equal(tokenizer.apply("quantize", ours), ids)
    raw = jax.jit(lambda ids: tokenizer.apply("decode", tokenizer.apply("codes", ids)))(ids)
    pictures = pictures.transpose(0, 2, 3, 1)
    assert abs(raw - pictures).max() < 1e-3 * pictures.std()


def test_a_blob_without_its_decoder_is_told(tmp_path):
    path = tmp_path / "half"
    tree = {name: part for name, part in flax_tree().items() if name != "decoder"}
    path.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(CheckpointError) as caught:
        maskgit.read(path)
    lines = str(caught.value).splitlines()
    assert lines[2].startswith("  decoder/Conv_0/bias") and lines[2].endswith("-")
    assert len(lines) == 24 and lines[22].startswith("  and ")


@pytest.mark.parametrize("top", [lambda tree: {"params": tree}, lambda tree: tree])
def test_a_flax_blob_is_read_with_params_at_its_top_or_not(tmp_path, top):
    tree = flax_tree()
    path = tmp_path / "tokenizer_imagenet256_checkpoint"
    path.write_bytes(serialization.msgpack_serialize(top(tree)))
    tokenizer = maskgit.read(path).tokenizer
    assert tokenizer.network == vqgan.Network(**NETWORK)
    jax.tree.map(np.testing.assert_array_equal, tokenizer.params, tree)


def test_half_precision_comes_in_as_float32(tmp_path):
    halves = {name: tensor.astype(jnp.bfloat16) for name, tensor in MUSE.items()}
    params = maskgit.read(saved(tmp_path, halves)).tokenizer.params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_what_only_training_needs_is_left_out_and_told(tmp_path, capsys):
    extra = {"loss.discriminator.main.0.weight": np.zeros((2, 2), np.float32)}
    path, out = saved(tmp_path, TAMING | extra), tmp_path / "out"
    assert cli.run(["tokenizer", "import", f"--from={path}", f"--out={out}"]) == 0
    assert "left out    1 tensor that only its training needs: loss.disc" in capsys.readouterr().out


# The command.


def test_the_command_writes_a_folder_that_gives_the_same_ids_and_says_how_to_use_it(
    tmp_path, capsys
):
    path, out = saved(tmp_path, MUSE), tmp_path / "out"
    command = ["tokenizer", "import", f"--from={path}", f"--out={out}"]
    assert cli.run(command) == 0
    told = capsys.readouterr().out
    assert "open-muse (PyTorch)" in told and "32 filters x 1 2 2, 2 blocks a level" in told
    for flag in ("name=vqgan", f"path={out}", "patch_size=4", "filters=32", "codebook_size=12",
                 "channel_multipliers=1,2,2", "embedding_dim=8"):  # fmt: skip
        assert f"  --config.tokenizer.{flag}\n" in told
    back, imported = vqgan.load(out), maskgit.read(path).tokenizer
    jax.tree.map(np.testing.assert_array_equal, back.params, imported.params)
    assert folder.read_note(out)["origin"] == "weights.safetensors, open-muse (PyTorch)"
    assert max(map(len, told.replace(str(tmp_path), "").splitlines())) <= 80

    written = (out / folder.NOTE).stat().st_mtime_ns
    assert cli.run(command) == 0
    assert "unchanged" in capsys.readouterr().out
    assert (out / folder.NOTE).stat().st_mtime_ns == written
    again = ["tokenizer", "import", f"--from={out / folder.WEIGHTS}", f"--out={tmp_path / 'b'}"]
    assert cli.run(again) == 4  # its norm_groups and origin would be lost
    assert f"is a tokenizer already: set --config.tokenizer.path={out}" in capsys.readouterr().err


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    path, out = saved(tmp_path, MUSE), tmp_path / "out"
    vqgan.VQGAN(flax_tree(), vqgan.Network(**NETWORK)).save(out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    for where, told in ((out, "holds another tokenizer"), (tmp_path, "is not an empty folder"),
                        (path, "is not an empty folder")):  # fmt: skip
        assert cli.run(["tokenizer", "import", f"--from={path}", f"--out={where}"]) == 2
        assert told in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    (out / folder.NOTE).unlink()  # an import that was killed is made again
    assert cli.run(["tokenizer", "import", f"--from={path}", f"--out={out}"]) == 0
    assert cli.run(["tokenizer", "import", f"--out={out}"]) == 2
    assert "--from is missing" in capsys.readouterr().err


# Files that cannot be used.


def without(name):
    return {other: tensor for other, tensor in MUSE.items() if other != name}


LONG = "encoder.down.0.block.0.a_layer_that_nobody_knows.weight"
UNFIT = {
    "missing": (
        without("encoder.mid.1.conv2.weight"),
        "encoder.mid.1.conv2.weight                   [64, 64, 3, 3]   -",
    ),
    "unknown": (
        MUSE | {LONG: np.ones(3, np.float32)},
        "encoder.down.0.block..._nobody_knows.weight  -                [3]",
    ),
    "misshapen": (
        MUSE | {"encoder.conv_out.bias": np.ones(9, np.float32)},
        "encoder.conv_out.bias                        [8]              [9]",
    ),
    "flat": (
        MUSE | {"encoder.conv_in.weight": np.ones(9, np.float32)},
        "encoder.conv_in.weight                       [32, 3, 3, 3]    [9]",
    ),
    "a level's first": (
        without("encoder.down.1.block.0.conv1.weight"),
        "encoder.down.1.block.0.conv1.weight          [64, 32, 3, 3]   -",
    ),
    "another rank": (
        TAMING | {"quantize.embedding.weight": np.ones(9, np.float32)},
        "quantize.embedding.weight                    [1024, 256]      [9]",
    ),
}


@pytest.mark.parametrize("number", ["99999999", "9" * 5000])
@pytest.mark.parametrize(
    "name",
    ["encoder.down.{}.block.0.conv1.weight", "encoder.down.0.block.{}.conv1.weight",
     "encoder/ResBlock_{}/Conv_0/kernel", "decoder/Conv_{}/kernel"],
)  # fmt: skip
def test_a_large_number_in_a_name_takes_no_time(tmp_path, name, number):
    marker = "quantizer/codebook" if "/" in name else "quantize.embedding.weight"
    tensors = {marker: np.ones((2, 3), np.float32), name.format(number): np.ones(1, np.float32)}
    with pytest.raises(CheckpointError, match="tensors do not fit a network"):
        maskgit.read(saved(tmp_path, tensors))


def test_blocks_for_which_there_are_too_few_tensors_take_no_time(tmp_path):
    names = (f"encoder.down.{level}.block.{79 - level}.conv1.weight" for level in range(80))
    tensors = dict.fromkeys(names, np.ones((32, 32, 1, 1), np.float32))
    tensors |= {"quantize.embedding.weight": np.ones((2, 3), np.float32)}
    with pytest.raises(CheckpointError, match="80 levels of 80 blocks need more than 81 arrays"):
        maskgit.read(saved(tmp_path, tensors))


@pytest.mark.parametrize(
    "blob",
    [b"\x81\xa1x" * 100_000, b"\x81\xa1x" * 600 + b"\xc0",
     serialization.msgpack_serialize({"x": "text"}), b"\x81\xa1x\xc7\x04\x01\x93\x91\x01\xa0"],
    ids=["nested", "nested less", "text", "an array of no type"],
)  # fmt: skip
def test_a_blob_that_holds_no_arrays_is_told(tmp_path, blob):
    (tmp_path / "x.msgpack").write_bytes(blob)
    with pytest.raises(CheckpointError, match="npz or Flax's msgpack|does not hold numbers"):
        maskgit.read(tmp_path / "x.msgpack")


@pytest.mark.parametrize("fault", UNFIT)
def test_tensors_that_do_not_fit_are_told_in_one_table(tmp_path, fault):
    tensors, row = UNFIT[fault]
    path = saved(tmp_path, tensors)
    with pytest.raises(CheckpointError) as caught:
        maskgit.read(path)
    told = str(caught.value).replace(str(path), "w")
    assert row in told and "tensor    " in told
    assert max(map(len, told.splitlines())) <= 80 and len(told.splitlines()) < 26
    one = "w: 1 tensor does" if fault != "another rank" else "w: 8 tensors do"
    assert f"{one} not fit a network" in told


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"encoder.down_blocks.0.weight": np.ones(3)}, "1 tensor in no known layout, e.g. enc"),
        (
            MUSE | {"decoder.norm_out.bias": np.full(32, np.nan, np.float32)},
            "not finite, e.g. in d",
        ),
    ],
)
def test_another_layout_and_values_that_are_not_finite_are_told(tmp_path, tensors, told):
    with pytest.raises(CheckpointError, match=told):
        maskgit.read(saved(tmp_path, tensors))


def test_channels_that_no_norm_divides_are_told(tmp_path):
    odd = MUSE | {
        "encoder.conv_in.weight": np.ones((33, 3, 3, 3), np.float32),
        "encoder.down.0.block.0.conv1.weight": np.ones((33, 33, 3, 3), np.float32),
    }
    with pytest.raises(CheckpointError, match="33 x 1 channels does not divide into 32 groups"):
        maskgit.read(saved(tmp_path, odd))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("name", ["last.ckpt", "a.pt", "a.PTH", "a.bin", "a.pkl"])
def test_what_is_named_like_a_pickle_is_not_opened(tmp_path, name):
    with pytest.raises(CheckpointError, match="opens none.*(\n.*)*weights_only=True"):
        maskgit.read(saved(tmp_path, MUSE, name))


def test_a_pickle_is_not_opened_whatever_its_name(tmp_path, capsys):
    import pickle
    import zipfile

    path = tmp_path / "model.safetensors"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"params": Bomb()}, protocol))
        with pytest.raises(CheckpointError, match="is a pickle"):
            maskgit.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    assert cli.run(["tokenizer", "import", f"--from={path}", f"--out={tmp_path / 'out'}"]) == 4
    assert "is a pickle" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["safetensors", "msgpack"])
@pytest.mark.parametrize("harm", ["cut", "cut in its head", "longer", "empty", "text", "a list"])
def test_a_damaged_file_is_told(tmp_path, kind, harm):
    path = saved(tmp_path, MUSE)
    if kind == "msgpack":
        path.write_bytes(serialization.msgpack_serialize(flax_tree()))
    whole = path.read_bytes()
    damaged = {
        "cut": whole[:-10], "cut in its head": whole[:40], "longer": whole + b"x", "empty": b"",
        "text": b"<!DOCTYPE html><html>", "a list": serialization.msgpack_serialize([1, 2]),
    }  # fmt: skip
    path.write_bytes(damaged[harm])
    with pytest.raises(CheckpointError, match="is not a complete file of safetensors, npz or Flax"):
        maskgit.read(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        maskgit.read(tmp_path / "none")


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path):
    for spaces in range(0, 256, 8):
        path = saved(tmp_path, MUSE | {"loss." + "x" * spaces: np.ones(1, np.float32)})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80" and maskgit.read(path).left_out


def test_a_folder_is_told_and_an_archive_of_numpy_is_read(tmp_path):
    path = saved(tmp_path, MUSE)
    with pytest.raises(CheckpointError, match=rf"is a folder: give the file, e.g. {path}"):
        maskgit.read(tmp_path)
    np.savez(tmp_path / "w.npz", **MUSE)
    assert (
        maskgit.read(tmp_path / "w.npz").tokenizer.fingerprint()
        == maskgit.read(path).tokenizer.fingerprint()
    )


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, capsys):
    path = saved(tmp_path, MUSE)
    os.symlink("itself", tmp_path / "itself")
    for out in (path / "x", tmp_path / "itself", tmp_path / ("n" * 300)):
        assert cli.run(["tokenizer", "import", f"--from={path}", f"--out={out}"]) == 2
        assert f"cannot write to --out={out}: " in capsys.readouterr().err


def test_layouts_name_every_parameter_of_the_default_network_once():
    for layout in maskgit.LAYOUTS:
        network = layout.network()
        paths = traverse_util.flatten_dict(vqgan.shapes(network))
        keys = {layout.name_of(path, network) for path in paths}
        assert len(keys) == len(paths) and layout.marker in keys
