"""Does staged training pay? Runs the cells of an experiment, and draws its tables and figures.

    python -m benchmarks.evidence run --scale tiny|small|long|narrow|base [--cells GLOB] [--shard I/N] [--hours H] [--keep] --output DIR
    python -m benchmarks.evidence again --scale tiny|small|long|narrow|base --cells GLOB --output DIR
    python -m benchmarks.evidence time --scale tiny|small|long|narrow|base --output DIR
    python -m benchmarks.evidence show --output DIR
    python -m benchmarks.evidence plan --scale tiny|small|long|narrow|base --gpus N --gpu NAME [--network SPEED]

`run` trains the cells that are missing and may be stopped and started at any moment. `--experiment
FILE` takes an experiment of one's own instead of a scale. `again` trains finished cells once more, says whether
their weights are what they were (exit code 1 if not), and keeps their runs. `time` measures the steps of every method
in turns and needs a machine that does nothing else. `show` also takes a folder of such folders. `plan` prints the hours
that the cells would take on GPUs, by arithmetic, and runs nothing. See docs/evidence.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.evidence import running, timing
from benchmarks.evidence.experiment import load
from benchmarks.evidence.hours import predicted
from benchmarks.evidence.page import page
from benchmarks.evidence.tables import Evidence, progress, tables
from mslt_ds.atomic import replace_text
from mslt_ds.errors import DataError
from mslt_ds.exit_code import exit_code_of
from mslt_ds.plan.hardware import GPUS
from mslt_ds.plan.hours import Cluster
from mslt_ds.shard import Shard

SCALES = ("tiny", "small", "long", "narrow", "base")
FOLDER = Path(__file__).parent


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    return exit_code_of(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.command == "plan":
        on = Cluster.named(options.gpus, options.gpu, options.network)
        print(predicted(load(_path(options)), on))
        return 0
    results = running.Results(options.output.resolve())
    if options.command == "show":
        return _show_all(results)
    experiment = _take(options, results)
    if options.command == "time":
        timing.measure(experiment, results, steps=options.steps, repeats=options.repeats)
        return 0
    if options.command == "again":
        equal = []
        for same, line in running.run_again(experiment, results, options.cells):
            equal.append(same)
            print(line, flush=True)
        return 0 if all(equal) else 1
    missing = running.run(
        experiment,
        results,
        pattern=options.cells,
        shard=Shard.parse(options.shard),
        hours=options.hours,
        keep=options.keep,
    )
    print(f"cells still missing, as far as the results so far decide: {missing}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train the cells that are missing")
    again = commands.add_parser("again", help="train finished cells once more, and compare")
    time = commands.add_parser("time", help="measure the steps of every method, in turns")
    show = commands.add_parser("show", help="draw tables and figures of the cells so far")
    plan = commands.add_parser("plan", help="predict the hours of all cells on GPUs")
    for command in (run, again, time, plan):
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument("--scale", choices=SCALES)
        which.add_argument("--experiment", type=Path, metavar="FILE")
    run.add_argument("--cells", default="*", metavar="GLOB", help="only cells of such names")
    again.add_argument("--cells", required=True, metavar="GLOB", help="cells of such names")
    run.add_argument("--shard", default="1/1", metavar="I/N", help="one of N processes")
    run.add_argument("--hours", type=float, metavar="H", help="stop after so many hours")
    run.add_argument("--keep", action="store_true", help="keep the runs of finished cells")
    time.add_argument("--steps", type=int, default=30, help="of each stage in each turn")
    time.add_argument("--repeats", type=int, default=3, help="turns")
    plan.add_argument("--gpus", type=int, required=True, metavar="N")
    plan.add_argument("--gpu", required=True, metavar="NAME", help=", ".join(GPUS))
    plan.add_argument("--network", metavar="SPEED", help="of a node, as 100gbit; for several nodes")
    for command in (run, again, time, show):
        command.add_argument("--output", type=Path, required=True, metavar="DIR")
    return parser


def _path(options: argparse.Namespace) -> Path:
    """Of the experiment's YAML."""
    return options.experiment or FOLDER / f"{options.scale}.yaml"


def _take(options: argparse.Namespace, results: running.Results) -> running.Experiment:
    """The experiment; DataError if the folder holds results of another one."""
    path = _path(options)
    experiment = load(path)
    text = path.read_text()
    with results.alone():
        if not results.experiment.exists():
            replace_text(results.experiment, text)
        elif results.experiment.read_text() != text:
            raise DataError(
                f"{results.experiment}: differs from {path}, so these are the results of another "
                "experiment; choose another --output, or remove this file if they still belong together"
            )
    return experiment


def _show_all(results: running.Results) -> int:
    """Show the experiment of the folder, or those of the folders in it."""
    found = [results, *(running.Results(path) for path in sorted(results.folder.glob("*")))]
    shown = [each for each in found if each.experiment.exists()]
    if not shown:
        raise DataError(f"{results.folder}: holds no experiment; `run` makes one")
    for each in shown[:1] if shown[0] is results else shown:
        _show(each)
    return 0


def _show(results: running.Results) -> None:
    evidence = Evidence(load(results.experiment), results.read(), results.step_seconds())
    page(evidence, results.folder).write(results.folder)
    print("\n".join(table.markdown() for table in tables(evidence)))
    print("\n".join(progress(evidence)))
    print(f"page: {results.folder / 'index.html'}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
