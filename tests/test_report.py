"""Pictures show what they say; the page is one file and escapes what it shows."""

import errno
import io
import json
import re
import types
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from supmim import metrics
from supmim.config.tasks import FACTS
from supmim.errors import CheckpointError
from supmim.report import (
    confusion,
    curves,
    embedding_map,
    figures,
    forecast,
    neighbours,
    page,
    reconstructions,
    segmentation,
    sweep,
    terminal,
    units,
)
from supmim.report.step_log import StepLog
from supmim.runtime.clock import Clock
from supmim.workdir import files, model
from supmim.workdir.writer import Writer, read_metrics
from tests.conftest import tiny_config

RED = np.array([0xD6, 0x28, 0x39]) / 255
rng = np.random.default_rng(0)


def red_share(path):
    picture = matplotlib.image.imread(path)[..., :3]
    return (np.abs(picture - RED).max(axis=-1) < 0.02).mean()


ODD_NAMES = ("$\\frac{$", "$", "\\", "_", "^", "&", "<", "猫", "a\udcff\x1b[31m", "_b", "x" * 300)


def test_pictures_show_names_as_they_are_whatever_is_in_them(tmp_path):
    """Neither formulas nor warnings, which are errors here."""
    count, n = np.eye(len(ODD_NAMES), dtype=int), len(ODD_NAMES)
    confusion.draw(tmp_path / "confusion.png", count, ODD_NAMES)
    neighbours.draw(
        tmp_path / "neighbours.png", query=np.zeros((n, 2, 2, 1), np.uint8),
        neighbours=np.zeros((n, 1, 2, 2, 1), np.uint8), query_label=np.arange(n),
        neighbour_label=np.arange(n)[:, None], class_names=ODD_NAMES,
    )  # fmt: skip
    sweep.draw(tmp_path / "sweep.png", [(name, [0.5], "") for name in ODD_NAMES], "knn/$\\frac{$")
    curves.draw(tmp_path / "curves.png",
                [{"step": i, f"a/b/{x}": 0.1} for i in (1, 2) for x in ODD_NAMES[:9]])  # fmt: skip
    row = (np.zeros((8, 8, 1), np.uint8), np.arange(64).reshape(8, 8) % n, np.zeros((8, 8), int))
    segmentation.draw(tmp_path / "segmentation.png", [row], ODD_NAMES)
    for name in ("a", "$a$", "_a"):
        embedding_map.draw(tmp_path / f"{name}.png", points=np.eye(2), label=np.zeros(2, int),
                           class_names=(name,), title="")  # fmt: skip
    plain, dollars, underscore = (
        matplotlib.image.imread(tmp_path / f"{name}.png")[:40, -60:] for name in ("a", "$a$", "_a")
    )
    assert (plain != dollars).any() and (underscore < 0.5).any()
    assert figures.label("_a") == " _a" and figures.label("x" * 300) == "x" * 39 + "…"
    assert figures.label("a\udcff\x1b") == "a\\udcff\\x1b"


def test_wrong_neighbours_alone_are_framed(tmp_path):
    def draw(found):
        neighbours.draw(
            tmp_path / "n.png",
            query=rng.integers(0, 255, (2, 8, 8, 1), np.uint8),
            neighbours=rng.integers(0, 255, (2, 5, 8, 8, 1), np.uint8),
            query_label=np.array([0, 1]), neighbour_label=np.array(found), class_names=("a", "b"),
        )  # fmt: skip
        return red_share(tmp_path / "n.png")

    right, one, two = ([[0] * 5, [1] * 5], [[0] * 5, [0] + [1] * 4], [[1] + [0] * 4, [0] + [1] * 4])
    assert draw(right) == 0 < draw(one) < draw(two)


def test_reconstructions_hide_what_is_masked(tmp_path):
    def blue_share(mask):
        image = rng.uniform(size=(3, 8, 8, 1))
        reconstructions.draw(
            tmp_path / "r.png", image=image, mask=np.asarray(mask), patch_size=2,
            columns={"filled in": image, "larger": image.repeat(3, 1).repeat(3, 2)},
        )  # fmt: skip
        picture = matplotlib.image.imread(tmp_path / "r.png")[..., :3]
        return (np.abs(picture - np.array(reconstructions.HIDDEN)).max(axis=-1) < 0.02).mean()

    none, half, full = (np.zeros((3, 16)), np.tile([0, 1], (3, 8)), np.ones((3, 16)))
    assert blue_share(none) == 0 and abs(blue_share(full) / blue_share(half) - 2) < 0.2


def test_curves_are_drawn_from_whatever_was_logged(tmp_path):
    rows = [{"step": n, "class_loss": 1 / n, "knn/recall_at_1": n / 9} for n in range(1, 9)]
    curves.draw(tmp_path / "full.png", rows + [{"step": 9, "class_loss": None}])
    curves.draw(tmp_path / "empty.png", [])
    full, empty = (matplotlib.image.imread(tmp_path / f"{n}.png") for n in ("full", "empty"))
    assert full.shape == empty.shape and (full != empty).any()


def test_legends_lie_within_their_plots_and_hide_no_curve(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    names = ["class_loss", "mim_loss", "grad_norm", "classification/top1", "knn/recall_at_1"]
    names += [f"retrieval/recall_at_{k}" for k in range(10)]  # a panel with ten curves
    curves.draw(tmp_path, [{"step": n, **dict.fromkeys(names, 0.9**n)} for n in range(20)])
    (figure,) = drawn
    figure.draw_without_rendering()
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 1, 10]
    for axes in figure.axes:
        inside, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
        assert inside.x0 < legend.x0 < legend.x1 < inside.x1
        assert inside.y0 < legend.y0 < legend.y1 < inside.y1
        styles = set()
        for line in axes.lines:
            assert not legend.count_contains(axes.transData.transform(line.get_xydata()))
            styles.add((line.get_linestyle(), line.get_marker()))
        assert len(styles) == len(axes.lines)  # told apart without colours
        low, high = axes.dataLim.intervaly
        assert min(axes.get_yticks()) >= low - 0.1 * (high - low)  # none beside the legend


def test_the_page_stands_alone_and_escapes(tmp_path):
    folder = tmp_path / "<script>alert(1)</script>".replace("/", "_")
    (folder / "pictures").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 9, "goodput/step": 0.5, "goodput/<s>": 0.25}')
    curves.draw(folder / "pictures" / "curves.png", [])
    notes = {
        "checkpoint": {"step": 40, "digest": "ab12"},
        "data": {"train": {"name": "folder:<b>", "images": 1500, "digest": "cd34"}},
        "model": {"class_names": ['{"Ü"}', "[b]"]},
        "protocols": {"knn": {"feature": "<i>", "k": [10, 20], "head": {"rate": 0.1}}, "<u>": {}},
    }
    results = {
        "knn/recall_at_1": 0.98765,
        "iou/\x1b[31m\u202e\udcff<u>": 0.5,
        "segmentation/iou/<img src=x>": 0.5,
    }
    config = tiny_config(**{"data.train": "folder:<b>"})
    page.write(folder, results, config, notes, "supmim train --workdir='<a>'")
    text = (folder / "report.html").read_text()
    assert "iou/\\x1b[31m\\u202e\\udcff&lt;u&gt;" in text
    assert "rate: 0.1" in text and "digest: ab12" in text
    assert "class names: {&quot;Ü&quot;}, [b]<" in text
    assert "1,500 training images of folder:&lt;b&gt;" in text
    assert "--workdir=&#x27;&lt;a&gt;&#x27;" in text
    assert "98.77 %" in text and "&quot;folder:&lt;b&gt;&quot;" in text and "<script" not in text
    for name in ("segmentation/iou/&lt;img src=x&gt;", "&lt;s&gt;"):  # one of each table
        assert f"<th scope=row>{name}</th>" in text
    assert "<h3>&lt;u&gt;</h3>" in text and "<td>&lt;i&gt;</td>" in text
    assert not re.search("<(img src=x|[bisu])>(?!9)", text)
    assert "data:image/png;base64," in text and not re.search(r"(src|href)=.?http", text)
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text


def test_the_page_begins_with_headlines_and_pictures_and_links_to_what_there_is(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("curves", "confusion", "reconstructions"):
        curves.draw(tmp_path / "pictures" / f"{name}.png", [])
    (tmp_path / "model.json").write_text("{}")
    results = {"knn/recall_at_1": 0.5, "floor/knn_pixels_cosine": 0.25, "unreadable/eval": 2.0,
               "floor/random_encoder_recall_at_1": 0.125, "classification/top1": 0.75}  # fmt: skip
    results |= {f"segmentation/iou/{n}": 0.5 for n in range(page.MOST_ROWS + 1)}
    notes = {"checkpoint": {"digest": "ab12"}, "protocols": {"knn": {"what": "a protocol"}}}
    page.write(tmp_path, results, tiny_config(), notes, "the command")
    text = (tmp_path / "report.html").read_text()
    order = [
        "<b>75.00 %</b>top-1 accuracy", "<b>50.00 %</b>nearest neighbour right",
        "25.00 % without training, by raw pixels", "alt='reconstructions.png'",
        "alt='confusion.png'", "alt='curves.png'", ">knn/recall_at_1<", "a protocol",
        "<summary>21 results of single classes</summary>",
        ">unreadable/eval</th><td class=number>2</td>",
        "digest: ab12", "<a href='model.json'>", "<a href='results.json'>", "the command",
    ]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "12.50 % without training" not in text and "href='config.json'" not in text


def test_a_verdict_stays_in_its_cell_of_a_markdown_table():
    row = {"preset": "s16", "topology": "v5e:4x4", "fits": False, "verdict": "a | b"}
    *_, line = forecast.markdown([row], 16).splitlines()
    assert line.endswith(" a \\| b |")


def test_results_are_in_the_order_of_their_numbers_and_floors_come_last():
    names = ["floor/top1", *(f"fewshot/{n}_shot" for n in (10, 1, 25, 5)), "a/007", "a/7", "step"]
    names.append("a/" + "9" * 5000)  # a class may be called so
    expected = ["a/007", "a/7", names[-1], "fewshot/1_shot", "fewshot/5_shot", "fewshot/10_shot",
                "fewshot/25_shot", "step", "floor/top1"]  # fmt: skip
    assert list(units.formatted(dict.fromkeys(names, 0.5))) == expected
    assert units.ordered(reversed(names)) == expected


def test_metrics_are_lines_of_json_and_restart_at_their_step(tmp_path):
    with Writer(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write_scalars(step, {"loss": float(step), "bad": float("nan")})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("5\n[]\n{}\n" + "[" * 100_000 + '\n{"step": 4, "lo')  # a kill cut the line
    with Writer(tmp_path, 2) as writer:
        writer.write_scalars(3, {"loss": 30.0})
        writer.write_images(3, {"picture": np.zeros((1, 4, 4, 3), np.uint8)})
        writer.flush()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [1.0, 2.0, 30.0] and rows[0]["bad"] is None
    assert list(tmp_path.glob("events.out.tfevents*"))


@pytest.fixture
def disk(monkeypatch):
    """What the disk still takes, in bytes; None: all."""
    room = types.SimpleNamespace(bytes=None)

    class Disk(io.FileIO):
        def write(self, data):
            if room.bytes is None:
                return super().write(data)
            if not (some := bytes(data[: room.bytes])):
                raise OSError(errno.ENOSPC, "No space left on device")
            room.bytes -= len(some)
            return super().write(some)

    opened = Path.open

    def disk_or_file(path, mode="r", buffering=-1, **how):
        return opened(path, mode, buffering, **how) if buffering else Disk(path, mode)

    monkeypatch.setattr(Path, "open", disk_or_file)
    return room


def test_a_full_disk_delays_metrics_and_does_not_end_the_run(tmp_path, disk, capfd):
    """tensorboardX alone would hang after ten values: its thread dies of the first error."""
    told = []
    with Writer(tmp_path, 0, told.append) as writer:
        writer.write_scalars(1, {"loss": 1.0})
        disk.bytes = 7
        for step in range(2, 30):
            writer.write_scalars(step, {"loss": float(step)})
        writer.flush()
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
        disk.bytes = None
        writer.write_scalars(30, {"loss": 30.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 31))
    (events,) = tmp_path.glob("events.out.tfevents*")
    assert events.read_bytes().count(b"loss") == 30
    assert sum("cannot be written now: No space left" in line for line in told) == len(told) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_what_does_not_fit_on_the_disk_is_told_and_leaves_no_part(tmp_path, monkeypatch):
    def full(path, text, encoding, errors):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device: .*results.json"):
        files.write_results(tmp_path, {}, {})
    assert not list(tmp_path.iterdir())


def test_a_damaged_line_of_metrics_is_left_out(tmp_path):
    path, whole = tmp_path / "metrics.jsonl", '{"step": 1, "loss": 1.0}\n'
    for damage in ('{"step": 4, "lo', '{"loss": 1.0}', "7", "\0\0"):
        for text in (whole + damage, damage + "\n" + whole):
            path.write_text(text)
            assert read_metrics(path) == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_damaged_document_of_a_run_is_told(tmp_path, text):
    for name in ("results.json", "init.json", "model.json"):
        (tmp_path / name).write_text(text)
    reads = (files.read_results, files.read_origin, model.read)
    for read in reads:
        with pytest.raises(CheckpointError, match=r"\.json is damaged .*delete it"):
            read(tmp_path)


def test_a_line_of_fewer_steps_says_how_many(tmp_path):
    """As the first one after a restart at step 7 and the one of the last step have."""
    seen = {}
    writer = types.SimpleNamespace(write_scalars=seen.__setitem__)
    screen = types.SimpleNamespace(advance=lambda *_: None, show_step=lambda *_: None)
    log = StepLog(5, 17, Clock(8), lambda step: 0.1, writer, screen)
    log.clock.begin()
    for steps in (range(8, 9), range(9, 11), range(11, 16), range(16, 18)):
        losses = np.zeros(8, np.float32)
        losses[: len(steps)] = steps
        log.add(steps, {"loss": metrics.average(losses, np.ones(8, np.float32))})
    assert seen[10]["steps_averaged"] == 3 and seen[10]["loss"] == 9.0
    assert "steps_averaged" not in seen[15] and seen[15]["loss"] == 13.0
    assert seen[17]["steps_averaged"] == 2 and seen[17]["loss"] == 16.5 and len(seen) == 3


def test_plain_lines_have_no_control_codes_and_fit_80_columns(capsys):
    with terminal.Terminal() as screen:
        screen.begin(FACTS["supmim"].progress, 2400, 0)
        for step in (1, 1200):
            screen.advance(range(step, step + 1), {}, 0, {})
        screen.show_step(1200, {"class_loss": 1.234, "mim_loss": 2.5, "train_top1": 0.5,
                                "token_accuracy": 0.25, "images_per_second": 1234.0,
                                "data_wait": 0.01})  # fmt: skip
        screen.log("[a message] with brackets")
    out = capsys.readouterr().out
    line = "1200/2400 class 1.234 mim 2.500 top1 50% tokens 25% img/s 1234 wait 1% left 0s"
    assert line in out and "[a message]" in out
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= 80


def test_shares_are_percent_and_other_results_have_their_own_units():
    told = {
        "knn/recall_at_1": (0.5, "50.00 %"),
        "classification/loss": (0.5, "0.5000"),
        "tokenizer/psnr": (22.456, "22.46 dB"),
        "floor/patch_vq_psnr": (20.0, "20.00 dB"),
        "tokenizer/ssim": (0.5, "0.5000"),
        "tokenizer/code_perplexity": (14.06, "14.1"),
        "segmentation/classes_in_masks": (11.0, "11"),
        "unreadable/eval": (2.0, "2"),
        "step": (1234567.0, "1,234,567"),
        "segmentation/iou/loss": (0.5, "50.00 %"),  # classes
        "segmentation/iou/a/psnr": (0.5, "50.00 %"),
    }
    formatted = units.formatted({name: value for name, (value, _) in told.items()})
    assert formatted == {name: text for name, (_, text) in told.items()}
    named = [units.with_unit(name) for name in ("knn/k", "tokenizer/psnr", "unreadable/eval")]
    assert named == ["knn/k, %", "tokenizer/psnr, dB", "unreadable/eval"]


def test_results_that_need_no_training_are_named(capsys):
    results = {"classification/top1": 0.6, "floor/top1": 0.6, "knn/recall_at_1": 0.7}
    results |= {"floor/knn_pixels_cosine": 0.5, "floor/knn_pixels_euclidean": 0.65}
    assert page.not_above_floors(results) == ["classification/top1"]
    terminal.print_results(results, "report")
    told = capsys.readouterr().out
    assert told.endswith("no better than without training (floor/...): classification/top1\n")
    terminal.print_results(results | {"floor/top1": 0.1}, "report")
    assert "no better" not in capsys.readouterr().out
