"""GLUE's own files: what is read of each task, and that every malformed row is an error with its line."""

from __future__ import annotations

import lzma

import pytest

from mslt_ds.errors import DataError
from mslt_ds.evaluation.glue import tsv
from mslt_ds.evaluation.glue.tasks import TASKS, choose


def write(folder, task, text, name="dev.tsv"):
    path = folder / task / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    return path


def read(folder, task):
    return tsv.read_split(folder, TASKS[task], TASKS[task].dev[0])


@pytest.mark.parametrize("name", TASKS)
def test_every_task_in_the_official_layout(glue_folder, name):
    task = TASKS[name]
    train = tsv.read_split(glue_folder, task, task.train)
    assert len(train) == 64
    assert all(len(texts) == len(task.texts) for texts in train.texts)
    for split in task.dev:
        dev = tsv.read_split(glue_folder, task, split)
        assert len(dev) == len(dev.labels) == 24
        for texts, label in zip(dev.texts, dev.labels, strict=True):
            good = any(word in texts[0].split() for word in ("good", "fine", "great"))
            if task.is_regression:
                assert (label >= 4) is good
            elif name == "MNLI":
                assert task.labels[int(label)] in (
                    "neutral",
                    "entailment" if good else "contradiction",
                )
            elif name in ("QNLI", "RTE"):
                assert task.labels[int(label)] == ("entailment" if good else "not_entailment")
            else:
                assert label == int(good)
    for split in task.test:
        test = tsv.read_test(glue_folder, task, split, task.folder)
        assert test.ids == [str(i) for i in range(8)]


def test_quotation_marks_are_letters(tmp_path):
    row = '1\t12\t13\t"He said he was "100 percent" sure.\t"Sure," he said, "am I".'
    write(tmp_path, "MRPC", f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{row}\n")
    found = read(tmp_path, "MRPC")
    assert found.texts == [('"He said he was "100 percent" sure.', '"Sure," he said, "am I".')]


def test_columns_are_found_by_the_header(tmp_path):
    (tmp_path / "MNLI").mkdir()
    four = "index\tsentence1\tsentence2\tgold_label\n0\tA\tB\tneutral\n"
    write(tmp_path, "MNLI", four, "dev_matched.tsv")
    many = "index\tgold_label\tx\ty\tsentence2\tsentence1\n0\tentailment\t-\t-\tB\tA\n"
    write(tmp_path, "MNLI", many, "dev_mismatched.tsv")
    matched, mismatched = (tsv.read_split(tmp_path, TASKS["MNLI"], s) for s in TASKS["MNLI"].dev)
    assert (matched.texts, matched.labels) == ([("A", "B")], [1])
    assert (mismatched.texts, mismatched.labels) == ([("A", "B")], [0])


def test_mark_carriage_returns_separators_and_xz(tmp_path):
    text = "\ufeffsentence\tlabel\r\na film\u2028so\x85long\t1\r\n"
    path = tmp_path / "SST-2" / "dev.tsv.xz"
    path.parent.mkdir()
    path.write_bytes(lzma.compress(text.encode()))
    found = read(tmp_path, "SST-2")
    assert (found.texts, found.labels) == ([("a film\u2028so\x85long",)], [1])


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("SST-2", "sentence\tlabel\nfine\t1\nno tab 1\n", r"dev.tsv:3: 1 columns where 2 are due"),
        ("SST-2", "sentence\tlabel\na\tb\t1\n", r"dev.tsv:2: 3 columns where 2 are due"),
        ("SST-2", "sentence\tlabel\nfine\t1\nfine\tgood\n", r"dev.tsv:3: label 'good'; known are 0, 1"),
        ("SST-2", "sentence\tlabel\nfine\t\n", r"dev.tsv:2: label ''"),
        ("SST-2", 'sentence\tlabel\n"He said ""so"""\t1\n', r"dev.tsv:2: sentence is in quotes"),
        ("SST-2", 'sentence\tlabel\nso\t1\n"broken\nline"\t1\n', r"dev.tsv:3: .*a quoted text with a line break"),
        ("SST-2", "text\tlabel\nfine\t1\n", r"dev.tsv:1: no column sentence in the header"),
        ("SST-2", '"sentence"\t"label"\n"fine"\t"1"\n', r"dev.tsv:1: no column .*in quotes"),
        ("SST-2", "sentence\tlabel\n", r"dev.tsv: no rows"),
        ("SST-2", "", r"dev.tsv:1: no column sentence"),
        ("CoLA", "gj04\t1\t\tFine.\ngj04\t1\tFine.\n", r"dev.tsv:2: 3 columns where 4 are due"),
        ("CoLA", "gj04\t2\t\tFine.\n", r"dev.tsv:1: label '2'"),
        ("STS-B", "sentence1\tsentence2\tscore\na\tb\t5.5\n", r"dev.tsv:2: score '5.5'; .*0 to 5"),
        ("STS-B", "sentence1\tsentence2\tscore\na\tb\tnan\n", r"dev.tsv:2: score 'nan'"),
        ("STS-B", "sentence1\tsentence2\tscore\na\tb\tno\n", r"dev.tsv:2: score 'no'"),
        ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral\n", r"dev.tsv:2: label 'neutral'"),
    ],
)  # fmt: skip
def test_malformed_rows_name_file_and_line(tmp_path, task, text, message):
    write(tmp_path, task, text)
    with pytest.raises(DataError, match=message):
        read(tmp_path, task)


def test_a_test_file_without_numbers(tmp_path):
    write(tmp_path, "SST-2", "sentence\tlabel\nfine\t1\n", "test.tsv")
    task = TASKS["SST-2"]
    with pytest.raises(DataError, match=r"test.tsv:2: the first column \(sentence\) holds 'fine'"):
        tsv.read_test(tmp_path, task, task.test[0], task.folder)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(DataError, match=r"SST-2/dev.tsv: no such file.*DIR/TASK/train.tsv"):
        read(tmp_path, "SST-2")
    path = write(tmp_path, "SST-2", "sentence\tlabel\n")
    path.write_bytes(path.read_bytes() + b"fine\t1\n\xff\t0\n")
    with pytest.raises(DataError, match=r"dev.tsv:3: not UTF-8"):
        read(tmp_path, "SST-2")
    path.with_name("dev.tsv.xz").write_bytes(b"no xz")
    path.unlink()
    with pytest.raises(DataError, match=r"dev.tsv.xz: damaged"):
        read(tmp_path, "SST-2")


def test_rows_that_the_published_qqp_has_cut_are_counted(tmp_path, capsys):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    rows = ["1\t2\t3\ta\tb\t1", '2\t4\t5\t"What', '"\tWhat then?\t0', "3\t6\t7\tc\td\t0"]
    write(tmp_path, "QQP", "\n".join([header, *rows]) + "\n")
    assert read(tmp_path, "QQP").texts == [("a", "b"), ("c", "d")]
    assert "2 lines without all columns left out" in capsys.readouterr().out
    write(tmp_path, "QQP", "\n".join([header, *rows * 33]) + "\n")
    with pytest.raises(DataError, match=r"dev.tsv:\d+: 4 columns where 6 are due"):
        read(tmp_path, "QQP")


def test_tasks_are_chosen_by_name():
    assert [task.name for task in choose(["rte", "MRPC", "RTE"])] == ["RTE", "MRPC"]
    assert "WNLI" not in [task.name for task in choose(["all"])]
    with pytest.raises(Exception, match=r"--tasks: WNLI; choose all, or some of CoLA"):
        choose(["WNLI"])
