"""`supmim data`: what it says of images, and what it asks for."""

import json
import os

import pytest
from PIL import Image

from supmim import cli
from supmim.commands import data
from supmim.data import inspection, sources
from supmim.data.sources import base
from supmim.errors import DataError
from tests.conftest import digits, tiny_config
from tests.pictures import damaged, encoded, photo
from tests.test_folders import fill

PNG, JPEG = encoded(photo(20, 30), "PNG"), encoded(photo(40, 50))


def run(capsys, *args):
    """Exit code, stdout, stderr."""
    code = cli.run(["data", *map(str, args)])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def folder(tmp_path):
    """Two classes, train and val: 30 + 5 images, 20 + 4 of them of the class a."""
    fill(tmp_path, *(f"train/a/{n}.jpg" for n in range(20)), data=JPEG)
    fill(tmp_path, *(f"train/b/{n}.png" for n in range(10)), data=PNG)
    fill(tmp_path, *(f"val/a/{n}.png" for n in range(4)), "val/b/x.png", data=PNG)
    return tmp_path


def test_counts_formats_modes_and_sizes_are_those_of_the_files(folder, capsys):
    fill(folder, "train/b/grey.png", data=encoded(photo(9, 9)[..., 0], "PNG"))
    cmyk = encoded(Image.fromarray(photo(80, 20)).convert("CMYK"))
    fill(folder, "train/b/cmyk.jpg", data=cmyk)
    code, out, _ = run(capsys, "check", f"folder:{folder}", "--json")
    found = json.loads(out)
    train, val = found["parts"]["train"], found["parts"]["val"]
    assert code == 0 and found["class_differences"] == []
    assert (train["images"], val["images"], train["classes"]) == (32, 5, 2)
    assert train["bytes"] == sum(p.stat().st_size for p in (folder / "train").rglob("*.*g"))
    assert train["largest"] == ["a", 20] and train["smallest"] == ["b", 12]
    assert train["formats"] == {"JPEG": 21, "PNG": 11}
    assert train["modes"] == {"RGB": 30, "L": 1, "CMYK": 1}
    assert train["width"] == [9, 50, 50] and train["height"] == [9, 40, 80]
    assert train["short_side"] == [9, 40, 40] and train["unreadable"] == []
    assert found["images_per_second_and_core"] > 10


def test_the_report_is_readable_at_80_columns(folder, capsys):
    long = "x" * 90
    fill(folder, f"train/{long}/a.png", f"val/{long}/b.png", data=PNG)
    fill(folder, "train/a/x.avif", "train/a/y.heic", "train/b/z.heic", "test/a/1.png", data=PNG)
    (folder / "train" / "nothing").mkdir()
    (folder / "train" / "a" / "up").symlink_to(folder / "train" / "a")
    code, out, _ = run(capsys, "check", f"folder:{folder}")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert "left out  .heic 2, .avif 1\n" in out and "not used    test\n" in out
    told = "".join(line.strip() for line in out.splitlines())
    assert f"folder:{folder}/train" in told and f"folder:{folder}/val" in told
    for line in ("names     a, b, xxx", "train       31 images",
                 "  no images of 1 of 4 classes: nothing", "images/s a core",
                 "links to a folder above them, not followed: 1"):  # fmt: skip
        assert line in out


def test_unreadable_images_are_listed_and_too_many_exit_3(folder, capsys):
    for name, content in damaged().items():
        fill(folder, f"train/a/{name}\n.jpg", data=content)
    os.symlink("/nowhere", folder / "train/a/gone.jpg")
    code, out, err = run(capsys, "check", f"folder:{folder}")
    count = len(damaged()) + 1
    assert code == 3 and f"unreadable: {count}" in out and "empty\\n.jpg: empty file" in out
    assert f"{count} of {30 + count} images of train can't be read" in err
    assert "more than the 1 that --config.data.bad_share=0.001 allows" in err
    code, out, _ = run(capsys, "check", f"folder:{folder}", "--json")
    listed = json.loads(out)["parts"]["train"]["unreadable"]
    assert code == 3 and len(listed) == count and all(bad["why"] for bad in listed)


def test_a_long_list_ends_with_how_many_more_there_are(folder, capsys):
    fill(folder, *(f"train/a/bad{n:02}.jpg" for n in range(33)), data=b"no")
    _, out, _ = run(capsys, "check", f"folder:{folder}")
    assert "unreadable: 33" in out and out.count("bad") == 20
    assert "and 13 more: --json lists all" in out


def test_one_bad_image_is_no_fault_and_two_are_one_up_to_a_thousand():
    def faults(images, bad):
        part = {"images": images, "unreadable": [{}] * bad, "wrong_labels": []}
        found = {"parts": {"train": part}, "class_differences": [], "shared": 0}
        return list(data.check_faults(found, 0.001))

    assert not faults(20, 1) and not faults(1000, 1) and not faults(1001, 2)
    assert faults(1000, 2) == ["2 of 1,000 images of train can't be read, more than the 1 that "
                               "--config.data.bad_share=0.001 allows"]  # fmt: skip


def test_classes_too_small_for_a_held_out_image_are_named(tmp_path, capsys):
    fill(tmp_path, *(f"a/{n}.png" for n in range(5)), *(f"b/{n}.png" for n in range(4)), data=PNG)
    code, out, _ = run(capsys, "check", f"folder:{tmp_path}")
    assert (
        code == 0 and "val         1 image," in out and "  no images of 1 of 2 classes: b\n" in out
    )


def test_different_classes_exit_3(folder, capsys):
    fill(folder, "val/c/1.png", data=PNG)
    code, out, err = run(capsys, "check", f"folder:{folder}")
    assert code == 3 and "only in evaluation: c" in out and "different classes" in err


def test_images_of_train_that_are_in_val_too_are_counted_and_all_exit_3(folder, capsys):
    fill(folder, "val/a/4.png", "train/a/0.png", "train/a/4.png", data=PNG)
    code, out, _ = run(capsys, "check", f"folder:{folder}")
    assert code == 0 and "shared      2 of the held-out images are in train too" in out
    fill(folder, *(f"train/a/{n}.png" for n in range(5)), "train/b/x.png", data=PNG)
    code, _, err = run(capsys, "check", f"folder:{folder}")
    assert code == 3 and "all its held-out images are in train too" in err


def test_labels_that_name_no_class_are_listed():
    source = digits("test")
    source.label = source.label.copy()
    source.label[7] = 12
    found = inspection.source_summary(source, 10**6)
    (told,) = found["wrong_labels"]
    assert "record 7: label 12 is outside 0..9" in told and found["formats"] == {"raw": 297}
    found = {"parts": {"all": found}, "class_differences": [], "shared": 0}
    assert list(data.check_faults(found, 0.001)) == ["1 label of all names no class"]


def test_any_source_can_be_checked(folder, tmp_path, capsys):
    code, out, _ = run(capsys, "check", "digits:train")
    assert code == 0 and "train       1,500 images" in out and "val         297 images" in out
    assert run(capsys, "check", "digits:test")[1].startswith("all         297 images")
    store = tmp_path / "store"
    assert run(capsys, "convert", f"folder:{folder}", f"--out={store}")[0] == 0
    checked = [json.loads(run(capsys, "check", f"{kind}:{path}", "--json")[1])["parts"]
               for kind, path in (("folder", folder), ("records", store))]  # fmt: skip
    for part in ("train", "val"):
        same = [{k: v for k, v in c[part].items() if k != "name"} for c in checked]
        assert same[0] == same[1]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "supmim data takes check, prepare, convert, tokens"),
        (["chek", "x"], "not 'chek'"),
        (["check"], "supmim data check takes a SOURCE, e.g. supmim data check"),
        (["convert", "--out=x"], "supmim data convert takes a SOURCE"),
        (["check", "digits:train", "stray"], "'stray' is not a flag"),
        (["check", "digits:train", "--jsn"], "did you mean --json?"),
        (["check", "folder:/x", "--holdout=much"], "--holdout=much is not a number"),
        (["check", "folder:/x", "--holdout=0.95"], "is not a number from 0 to 0.9"),
    ],
)
def test_usage_errors_exit_2(capsys, args, told):
    code, _, err = run(capsys, *args)
    assert code == 2 and told in err


@pytest.mark.parametrize(
    ("source", "told"),
    [("folder:/nowhere", "there is no such folder"), ("digit:train", "did you mean digits"),
     ("records:/nowhere", "there is no such folder")],
)  # fmt: skip
def test_sources_that_are_not_there_exit_3(capsys, source, told):
    for args in (["check", source], ["convert", source, "--out=/nowhere/x"]):
        code, _, err = run(capsys, *args)
        assert code == 3 and told in err


def test_a_slip_is_told_and_not_looked_up_as_a_data_set():
    with pytest.raises(DataError, match="it takes digits, .*, pairs; did you mean"):
        sources.find("recods:/x", base.WHOLE, tiny_config().data)


def test_a_flag_of_another_action_and_a_bare_path_are_told(tmp_path, capsys):
    assert cli.run(["data", "check", "digits:train", "--size=8"]) == 2
    assert "--size is a flag of supmim data convert" in capsys.readouterr().err
    assert cli.run(["data", "convert", "digits:train", "--json", f"--out={tmp_path}"]) == 2
    assert "--json is a flag of supmim data check" in capsys.readouterr().err
    assert cli.run(["data", "check", str(tmp_path)]) == 3
    assert f"is a folder; to read it, use folder:{tmp_path}\n" in capsys.readouterr().err
    assert cli.run(["data", "check", str(tmp_path / "none")]) == 3
    assert f"to read a folder of images, use folder:{tmp_path}" in capsys.readouterr().err
    fill(tmp_path, *(f"only/{n}.png" for n in range(3)), data=encoded(photo(8, 8)))
    assert cli.run(["data", "check", f"folder:{tmp_path}"]) == 0
    assert "one class   enough for a tokenizer; training of" in capsys.readouterr().out


def test_advice_names_flags_of_the_verb(tmp_path, capsys):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encoded(Image.new("L", (8, 8)), "PNG"))
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    assert cli.run(["data", "check", f"pairs:{tmp_path}", "--mask-classes=3"]) == 3
    told = capsys.readouterr().err
    assert "names 2 classes, but --mask-classes is 3" in told and "config.data" not in told


def test_a_source_that_holds_nothing_out_says_what_a_training_will_ask_for(capsys):
    assert cli.run(["data", "check", "digits:test"]) == 0
    assert "set --config.data.eval" in capsys.readouterr().out
    assert cli.run(["data", "check", "digits:train"]) == 0
    assert "set --config.data.eval" not in capsys.readouterr().out


def test_one_image_one_class_and_one_size_are_told_in_the_singular(tmp_path, capsys):
    fill(tmp_path, "a/1.png", "a/2.png", data=PNG)
    _, out, _ = run(capsys, "check", f"folder:{tmp_path}", "--holdout=0.5")
    assert "train       1 image, " in out and "val         1 image, " in out
    assert ", 1 class\n" in out and "  classes   1 image in each\n" in out
    assert "  width       30 pixels each\n" in out
    fill(tmp_path, "b/1.png", "b/2.png", data=PNG)
    _, out, _ = run(capsys, "check", f"folder:{tmp_path}", "--holdout=0.5")
    assert "  classes   1 image in each\n" in out and ", 2 classes\n" in out
    fill(tmp_path, *(f"b/{number}.png" for number in range(3, 9)), data=PNG)
    _, out, _ = run(capsys, "check", f"folder:{tmp_path}", "--holdout=0.5")
    assert "  classes   1 (a) to 4 (b) images\n" in out
