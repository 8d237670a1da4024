"""`mslt-ds report`: one page about one or several runs, with its tables and figures as files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mslt_ds import paths
from mslt_ds.analysis import run_tables, score_tables
from mslt_ds.analysis.attention_page import one_of_several, read_findings
from mslt_ds.analysis.comparison import full_twin, plateau, run_speed
from mslt_ds.analysis.page import Fact, Page, Section
from mslt_ds.analysis.run_figures import file_name, run_drawings
from mslt_ds.analysis.run_tables import Runs
from mslt_ds.analysis.table import Table, seconds
from mslt_ds.errors import RecipeError
from mslt_ds.evaluation.results import Results
from mslt_ds.evaluation.results_file import read_results
from mslt_ds.report.record import RunRecord

if TYPE_CHECKING:
    from mslt_ds.analysis.attention import Findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds report`."""
    parser.add_argument("runs", nargs="+", type=paths.path, metavar="RUN", help="run folders")
    parser.add_argument(
        "--output", type=paths.path, required=True, metavar="DIR",
        help="folder for index.html, tables/ and figures/",
    )  # fmt: skip
    for name in ("glue", "squad"):
        parser.add_argument(
            f"--{name}", nargs="+", action="extend", default=[], type=paths.path,
            metavar="RESULTS", help=f"folders of `mslt-ds evaluate {name}` with finished results",
        )  # fmt: skip
    parser.add_argument(
        "--attention", nargs="+", action="extend", default=[], type=paths.path,
        metavar="DIR", help="outputs of `mslt-ds attention` to show as well",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write the report."""
    runs = read_runs(arguments.runs)
    page = report_page(
        runs,
        glue=[read_results(path, ["median"]) for path in arguments.glue],
        squad=[read_results(path, ["median"]) for path in arguments.squad],
        attention=[read_findings(path) for path in arguments.attention],
    )
    page.write(arguments.output)
    print(f"report: {(arguments.output / 'index.html').resolve()}")
    return 0


def read_runs(folders: Sequence[Path]) -> dict[str, RunRecord]:
    """Run folders by label: the run's name, with its folder's where two runs share one."""
    found = [RunRecord.read(folder) for folder in folders]
    names = [run.name for run in found]
    labels = [
        name if names.count(name) == 1 else f"{run.path.resolve().parent.name}/{name}"
        for name, run in zip(names, found, strict=True)
    ]
    runs = dict(zip(labels, found, strict=True))
    if len(runs) < len(found):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise RecipeError(f"RUN: {twice} is given twice, or two runs end in this path; name each once")  # fmt: skip
    return runs


def report_page(
    runs: Runs,
    glue: Sequence[Results] = (),
    squad: Sequence[Results] = (),
    attention: Sequence[Findings] = (),
) -> Page:
    """The report as a value."""
    drawings = {drawing.name: drawing for drawing in run_drawings(runs)}

    def figures(*names: str) -> list:
        return [
            d for name, d in drawings.items() if any(name.startswith(wanted) for wanted in names)
        ]

    def tables(*found: Table | None) -> list[Table]:
        return [table for table in found if table is not None and table.rows]

    scores = tables(score_tables.glue_table(glue, runs), score_tables.squad_table(squad, runs))
    faults = run_tables.faults_table(runs)
    return Page(
        title=next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs",
        lead=_lead(runs),
        facts=_facts(runs),
        sections=[
            Section("Runs", parts=[run_tables.runs_table(runs), run_tables.stages_table(runs)]),
            Section(
                "Loss",
                parts=[
                    *figures("loss_over"),
                    *tables(run_tables.plateau_table(runs), run_tables.joint_table(runs)),
                ],
            ),
            Section(
                "Time",
                parts=[
                    *figures("speed_ups"),
                    run_tables.speed_table(runs),
                    *figures("wall_clock"),
                    run_tables.wall_clock_table(runs),
                    *tables(run_tables.profile_table(runs)),
                    *figures("throughput"),
                    score_tables.paper_hours_table(),
                ],
            ),
            Section("Optimizer", parts=figures("learning_rate", "trust_ratios")),
            Section("Downstream tasks", parts=scores),
            *_attention(attention),
            Section(
                "Faults",
                text="" if faults.rows else "No kill, resume, skipped step or warning is recorded.",
                parts=tables(faults),
            ),
            Section(
                "Provenance",
                parts=tables(run_tables.provenance_table(runs), run_tables.recipe_table(runs)),
            ),
        ],
        files="tables/ (Markdown, CSV) and figures/ (SVG, PNG)",
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _attention(several: Sequence[Findings]) -> list[Section]:
    return [one_of_several(found, found.title, file_name(found.title)) for found in several]


def _lead(runs: Runs) -> str:
    """One sentence for each run: what it is and how far it is."""
    sentences = []
    for label, run in runs.items():
        stages = len(run.stages)
        how = "one stage" if stages == 1 else f"{stages} stages"
        method = run.plan.get("method", "a run")
        sentences.append(
            f"{label} trains {run.stages[-1]['depth']} layers with the method {method} in {how}: "
            f"{run.steps_done:,} of {run.total_steps:,} steps, {run.state()}."
        )
    return " ".join(sentences)


def _facts(runs: Runs) -> list[Fact]:
    """Of the run with the lowest held-out loss, else of the first."""

    def loss(item: tuple[str, RunRecord]) -> float:
        value = run_tables.last_token_loss(item[1])
        return float("inf") if value is None else value

    label, run = min(runs.items(), key=loss)
    of = "" if len(runs) == 1 else f", {label}"
    facts = []
    if (value := run_tables.last_token_loss(run)) is not None:
        facts.append(Fact(f"{value:.3f}", f"nats: held-out MLM loss{of}"))
        if run.unigram_entropy is not None:
            below = run.unigram_entropy - value
            side = "below" if below >= 0 else "above"
            facts.append(Fact(f"{abs(below):.2f}", f"nats {side} the unigram entropy"))
    if run.steps:
        facts.append(Fact(seconds(run.total_training_seconds).text, f"training time{of}"))
    twin = full_twin(run, list(runs.values()))
    speed = run_speed(run, twin).measured
    if speed is not None and twin is not run:
        facts.append(Fact(f"{speed:.2f}x", "as fast as training all layers throughout"))
    state = plateau(run)
    if state is not None and state.left is not None:
        facts.append(Fact(f"{state.left:,}", "steps until it left the plateau of word frequencies"))
    return facts[:4]
