"""A reader of compiled programs: their kernels, memory traffic, collectives and products.

It reads HLO as `Compiled.as_text()` prints it for CPU, GPU and TPU. An instruction in a loop counts
as often as the loop iterates, or once if the trip count is unknown.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
PRODUCTS = ("dot", "convolution")
PRODUCT_LIBRARIES = re.compile("cublas|onednn.*matmul|matmul|cudnn[$]conv")
# Instructions that run no kernel: they name existing values.
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


class Array(NamedTuple):
    """Element type and shape of an array, e.g. bf16 and (256, 768)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes; an element of type pred takes one, a token none."""
        if self.dtype == "pred":
            return self.size
        bits = re.search(r"\d+", self.dtype)
        return math.ceil(self.size * int(bits[0]) / 8) if bits else 0


class Instruction(NamedTuple):
    """One line of HLO; `rest` is the text after its operands."""

    name: str
    op: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str

    def attribute(self, name: str) -> str:
        """Return the value after `name=`, up to a blank, comma or brace; empty if it is missing."""
        found = re.search(rf"\b{name}=\{{?\"?%?([^\s,{{}}\"]+)", self.rest)
        return found[1] if found else ""


class Kernel(NamedTuple):
    """A kernel launch and the number of times that it runs.

    kind: product, library, collective, or elementwise, which includes all others, such as
    reductions. bytes: size of operands and results. scratch: bytes of a library's workspace.
    """

    name: str
    kind: str
    bytes: int
    scratch: int
    times: int


class Collective(NamedTuple):
    """A collective operation and the number of times that it runs.

    bytes: size on one device of the operands or the results, whichever is larger, each time.
    devices: size of a group; 0 if the text does not show it.
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


Executed = tuple[str, Instruction, int]  # computation, instruction in it, number of times it runs


class Program:
    """A compiled program, parsed from its text."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = current = ""
        for line in text.splitlines():
            if head := COMPUTATION.match(line):
                current = head[2]
                self.computations[current] = {}
                self.entry = current if head[1] else self.entry
            elif line.startswith("  ") and current and (found := _instruction(line)):
                self.computations[current][found.name] = found

    def kernels(self) -> list[Kernel]:
        """Return the kernels in launch order; those inside of loops and calls are listed."""
        return [
            Kernel(instr.name, self._kind(instr), *self._traffic(instr, computation), times)
            for computation, instr, times in self._executed(self.entry)
            if instr.op not in FREE and not instr.op.endswith("-done")
        ]

    def traffic(self) -> dict[str, int]:
        """Return the bytes that kernels read and write by their kind, and `scratch` in total."""
        total: Counter[str] = Counter()
        for kernel in self.kernels():
            total[kernel.kind] += kernel.bytes * kernel.times
            total["scratch"] += kernel.scratch * kernel.times
        return dict(total)

    def collectives(self) -> list[Collective]:
        """Return every collective that runs; one that is split into several parts counts once."""
        found, seen = [], set()
        for computation, instr, times in self._executed_inside():
            kind = instr.op.removesuffix("-start")
            channel = instr.attribute("channel_id")
            if kind not in COLLECTIVES or channel in seen:
                continue
            seen |= {channel} - {""}
            if kind == "all-reduce" and "all-reduce-scatter" in computation:
                kind = "reduce-scatter"  # the TPU compiler's name for one
            inputs = self._inputs(instr, computation)
            size = max(_bytes(inputs), _bytes(self._done(instr, computation).results))
            dtypes = "+".join(sorted({array.dtype for array in inputs}))
            found.append(Collective(kind, dtypes, size, _group_size(instr), times))
        return found

    def products(self) -> list[Product]:
        """Return every matrix product and convolution, without those inside of a library."""
        found = []
        for computation, instr, times in self._executed_inside():
            if _is_product(instr):
                inputs = self._inputs(instr, computation)[:2]
                dtype = max((array.dtype for array in inputs), key=lambda d: Array(d, ()).bytes)
                found.append(Product(dtype, _flops(instr, inputs), times))
        return found

    def float32_share(self) -> float:
        """Return the share, in [0, 1], of the products' FLOPs that have a float32 factor."""
        flops = {True: 0.0, False: 0.0}
        for product in self.products():
            flops[product.dtype == "f32"] += product.flops * product.times
        return flops[True] / (sum(flops.values()) or 1)

    def _executed(self, computation: str, times: int = 1) -> Iterator[Executed]:
        """Yield the instructions that run from a computation on, with its loops and calls."""
        for instr in self.computations[computation].values():
            if instr.op == "while":
                yield from self._executed(instr.attribute("body"), times * self._trips(instr))
            elif instr.op == "call":
                yield from self._executed(instr.attribute("to_apply"), times)
            elif instr.op == "conditional":
                yield from max((list(self._executed(b, times)) for b in _branches(instr)), key=len)
            else:
                yield computation, instr, times

    def _executed_inside(self) -> Iterator[Executed]:
        """Yield what the program runs, with the contents of fusions and asynchronous starts."""
        for executed in self._executed(self.entry):
            yield from self._with_contents(*executed)

    def _with_contents(
        self, computation: str, instr: Instruction, times: int
    ) -> Iterator[Executed]:
        yield computation, instr, times
        if instr.op in ("fusion", "async-start"):
            inside = instr.attribute("calls")
            for inner in self.computations[inside].values():
                yield from self._with_contents(inside, inner, times)

    def _trips(self, loop: Instruction) -> int:
        """Return the stated trip count, or else the bound in the loop's condition."""
        if stated := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(stated[1])
        condition = self.computations[loop.attribute("condition")].values()
        bounds = [re.match(r"constant\((\d+)\)", f"{i.op}{i.rest}") for i in condition]
        return max((int(bound[1]) for bound in bounds if bound), default=1)

    def _inputs(self, instr: Instruction, computation: str) -> list[Array]:
        known = self.computations[computation]
        return [array for name in instr.operands if name in known for array in known[name].results]

    def _done(self, instr: Instruction, computation: str) -> Instruction:
        """Return the `-done` instruction of an asynchronous start, or the instruction itself."""
        if not instr.op.endswith("-start"):
            return instr
        for other in self.computations[computation].values():
            if other.op.endswith("-done") and instr.name in other.operands:
                return other
        return instr

    def _kind(self, instr: Instruction) -> str:
        inside = [inner for _, inner, _ in self._with_contents("", instr, 1)]
        if any(i.op.removesuffix("-start") in COLLECTIVES for i in inside):
            return "collective"
        if any(map(_is_product, inside)):
            return "product"
        return "library" if instr.op == "custom-call" else "elementwise"

    def _traffic(self, instr: Instruction, computation: str) -> tuple[int, int]:
        """Return the bytes that a kernel reads and writes, and those of its scratch memory."""
        read = sum(self._read(instr, computation, i) for i in range(len(instr.operands)))
        written = self._written(self._done(instr, computation), computation)
        scratch = _scratch(instr)
        return read + written - scratch, scratch

    def _read(self, instr: Instruction, computation: str, position: int) -> int:
        """Return the bytes that are read of one operand; only the slices if it is only sliced."""
        found = self.computations[computation].get(instr.operands[position])
        whole = _bytes(found.results) if found else 0
        if instr.op in ("slice", "dynamic-slice") and position == 0:
            return _bytes(instr.results)
        if instr.op == "dynamic-update-slice" and position == 0:
            return 0  # it is changed in place
        if instr.op not in ("fusion", "async-start"):
            return whole
        inside = instr.attribute("calls")
        parameter = self._parameter(inside, position)
        return min(whole, sum(self._uses(parameter, inside)) if parameter else whole)

    def _uses(self, name: str, computation: str) -> Iterator[int]:
        """Yield the bytes that each user of a value reads of it."""
        for instr in self.computations[computation].values():
            for position, operand in enumerate(instr.operands):
                if operand == name and instr.op == "bitcast":
                    yield from self._uses(instr.name, computation)
                elif operand == name:
                    yield self._read(instr, computation, position)

    def _written(self, instr: Instruction, computation: str) -> int:
        """Return the bytes that an instruction writes; for an update in place, the changed part."""
        known = self.computations[computation]
        if instr.op == "dynamic-update-slice" and instr.operands[1] in known:
            return _bytes(known[instr.operands[1]].results)
        if instr.op in ("tuple", "bitcast") and all(name in known for name in instr.operands):
            return sum(self._written(known[name], computation) for name in instr.operands)
        if instr.op == "fusion":
            inside = instr.attribute("calls")
            root = next(reversed(self.computations[inside].values()))
            return self._written(root, inside)
        return 0 if instr.op == "parameter" else _bytes(instr.results)

    def _parameter(self, computation: str, number: int) -> str:
        """Return the name of a computation's parameter; empty if the text does not show it."""
        for instr in self.computations[computation].values():
            if (instr.op + instr.rest).startswith(f"parameter({number})"):
                return instr.name
        return ""


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
    arrays = tuple(
        Array(dtype, tuple(int(size) for size in shape.split(",") if size))
        for dtype, shape in ARRAY.findall(made)
    )
    return Instruction(name, op, arrays, tuple(re.findall(r"%([\w.\-]+)", operands)), rest)


def _split(text: str) -> tuple[str, str]:
    """Split `(a (b) c) d` into `(a (b) c)` and ` d`."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _scratch(instr: Instruction) -> int:
    """Return the size of a library's workspace: the last of several results, if it holds bytes."""
    last = instr.results[-1:]
    found = instr.op == "custom-call" and len(instr.results) > 1 and last[0].dtype in ("s8", "u8")
    return last[0].bytes if found else 0


def _branches(instr: Instruction) -> list[str]:
    if listed := re.search(r"branch_computations={([^}]*)}", instr.rest):
        return re.findall(r"[\w.\-]+", listed[1])
    return [instr.attribute("true_computation"), instr.attribute("false_computation")]


def _is_product(instr: Instruction) -> bool:
    if instr.op == "custom-call":
        return bool(PRODUCT_LIBRARIES.search(instr.attribute("custom_call_target")))
    return instr.op in PRODUCTS


def _flops(instr: Instruction, inputs: list[Array]) -> float:
    """Return 2 x the elements of the result x the length of the sums."""
    made, (left, right) = instr.results[0], inputs
    if labels := re.search(r"dim_labels=\w+_(\w+)->", instr.rest):
        return 2.0 * made.size * right.size / right.shape[labels[1].index("o")]
    pattern, default = r"\blhs_contracting_dims={([\d,]*)}", []
    if instr.op == "custom-call":
        pattern, default = r'"lhs_contracting_dimensions":\[([^\]]*)\]', [-1]
    listed = re.search(pattern, instr.rest)
    summed = [int(i) for i in re.findall(r"\d+", listed[1])] if listed else default
    return 2.0 * made.size * math.prod(left.shape[i] for i in summed)


def _group_size(instr: Instruction) -> int:
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\].*?(?<=[\s)])\{('[^}]*)\}", instr.rest):
        sizes = dict(re.findall(r"('[^']+')=(\d+)", axes[1]))
        taken = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[axis]) for axis, part in taken)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", instr.rest):
        return int(iota[1])
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", instr.rest)
    return len(listed[1].split(",")) if listed else 0
