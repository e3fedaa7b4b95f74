"""Give damaged input to supmim: each must be accepted or refused with a reason, within 5 seconds.

    python tools/fuzz.py                     # all subjects, two minutes
    python tools/fuzz.py weights --seed=1    # one subject, other damage

Subjects: images (decoded), weights (imported, or loaded as a tokenizer), config (config.json of a
workdir) and overrides (--config.OPTION=VALUE). All input is made here, deterministically by the
seed. The table counts what was refused and accepted; for images, `altered` is how many of the
accepted ones have other pixels than the undamaged file. A case fails if it takes longer, or raises
anything but an error of supmim. Failures are listed, and the exit code is then 1.
"""

import argparse
import collections
import contextlib
import copy
import io
import json
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from flax import serialization, traverse_util
from PIL import Image
from safetensors.numpy import save

from supmim import cli
from supmim import config as config_lib
from supmim.config import options
from supmim.data import decode
from supmim.errors import SupmimError
from supmim.interop import maskgit
from supmim.tokenizers import folder, patch_vq, vqgan

LIMIT = 5.0  # seconds
ROOT = Path(__file__).parents[1]
HUGE = (2**31, 2**63 - 1, 2**64 - 1, 10**12, 99_999_999)
VALUES = (
    "inf", "-inf", "nan", "-1", "0", "1e400", "-1e400", "1e-400", str(10**12), str(10**30), "", " ",
    "a" * 10_000, "9" * 5_000, "猫", "\x1b[31m", "\x1b]8;;x\x07", "\u202e", "\x00", "[1,2]", "()",
    "(1,2)", "{}", "None", "True", "false", "0x10", "1_000", "1,1,2", "1," * 5_000, "../..", "~",
    "digits", "folder:/", "records:", "tfds:", "../../../etc/passwd", "$HOME", "%s", "{0}", "0.5",
    "2", "3", "7", "1e9", "65537",
)  # fmt: skip


class Case(NamedTuple):
    """One damaged input; run: returns whether its content is altered, or raises."""

    kind: str
    what: str
    run: Callable[[], bool]


class TooSlow(BaseException):
    """The time of a case is over; no handler of Exception may catch it."""


def pick(rng: np.random.Generator, values: Any) -> Any:
    """Return one of some values, as it is."""
    values = list(values)
    return values[rng.integers(len(values))]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes with one kind of damage."""
    out, place = bytearray(data), int(rng.integers(len(data)))
    if rng.random() < 0.5:
        place = min(place, int(rng.integers(1, 200)), len(data) - 1)  # more often in the header
    length = int(rng.integers(1, 64))
    match rng.integers(7):
        case 0:
            out[place] ^= 1 << rng.integers(8)
        case 1:
            out[place : place + length] = rng.bytes(length)
        case 2:
            del out[place:]
        case 3:
            del out[place : place + length]
        case 4:
            out[place:place] = rng.bytes(length)
        case 5:
            order = pick(rng, ("<", ">")) + pick(rng, "HIQ")
            size = struct.calcsize(order)
            number = pick(rng, (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (4 * size)))
            out[place : place + size] = struct.pack(order, number)
        case _:
            out[place : place + length] = bytes(length)
    return bytes(out)


def pictures(rng: np.random.Generator) -> dict[str, bytes]:
    """Return a picture as a file of each kind."""
    y, x = np.mgrid[:48, :64]
    noise = rng.integers(0, 40, (48, 64, 3))
    pixels = np.stack([3 * x, 4 * y, 2 * (x + y)], axis=-1) + noise
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    grey16 = Image.fromarray((pixels[..., 0] * 250).astype(np.uint16))
    kinds = {
        "JPEG baseline": (image, "JPEG", {}),
        "JPEG progressive": (image, "JPEG", {"progressive": True}),
        "JPEG grey": (image.convert("L"), "JPEG", {}),
        "JPEG CMYK": (image.convert("CMYK"), "JPEG", {}),
        "PNG RGB": (image, "PNG", {}),
        "PNG RGBA": (image.convert("RGBA"), "PNG", {}),
        "PNG palette": (image.quantize(16), "PNG", {"bits": 4}),
        "PNG grey 16": (grey16, "PNG", {}),
        "PNG 1 bit": (image.convert("1"), "PNG", {}),
        "TIFF raw": (image, "TIFF", {}),
        "TIFF LZW": (image, "TIFF", {"compression": "tiff_lzw"}),
        "TIFF grey 16": (grey16, "TIFF", {}),
        "WebP": (image, "WEBP", {}),
        "WebP lossless": (image, "WEBP", {"lossless": True}),
        "GIF": (image.quantize(64), "GIF", {}),
        "BMP": (image, "BMP", {}),
        "BMP palette": (image.quantize(64), "BMP", {}),
    }
    files = {}
    for kind, (picture, name, how) in kinds.items():
        file = io.BytesIO()
        picture.save(file, name, **how)
        files[kind] = file.getvalue()
    return files


def decoded(data: bytes) -> np.ndarray:
    """Return pixels as evaluation sees them."""
    header = decode.read_header(data, options.Data().max_pixels)
    return decode.decode(data, header, channels=3)


def image_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    files = pictures(rng)
    right = {kind: decoded(data) for kind, data in files.items()}
    for number in range(count):
        kind = list(files)[number % len(files)]
        data = damaged(files[kind], rng)

        def run(data: bytes = data, kind: str = kind) -> bool:
            return not np.array_equal(decoded(data), right[kind])

        yield Case(kind, data.hex(), run)


def tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the parameters of a small tokenizer in MaskGIT's names."""
    network = vqgan.Network(
        filters=32, channel_multipliers=(1, 1), num_res_blocks=1, embedding_dim=4, codebook_size=8
    )
    flat = traverse_util.flatten_dict(vqgan.shapes(network), sep="/")
    return {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in flat.items()}


def odd_name(name: str, rng: np.random.Generator) -> str:
    """Return another name: a number in it becomes huge, or something is put in."""
    number = str(pick(rng, HUGE))
    choices = (
        "".join(number if c.isdigit() else c for c in name), f"{name}_{number}", name[::-1], "",
        f"encoder/ResBlock_{number}/Conv_0/kernel", f"decoder/Conv_{number}/kernel", "../../x",
        f"encoder.down.{number}.block.0.conv1.weight", "quant_conv.weight", "\x1b[31m" + name,
        "encoder.mid.block_1.norm1.weight", "quantize.embedding.weight", name + "/x" * 2_000,
        f"encoder.down.0.block.{number}.conv1.weight", name + "\n", "encoder/ResBlock_²/x",
    )  # fmt: skip
    return pick(rng, choices)


def safetensors_with(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return a safetensors file with a changed header; its data stay."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def odd_header(header: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return a header of safetensors with an entry renamed or misdescribed."""
    name = pick(rng, header)
    entry = header.pop(name)
    match rng.integers(4):
        case 0:
            header[odd_name(name, rng)] = entry
        case 1:
            shapes = ([pick(rng, HUGE), 0], [-1, 2], [pick(rng, HUGE)] * 2, [], [0], [0.5], ["a"])
            header[name] = entry | {"shape": pick(rng, shapes), "data_offsets": [0, 0]}
        case 2:
            dtype = pick(rng, ("BF16", "F8_E4M3", "I64", "BOOL", "F16", "C64", "nonsense"))
            header[name] = entry | {"dtype": dtype}
        case _:
            ends = ([0, pick(rng, HUGE)], [5, 1], [-4, 4], [0, 4])
            header[name] = entry | {"data_offsets": pick(rng, ends)}
    return header


def odd_tree(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> bytes:
    """Return a msgpack of Flax with a renamed, misdescribed or deeply nested leaf."""
    name = pick(rng, arrays)
    tree: dict[str, Any] = dict(arrays)
    array = tree.pop(name)
    shapes = ([pick(rng, HUGE)], [-1, -1], [pick(rng, HUGE)] * 3, ["a"], [0.5], None, 7)
    dtypes = ("float32", "object", "O", "U8", "void", "datetime64[s]", "bfloat16", "__class__", "")
    described = msgpack.packb([pick(rng, shapes), pick(rng, dtypes), b"\0" * 16])
    bomb = {"__msgpack_chunked_array__": True, "shape": {"0": pick(rng, HUGE)}, "chunks": {"0": 1}}
    match rng.integers(4):
        case 0:
            tree[odd_name(name, rng)] = array
        case 1:
            tree[name] = msgpack.ExtType(int(rng.integers(0, 5)), described)
        case 2:
            return nested(array, pick(rng, (10, 400, 900, 100_000)))
        case _:
            tree[name] = pick(rng, (bomb, None, "text", 10**18, [1, 2], {}, b"bytes", True, 1.5))
    plain = {
        key: msgpack.ExtType(1, msgpack.packb([list(x.shape), x.dtype.name, x.tobytes()]))
        if isinstance(x, np.ndarray)
        else x
        for key, x in traverse_util.flatten_dict(tree, sep="/").items()
    }
    try:
        return msgpack.packb(traverse_util.unflatten_dict(plain, sep="/"), strict_types=False)
    except ValueError:  # a name with so many slashes that msgpack itself refuses to write it
        return nested(array, 100_000)


def nested(array: np.ndarray, depth: int) -> bytes:
    """Return a msgpack of an array so deep in dicts that no recursion comes to it."""
    return b"\x81\xa1x" * depth + serialization.to_bytes(array)


def weight_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    arrays = tensors(rng)
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    files = {
        "safetensors": save(arrays),
        "msgpack": serialization.msgpack_serialize(tree),
        "npz": npz(codes=np.zeros((8, 4), np.float32), patch_size=2, channels=1),
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        for number in range(count):
            kind = (*files, "tokenizer")[number % 4]
            if kind == "tokenizer":
                yield tokenizer_case(path / f"tokenizer{number}", tree, rng)
                continue
            data = damaged(files[kind], rng)
            if number % 8 >= 4 and kind == "safetensors":
                data = safetensors_with(files[kind], lambda header: odd_header(header, rng))
            elif number % 8 >= 4 and kind == "msgpack":
                data = odd_tree(arrays, rng)
            elif number % 8 >= 4:
                data = npz_with_header(pick(rng, (*HUGE, -1)), rng)

            def run(data: bytes = data, kind: str = kind, where: Path = path / str(number)) -> bool:
                return load_weights(data, kind, where)

            yield Case(kind, data[:300].hex(), run)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def npz_with_header(number: int, rng: np.random.Generator) -> bytes:
    """Return the file of a k-means tokenizer that declares a huge array, or holds one of zeros."""
    if rng.random() < 0.2:
        return npz(codes=np.zeros((2**20, 512), np.uint8), patch_size=2, channels=1)
    whole = npz(codes=np.zeros((8, 4), np.float32), patch_size=2, channels=1)
    shape = pick(rng, (f"({number}, 4)", f"({number},) * 2", "(8, 4, {", "(" * 500))
    array = io.BytesIO()
    np.save(array, np.zeros((8, 4), np.float32))
    text = array.getvalue().replace(b"(8, 4)", shape.encode()[:60].ljust(6))
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, text if name == "codes.npy" else old.read(name))
    return file.getvalue()


def load_weights(data: bytes, kind: str, where: Path) -> bool:
    if kind == "npz":
        where.mkdir()
        (where / patch_vq.OLD_CODES).write_bytes(data)
        (where / patch_vq.OLD_DIGEST).write_text(json.dumps({"sha256": sha256(data).hexdigest()}))
        patch_vq.load(where)
    else:
        where.write_bytes(data)
        maskgit.read(where)
    return False


def tokenizer_case(where: Path, tree: Any, rng: np.random.Generator) -> Case:
    """Return a tokenizer folder whose note or weights are wrong, though the digest is right."""
    sizes = {"filters": 32, "channel_multipliers": [1, 1], "num_res_blocks": 1, "embedding_dim": 4,
             "codebook_size": 8, "channels": 3, "norm_groups": 32}  # fmt: skip
    odd: tuple[Any, ...] = (*HUGE, -1, 0, 1.5, "a", None, [], [1] * 500, {}, 10**400)
    folder.write(where, "vqgan", sizes | {pick(rng, sizes): pick(rng, odd)}, tree, "fuzz")
    note = (where / folder.NOTE).read_bytes()
    if rng.random() < 0.3:
        (where / folder.NOTE).write_bytes(damaged(note, rng))
    if rng.random() < 0.1:
        (where / folder.NOTE).write_text("[" * 100_000)

    def run() -> bool:
        vqgan.load(where)
        return False

    return Case("tokenizer", (where / folder.NOTE).read_bytes()[:400].hex(), run)


def config_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    text = config_lib.to_json(config_lib.validate(config_lib.get_config()))
    odd: tuple[Any, ...] = (*VALUES, *HUGE, -1, 0, 1.5, None, [], {}, [[1]], True, float("inf"))
    for number in range(count):
        document = copy.deepcopy(json.loads(text))
        found = document["config"]
        group = pick(rng, [found, *(part for part in found.values() if isinstance(part, dict))])
        name = pick(rng, group)
        kind = ("bytes", "value", "name", "document")[number % 4]
        if kind == "value":
            group[name] = pick(rng, odd)
        elif kind == "name":
            group[pick(rng, VALUES)] = group.pop(name)
        elif kind == "document":
            document[pick(rng, document)] = pick(rng, odd)
        changed = json.dumps(document)
        if kind == "bytes":
            changed = damaged(text.encode(), rng).decode(errors="replace")
        if number % 50 == 3:
            changed = text.replace("{", '{"x":' + "[" * 100_000, 1)

        def run(changed: str = changed) -> bool:
            config_lib.from_json(changed, "config.json")
            return False

        yield Case(kind, changed[:3000], run)


def override_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    paths = [*options.OPTIONS, "encoder", "encoder.x", "x", "encoder.depth.x", "", "."]
    for number in range(count):
        path, value = paths[number % len(paths)], pick(rng, VALUES)
        args = [f"--config={ROOT / 'configs/digits.py'}", "--workdir=x", f"--config.{path}={value}"]

        def run(args: list[str] = args) -> bool:
            cli.config_of(cli.VERBS["train"], cli.parse("train", args))
            return False

        yield Case(path.partition(".")[0] if "." in path else "top", args[-1][:200], run)


SUBJECTS = {
    "images": (image_cases, 3000),
    "weights": (weight_cases, 500),
    "config": (config_cases, 500),
    "overrides": (override_cases, 900),
}


def attempt(case: Case) -> tuple[str, str]:
    """Return the outcome of a case, and a traceback if it failed."""
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            outcome = "altered" if case.run() else "accepted"
    except (SupmimError, decode.BadImage):
        outcome = "refused"
    except TooSlow:
        return "slow", traceback.format_exc()
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.monotonic() - began
    return ("slow", f"{seconds:.1f} s") if seconds > LIMIT else (outcome, "")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="cases of each subject")
    args = parser.parse_args()

    def stop(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    columns, failed = ("refused", "accepted", "altered", "slow", "traceback"), 0
    print(f"{'':<28}" + "".join(f"{column:>11}" for column in columns))
    for subject in args.subjects or SUBJECTS:
        cases, count = SUBJECTS[subject]
        table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        failures, began = [], time.monotonic()
        for number, case in enumerate(cases(np.random.default_rng(args.seed), args.count or count)):
            outcome, why = attempt(case)
            table[case.kind][outcome] += 1
            if why:
                failures.append(
                    f"{subject} {number}, {case.kind}, {outcome}:\n{case.what!r}\n{why}"
                )
        for kind, found in table.items():
            print(f"{subject + ', ' + kind:<28}" + "".join(f"{found[c]:>11,}" for c in columns))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{subject}: {time.monotonic() - began:.0f} s, at most {peak:.1f} GiB of memory so far"
        )
        print("\n".join(failures), file=sys.stderr)
        failed += len(failures)
    print(f"failures: {failed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
