"""Time and extra memory of one optimizer step on BERT's parameter shapes.

    python -m benchmarks.optimizer [--model base large] [--device cpu|cuda] [--repeats N] [--write]
    python -m benchmarks.optimizer --alternatives [--write]
    deepspeed --num_gpus 2 --module benchmarks.optimizer --zero 1 [--write]

Compares LAMB, by each backend that runs here, with torch's AdamW, in turns. On a GPU it also measures
LAMB captured in a CUDA graph, and DeepSpeed's and apex's LAMB if they are installed. The floor is the
number of bytes that LAMB has to move (10 streams of fp32: 6 and 4) divided by the bandwidth of a pass
over large tensors. --alternatives adds the CPU implementations that numba was chosen over. --zero
measures the share of LAMB's all-reduce in DeepSpeed's whole step. --write writes a dated JSON to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn

from benchmarks import record
from benchmarks.turns import seconds_of
from mslt_ds.distributed.launchers import add_launcher_argument
from mslt_ds.errors import MsltError
from mslt_ds.optim import Lamb, LambOptions, lamb
from mslt_ds.optim.backends import build_lamb

SIZES = {"base": (12, 768), "large": (24, 1024)}
LAMB_STREAMS = 10
# The options of `Lamb` that DeepSpeed's and apex's LAMB have, too.
FOREIGN = {
    "deepspeed": LambOptions(adapt="all", bias_correction=False),
    "apex": LambOptions(),
}


def shapes(model: str) -> list[tuple[int, ...]]:
    """BERT's parameters with both heads: 206 tensors and 110 M elements for base."""
    layers, hidden = SIZES[model]
    vector, square = (hidden,), (hidden, hidden)
    layer = [square, vector] * 4 + [vector, vector]
    layer += [(4 * hidden, hidden), (4 * hidden,), (hidden, 4 * hidden), vector, vector, vector]
    embeddings = [(30_522, hidden), (512, hidden), (2, hidden), vector, vector]
    heads = [square, vector, (30_522,), square, vector, vector, vector, (2, hidden), (2,)]
    return embeddings + layer * layers + heads


def parameters(model: str, device: str) -> list[nn.Parameter]:
    made = [nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes(model)]
    for parameter in made:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return made


class Captured:
    """A step as a CUDA graph, which shows its time without work on the host."""

    def __init__(self, optimizer: Lamb) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            optimizer.step()

    def step(self) -> None:
        self.graph.replay()


def candidates(
    model: str, device: str, *, alternatives: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """(optimizers by name, the reasons why others are missing). They share weights, gradients and
    moments, since those of BERT-Large wouldn't fit into a small machine five times."""
    shared = parameters(model, device)
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in shared}
    missing: dict[str, str] = {}

    def adamw(*, fused: bool) -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW(shared, foreach=not fused, fused=fused)
        for parameter, (first, second) in moments.items():
            step = torch.zeros((), device=device if fused else "cpu")
            optimizer.state[parameter] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        return optimizer

    def ours(backend: Any) -> Lamb:
        optimizer = Lamb(shared, backend=backend)
        for parameter, (first, second) in moments.items():
            optimizer.state[parameter] = {"step": 0, "exp_avg": first, "exp_avg_sq": second}
        return optimizer

    made: dict[str, Any] = {"AdamW foreach": adamw(fused=False), "AdamW fused": adamw(fused=True)}
    made["LAMB torch"] = ours("torch")
    compiled = {"cpu": "numba", "cuda": "triton"}[device]
    if importlib.util.find_spec(compiled):
        made[f"LAMB {compiled}"] = ours(compiled)
    else:
        missing[compiled] = "not installed"
    if alternatives:
        from benchmarks import lamb_alternatives

        for name, backend in lamb_alternatives.backends().items():
            made[name] = ours("numba")
            made[name]._backends["numba"] = backend
    if device == "cuda":
        if compiled not in missing:
            made["LAMB triton, CUDA graph"] = Captured(ours(compiled))
        group = [{"params": shared, "weight_decay": 0.01}]
        for backend, options in FOREIGN.items():
            try:
                made[f"LAMB {backend}"] = build_lamb(
                    group, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, options=options, backend=backend
                )
            except MsltError as error:
                missing[backend] = str(error)
    return made, missing


def extra_bytes(call: Callable[[], Any], device: str) -> int:
    """The peak memory of a call above the memory held before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator kept would hide a part
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = psutil.Process().memory_info().rss
    call()
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(0, int(peak.split()[1]) * 1024 - before)


def bandwidth(device: str) -> float:
    """Bytes read and written per second, by the fastest of several passes over large tensors.

    Copies, and passes in place: on a CPU, a copy also reads the memory that it overwrites.
    """
    source = torch.ones(1 << 27, device=device)
    target = torch.empty_like(source)
    passes = (lambda: target.copy_(source), lambda: source.mul_(1.0))
    best = min(seconds_of(one, torch.device(device)) for _ in range(8) for one in passes)
    return 2 * 4 * source.numel() / best


def measure(model: str, device: str, repeats: int, *, alternatives: bool) -> dict[str, Any]:
    speed = bandwidth(device)
    elements = sum(torch.Size(shape).numel() for shape in shapes(model))
    floor = LAMB_STREAMS * 4 * elements / speed
    optimizers, missing = candidates(model, device, alternatives=alternatives)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    first, extra = {}, {}
    for name, optimizer in optimizers.items():
        first[name] = seconds_of(optimizer.step, torch.device(device))  # with compilation
        extra[name] = extra_bytes(optimizer.step, device)
    for _ in range(repeats):
        for name, optimizer in optimizers.items():
            times[name].append(seconds_of(optimizer.step, torch.device(device)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "tensors": len(shapes(model)),
        "elements": elements,
        "bandwidth_bytes_per_second": speed,
        "lamb_floor_seconds": floor,
        "missing": missing,
        "optimizers": {
            name: {
                "median_seconds": medians[name],
                "least_seconds": min(times[name]),
                "to_adamw_foreach": medians[name] / medians["AdamW foreach"],
                "to_adamw_fused": medians[name] / medians["AdamW fused"],
                "to_lamb_floor": medians[name] / floor,
                "extra_bytes": extra[name],
                "first_step_seconds": first[name],
            }
            for name in optimizers
        },
    }


class _Sum(nn.Module):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList(0.02 * torch.randn(shape) for shape in shapes(model))

    def forward(self) -> torch.Tensor:
        return torch.stack([parameter.sum() for parameter in self.weights]).sum()


def measure_zero(model: str, stage: int, repeats: int) -> dict[str, Any]:
    """The share of LAMB's all-reduces in DeepSpeed's optimizer step (update and gather)."""
    import deepspeed

    deepspeed.init_distributed()
    module = _Sum(model)
    optimizer = Lamb(module.parameters())
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage},
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    optimizer.bind(engine)
    spent: list[float] = []
    reduce = lamb._sum_over_ranks

    def timed(*arguments: Any) -> torch.Tensor:
        began = time.perf_counter()
        dist.barrier()  # so that waiting for the slower rank isn't counted
        waited = time.perf_counter() - began
        began = time.perf_counter()
        result = reduce(*arguments)
        spent.append(time.perf_counter() - began)
        waits.append(waited)
        return result

    waits: list[float] = []
    steps = []
    lamb._sum_over_ranks = timed
    for turn in range(repeats + 1):
        engine.backward(engine())
        began = time.perf_counter()
        engine.step()
        if turn:
            steps.append(time.perf_counter() - began - sum(waits))
        else:
            spent.clear()
        waits.clear()
    step, communication = statistics.median(steps), sum(spent) / repeats
    return {
        "zero_stage": stage,
        "ranks": dist.get_world_size(),
        "step_seconds": step,
        "all_reduce_seconds": communication,
        "all_reduce_share": communication / step,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Time optimizer steps on BERT's shapes.")
    parser.add_argument("--model", choices=sorted(SIZES), nargs="+", default=["base"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--alternatives", action="store_true", help="also measure numba's alternatives on a CPU"
    )
    parser.add_argument(
        "--zero", type=int, choices=(1, 2), help="ZeRO stage, on several ranks under a launcher"
    )
    parser.add_argument(
        "--write", action="store_true", help="write a dated JSON to benchmarks/results/"
    )
    add_launcher_argument(parser)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {}
    for model in chosen.model:
        if chosen.zero:
            result[model] = measure_zero(model, chosen.zero, chosen.repeats)
        else:
            result[model] = measure(
                model, chosen.device, chosen.repeats, alternatives=chosen.alternatives
            )
        gc.collect()
    if chosen.local_rank:
        return 0
    print(json.dumps(result, indent=1))
    if chosen.write:
        kind = [f"zero{chosen.zero}"] if chosen.zero else [chosen.device]
        kind += ["alternatives"] * chosen.alternatives
        record.write(
            "_".join(["optimizer", *chosen.model, *kind]),
            ["benchmarks.optimizer", *sys.argv[1:]], {"models": result},
            device=torch.device(chosen.device),
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
