"""Sweeps: members are what the file says, are sound before any runs, and fail alone."""

import csv
import json
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from supmim import cli, grid
from supmim.errors import ConfigError
from supmim.report import sweep as picture
from supmim.sweeps import cost, local, members, table
from supmim.sweeps import slurm as slurm_engine
from supmim.workdir import lock
from supmim.workdir.files import write_json
from tests.conftest import tiny_config, tiny_preset

SHIPPED = Path(__file__).parents[1] / "configs/sweeps"
MATCHED = ("s0-two_pass", "s0-baseline_matched")
# Stands for `supmim train`: its name says how it ends.
TRAINING = """
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
print("trained", flush=True)
name = workdir.name
if "killed" in name:
    os.kill(os.getpid(), signal.SIGKILL)
if "slow" in name:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (workdir / "ready").touch()
    time.sleep(10)
if "bad" in name:
    sys.exit(5)
if not (workdir / "config.json").is_file():
    sys.exit("holds no run")
(workdir / "results.json").write_text(json.dumps({"step": 3, "knn/recall_at_1": 0.5}))
"""


def write_sweep(folder, code):
    """A sweep file over a tiny preset; `code` is what get_sweep returns."""
    (folder / "tiny.json").write_text(json.dumps(tiny_preset(total_epochs=1).to_dict()))
    (folder / "tiny.py").write_text(
        "import json, pathlib\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        "    path = pathlib.Path(__file__).with_name('tiny.json')\n"
        "    return ConfigDict(json.loads(path.read_text()))\n"
    )
    path = folder / "sweep.py"
    path.write_text(
        "from supmim import grid\n\nPRESET = 'tiny.py'\n\n\ndef get_sweep():\n    return " + code
    )
    return path


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """sweep(action, code, *flags) -> exit code, stdout, stderr; trainings are pretended."""
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(
        local, "command", lambda member: [sys.executable, "-S", "-c", TRAINING, str(member)]
    )
    monkeypatch.setattr(cost, "costs", lambda found: [cost.Cost(1000, 10, 960, 2e12)] * len(found))

    def call(action, code="", *more):
        file = [f"--sweep={write_sweep(tmp_path, code)}"] if code else []
        result = cli.run(["sweep", action, f"--folder={tmp_path / 'out'}", *file, *more])
        return result, *capsys.readouterr()

    call.members = tmp_path / "out/members"
    return call


def wait_for(condition):
    """Fails rather than hangs."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def attempts(member):
    return (member / "log.txt").read_text().count("trained")


# The file.


def test_a_product_is_every_combination_and_refuses_to_lose_an_override():
    axis = grid.values("decoder.depth", 1, 2)
    assert grid.product(axis, grid.seeds(7)) == {
        "decoder.depth=1-s7": {"decoder.depth": 1, "seed": 7, "data.seed": 7},
        "decoder.depth=2-s7": {"decoder.depth": 2, "seed": 7, "data.seed": 7},
    }
    assert list(grid.zipped(axis, grid.seeds(0, 1))) == ["decoder.depth=1-s0", "decoder.depth=2-s1"]
    with pytest.raises(ConfigError, match="two axes set decoder.depth"):
        grid.product(axis, {"deep": {"decoder.depth": 8}})
    with pytest.raises(ConfigError, match="not of 2, 3 entries"):
        grid.zipped(axis, grid.seeds(0, 1, 2))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("{'a': {'mim.mask_ratoi': 0.5}, 'b': {'seed': -1}}",
         ("2 of 2", "a: [C2] the config has", "did you mean config.mim.mask_ratio?", "b: ")),
        ("{'a': {'mim.passes': 'one', 'data.mixup': 0.2}}", ("set config.data.mixup=0",)),
        ("{'../a': {}}", ("../a: a name has",)),
        ("{'a' * 49: {}}", ("up to 48",)),
        ("{}", ("must return a dict",)),
        ("{'a': 3}", ("must return a dict",)),
        ("{'a': 1 / 0}", ("sweep.py, line 7: ZeroDivisionError",)),
        ("(", ("line 7: SyntaxError",)),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_sweep_file_is_told_and_nothing_is_written(sweep, code, told):
    exit_code, _, err = sweep("plan", code)
    assert exit_code == 2 and all(words in err for words in told), err
    assert not sweep.members.parent.exists()


def test_entries_that_resolve_to_one_config_are_one_member_with_both_names(sweep):
    code = "{'a': {}, 'b': {'encoder.depth': 1}, 'float': {'mim_weight': 1}, 'seed': {'seed': 1}}"
    assert sweep("run", code)[0] == 0
    found = members.read(sweep.members.parent)
    assert [member.names for member in found] == [("a", "b", "float"), ("seed",)]
    assert sorted(path.name for path in sweep.members.iterdir()) == ["a", "seed"]


AFTER = (
    "grid.product({'first': {'total_epochs': 2}, 'then': {'init.model': 'member:first'}}, "
    "grid.seeds(0, 1))"
)


def test_a_member_finds_the_one_before_it_however_its_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_sweep(tmp_path, AFTER)
    members.freeze(members.expand(path, Path("sw")), Path("sw"))
    for folder in (Path("sw"), tmp_path / "sw"):
        found = members.read(folder)
        before = {m.name: members.begins_after(m, found) for m in found}
        assert before["then-s0"].name == "first-s0" and before["first-s0"] is None


def test_a_finished_member_of_other_images_is_refused(tmp_path):
    path = write_sweep(tmp_path, "{'a': {'data.eval': 'digits:validation'}}")
    (member,) = members.expand(path, tmp_path / "sw")
    members.freeze([member], tmp_path / "sw")
    (member.workdir / "metrics.jsonl").write_text("{}\n")
    (member.workdir / "results.json").write_text('{"step": 1}')
    write_sweep(tmp_path, "{'a': {}}")
    with pytest.raises(ConfigError, match="data.eval: its results have 'digits:validation'"):
        members.freeze(members.expand(path, tmp_path / "sw"), tmp_path / "sw")


def test_a_member_begins_with_the_encoder_of_another_after_it_has_finished(sweep):
    code, out, err = sweep("run", AFTER, "--jobs=4")
    assert code == 0, err
    configs = {path.name: json.loads((path / "config.json").read_text())["config"]
               for path in sweep.members.iterdir()}  # fmt: skip
    for seed in (0, 1):
        assert configs[f"then-s{seed}"]["init"]["model"] == str(sweep.members / f"first-s{seed}")
        start, end = out.index(f"start       then-s{seed}"), out.index(f"finished    first-s{seed}")
        assert end < start
    assert [line.split()[:2] for line in sweep("table")[1].splitlines()[1:3]] == [
        ["first", "2/2"], ["then", "2/2"],
    ]  # fmt: skip


def test_a_member_is_left_out_if_the_one_that_it_begins_with_failed(sweep):
    code = (
        "{'bad': {}, 'then': {'init.model': 'member:bad', 'encoder.depth': 1}, "
        "'last': {'init.model': 'member:then', 'encoder.depth': 3}, 'good': {'seed': 3}}"
    )
    exit_code, _, err = sweep("run", code)
    assert exit_code == 5 and "left out  then: bad failed" in err
    assert "left out  last: then failed" in err and (sweep.members / "good/results.json").is_file()
    assert not (sweep.members / "then/log.txt").exists()
    lines = sweep("run", "", "--engine=commands")[1].splitlines()
    assert [line.startswith("# after") for line in lines] == [False, True, True]


def test_results_are_taken_up_on_another_machine(sweep, tmp_path):
    """Wherever the folder is, and whatever was trained; an encoder that is needed comes again."""
    kept, one_seed = tmp_path / "results", AFTER.replace("seeds(0, 1)", "seeds(0)")

    def begun(folder, code):
        exit_code, out, err = sweep("run", code, f"--folder={folder}", f"--results={kept}")
        assert exit_code == 0, err
        return [line.split()[1] for line in out.splitlines() if line.startswith("start ")]

    assert begun(tmp_path / "one", one_seed) == ["first-s0", "then-s0"]
    found = [json.loads(path.read_text()) for path in kept.iterdir()]
    assert sorted(one["names"] for one in found) == [["first-s0"], ["then-s0"]]
    assert all(one["results"]["knn/recall_at_1"] == 0.5 for one in found)
    assert not any(str(tmp_path) in path.read_text() for path in kept.iterdir())
    flags = f"--folder={tmp_path / 'two'}", f"--results={kept}"
    assert "2 finished, 2 waiting" in sweep("status", AFTER, *flags)[1]
    assert begun(tmp_path / "two", AFTER) == ["first-s1", "then-s1"]
    changed = AFTER.replace("'member:first'", "'member:first', 'mim_weight': 2.0")
    assert begun(tmp_path / "three", changed) == ["first-s0", "first-s1", "then-s0", "then-s1"]
    assert len(list(kept.iterdir())) == 6


def test_results_are_kept_as_soon_as_a_member_has_finished(sweep, tmp_path, monkeypatch):
    """A machine that dies in the middle of a sweep would take them along."""
    kept, found, start = tmp_path / "results", [], local.start

    def counted(*given):
        found.append(len(list(kept.glob("*.json"))))
        return start(*given)

    monkeypatch.setattr(local, "start", counted)
    assert sweep("run", "{'a': {}, 'b': {'seed': 3}}", f"--results={kept}")[0] == 0
    assert found == [0, 1]


@pytest.mark.parametrize("name", ["frist", "then", "later"])
def test_a_member_begins_with_an_entry_before_it_alone(sweep, name):
    code = AFTER.replace("member:first", f"member:{name}")
    exit_code, _, err = sweep("plan", code)
    assert exit_code == 2 and f"init.model=member:{name} names no entry before this one" in err
    assert ("did you mean first" in err) == (name == "frist")


@pytest.mark.parametrize(
    ("name", "size", "seeds"),
    [("mim_gain", 27, range(3)), ("mim_ablation", 51, range(3)), ("mim_dense", 55, range(5)),
     ("tune_few_labels", 19, [100]), ("mim_few_labels", 166, range(10)),
     ("mim_unseen", 25, range(5)), ("mim_cifar10", 39, range(3)), ("mim_features", 21, range(3)),
     ("mim_cifar10_h200", 5, [0])],
)  # fmt: skip
def test_the_shipped_sweeps_are_valid_and_headed_by_their_command(tmp_path, name, size, seeds):
    found = members.expand(SHIPPED / f"{name}.py", tmp_path)
    assert len(found) == size
    assert {(m.config.seed, m.config.data.seed) for m in found} == {(n, n) for n in seeds}
    command = f"supmim sweep run --sweep={name} --folder=sweeps/{name}"
    assert command in (SHIPPED / f"{name}.py").read_text()


def test_the_matched_baseline_has_the_flops_of_two_passes_to_half_an_epoch(tmp_path):
    found = {m.name: m for m in members.expand(SHIPPED / "mim_gain.py", tmp_path)}
    two, matched = cost.costs([found[name] for name in MATCHED])
    epochs = found["s0-baseline_matched"].config.total_epochs
    assert abs(two.flops / matched.flops - 1) < 0.5 / epochs
    assert two.steps == 175 * 30 and two.images == two.steps * 50


def test_a_member_that_could_not_start_is_told_before_any_does(tmp_path, capsys):
    path = write_sweep(tmp_path, "{'a': {}, 'b': {'optimizer.warmup_steps': 999}}")
    assert cli.run(["sweep", "run", f"--sweep={path}", f"--folder={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert "1 of 2 members cannot be trained:\nb: config.optimizer.warmup_steps=999" in err
    assert not (tmp_path / "out/members").exists()


def test_the_attention_of_a_gpu_is_costed_without_one():
    plain = tiny_config(**{"encoder.dtype": "bfloat16"})
    flash = tiny_config(**{"encoder.dtype": "bfloat16", "encoder.attention": "cudnn"})
    assert cost.cost(flash) == cost.cost(plain)


# Running.


def test_a_failing_member_fails_alone_and_a_rerun_does_only_what_is_missing(sweep):
    code, out, err = sweep("run", "{'a': {}, 'bad': {'seed': 1}, 'b': {'seed': 2}}")
    log = sweep.members / "bad/log.txt"
    assert code == 5 and "1 of 3 failed" in err and f"exit 5  {log}" in err
    assert out.count("start") == 3 and "2 left" in out and out.count("finished") == 2
    assert "failed, exit 5  bad" in sweep("status")[1]
    assert sweep("run")[0] == 5
    assert [attempts(sweep.members / name) for name in ("a", "bad", "b")] == [1, 2, 1]


def test_a_changed_file_trains_what_is_new_and_never_over_another_config(sweep):
    assert sweep("run", "{'a': {}}")[0] == 0
    assert sweep("run", "{'a': {}, 'b': {'seed': 1}}")[0] == 0
    assert attempts(sweep.members / "a") == attempts(sweep.members / "b") == 1
    assert sweep("run", "{'a': {'log_every': 1}, 'b': {'seed': 1}}")[0] == 0
    assert members.read(sweep.members.parent)[0].config.log_every == 5  # as it was trained
    (sweep.members / "a/metrics.jsonl").write_text('{"step": 1}\n')
    code, _, err = sweep("run", "{'a': {'encoder.depth': 3}}")
    assert code == 2 and "config.encoder.depth: the workdir has 1, but you ask for 3" in err
    assert len(members.read(sweep.members.parent)) == 2


def test_killed_members_are_started_again_by_the_next_run(sweep):
    code, _, err = sweep("run", "{'killed': {}, 'a': {'seed': 1}}")
    assert code == 75 and "1 of 2 members not finished" in err
    assert attempts(sweep.members / "a") == 1
    assert "interrupted     killed" in sweep("status")[1]
    sweep("run")
    assert [attempts(sweep.members / name) for name in ("a", "killed")] == [1, 2]
    (sweep.members / "killed/exit.json").write_text('{"exit')
    assert members.exit_code(sweep.members / "killed") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_sweep_exits_75(sweep, number):
    def stop():
        ready = [sweep.members / f"slow{i}/ready" for i in (0, 1)]
        wait_for(lambda: all(path.exists() for path in ready))
        os.kill(os.getpid(), number)

    stopper = threading.Thread(target=stop)
    stopper.start()
    before = signal.getsignal(number)
    code, out, err = sweep(
        "run", "{'slow0': {}, 'slow1': {'seed': 1}, 'a': {'seed': 2}}", "--jobs=2"
    )
    stopper.join()
    assert code == 75 and "3 of 3 members not finished" in err
    assert out.count("interrupted") == 2 and out.count("start ") == 2
    assert signal.getsignal(number) == before
    ends = [members.exit_code(sweep.members / name) for name in ("slow0", "slow1", "a")]
    assert ends == [75, 75, None]


def test_a_member_that_another_process_trains_is_waited_for(sweep):
    sweep("plan", "{'a': {}, 'b': {'seed': 1}}")
    finishes = sweep.members / "a/results.json"

    def train_elsewhere():
        with lock.hold(sweep.members / "a"):
            wait_for(lambda: members.exit_code(sweep.members / "b") == 0)
            write_json(finishes, {"step": 3, "knn/recall_at_1": 0.25})

    other = threading.Thread(target=train_elsewhere)
    other.start()
    wait_for(lambda: lock.held(sweep.members / "a"))
    assert "running         a" in sweep("status")[1]
    code, out, _ = sweep("run")
    other.join()
    assert code == 0 and "waits for   a" in out
    assert not (sweep.members / "a/log.txt").exists()


def test_a_second_sweep_in_a_folder_is_refused(sweep):
    sweep("plan", "{'a': {}}")
    with lock.hold(sweep.members.parent):
        code, _, err = sweep("run")
    assert code == 2 and "is in use by process" in err and "choose another --folder" in err


def test_what_is_compiled_is_kept_private_to_the_user(sweep):
    sweep("run", "{'a': {}}")
    folder = sweep.members.parent / "compiled"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("flag", "told"),
    [("--jobs=0", "--jobs=0 is not a number"), ("--engine=slrum", "local, slurm, commands")],
)
def test_flags_that_make_no_sense_are_told(sweep, flag, told):
    code, _, err = sweep("run", "{'a': {}}", flag)
    assert code == 2 and told in err


def test_commands_are_printed_for_what_is_missing_alone(sweep):
    sweep("run", "{'a': {}, 'bad': {'seed': 1}}")
    code, out, _ = sweep("run", "", "--engine=commands")
    assert code == 0
    assert out == f"supmim train --workdir={sweep.members / 'bad'}\n"


def test_a_real_member_is_trained_and_listed(tmp_path, capsys):
    path = write_sweep(tmp_path, "{'a': {'mim_weight': 0.0, 'encoder.depth': 1}}")
    folder = tmp_path / "out"
    assert cli.run(["sweep", "run", f"--sweep={path}", f"--folder={folder}"]) == 0
    assert "finished    a" in capsys.readouterr().out
    assert cli.run(["sweep", "table", f"--folder={folder}"]) == 0
    results = json.loads((folder / "members/a/results.json").read_text())
    assert f"{100 * results['knn/recall_at_1']:.2f}" in capsys.readouterr().out


# The table.


@pytest.fixture
def measured(sweep):
    """Three rows: one of two seeds under two names, one of a single seed, one that is missing."""
    code = (
        "grid.product({'low': {'encoder.depth': 2}, 'high': {}, 'same': {'encoder.depth': 1}, "
        "'none': {'encoder.depth': 3}}, grid.seeds(0, 1))"
    )
    assert sweep("plan", code)[0] == 0
    for name, value in (("high-s0", 0.9), ("high-s1", 1.0), ("low-s0", 0.5)):
        write_json(sweep.members / name / "results.json", {"step": 3, "knn/recall_at_1": value})
    return sweep


def test_the_table_has_means_and_spreads_over_seeds_best_first(measured):
    code, out, _ = measured("table")
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines[:8])) <= 80
    assert lines[1].split() == ["high", "2/2", "95.00", "+-", "7.07"]
    assert lines[2] == "  = same"
    assert lines[3].split() == ["low", "1/2", "50.00"]
    assert lines[4].split() == ["none", "0/2", "missing"]
    assert "missing: low-s1 (waiting)" in lines


def test_differences_are_paired_by_seed_with_their_t_interval():
    """Seeds that only one of the two has finished do not count."""
    tops = {"a": {0: 0.5, 1: 0.7, 2: 0.9, 7: 0.1}, "b": {2: 0.80, 0: 0.45, 1: 0.60, 9: 0.9}}
    made = {
        name: table.Row((name,), tuple({"knn/recall_at_1": x} for x in found.values()), 4,
                        tuple((seed, seed) for seed in found))
        for name, found in tops.items()
    }  # fmt: skip
    found = table.difference(made["a"], made["b"], "knn/recall_at_1")
    assert found.pairs == 3 and found.mean == pytest.approx(0.25 / 3)
    reach = 4.302653 * np.std([0.05, 0.1, 0.1], ddof=1) / 3**0.5  # t of 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach))
    lines = table.format_table(list(made.values()), "knn/recall_at_1", "b").splitlines()
    assert lines[2] == "  +8.33, from +1.16 to +15.50, 3 seeds" and lines[3].startswith("b ")
    assert table.difference(made["a"], made["a"], "classification/top1") is None
    with pytest.raises(ConfigError, match="--versus=c is not one of the arms: a, b"):
        table.format_table(list(made.values()), "knn/recall_at_1", "c")


def test_an_arm_may_be_named_like_a_seed_and_stand_behind_it(sweep):
    code = (
        "grid.product(grid.seeds(0, 4), {'vit-s4': {'encoder.depth': 1}, "
        "'vit-s16': {'encoder.depth': 3}})"
    )
    sweep("plan", code)
    labels = [line.split()[0] for line in sweep("table")[1].splitlines()[1:3]]
    assert labels == ["vit-s4", "vit-s16"]
    sweep("plan", "{'vit-s4': {'encoder.depth': 1}, 'vit-s16': {'encoder.depth': 3}}")
    labels = [line.split()[0] for line in sweep("table")[1].splitlines()[1:3]]
    assert labels == ["vit-s4", "vit-s16"]


def test_an_index_that_an_older_supmim_wrote_is_read(measured):
    path = measured.members.parent / "index.json"
    index = json.loads(path.read_text())
    del index["arms"]
    path.write_text(json.dumps(index))
    assert measured("table")[1].splitlines()[1].split()[:2] == ["high-s0", "2/2"]


def test_the_table_has_the_units_of_the_report():
    row = table.Row(("a",), ({"knn/recall_at_1": 0.5, "classification/loss": 0.5},), 1)
    assert "knn/recall_at_1, %" in table.format_table([row], "knn/recall_at_1")
    assert table.format_mean(row, "knn/recall_at_1") == " 50.00"
    assert "%" not in table.format_table([row], "classification/loss")
    assert table.format_mean(row, "classification/loss") == "0.5"
    assert "tokenizer/psnr, dB" in table.format_table([row], "tokenizer/psnr")


def test_the_columns_of_the_csv_are_in_the_order_of_their_numbers():
    row = table.Row(("a",), ({f"fewshot/{n}_shot": 0.5 for n in (10, 1, 5)},), 1)
    header = table.csv_text([row]).splitlines()[0].split(",")
    assert header[4::2] == [f"fewshot/{n}_shot mean" for n in (1, 5, 10)]


def test_members_that_have_begun_share_the_row_of_those_that_have_not(measured):
    path = measured.members / "high-s0" / "config.json"
    waiting = json.loads(path.read_text())
    assert waiting["config"]["classifier"]["num_classes"] == 10
    waiting["config"]["classifier"]["num_classes"] = 0  # `train` settles it
    path.write_text(json.dumps(waiting))
    assert measured("table")[1].splitlines()[1].split()[:2] == ["high", "2/2"]


def test_the_csv_has_every_metric_as_it_was_measured(measured):
    measured("table")
    with (measured.members.parent / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["member"] for row in rows] == ["high", "low", "none"]
    assert rows[0]["also"] == "same" and float(rows[0]["knn/recall_at_1 mean"]) == 0.95
    assert rows[1]["knn/recall_at_1 std"] == rows[2]["knn/recall_at_1 mean"] == ""
    assert float(rows[0]["step mean"]) == 3


def test_an_unknown_metric_gets_its_did_you_mean(measured):
    code, _, err = measured("table", "", "--metric=knn/recal_at_1")
    assert code == 2 and "did you mean knn/recall_at_1?" in err


def test_the_longest_names_leave_the_tables_in_80_columns(sweep):
    name = "n" * 46
    sweep("plan", f"grid.product({{'{name[2:]}': {{}}}}, grid.seeds(0, 1))")
    for action in ("plan", "status", "table", "run"):
        out = sweep(action)[1]
        told = [line for line in out.splitlines() if str(sweep.members.parent) not in line]
        assert max(map(len, told)) <= 80, action


def test_every_seed_is_a_dot_of_its_own(tmp_path):
    def blue(values):
        picture.draw(tmp_path / "p.png", [("a", values, ""), ("b", [0.0, 1.0], "")], "top1")
        image = matplotlib.image.imread(tmp_path / "p.png")[..., :3]
        return (abs(image - [0x23 / 255, 0x64 / 255, 0xAA / 255]).max(axis=-1) < 0.02).sum()

    none, one, three = blue([]), blue([0.5]), blue([0.5] * 3)
    assert none < one and three - none > 2.5 * (one - none)


# Slurm.


@pytest.fixture
def submitit(monkeypatch):
    """The optional library, kept from setting up logging anew, which would close pytest's files."""
    monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    return pytest.importorskip("submitit")


@pytest.fixture
def slurm(tmp_path, monkeypatch, submitit):
    """Stand-ins for Slurm's programs: sbatch keeps the script that it is given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in (("srun", ""), ("sbatch", f"cp $1 {tmp_path}/script\necho job 42")):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path / "script"


def test_whole_numbers_for_slurm_are_numbers():
    found = slurm_engine.parse_parameters("nodes=2,slurm_partition=gpu,slurm_comment=")
    assert found == {"nodes": 2, "slurm_partition": "gpu", "slurm_comment": ""}


def test_slurm_gets_an_array_of_what_is_missing(sweep, slurm):
    sweep("run", "{'a': {}, 'bad': {'seed': 1}, 'killed': {'seed': 2}}")
    flags = ("--engine=slurm", "--slurm=timeout_min=90,slurm_partition=gpu")
    with lock.hold(sweep.members / "bad"):
        assert "1 submitted" in sweep("run", "", *flags)[1]
    code, out, err = sweep("run", "", *flags)
    assert code == 0 and "2 submitted" in out and "42_1" in out, err
    script = slurm.read_text()
    assert "--array=0-1" in script and "--partition=gpu" in script and "--time=90" in script
    code, _, err = sweep("run", "", "--engine=slurm", "--slurm=timeout=3")
    assert code == 2 and "--slurm=timeout=3" in err


def test_a_slurm_job_near_its_limit_saves_and_queues_itself_again(sweep, submitit):
    from supmim.sweeps.slurm import Job

    sweep("plan", "{'slow': {}, 'a': {'seed': 1}}")
    job = Job(sweep.members / "slow")
    job.child = local.start(job.workdir, os.environ)
    wait_for((job.workdir / "ready").exists)
    again = job.checkpoint().function
    assert members.exit_code(job.workdir) == 75
    assert again.workdir == job.workdir and again.child is None
    Job(sweep.members / "a")()
    assert members.exit_code(sweep.members / "a") == 0


def test_without_slurm_it_is_told(sweep, submitit):
    code, _, err = sweep("run", "{'a': {}}", "--engine=slurm")
    assert code == 2 and "is this a login node of Slurm?" in err


def test_without_submitit_it_is_told(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, _, err = sweep("run", "{'a': {}}", "--engine=slurm")
    assert code == 2 and "pip install -e '.[slurm]'" in err
