"""Run by test_lamb.py under a launcher: LAMB under ZeRO against the unsharded reference."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mslt_ds.distributed.world import join, world_from_environment
from mslt_ds.errors import EnvironmentProblem
from mslt_ds.optim import LambOptions
from mslt_ds.optim.masters import NamedMasters
from tests.distributed.scripts.lamb_low_precision import SUB_GROUPS, check_low_precision
from tests.distributed.scripts.lamb_net import (
    CLIP,
    STEPS,
    Net,
    Split,
    build,
    largest_difference,
    reference,
    report,
    train,
    weights_of,
)

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
ROBIN = {"round_robin_gradients": True}

Case = tuple[str, dict[str, Any], float, dict[str, Any]]
"""Label, DeepSpeed's zero_optimization, gradient clipping, keywords of `build`."""


def common_cases() -> list[Case]:
    unit = LambOptions(gradient_normalization="unit", adapt="all")
    clamped = LambOptions(adapt="all", min_trust_ratio=0.01, max_trust_ratio=0.3)
    return [
        ("zero 1, clamped", {"stage": 1}, 0.0, {"options": clamped}),
        ("zero 1, unit gradient", {"stage": 1}, CLIP, {"options": unit}),
    ]


def split_cases() -> list[Case]:
    """Where the number of ranks decides what lies where."""
    return [
        ("zero 0", {"stage": 0}, CLIP, {}),
        ("zero 1", {"stage": 1}, CLIP, {}),
        ("zero 2", {"stage": 2}, CLIP, {}),
        ("zero 1, round robin", {"stage": 1, **ROBIN}, CLIP, {}),
        ("zero 2, offload", {"stage": 2, **OFFLOAD}, CLIP, {}),
        ("zero 1, a group for each", {"stage": 1}, CLIP, {"groups": 7}),
        ("zero 3", SUB_GROUPS, CLIP, {}),
    ]


def rare_cases() -> list[Case]:
    aligned = {"stage": 2, **ROBIN, "parameter_alignment": True}
    unit = LambOptions(gradient_normalization="unit", adapt="all")
    clipping = LambOptions(gradient_normalization="clip", max_grad_norm=CLIP)
    return [
        ("zero 0, unbound", {"stage": 0}, CLIP, {"bind": False}),
        ("zero 1, overlapped", {"stage": 1, "overlap_comm": True}, CLIP, {}),
        ("zero 2, round robin, aligned", aligned, 0.0, {}),
        ("zero 1, offload", {"stage": 1, **OFFLOAD}, CLIP, {}),
        ("zero 2, torch", {"stage": 2}, CLIP, {"backend": "torch"}),
        ("zero 0, own clipping", {"stage": 0}, 0.0, {"options": clipping}),
        ("zero 3, one sub-group", {"stage": 3}, CLIP, {"options": unit}),
        ("zero 3, offload", {**SUB_GROUPS, **OFFLOAD}, CLIP, {}),
        ("zero 2, own clipping", {"stage": 2}, 0.0, {"options": clipping}),
    ]


def check_trajectories(cases: list[Case]) -> None:
    """fp32, 100 steps, against the reference."""
    references: dict[Any, dict[str, Tensor]] = {}
    start = {name: p.detach() for name, p in Net(1).named_parameters()}
    for label, zero, clip, keywords in cases:
        options = keywords.get("options", LambOptions())
        engine, optimizer = build(zero, clip, **keywords)
        train(engine, range(STEPS))
        world = keywords.get("world")
        ranks = dist.get_world_size() if world is None else len(world.ranks)
        key = options, clip, ranks
        if key not in references:
            references[key] = reference(*key)
            if largest_difference(references[key], start) < 0.03:
                raise SystemExit(f"{label}: the reference hardly moves")
        report(label, largest_difference(weights_of(engine), references[key]), 1e-6)
        if keywords.get("bind", True):
            ratios = optimizer.trust_ratios()["trust_ratio"]
            if not {"first", "second", "third"} <= set(ratios):
                raise SystemExit(f"{label}: trust ratios by parameter are missing: {ratios}")
        engine.destroy()


def check_continuation() -> None:
    """A fresh engine that gets weights and state at step 25 goes on bit for bit."""
    whole, _ = build({"stage": 2, "round_robin_gradients": True}, CLIP)
    train(whole, range(25))
    state = NamedMasters.bind(whole, dict(whole.module.named_parameters()))
    weights, moments = state.read_weights(), state.read_optimizer_state()
    train(whole, range(25, 40))
    other, _ = build({"stage": 1}, CLIP)
    other_state = NamedMasters.bind(other, dict(other.module.named_parameters()))
    other_state.write_weights(weights)
    other_state.write_optimizer_state(moments)
    train(other, range(25, 40))
    limit = 0.0 if dist.get_world_size() == 1 else 1e-6
    report("continued", largest_difference(weights_of(other), weights_of(whole)), limit)
    if other_state.read_optimizer_state()["first"]["step"] != 40:
        raise SystemExit("continued: wrong step count")
    whole.destroy()
    other.destroy()


def check_refusals() -> None:
    engine, optimizer = build({"stage": 1}, 0.0, bind=False)
    try:
        train(engine, range(1))
    except EnvironmentProblem as error:
        print("refused:", error)
    else:
        raise SystemExit("an unbound step under ZeRO 1 went through")
    other, _ = build({"stage": 0}, 0.0)
    try:
        optimizer.bind(other)
    except EnvironmentProblem as error:
        print("refused:", error)
    else:
        raise SystemExit("bound to another optimizer's engine")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rare", action="store_true", help="the rarer settings alone")
    parser.add_argument("--worlds", action="store_true", help="of 1 and of all but one as well")
    parser.add_argument("--only-trajectories", action="store_true")
    arguments = parser.parse_args()
    join(world_from_environment(os.environ), torch.device("cpu"), os.environ)
    if arguments.worlds:
        check_trajectories([c for c in split_cases() if c[0] in ("zero 1", "zero 2", "zero 3")])
        # A world of one process, beside one of all others. DeepSpeed keeps it, so it comes last.
        beside = {"world": Split(1)}
        check_trajectories([(*case[:3], case[3] | beside) for case in split_cases()])
    else:
        check_trajectories(rare_cases() if arguments.rare else split_cases() + common_cases())
    if not arguments.only_trajectories:
        check_low_precision()
        check_continuation()
        check_refusals()
    dist.barrier()
    dist.destroy_process_group()
    if os.environ["RANK"] == "0":
        print("all cases passed", flush=True)
    # After so many engines a thread of torch's or DeepSpeed's has been seen to abort the process
    # while the interpreter ended, which is no case of this script's.
    os._exit(0)


if __name__ == "__main__":
    main()
