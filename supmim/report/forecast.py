"""A plan in words: the text of `supmim plan`, at most 80 columns wide, and docs/plan.md."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from supmim.errors import counted

WIDTH = 80
LABEL = 14
WRAPPER = textwrap.TextWrapper(
    WIDTH, subsequent_indent=" " * LABEL, break_on_hyphens=False, break_long_words=False
)
MEMORY = ("parameters", "optimizer", "batch", "temporaries", "program", "padding", "tokenizer")
ASSUMED = (
    "each chip at its datasheet rates, links at 90 %; bfloat16 products; all bytes that kernels "
    "read and write go to memory; rings; no input wait"
)


def size(num_bytes: float) -> str:
    """Return a size such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 999.5:  # more would not fit into three digits
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"


def text(plan: dict[str, Any]) -> str:
    """Return all of a plan as text."""
    lines = [*_head(plan), "", *_memory(plan), "", *_flops(plan)]
    if "collectives" in plan:
        lines += ["", *_collectives(plan), "", *_roofline(plan)]
    lines += [line for note in plan["notes"] for line in _labelled("note", note)]
    lines += ["", *_verdict(plan)]
    return "\n".join(lines)


def _labelled(label: str, text: str) -> list[str]:
    return WRAPPER.wrap(f"{label:<{LABEL}}{text}")


def _head(plan: dict[str, Any]) -> Iterator[str]:
    axes = " x ".join(f"{axis} {count}" for axis, count in plan["mesh"].items())
    parts = f" in {plan['accumulation_steps']} parts" if plan["accumulation_steps"] > 1 else ""
    chips = f"{plan['chips']:,} x {plan['chip']} ({plan['topology']}), {axes}"
    yield from _labelled("devices", chips)
    compiler = f"{plan['compiler']}, {plan['plan_seconds']:.0f} s for this plan"
    yield from _labelled("compiler", compiler)
    yield from _labelled("parameters", f"{plan['parameters']:,}")
    images = f"{counted(plan['step_images'], 'image')}{parts}, {plan['images_per_chip']:g} per chip"
    yield from _labelled("batch", images)


def _memory(plan: dict[str, Any]) -> Iterator[str]:
    yield "memory of one chip"
    parts = plan["tokenizer"]
    for name in MEMORY if parts["weights"] else MEMORY[:-1]:
        yield f"  {name:<{LABEL - 2}}{size(plan['memory'][name]):>12}"
    total, available = plan["memory"]["total"], plan["memory_of_chip"]
    share = f"  of {size(available)}: {total / available:.0%}"
    yield f"  {'total':<{LABEL - 2}}{size(total):>12}{share}"
    if parts["weights"]:
        turn = ", ".join(f"{name} {size(part)}" for name, part in parts.items())
        yield from _labelled("tokenizer", f"{turn}; its temporaries take turns with the step's")


def _flops(plan: dict[str, Any]) -> Iterator[str]:
    work = plan["flops"]
    ratio = f", {work['train'] / work['analytic']:.3f} x the formula" if work["analytic"] else ""
    yield f"{'FLOPs':<{LABEL}}{work['train'] / 1e9:,.2f} GF per image{ratio}"
    yield f"{'':<{LABEL}}{work['executed'] / 1e9:,.2f} GF executed, with what remat repeats"
    yield f"{'':<{LABEL}}{work['tokenize'] / 1e9:,.2f} GF in the tokenizer's program"


def _collectives(plan: dict[str, Any]) -> Iterator[str]:
    if not plan["collectives"]:
        yield f"{'collectives':<{LABEL}}none"
        return
    yield f"{'collectives of one step':<32}{'group':>7}{'count':>7}{'bytes':>12}{'sent':>12}"
    for one in sorted(plan["collectives"], key=lambda one: -one["bytes"]):
        name = f"  {one['kind']} {one['dtype']}"
        counts = f"{one['devices']:>7}{one['count']:>7}"
        yield f"{name:<32}{counts}{size(one['bytes']):>12}{size(one['sent']):>12}"


def _roofline(plan: dict[str, Any]) -> Iterator[str]:
    bound = plan["roofline"]
    if bound is None:
        yield f"{'step time':<{LABEL}}not estimated for {plan['chip']}s"
        return
    names = ("compute", "memory", "network")
    alone = ", ".join(f"{name} {bound[name] * 1e3:.3g}" for name in names)
    yield f"{'step time, ms':<{LABEL}}{alone}"
    best, worst, images = bound["best"], bound["worst"], plan["step_images"]
    together = f"{best * 1e3:.1f} if they overlap completely ({images / best:,.0f} images/s), "
    yield from _labelled("", f"{together}{worst * 1e3:.1f} if not at all ({images / worst:,.0f})")
    if ids := plan["tokenizer_seconds"]:
        yield from _labelled("", f"the tokenizer's program comes on top: {ids * 1e3:.3g} or more")
    yield from _labelled("assumed", ASSUMED)
    yield ""
    yield f"{'MFU':>6}{'step ms':>10}{'images/s':>12}{'hours':>10}"
    for one in plan["speeds"]:
        hours = f"{one['hours']:,.1f}" if one["hours"] is not None else "?"
        numbers = f"{one['step_seconds'] * 1e3:>10,.1f}{one['images_per_second']:>12,.0f}"
        yield f"{one['mfu']:>6.0%}{numbers}{hours:>10}"
    if plan["num_images"]:
        epochs, images = counted(plan["epochs"], "epoch"), counted(plan["num_images"], "image")
        yield f"  hours for {epochs} of {images}"
    elif plan["steps"]:
        yield f"  hours for {counted(plan['steps'], 'step')}"
    else:
        yield f"  hours need the number of images of {plan['train']}: give --images=N"


def _verdict(plan: dict[str, Any]) -> Iterator[str]:
    if largest := plan.get("largest_batch"):
        yield from _labelled("largest batch", _largest(largest))
    if plan["fits"]:
        yield from _labelled("verdict", plan["verdict"])
        return
    yield from _labelled("verdict", f"DOES NOT FIT: {plan['verdict']}")
    if plan["advice"]:
        yield "what to change, with the computed effect on one chip"
    for one in plan["advice"]:
        yield f"  {one['option']}"
        yield f"      {one['effect']}"


def _largest(largest: dict[str, Any]) -> str:
    if not largest["batch_size"]:
        return f"none: one image per chip needs {size(largest['total'])}"
    return (
        f"{counted(largest['batch_size'], 'image')}, {largest['images_per_chip']} per chip: "
        f"{size(largest['total'])} compiled, {size(largest['predicted'])} predicted, "
        f"{size(largest['bytes_per_image'])} per image"
    )


# docs/plan.md.

PAGE = """\
# Every ImageNet preset on five pods

    supmim plan --table=docs/plan.md

This command wrote the table, with {compilers}. The memory figures differ up to 2 x between versions
of libtpu. Nothing here has run on a TPU.

Each row is one `supmim plan --config=imagenet_PRESET --topology=POD
--config.batch_size=N`. There are {images} images per chip, so the batch grows with the pod. Each
preset has its own mesh.

Memory, bytes and times are for one chip and one step.

- Sent: what all collectives send over the links, by the ring algorithms.
- Bytes per parameter: the payload of all collectives, divided by the number of parameters. If it is
  the same on every pod, the collectives move parameters and gradients, but no activations.
- Best to worst: compute, memory and network overlap completely, or not at all.
- Images/s at 50 % MFU: what half of the chip's arithmetic would give, with the tokenizer's program.
  Where the best step time allows less, memory or network is the limit, and the pod reaches batch /
  best time at most.

"""
COLUMNS = (
    "preset", "pod", "fsdp", "memory GiB", "temporaries GiB", "sent MiB", "bytes per parameter",
    "step ms, best to worst", "images/s at 50 % MFU", "verdict",
)  # fmt: skip


def markdown(rows: Sequence[dict[str, Any]], images_per_chip: int) -> str:
    """Return the page: what was planned, by which compiler, and a row for each plan."""
    compilers = ", ".join(sorted({row["compiler"] for row in rows if "compiler" in row}))
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    page = PAGE.format(compilers=compilers, images=images_per_chip)
    return page + "\n".join([*head, *map(_row_markdown, rows)]) + "\n"


def _row_markdown(row: dict[str, Any]) -> str:
    cells = [row["preset"], row["topology"]]
    if "memory" in row:
        used = [row["memory"]["total"], row["memory"]["temporaries"]]
        cells += [str(row["mesh"]["fsdp"]), *(f"{part / 2**30:.1f}" for part in used)]
    if "collectives" in row:
        sent, payload = (sum(one[key] for one in row["collectives"]) for key in ("sent", "bytes"))
        bound, half = row["roofline"], row["speeds"][1]
        cells += [f"{sent / 2**20:,.0f}", f"{payload / row['parameters']:.1f}"]
        cells += [f"{bound['best'] * 1e3:.0f} to {bound['worst'] * 1e3:.0f}"]
        cells += [f"{half['images_per_second']:,.0f}"]
    cells += [""] * (len(COLUMNS) - 1 - len(cells))
    verdict = "fits" if row["fits"] else row["verdict"].replace("|", "\\|")
    return "| " + " | ".join([*cells, verdict]) + " |"


def row_text(row: dict[str, Any]) -> str:
    """Return a plan as a line of progress."""
    seconds = f"{row['plan_seconds']:.0f} s" if "plan_seconds" in row else ""
    return f"{row['preset']:<5}{row['topology']:<14}{seconds:>6}  {row['verdict']}"[:WIDTH]
