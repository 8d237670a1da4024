"""`mslt-ds doctor`: measures on all ranks, then judges and prints on rank 0.

    mslt-ds doctor                                              this machine
    sbatch --nodes=4 slurm/doctor.sh                            all tasks of an allocation
    deepspeed --module mslt_ds.doctor.command                   all GPUs of this machine
    torchrun --nproc-per-node 8 --module mslt_ds.doctor.command

Exit code: 3 if a finding would stop a run, as that run's own would be; else 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
from pathlib import Path

import torch

from mslt_ds import paths
from mslt_ds.distributed.launchers import add_launcher_argument
from mslt_ds.distributed.world import (
    World,
    check_rendezvous,
    leave,
    world_from_environment,
)
from mslt_ds.doctor import machine, network, page
from mslt_ds.doctor.facts import Facts, RankFacts
from mslt_ds.doctor.judge import judge
from mslt_ds.errors import EnvironmentProblem, first_line

_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds doctor`."""
    parser.add_argument(
        "--path", type=paths.path, default=Path("runs"), metavar="FOLDER",
        help="where runs will be written; its disk is measured (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--megabytes", type=_positive, default=64, metavar="N",
        help="size of the file and of the largest message that are measured (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_positive, default=60, metavar="SECONDS",
        help="how long to wait for the other processes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="facts and findings as one JSON object")
    add_launcher_argument(parser)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Measure, judge, print; the exit code, the same on all ranks."""
    world = world_from_environment(os.environ)
    mine = machine.rank_facts(world, os.environ)
    if world.world_size > 1:
        facts = _together(world, mine, arguments)
        leave()
    else:
        disk = machine.disk(arguments.path, arguments.megabytes)
        facts = Facts((mine,), "", (), (), (0.0,), 0.0, disk, (True,))
    findings = judge(facts)
    if world.is_main:
        if arguments.json:
            document = {
                "facts": dataclasses.asdict(facts),
                "findings": [dataclasses.asdict(finding) for finding in findings],
            }
            print(json.dumps(document, indent=1))
        else:
            page.show(facts, findings)
        sys.stdout.flush()
    stops = any(finding.level == "problem" for finding in findings)
    return EnvironmentProblem.exit_code if stops else 0


def _together(world: World, mine: RankFacts, arguments: argparse.Namespace) -> Facts:
    timeout = datetime.timedelta(seconds=arguments.timeout)
    check_rendezvous(world, os.environ)
    try:
        network.meet(world, timeout)
    except Exception as error:  # torch and gloo raise RuntimeError, DistStoreError, ValueError, ...
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise EnvironmentProblem(
            f"rank {world.rank} of {world.world_size} on {mine.host} can't meet the others at "
            f"{address} ({first_line(error)}); "
            "check that every task was started, that this name leads to the first node from all of "
            "them, that no firewall closes the port, and MSLT_INTERFACE"
        ) from error
    ranks = network.gather(mine)
    backend = "nccl" if network.nccl_can_work(ranks) else "gloo"
    device = torch.device(mine.device if backend == "nccl" else "cpu")
    largest = arguments.megabytes * _MIB
    try:
        group = network.nccl_group(device, timeout) if backend == "nccl" else None
        reduces = network.all_reduces((4096, _MIB, largest), device, group)
        links = network.links(network.ring(ranks), min(largest, 16 * _MIB), device, group)
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"rank {world.rank} of {world.world_size} on {mine.host}: {backend} fails between the "
            f"processes ({first_line(error)}); NCCL_DEBUG=INFO says more, MSLT_INTERFACE chooses the "
            "network"
        ) from error
    offsets, uncertainty = network.clock_offsets()
    seen = network.file_seen(machine.first_there(arguments.path).resolve())
    disk = machine.disk(arguments.path, arguments.megabytes) if world.is_main else None
    facts = Facts(ranks, backend, reduces, links, offsets, uncertainty, disk, seen)
    # Every rank needs rank 0's facts, to end with the same exit code.
    return network.from_main(facts)


if __name__ == "__main__":
    from mslt_ds.cli import main

    sys.exit(main(["doctor", *sys.argv[1:]]))
