import re
from pathlib import Path

import numpy as np
import pytest

from mslt_ds import cli
from mslt_ds.data import inspect
from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.loader import InstanceSequence, global_batches
from mslt_ds.data.store import TokenStore
from mslt_ds.model.objective import OBJECTIVES


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
        store, InstanceOptions(64, 10), OBJECTIVES["nsp"], seed=7, global_batch_size=1, micro_batch_size=1,
        rank=0, world_size=1, first_instance=step, num_steps=1,
    )  # fmt: skip
    assert printed.count("<-") == batch.denominators[0] + 1  # and the line that explains it
    assert f"label       {int(batch.micro_batches[0].fields['pair_labels'][0])}:" in printed
    segment_0, segment_1 = (printed.split(f"segment {n}")[1].split("\n")[0].strip() for n in "01")
    assert segment_0.startswith("[CLS] ") and segment_0.endswith(" [SEP]")
    assert segment_1.endswith(" [SEP]") and "[CLS]" not in segment_1.replace("{[CLS]", "")


def inspected(store_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["inspect", str(store_path), *options]) == 0
    return capsys.readouterr().out


def found(pattern: str, text: str) -> list[int]:
    (match,) = re.finditer(pattern, text)
    return [int(group.replace(",", "")) for group in match.groups()]


@pytest.mark.parametrize("masking", ["whole_word", "ngram", "span"])
def test_whole_words_are_shown_together(store_path: Path, capsys, masking: str):
    longest = 0
    for instance in range(20):
        printed = inspected(store_path, capsys, "--instance", str(instance), "--masking", masking)
        masked, places = found(r"(\d+) masked in (\d+) places", printed)
        hidden = [said.split() for _, said in re.findall(r"\{([^{}]*) <- ([^{}]*)\}", printed)]
        if printed.count("{") + printed.count("}") != 2 * (places + 1):
            continue  # the text has some of its own
        assert len(hidden) == places + 1  # and the line that explains it
        assert sum(map(len, hidden[:-1])) == masked
        if masking == "whole_word":
            words = [word for word in hidden[:-1] if not word[0].startswith("##")]
            assert all(piece.startswith("##") for word in words for piece in word[1:])
        longest = max(longest, *map(len, hidden[:-1]))
    assert longest > 1


def test_swapped_segments(store_path: Path, capsys):
    labels = set()
    for instance in range(20):
        printed = inspected(
            store_path, capsys, "--instance", str(instance), "--input-format", "sop"
        )
        labels.add(printed.split("label")[1].split("\n")[0].strip())
    assert labels == {"0: B is what follows A", "1: swapped, A is what follows B"}


def test_packed_sentences_name_their_documents(store: TokenStore, store_path: Path, capsys):
    crossed = 0
    for instance in range(60):
        printed = inspected(
            store_path, capsys, "--instance", str(instance), "--input-format", "full_sentences"
        )
        assert "label" not in printed and "segment" not in printed
        (document,) = found(r"document +([\d,]+)(?:, from)", printed)
        lines = re.findall(r"^  of ([\d,]+) +(.*)$", printed, re.MULTILINE)
        assert [int(number.replace(",", "")) for number, _ in lines] == list(
            range(document, document + len(lines))
        )
        assert all(text.endswith("[SEP]") for _, text in lines)
        crossed += len(lines) > 1
    assert crossed > 0


def test_histograms_count_block_by_block(monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 50, 1000)
    starts = np.append(0, np.cumsum(lengths))
    monkeypatch.setattr(inspect, "_AT_ONCE", 7)
    counts = inspect._length_counts(starts)
    assert np.array_equal(counts, np.bincount(lengths))
    (title, *_) = inspect._histogram("tokens", counts)
    assert title == f"  tokens: median {sorted(lengths)[499]}, longest 49"


@pytest.mark.parametrize("arguments", [["--instance", "-1"], ["--instance", "999999999"]])
def test_instances_that_dont_exist(store_path: Path, arguments, capsys):
    assert cli.main(["inspect", str(store_path), *arguments]) == 2
    assert "--instance: " in capsys.readouterr().err


def test_no_store(tmp_path: Path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "no manifest.json here" in capsys.readouterr().err
