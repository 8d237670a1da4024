"""Prints facts and findings on a terminal or into a job's log."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mslt_ds.doctor.facts import Facts, RankFacts
from mslt_ds.doctor.judge import Finding

_GIB = 1 << 30
_STYLES = {"problem": "bold red", "warning": "yellow", "note": "cyan"}
# Columns if the output is no terminal.
_LOG_WIDTH = 120


def show(facts: Facts, findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print tables of the ranks and of the measurements, then the findings."""
    console = console or Console()
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    console.print(_about(facts))
    console.print(_ranks(facts))
    console.print(_measured(facts))
    if not findings:
        console.print("Nothing found that stops a run or slows it down.")
    for finding in findings:
        console.print(f"{finding.level}: {finding.check}: {finding.what}", style=_STYLES[finding.level],
                      markup=False, highlight=False, soft_wrap=True)  # fmt: skip
        console.print(f"    {finding.remedy}", markup=False, highlight=False, soft_wrap=True)


def _about(facts: Facts) -> Table:
    first = facts.ranks[0]
    table = Table(title="Environment of rank 0", show_header=False, title_justify="left")
    table.add_row("versions", ", ".join(f"{k} {v}" for k, v in first.versions.items() if v))
    table.add_row("LAMB", "\n".join(f"{k}: {v}" for k, v in first.optimizers.items()))
    table.add_row("container", first.container or "none")
    table.add_row("slurm", ", ".join(f"{k}={v}" for k, v in first.slurm.items()) or "none")
    return table


def _ranks(facts: Facts) -> Table:
    table = Table(title="Ranks", title_justify="left")
    columns = ("rank", "host", "device", "visible", "GFLOP/s", "cores", "threads", "/dev/shm GiB",
               "memory GiB", "clock ms")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("host", "device") else "right")
    for rank, offset in zip(facts.ranks, facts.clock_offsets, strict=True):
        limit = rank.memory_limit_bytes
        table.add_row(
            str(rank.rank), rank.host, _device(rank), rank.visible_devices or "all",
            "none" if rank.gflops is None else f"{rank.gflops:.0f}", str(rank.cores), str(rank.threads), f"{rank.shm_bytes / _GIB:.1f}",
            "no limit" if limit is None else f"{limit / _GIB:.1f}", f"{offset * 1e3:+.1f}",
        )  # fmt: skip
    return table


def _device(rank: RankFacts) -> str:
    return f"{rank.device} {rank.gpu.name}" if rank.gpu else rank.device or "none"


def _measured(facts: Facts) -> Table:
    table = Table(title="Measured", title_justify="left")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_column("rate", justify="right")
    for reduce in facts.all_reduces:
        rate = reduce.bus_bytes_per_second(facts.world_size)
        table.add_row(
            f"{facts.backend} all-reduce of {_size(reduce.num_bytes)}",
            f"{reduce.seconds:.5f}", f"{rate / 1e9:.2f} GB/s a link",
        )  # fmt: skip
    for link in facts.links:
        ends = (facts.ranks[link.source], facts.ranks[link.target])
        table.add_row(
            f"{ends[0].host} (rank {link.source}) - {ends[1].host} (rank {link.target})",
            "", f"{link.bytes_per_second / 1e9:.2f} GB/s",
        )  # fmt: skip
    disk = facts.disk
    if disk and not disk.error:
        table.add_row(
            f"write {_size(disk.bytes_written)} to {disk.path}",
            f"{disk.bytes_written / disk.write_bytes_per_second:.3f}",
            f"{disk.write_bytes_per_second / 1e6:.0f} MB/s",
        )  # fmt: skip
        table.add_row("make a small file durable", f"{disk.fsync_seconds:.4f}", "")
    return table


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} KiB"
