"""Reads the text of a compiled program: its kernels, their traffic, collectives and products.

The text is HLO as `Compiled.as_text()` prints it for CPU, GPU and TPU. What runs several times
counts several times: a loop as often as its trip count says, once where that is not known.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
PRODUCTS = ("dot", "convolution")
PRODUCT_LIBRARIES = re.compile("cublas|onednn.*matmul|matmul|cudnn[$]conv")
# Names for values that are there already, and ends of what another line started.
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


class Array(NamedTuple):
    """Element type and shape, e.g. bf16 and (256, 768)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes; pred takes one, token none."""
        if self.dtype == "pred":
            return self.size
        bits = re.search(r"\d+", self.dtype)
        return math.ceil(self.size * int(bits[0]) / 8) if bits else 0


class Instruction(NamedTuple):
    """One line: what it makes, how, of what; `rest` is the line after its operands."""

    name: str
    op: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str

    def attribute(self, name: str) -> str:
        """The value after `name=`, up to the next blank, comma or brace; empty if not there."""
        found = re.search(rf"\b{name}=\{{?\"?%?([^\s,{{}}\"]+)", self.rest)
        return found[1] if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers between the braces of `name={...}`."""
        found = re.search(rf"\b{name}={{([\d,]*)}}", self.rest)
        return tuple(map(int, found[1].split(","))) if found and found[1] else ()


class Kernel(NamedTuple):
    """kind: product, library, collective, or elementwise (all that is left, reductions too).

    bytes: operands and results; scratch: results that nobody reads (workspace of a library).
    """

    name: str
    kind: str
    bytes: int
    scratch: int
    times: int


class Collective(NamedTuple):
    """bytes: of the larger of what goes in and what comes out, on one device, each time.

    devices: how many take part in one group; 0 if the text does not tell.
    """

    kind: str
    dtype: str
    bytes: int
    devices: int
    times: int


class Product(NamedTuple):
    """A matrix product or a convolution; dtype: that of its wider factor."""

    dtype: str
    flops: float
    times: int


class Program:
    """A compiled program, from its text."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = inside = ""
        for line in text.splitlines():
            if head := COMPUTATION.match(line):
                inside = head[2]
                self.computations[inside] = {}
                self.entry = inside if head[1] else self.entry
            elif line.startswith("  ") and inside and (found := _instruction(line)):
                self.computations[inside][found.name] = found

    def kernels(self) -> list[Kernel]:
        """What is launched, in order; a loop or a call stands for what is inside."""
        return [
            Kernel(one.name, self._kind(one), *self._traffic(one, where), times)
            for where, one, times in self._steps(self.entry)
            if one.op not in FREE and not one.op.endswith("-done")
        ]

    def traffic(self) -> dict[str, int]:
        """Bytes at the boundaries of all kernels by their kind, with `scratch` on its own."""
        total: Counter[str] = Counter()
        for kernel in self.kernels():
            total[kernel.kind] += kernel.bytes * kernel.times
            total["scratch"] += kernel.scratch * kernel.times
        return dict(total)

    def collectives(self) -> list[Collective]:
        """Every collective that runs; one that is written in several parts counts once."""
        found, seen = [], set()
        for where, one, times in self._deep_steps():
            kind = one.op.removesuffix("-start")
            channel = one.attribute("channel_id")
            if kind not in COLLECTIVES or channel in seen:
                continue
            seen |= {channel} - {""}
            if kind == "all-reduce" and "all-reduce-scatter" in where:
                kind = "reduce-scatter"  # the TPU compiler's name of one
            inputs, results = self._inputs(one, where), self._finished(one, where).results
            size = max(_bytes(inputs), _bytes(results))
            dtypes = "+".join(sorted({array.dtype for array in inputs}))
            found.append(Collective(kind, dtypes, size, _group_size(one), times))
        return found

    def products(self) -> list[Product]:
        """Every matrix product and convolution; what a library does inside its own is not seen."""
        return [
            Product(max((a.dtype for a in inputs), key=_width), _flops(one, inputs), times)
            for where, one, times in self._deep_steps()
            if _is_product(one)
            for inputs in [self._inputs(one, where)[:2]]
        ]

    def float32_share(self) -> float:
        """Share of the FLOPs of products that have a float32 factor, in [0, 1]."""
        flops: Counter[bool] = Counter()
        for product in self.products():
            flops[product.dtype == "f32"] += product.flops * product.times
        return flops[True] / (flops.total() or 1)

    def _steps(self, where: str, times: int = 1) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often) of all that runs from this computation on."""
        for one in self.computations[where].values():
            if one.op == "while":
                yield from self._steps(one.attribute("body"), times * self._trips(one))
            elif one.op == "call":
                yield from self._steps(one.attribute("to_apply"), times)
            elif one.op == "conditional":
                yield from max((list(self._steps(b, times)) for b in _branches(one)), key=len)
            else:
                yield where, one, times

    def _deep_steps(self) -> Iterator[tuple[str, Instruction, int]]:
        """The same, with what is inside fusions and asynchronous starts."""
        for where, one, times in self._steps(self.entry):
            yield where, one, times
            yield from self._within(one, times)

    def _within(self, one: Instruction, times: int) -> Iterator[tuple[str, Instruction, int]]:
        if one.op in ("fusion", "async-start"):
            inside = one.attribute("calls")
            for inner in self.computations[inside].values():
                yield inside, inner, times
                yield from self._within(inner, times)

    def _trips(self, loop: Instruction) -> int:
        """The stated trip count, else the bound that the loop's condition compares with."""
        if stated := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(stated[1])
        condition = self.computations[loop.attribute("condition")].values()
        bounds = [re.match(r"constant\((\d+)\)", f"{one.op}{one.rest}") for one in condition]
        return max((int(bound[1]) for bound in bounds if bound), default=1)

    def _inputs(self, one: Instruction, where: str) -> list[Array]:
        known = self.computations[where]
        return [array for name in one.operands if name in known for array in known[name].results]

    def _finished(self, one: Instruction, where: str) -> Instruction:
        """The line that ends what this one starts; itself where it starts nothing."""
        if not one.op.endswith("-start"):
            return one
        known = self.computations[where].values()
        return next((i for i in known if i.op.endswith("-done") and one.name in i.operands), one)

    def _kind(self, one: Instruction) -> str:
        inside = [one, *(inner for _, inner, _ in self._within(one, 1))]
        if any(i.op.removesuffix("-start") in COLLECTIVES for i in inside):
            return "collective"
        if any(map(_is_product, inside)):
            return "product"
        return "library" if one.op == "custom-call" else "elementwise"

    def _traffic(self, one: Instruction, where: str) -> tuple[int, int]:
        """(bytes, scratch) of one kernel."""
        read = sum(self._read(one, where, position) for position in range(len(one.operands)))
        written = self._written(self._finished(one, where), where)
        scratch = _scratch(one)
        return read + written - scratch, scratch

    def _read(self, one: Instruction, where: str, position: int) -> int:
        """Bytes of one operand that an instruction reads: of what is only sliced, the slices."""
        found = self.computations[where].get(one.operands[position])
        whole = _bytes(found.results) if found else 0
        if one.op in ("slice", "dynamic-slice") and position == 0:
            return _bytes(one.results)
        if one.op == "dynamic-update-slice" and position == 0:
            return 0  # changed in place
        if one.op not in ("fusion", "async-start"):
            return whole
        inside = one.attribute("calls")
        parameter = self._parameter(inside, position)
        return min(whole, sum(self._uses(parameter, inside)) if parameter else whole)

    def _uses(self, name: str, where: str) -> Iterator[int]:
        """Bytes of a value that each of its users in its computation reads."""
        for one in self.computations[where].values():
            for position, operand in enumerate(one.operands):
                if operand == name and one.op == "bitcast":
                    yield from self._uses(one.name, where)
                elif operand == name:
                    yield self._read(one, where, position)

    def _written(self, one: Instruction, where: str) -> int:
        """Bytes that an instruction writes: of what it changes in place, the changed part."""
        known = self.computations[where]
        if one.op == "dynamic-update-slice" and one.operands[1] in known:
            return _bytes(known[one.operands[1]].results)
        if one.op in ("tuple", "bitcast") and all(name in known for name in one.operands):
            return sum(self._written(known[name], where) for name in one.operands)
        if one.op == "fusion":
            inside = one.attribute("calls")
            return self._written(self._root(inside), inside)
        return 0 if one.op == "parameter" else _bytes(one.results)

    def _root(self, where: str) -> Instruction:
        """What a computation returns: its last line."""
        return next(reversed(self.computations[where].values()))

    def _parameter(self, where: str, number: int) -> str:
        """The name of a computation's parameter; empty where the text does not show it."""
        lines = self.computations[where].values()
        number = f"({number})"
        return next(
            (i.name for i in lines if i.op + i.rest[: len(number)] == f"parameter{number}"), ""
        )


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
    if not found:
        return None
    name, text = found.groups()
    made, text = _split(text) if text.startswith("(") else text.split(" ", 1)
    op, _, text = text.strip().partition("(")
    operands, rest = _split("(" + text)
    if op in ("constant", "parameter"):
        rest = operands + rest
    arrays = tuple(_array(*found) for found in ARRAY.findall(made))
    return Instruction(name, op, arrays, tuple(re.findall(r"%([\w.\-]+)", operands)), rest)


def _split(text: str) -> tuple[str, str]:
    """`(a (b) c) d` -> `(a (b) c)`, ` d`."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _array(dtype: str, dims: str) -> Array:
    return Array(dtype, tuple(int(dim) for dim in dims.split(",") if dim))


def _bytes(arrays: Any) -> int:
    return sum(array.bytes for array in arrays)


def _width(dtype: str) -> int:
    return Array(dtype, ()).bytes


def _scratch(one: Instruction) -> int:
    """A library's workspace: the trailing bytes, s8, of a result in several parts."""
    last = one.results[-1:]
    works = one.op == "custom-call" and len(one.results) > 1 and last[0].dtype in ("s8", "u8")
    return last[0].bytes if works else 0


def _branches(one: Instruction) -> list[str]:
    if listed := re.search(r"branch_computations={([^}]*)}", one.rest):
        return re.findall(r"[\w.\-]+", listed[1])
    return [one.attribute("true_computation"), one.attribute("false_computation")]


def _is_product(one: Instruction) -> bool:
    library = one.op == "custom-call" and PRODUCT_LIBRARIES.search(
        one.attribute("custom_call_target")
    )
    return one.op in PRODUCTS or bool(library)


def _flops(one: Instruction, inputs: list[Array]) -> float:
    """2 x elements of the result x length of the sums."""
    made, (left, right) = one.results[0], inputs
    if labels := re.search(r"dim_labels=\w+_(\w+)->", one.rest):
        return 2.0 * made.size * right.size / right.shape[labels[1].index("o")]
    summed = one.numbers("lhs_contracting_dims")
    if one.op == "custom-call":
        listed = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.rest)
        summed = [int(i) for i in re.findall(r"\d+", listed[1])] if listed else [-1]
    return 2.0 * made.size * math.prod(left.shape[i] for i in summed)


def _group_size(one: Instruction) -> int:
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\].*?(?<=[\s)])\{('[^}]*)\}", one.rest):
        sizes = dict(re.findall(r"('[^']+')=(\d+)", axes[1]))
        taken = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[axis]) for axis, part in taken)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", one.rest):
        return int(iota[1])
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", one.rest)
    return len(listed[1].split(",")) if listed else 0
