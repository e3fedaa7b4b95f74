"""Image folders as people have them."""

import contextlib
import os
import shutil
from collections import Counter

import numpy as np
import pytest

from supmim import config as config_lib
from supmim.data import images, run_sources, sources
from supmim.data.sources import base, folders
from supmim.errors import DataError
from tests.conftest import tiny_config
from tests.pictures import encoded, photo
from tests.test_tokenizer_training import small_config

DATA = tiny_config(**{"data.image_size": 8, "data.channels": 3}).data
PIXELS = encoded(photo(8, 8), "PNG")


def fill(root, *names, data=PIXELS):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def many(root, per_class=40):
    return fill(root, *(f"{c}/{n}.png" for c in "ab" for n in range(per_class)))


def names_of(folder):
    return [folder.path(i) for i in range(len(folder))]


def load(root, part=base.WHOLE, data=DATA):
    return folders.load(str(root), part, data)


def test_classes_are_the_top_folders_and_files_may_lie_deeper_in_any_case(tmp_path):
    fill(tmp_path, "dog/x.jpg", "dog/deep/er/y.JPEG", "cat/a.PNG", "cat/b.WebP")
    fill(tmp_path, "cat/.hidden.png", ".git/z.png", "cat/notes.txt", "dog/.cache/q.png")
    found = load(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert names_of(found) == ["cat/a.PNG", "cat/b.WebP", "dog/deep/er/y.JPEG", "dog/x.jpg"]
    assert [found[i].label for i in range(4)] == [0, 0, 1, 1]
    assert found[1].image == PIXELS and found[1].name == str(tmp_path / "cat/b.WebP")


def test_a_folder_is_walked_once_for_both_of_its_parts(tmp_path, monkeypatch):
    walked, listing = [], folders.listing
    monkeypatch.setattr(folders, "listing", lambda *a: walked.append(a) or listing(*a))
    many(tmp_path)
    config = tiny_config(**{"data.train": f"folder:{tmp_path}", "data.channels": 3})
    train, held_out = sources.load(config.data)
    assert len(walked) == 1 and len(train) + len(held_out) == 80
    assert not set(names_of(train)) & set(names_of(held_out))


def test_odd_names_are_read_and_shown_on_one_line(tmp_path):
    fill(tmp_path, "grün/新しい.png", "grün/two\nlines\x1b[31m.png", "b/-rf.png")
    os.symlink(tmp_path / "b" / "-rf.png", os.fsencode(tmp_path) + b"/b/latin\xe9.png")
    found = load(tmp_path)
    seen = images.evaluation(found, DATA)
    assert len(found) == 4 and not seen.take(range(4), [0] * 4)[1]
    assert base.printable("two\nlines\x1b[31m") == "two\\nlines\\x1b[31m"
    assert base.printable("新しい") == "新しい"


def test_loops_are_cut_and_listed_and_links_followed(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", "x.png", "y.png")
    root = fill(tmp_path / "root", "a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to(root / "a")
    (root / "b" / "linked").symlink_to(elsewhere)
    found = folders.listing(root)
    assert found.paths == ("a/1.png", "b/2.png", "b/linked/x.png", "b/linked/y.png")
    assert found.skipped.loops == ["a/up"]


def test_links_to_a_parent_or_to_themselves_and_pipes_are_left_out(tmp_path):
    fill(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cat" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "cat" / "circle.png").symlink_to("circle.png")
    os.mkfifo(tmp_path / "dog" / "pipe.jpg")
    found = folders.listing(tmp_path)
    assert found.class_names == ("cat", "dog") and sorted(found.skipped.loops) == ["cat/up", "self"]
    assert found.paths == ("cat/1.png", "cat/circle.png", "dog/2.png")
    _, bad = images.evaluation(load(tmp_path), DATA).take([0, 1, 2], [0, 0, 0])
    assert list(bad) == [1]


def test_a_file_is_asked_for_its_size_once_and_others_for_nothing(tmp_path, monkeypatch):
    """The type of a file is part of the listing of its folder."""
    many(tmp_path, 3)
    fill(tmp_path, "a/notes.txt", "a/.hidden.png")
    asked, scandir = Counter(), os.scandir

    class Entry:
        def __init__(self, entry):
            self.name, self.path, self.entry = entry.name, entry.path, entry
            self.is_file = entry.is_file

        def stat(self):
            asked[self.name] += self.is_file()
            return self.entry.stat()

    @contextlib.contextmanager
    def watched(folder):
        with scandir(folder) as entries:
            yield map(Entry, entries)

    monkeypatch.setattr(os, "scandir", watched)
    assert len(folders.files(tmp_path)) == 6
    assert asked == {f"{n}.png": 2 for n in range(3)} | {"a": 0, "b": 0}


def test_a_file_that_may_not_be_examined_has_no_size(tmp_path, monkeypatch):
    many(tmp_path, 2)
    monkeypatch.setattr(folders, "_kind", lambda entry: "folder" if entry.is_dir() else "file")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere")
    assert ("a/gone.png", -1) in folders.files(tmp_path)


def test_empty_classes_are_listed_and_left_out(tmp_path):
    fill(tmp_path, "a/1.png", "c/1.png", "b/readme.txt")
    found = folders.listing(tmp_path)
    assert found.empty == ("b",) and found.class_names == ("a", "c")


def test_what_makes_no_classes_is_told_with_the_layout_it_takes(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        load(tmp_path / "none")
    with pytest.raises(DataError, match="nothing that ends like an image.*CLASS/IMAGE.jpg"):
        load(tmp_path)
    fill(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match="2 images without one"):
        load(tmp_path)


def test_a_tokenizer_takes_images_without_classes_and_nothing_else_does(tmp_path):
    fill(tmp_path, *(f"{n}.png" for n in range(40)), ".hidden.png", "notes.txt")
    changes = {"data.train": f"folder:{tmp_path}", "data.image_size": 8, "data.channels": 3}
    _, kept, held_out = run_sources.load(small_config(**changes))
    assert sorted(names_of(kept) + names_of(held_out)) == sorted(f"{n}.png" for n in range(40))
    assert kept[0].label == 0 and images.training(kept, DATA).read([0])["label"] == [0]
    with pytest.raises(DataError, match="40 images without one.*CLASS/IMAGE.jpg"):
        run_sources.load(tiny_config(**changes))
    many(tmp_path)
    assert run_sources.load(small_config(**changes))[1].class_names == ("a", "b")


def test_one_class_is_enough_for_a_tokenizer_and_no_classifier(tmp_path):
    fill(tmp_path, "only/1.png")
    source = load(tmp_path)
    config = tiny_config(**{"classifier.num_classes": 0})
    with pytest.raises(DataError, match="images of one class, only"):
        run_sources.with_num_classes(config, source)
    config = config_lib.replaced(config, {"task": "tokenizer"})
    assert run_sources.with_num_classes(config, source) is config


def test_train_and_a_validation_folder_are_found(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/2.png", "Val/a/3.png", "Val/b/4.png", "extra/c.txt")
    data = tiny_config(**{"data.train": f"folder:{tmp_path}"}).data
    train, evaluation = sources.load(data)
    assert names_of(train) == ["a/1.png", "b/2.png"]
    assert names_of(evaluation) == ["a/3.png", "b/4.png"]
    assert names_of(load(tmp_path)) == names_of(train)


@pytest.mark.parametrize(
    ("names", "train", "held_out", "unused"),
    [
        (["train", "valid", "test"], "train", "valid", ("test",)),
        (["Training", "Testing"], "Training", "Testing", ()),
        (["TRAIN", "validation", "training", "Val"], "TRAIN", "Val", ("training", "validation")),
    ],
)
def test_parts_have_several_names_of_which_validation_comes_first(
    tmp_path, names, train, held_out, unused
):
    fill(tmp_path, *(f"{name}/{c}/1.png" for name in names for c in "ab"))
    roots = [load(tmp_path, part).root for part in (base.KEPT, base.HELD_OUT)]
    assert roots == [str(tmp_path / train), str(tmp_path / held_out)]
    assert folders.unused(f"folder:{tmp_path}") == folders.unused(f"pairs:{tmp_path}") == unused
    assert folders.unused(f"digits:{tmp_path}") == ()


def test_a_folder_named_like_a_part_is_a_class_beside_other_classes(tmp_path):
    fill(tmp_path, *(f"{c}/{sub}/1.png" for c in ("bus", "car", "train") for sub in ("own", "web")))
    assert load(tmp_path).class_names == ("bus", "car", "train")
    fill(tmp_path, "test/own/1.png")
    with pytest.raises(DataError, match=f"bus, car. .*data.eval=folder:{tmp_path}/test; .* rename"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "train")
    assert load(tmp_path).class_names == ("bus", "car", "test")
    assert folders.unused(f"folder:{tmp_path}") == ()


def test_parts_without_one_for_training_are_refused(tmp_path):
    fill(tmp_path, "val/a/1.png", "test/a/1.png")
    with pytest.raises(
        DataError, match=f"parts val, test, but none for training.*folder:{tmp_path}/val"
    ):
        load(tmp_path)


def test_files_that_are_no_images_are_counted_by_ending(tmp_path):
    fill(tmp_path, "a/1.HEIC", "a/deep/2.heic", "b/3.avif", "b/readme", "loose.png", ".hidden.jxl")
    with pytest.raises(DataError, match="1 image without one, but 2 .heic, 1 .avif, 1 without en"):
        load(tmp_path)
    fill(tmp_path, "a/1.png")
    expected = {".heic": 2, ".avif": 1, "without ending": 1, "beside the classes": 1}
    assert load(tmp_path).skipped.endings == expected


def test_names_that_print_alike_are_told_apart(tmp_path):
    one, other = "caf\xe9", "cafe\u0301"
    fill(tmp_path, f"train/{one}/1.png", f"val/{other}/1.png", "train/b/1.png", "val/b/1.png")
    data = tiny_config(**{"data.train": f"folder:{tmp_path}"}).data
    with pytest.raises(DataError) as told:
        sources.load(data)
    assert r"only in training: 'caf\xe9'" in str(told.value)
    assert r"only in evaluation: 'cafe\u0301'" in str(told.value)
    with pytest.raises(DataError, match=r"'caf\\xe9' and 'cafe\\u0301' are one name"):
        sources.load(data, all_classes=True)
    fill(tmp_path, f"train/{other}/2.png")
    with pytest.raises(DataError, match=r"'cafe\\u0301' and 'caf\\xe9' are one name"):
        load(tmp_path)


def test_names_that_are_not_utf_8_are_refused_with_an_escape(tmp_path):
    latin = os.fsdecode(b"caf\xe9")
    fill(tmp_path, f"{latin}/1.png", "b/1.png")
    with pytest.raises(DataError, match=r"the class caf\\udce9 is not a name in UTF-8; rename it"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"caf\\udce9 is not a name in UTF-8"):
        sources.find(f"folder:{tmp_path / latin}", base.WHOLE, DATA)


def test_a_train_folder_alone_is_shared_as_if_it_were_the_whole(tmp_path):
    many(tmp_path / "x" / "train")
    for part in (base.KEPT, base.HELD_OUT):
        ours = names_of(load(tmp_path / "x", part))
        assert ours == names_of(load(tmp_path / "x" / "train", part)) and ours


@pytest.mark.parametrize(
    ("holdout", "expected"),
    [
        (0.1, {"a": 20, "b": 1, "c": 1}),
        (0.3, {"a": 60, "b": 4, "c": 2}),
        (0.9, {"a": 180, "b": 12, "c": 4}),
    ],
)
def test_the_held_out_share_is_that_of_each_class(tmp_path, holdout, expected):
    sizes = {"a": 200, "b": 13, "c": 5, "d": 1}
    fill(tmp_path, *(f"{c}/{n}.png" for c, size in sizes.items() for n in range(size)))
    data = tiny_config(**{"data.holdout": holdout}).data
    kept, held_out = (load(tmp_path, part, data) for part in (base.KEPT, base.HELD_OUT))
    assert Counter(name[0] for name in names_of(held_out)) == expected
    assert sorted(names_of(kept) + names_of(held_out)) == sorted(names_of(load(tmp_path)))
    assert len(set(kept.label)) == 4  # no class is held out as a whole


def test_the_held_out_share_is_fixed_by_names_and_a_new_image_moves_one_at_most(tmp_path):
    names = [f"{c}/{n}.png" for c in "ab" for n in range(60)]
    before = folders.held_out([names[:60], names[60:]], 0.1)
    expected = {"a": (19, 41, 46, 54, 55, 59), "b": (0, 25, 39, 41, 44, 54)}
    assert before == {f"{c}/{n}.png" for c, numbers in expected.items() for n in numbers}
    moved = []
    for new in range(40):
        after = folders.held_out([[*names[:60], f"a/new{new}.png"], names[:59:-1]], 0.1)
        moved.append(len((before ^ after) - {f"a/new{new}.png"}))
    assert set(moved) == {0, 1}
    root = fill(tmp_path / "x", *names)
    assert set(names_of(load(root, base.HELD_OUT))) == before
    none = tiny_config(**{"data.holdout": 0.0}).data
    with pytest.raises(DataError, match="leaves none held out"):
        load(root, base.HELD_OUT, none)


def test_another_share_is_other_data(tmp_path):
    root = many(tmp_path)
    prints = [
        load(root, part, tiny_config(**{"data.holdout": holdout}).data).fingerprint()["sha256"]
        for part in (base.KEPT, base.HELD_OUT)
        for holdout in (0.1, 0.2)
    ]
    assert len(set(prints)) == 4


def test_different_classes_are_refused_by_name(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/z/4.png")
    data = tiny_config(**{"data.train": f"folder:{tmp_path}"}).data
    with pytest.raises(DataError, match="only in training: b\n.*only in evaluation: z"):
        sources.load(data)


def test_the_fingerprint_knows_names_and_sizes_but_not_the_place(tmp_path):
    print_of = load(many(tmp_path / "x")).fingerprint()
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    assert load(tmp_path / "y").fingerprint() == print_of
    fill(tmp_path / "y", "a/3.png", data=PIXELS + b"!")
    resized = load(tmp_path / "y").fingerprint()
    fill(tmp_path / "y", "a/3.png")
    (tmp_path / "y" / "a" / "3.png").rename(tmp_path / "y" / "b" / "3333.png")
    renamed = load(tmp_path / "y").fingerprint()
    assert print_of != resized != renamed != print_of


def test_a_file_that_cannot_be_read_is_a_bad_record(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b" / "3.png").symlink_to(tmp_path / "gone")
    seen = images.evaluation(load(tmp_path), DATA)
    arrays, bad = seen.take([0, 1, 2], [0, 0, 0])
    assert list(bad) == [2] and bad[2].why == "No such file or directory"
    assert not arrays["image"][2].any() and arrays["image"][1].any()
    np.testing.assert_array_equal(arrays["label"], [0, 1, 1])


def test_a_folder_that_is_spelled_otherwise_or_copied_is_known_by_its_images(tmp_path, monkeypatch):
    root = many(tmp_path / "x", 10)
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for other in (f"{root}/", "x", "link", "./x/../x", str(tmp_path / "copy"), "x"):
        data = tiny_config(**{"data.train": f"folder:{root}", "data.eval": f"folder:{other}"}).data
        assert sources.num_shared(*sources.load(data)) == 20
    kept, held_out = (load(root, part) for part in (base.KEPT, base.HELD_OUT))
    assert sources.num_shared(kept, held_out) == 0
    assert sources.num_shared(load(root), held_out) == len(held_out) == 2
    fill(tmp_path / "y", "a/1.png", "a/2.png", "a/new.png", "b/new.png")
    assert sources.num_shared(load(root), load("y")) == 2
    for path in (tmp_path / "copy").rglob("*.png"):  # same names and sizes, other images
        path.write_bytes(PIXELS[:-1] + b"!")
    assert sources.num_shared(load(root), load("copy")) == 0


def test_a_path_that_is_missing_or_may_not_be_read_is_told(tmp_path, monkeypatch):
    for spec in ("folder:", "pairs:", "records:"):
        with pytest.raises(DataError, match="the path of a source is missing"):
            sources.find(spec, base.WHOLE, DATA)
    with pytest.raises(DataError, match="cannot be read: .*name too long"):
        sources.find(f"folder:{'x' * 5000}", base.WHOLE, DATA)
    root, scandir = fill(tmp_path, "a/1.png", "b/x/1.png"), os.scandir

    def closed(path):
        if os.path.basename(path) == "x":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match="cannot be read: .*Permission denied: .*b/x"):
        sources.find(f"folder:{root}", base.WHOLE, DATA)


def test_an_evaluation_source_with_parts_means_its_held_out_part(tmp_path):
    names = [f"{part}/{c}/{part}.png" for part in ("train", "val") for c in "ab"]
    other, own = fill(tmp_path / "other", *names), many(tmp_path / "own")
    for train, trained in ((own, own), (other, other / "train")):
        data = tiny_config(**{"data.train": f"folder:{train}", "data.eval": f"folder:{other}"}).data
        assert [s.root for s in sources.load(data)] == [str(trained), str(other / "val")]
    data = tiny_config(**{"data.train": f"folder:{other}", "data.eval": f"folder:{own}"}).data
    assert [len(s) for s in sources.load(data)] == [2, 80]


def test_a_tilde_means_the_home_folder_in_every_source(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path, "photos/a/1.png", "seg/images/1.png", "seg/masks/1.png")
    data = tiny_config(**{"data.mask_classes": 2, "data.tfds_dir": "~/prepared"}).data
    for spec, told in (("folder:~/photos", "photos"), ("pairs:~/seg", "seg")):
        assert sources.find(spec, base.WHOLE, data).name.endswith(f"{tmp_path}/{told}")
    for spec, told in (("records:~/x", "no such folder"), ("records:~/photos", "is not a store"),
                       ("tfds:~/photos:train", f"{tmp_path}/photos holds no data set of TFDS"),
                       ("mnist:train", f"not prepared in {tmp_path}/prepared/"),
                       ("folder:~nobody/x", "no such folder")):  # fmt: skip
        with pytest.raises(DataError, match=told):
            sources.find(spec, base.WHOLE, data)
