from pathlib import Path

import pytest

from mslt_ds import cli
from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.loader import InstanceSequence, global_batches
from mslt_ds.data.store import TokenStore


def test_figures(store: TokenStore, store_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["inspect", str(store_path), "--verify"]) == 0
    printed = capsys.readouterr().out
    for figure in (
        f"{store.num_documents:,}",
        f"{store.num_sentences:,}",
        f"{store.num_tokens:,}",
        f"{store.vocab_size:,}, of which",
        "docstrings.txt",
        "tokens in a document: median",
        "every file is as it was written",
    ):
        assert figure in printed
    rows = [line.split() for line in printed.split("tokens in a document")[0].splitlines()]
    counts = [int(row[3].replace(",", "")) for row in rows if len(row) == 5 and row[1] == "to"]
    assert sum(counts) == store.num_sentences


def test_an_instance_is_the_one_that_training_meets(store: TokenStore, store_path: Path, capsys):
    options = ["--seed", "7", "--seq-length", "64", "--max-predictions", "10"]
    assert cli.main(["inspect", str(store_path), "--instance", "5", "--epoch", "1", *options]) == 0
    printed = capsys.readouterr().out
    sequence = InstanceSequence(store, InstanceOptions(64, 10), 7)
    step = sequence.length + 5
    (batch,) = global_batches(
        store, InstanceOptions(64, 10), seed=7, global_batch_size=1, micro_batch_size=1,
        rank=0, world_size=1, start_step=step, num_steps=1,
    )  # fmt: skip
    assert printed.count("<-") == batch.num_masked + 1  # and the line that explains it
    assert f"label       {int(batch.micro_batches[0].next_sentence_labels[0])}:" in printed
    segment_0, segment_1 = (printed.split(f"segment {n}")[1].split("\n")[0].strip() for n in "01")
    assert segment_0.startswith("[CLS] ") and segment_0.endswith(" [SEP]")
    assert segment_1.endswith(" [SEP]") and "[CLS]" not in segment_1.replace("{[CLS]", "")


@pytest.mark.parametrize("arguments", [["--instance", "-1"], ["--instance", "999999999"]])
def test_instances_that_dont_exist(store_path: Path, arguments, capsys):
    assert cli.main(["inspect", str(store_path), *arguments]) == 2
    assert "--instance: " in capsys.readouterr().err


def test_no_store(tmp_path: Path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "no manifest.json here" in capsys.readouterr().err
