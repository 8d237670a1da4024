"""Steps beside Hugging Face's Trainer: both compute the same loss, and all figures are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.peers import _staged, padded

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_tiny():
    options = ["--model", "tiny", "--device", "cpu", "--batch", "8", "--seq-length", "64"]
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *options, "--repeats", "1", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    told = json.loads(finished.stdout)
    assert told["same_loss"] is True
    assert told["loss"]["hf"] == pytest.approx(told["loss"]["full"], rel=1e-5)
    stages = [f"stage_{k}" for k in (1, 2, 3, 4)]
    assert set(told["seconds"]) == {"hf", "hf_docs", "full", *stages, "joint"}
    assert told["full_vs_hf"] == told["seconds"]["hf"] / told["seconds"]["full"]
    assert set(told["staged_vs_full"]) == set(told["staged_vs_hf"]) == {"0.2", "0.1"}
    assert told["staged_vs_full_by_flops"]["0.1"] > told["staged_vs_full_by_flops"]["0.2"] > 1
    assert 0 < told["padding"] < 0.5


def test_a_whole_run_is_the_mean_of_its_steps():
    seconds = {"stage_1": 1.0, "stage_2": 3.0, "joint": 10.0, "full": 11.0}
    assert _staged(seconds, 0.2) == pytest.approx(0.8 * 2 + 0.2 * 10)


def test_batches_are_padded_to_their_longest():
    def instance(length: int) -> dict:
        ids = torch.arange(1, length + 1)
        return {
            "input_ids": ids,
            "token_type_ids": ids * 0,
            "labels": ids,
            "next_sentence_label": torch.tensor(1),
        }

    batch = padded([instance(3), instance(5)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert batch["labels"].tolist()[0] == [1, 2, 3, -100, -100]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["next_sentence_label"].tolist() == [1, 1]
