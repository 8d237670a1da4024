"""A watcher is told stage, step, loss, rate, throughput and time left, on a terminal and in a log."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from mslt_ds.plan.stages import Plan, Stage
from mslt_ds.telemetry.progress import LiveProgress, PlainProgress, open_progress, step_text

FIRST = Stage(
    index=1, depth=2, trainable_layers=2, train_embeddings=True, steps=1000, start_step=0,
    first_instance=0, seq_length=128, micro_batch_size=8, global_batch_size=8, masked_lm_prob=0.15,
    init="fresh",
)  # fmt: skip
PLAN = Plan(
    (
        FIRST,
        replace(
            FIRST, index=2, depth=4, train_embeddings=False, start_step=1000, first_instance=8000,
            init="copy_top",
        ),
    )
)  # fmt: skip


def step_line(step: int, **changes) -> dict:
    return {
        "step": step,
        "stage": PLAN.stage_at(step).index,
        "loss": 6.12345,
        "learning_rate": 1.2e-3,
        "sequences_per_second": 1512.3,
        "step_seconds": 0.1,
    } | changes


STAGE_END = {
    "event": "stage_end",
    "step": 999,
    "stage": 1,
    "median_step_seconds": 0.1234,
    "eval_mlm_loss": 5.5,
    "eval_nsp_loss": 0.69,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def out():
    return io.StringIO()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plain(out, clock):
    return PlainProgress(PLAN, Console(file=out, soft_wrap=True, highlight=False), clock)


def test_plain_line_holds_all(plain, out):
    plain.write(step_line(499))
    # 500 steps of 0.1 s; then 1,000 of (4 + 2 * 2) / (2 + 2 * 2) times that.
    assert out.getvalue() == (
        "stage 1/2  step 500/2,000  loss 6.123  lr 1.20e-03  1,512 sequences/s  193,574 tokens/s  "
        "left: stage 50 s, run 3 min 03 s\n"
    )


def test_plain_lines_come_every_few_seconds(plain, out, clock):
    for step in range(600):
        clock.now = step * 0.1
        plain.write(step_line(step))
    assert len(out.getvalue().splitlines()) == pytest.approx(12, abs=1)


def test_plain_line_has_no_escape_codes_and_is_not_wrapped(plain, out):
    plain.write(step_line(499, loss=1e30))
    assert "\x1b" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 1


def test_stage_boundaries_are_told_at_once(plain, out):
    plain.write({"event": "stage_start", "step": 0, "stage": 1})
    frozen = {"prefix_micro_batch_size": 64, "prefix_ahead": True}
    plain.write({"event": "stage_start", "step": 1000, "stage": 2} | frozen)
    plain.write(
        {"event": "first_step", "step": 0, "stage": 1, "seconds": 12.34, "since": "command"}
    )
    profile = {"event": "profile", "step": 3, "stage": 1, "profiled_steps": 2, "step_seconds": 0.2}
    profile |= {
        "parts": {"prefix": 0.05, "other": 0.15},
        "tokens_per_second": 1234.0,
        "padding": 0.1,
    }
    plain.write(profile)
    plain.write(profile | {"mfu": 0.4})
    plain.write(STAGE_END)
    plain.write({"event": "stopped", "step": 1199, "reason": "SIGTERM"})
    plain.write({"event": "run_end", "step": 2000})
    assert out.getvalue().splitlines() == [
        "stage 1/2: depth 2, 2 layers train, steps 0 to 1,000 at sequence length 128",
        "stage 2/2: depth 4, 2 layers train, steps 1,000 to 2,000 at sequence length 128; "
        "the frozen part takes 64 instances at once, one pass ahead",
        "stage 1/2: first step done 12.3 s after the command",
        "stage 1/2: 2 steps profiled, 0.200 s each: prefix 25%, other 75%; 1,234 tokens/s, 10.0% padding",
        "stage 1/2: 2 steps profiled, 0.200 s each: prefix 25%, other 75%; 1,234 tokens/s, 10.0% padding, "
        "MFU 40.0%",
        "stage 1/2 done, median step 0.123 s, held-out MLM loss 5.500, held-out NSP loss 0.690",
        "run stopped after 1,200 steps (SIGTERM); the same command goes on from here",
    ]


def test_stage_end_without_evaluation(plain, out):
    plain.write({"event": "stage_end", "step": 999, "stage": 1, "eval_mlm_loss": None})
    assert out.getvalue() == "stage 1/2 done\n"


def test_live_display_shows_stage_run_and_events(capsys):
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=160, highlight=False)
    live = LiveProgress(PLAN, 1000, console)
    live.write({"event": "stage_start", "step": 1000, "stage": 2})
    live.write(step_line(1499))
    live._live.refresh()
    live.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "stage 2/2: depth 4, 2 layers train" in text
    assert re.search(r"stage 2/2 .* 50 %\s+step 500 of 1,000\s+50 s left", text)
    assert re.search(r"run .* 75 %\s+step 1,500 of 2,000\s+50 s left", text)
    assert re.search(r"loss 6.123  lr 1.20e-03  1,512 sequences/s  193,574 tokens/s", text)
    assert terminal.getvalue().rstrip().endswith("\x1b[2K"), "the bars stay after the end"


def test_numbers_of_a_gpu_and_of_a_skipped_step():
    line = step_line(499, loss=None, tokens_per_second=1e5, mfu=0.4321, memory=1, cuda_memory_peak=2.5e9)  # fmt: skip
    assert step_text(line, PLAN.stages[0]) == (
        "loss not finite  lr 1.20e-03  1,512 sequences/s  100,000 tokens/s  MFU 43.2%  2.50 GB"
    )


def test_live_display_opens_on_a_finished_run():
    console = Console(file=Terminal(), force_terminal=True)
    LiveProgress(PLAN, PLAN.total_steps, console).close()


@pytest.mark.parametrize(
    ("file", "term", "kind"),
    [
        (Terminal, "xterm", LiveProgress),
        (Terminal, "dumb", PlainProgress),
        (io.StringIO, "xterm", PlainProgress),
    ],
)
def test_display_fits_standard_output(monkeypatch, file, term, kind):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # continuous-integration services set it
    monkeypatch.setattr("sys.stdout", file())
    display = open_progress(PLAN, 0)
    display.close()
    assert type(display) is kind
