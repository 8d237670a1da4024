import errno
import gc
import os
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mslt_ds.data import loader
from mslt_ds.data.epoch_index import epoch_index
from mslt_ds.data.instances import (
    InstanceOptions,
    epoch_key,
    first_sentence,
    num_predictions,
)
from mslt_ds.data.loader import GlobalBatch, InstanceSequence, global_batches
from mslt_ds.data.masking import Masking
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import DataError
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.recipe.loading import parse_recipe

GLOBAL, MICRO, SEQUENCE, PREDICTIONS = 32, 4, 64, 10
OPTIONS = InstanceOptions(SEQUENCE, PREDICTIONS)
NSP = OBJECTIVES["nsp"]
NAMES = NSP.fields


def batches(store: TokenStore, **changes: Any) -> list[GlobalBatch]:
    settings: dict[str, Any] = {
        "options": OPTIONS,
        "seed": 1,
        "global_batch_size": GLOBAL,
        "micro_batch_size": MICRO,
        "rank": 0,
        "world_size": 1,
        "num_steps": 6,
    } | changes
    # Most tests count in steps, all of them of the same size.
    if "first_instance" not in settings:
        settings["first_instance"] = settings.pop("start_step", 0) * settings["global_batch_size"]
    objective = OBJECTIVES[settings["options"].input_format]
    return list(global_batches(store, objective=objective, **settings))


def content(parts: list[GlobalBatch]) -> list[torch.Tensor]:
    """A global batch's tensors, the micro-batches of all ranks in their order."""
    micro_batches = sorted((m for part in parts for m in part.micro_batches), key=lambda m: m.index)
    assert [m.index for m in micro_batches] == list(range(len(micro_batches)))
    return [torch.cat([m.fields[name] for m in micro_batches]) for name in micro_batches[0].fields]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_shapes_and_types(store: TokenStore):
    (batch,) = batches(store, num_steps=1)
    assert batch.num_instances == GLOBAL and len(batch.micro_batches) == GLOBAL // MICRO
    micro = batch.micro_batches[0]
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert micro.fields[name].shape == (MICRO, SEQUENCE)
    for name in ("masked_positions", "masked_labels", "masked_weights"):
        assert micro.fields[name].shape == (MICRO, PREDICTIONS)
    assert micro.fields["pair_labels"].shape == (MICRO,)
    types = {name: micro.fields[name].dtype for name in NAMES}
    assert types.pop("attention_mask") == torch.bool
    assert types.pop("masked_weights") == torch.float32
    assert set(types.values()) == {torch.int64}


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_the_same_global_batches(store: TokenStore, world_size: int):
    whole = batches(store)
    ranks = [batches(store, rank=r, world_size=world_size) for r in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert_same(content(parts), content([batch]))
        for rank, part in enumerate(parts):
            assert [m.index % world_size for m in part.micro_batches] == [rank] * len(
                part.micro_batches
            )
            assert part.denominators[0] == batch.denominators[0]
            assert part.num_instances == GLOBAL


@pytest.mark.parametrize("micro_batch_size", [1, 8, 32])
def test_micro_batches_are_cut_from_the_same_global_batch(store: TokenStore, micro_batch_size: int):
    for mine, other in zip(
        batches(store), batches(store, micro_batch_size=micro_batch_size), strict=True
    ):
        assert_same(content([mine]), content([other]))


@pytest.mark.parametrize("masking", ["token", "whole_word", "ngram", "span"])
@pytest.mark.parametrize("input_format", ["nsp", "sop", "full_sentences", "doc_sentences"])
def test_ranks_and_workers_change_no_format_and_no_masking(
    store: TokenStore, input_format: str, masking: Masking
):
    options = InstanceOptions(SEQUENCE, PREDICTIONS, input_format=input_format, masking=masking)
    whole = batches(store, options=options)
    for world_size, num_workers in ((1, 1), (2, 2), (4, 3)):
        ranks = [
            batches(store, options=options, rank=r, world_size=world_size, num_workers=num_workers)
            for r in range(world_size)
        ]
        for step, batch in enumerate(whole):
            parts = [rank[step] for rank in ranks]
            assert_same(content(parts), content([batch]))
            masked = sum(
                int(micro.fields["masked_weights"].sum())
                for part in parts
                for micro in part.micro_batches
            )
            assert {part.denominators[0] for part in parts} == {masked} == {batch.denominators[0]}
    (step_3,) = batches(store, options=options, start_step=3, num_steps=1)
    assert_same(content([step_3]), content([whole[3]]))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_change_nothing(store: TokenStore, num_workers: int):
    mine, other = (
        batches(store, num_steps=20),
        batches(store, num_steps=20, num_workers=num_workers),
    )
    for x, y in zip(mine, other, strict=True):
        assert_same(content([x]), content([y]))
        assert x.denominators[0] == y.denominators[0]


def test_num_masked_is_that_of_the_global_batch(store: TokenStore):
    for batch in batches(store):
        masked = sum(float(micro.fields["masked_weights"].sum()) for micro in batch.micro_batches)
        assert batch.denominators[0] == masked


def test_a_run_goes_on_at_any_step_and_across_epochs(store: TokenStore):
    length = InstanceSequence(store, OPTIONS, 1).length
    steps_per_epoch = -(-length // GLOBAL)
    whole = batches(store, num_steps=2 * steps_per_epoch + 3)
    for start in (1, steps_per_epoch - 1, steps_per_epoch, 2 * steps_per_epoch):
        for step, batch in enumerate(batches(store, start_step=start, num_steps=3), start):
            assert_same(content([batch]), content([whole[step]]))
    # With workers, the next epoch's index is made ahead.
    for x, y in zip(
        batches(store, num_steps=2 * steps_per_epoch + 3, num_workers=2), whole, strict=True
    ):
        assert_same(content([x]), content([y]))


def test_the_next_epochs_index_is_made_while_this_ones_is_in_use(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
):
    made: list[int] = []

    def record(*arguments: Any) -> np.ndarray:
        made.append(arguments[4])
        return epoch_index(*arguments)

    monkeypatch.setattr(loader, "epoch_index", record)
    length = InstanceSequence(store, OPTIONS, 1).length
    steps_per_epoch = length // GLOBAL
    assert len(batches(store, num_steps=5, num_workers=1)) == 5
    assert set(made) == {0}  # no more of it will be needed
    iterator = global_batches(
        store, OPTIONS, NSP, seed=1, global_batch_size=GLOBAL,
        micro_batch_size=MICRO, rank=0, world_size=1, first_instance=0,
        num_steps=steps_per_epoch + 5, num_workers=1,
    )  # fmt: skip
    taken = 0
    while 1 not in made:  # by a thread, which may begin late
        next(iterator)
        taken += 1
        time.sleep(0.01)
    assert taken < steps_per_epoch


def test_a_batch_longer_than_many_epochs(store: TokenStore):
    sequence = InstanceSequence(store, OPTIONS, 1)
    size = 5 * sequence.length + 7
    (batch,) = batches(store, global_batch_size=size, micro_batch_size=size, num_steps=1)
    (small, *_) = batches(store)
    assert batch.micro_batches[0].fields["input_ids"].shape == (size, SEQUENCE)
    assert torch.equal(batch.micro_batches[0].fields["input_ids"][:GLOBAL], content([small])[0])


def test_an_epoch_holds_every_instance_once_in_an_order_of_its_own(store: TokenStore):
    sequence = InstanceSequence(store, OPTIONS, 1)
    orders = []
    for epoch in range(3):
        entries, keys = sequence.entries(epoch * sequence.length, sequence.length)
        assert set(keys) == {epoch_key(store.digest, 1, epoch)}
        index = sequence.index(epoch)
        counts = Counter(entries.tolist())
        if len(index) >= sequence.length:  # a random few are left out
            assert max(counts.values()) == 1 and set(counts) <= set(index.tolist())
        else:  # some come once more
            assert set(counts) == set(index.tolist()) and max(counts.values()) == 2
        orders.append(first_sentence(entries))
        assert abs(np.corrcoef(orders[-1], np.arange(sequence.length))[0, 1]) < 0.1
    assert not np.array_equal(orders[0][:100], orders[1][:100])


def test_epochs_mask_anew(store: TokenStore):
    options = InstanceOptions(SEQUENCE, PREDICTIONS, short_seq_prob=0.0)
    sequence = InstanceSequence(store, options, 1)
    key = {}
    for epoch in range(2):
        entries = sequence.index(epoch)
        for start, entry in zip(first_sentence(entries), entries, strict=True):
            key.setdefault(int(start), []).append(
                (np.array([entry]), np.array([epoch_key(store.digest, 1, epoch)]))
            )
    twice = [parts for parts in key.values() if len(parts) == 2][:50]
    same = []
    for first, second in twice:
        positions = [sequence.build(*part)["masked_positions"] for part in (first, second)]
        same.append(torch.equal(*positions))
    assert len(twice) == 50 and sum(same) < 5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_index_that_the_first_batch_needs_is_made_before_any_is_waited_for(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, num_workers: int
):
    made: dict[int, threading.Thread] = {}

    def record(*arguments: Any) -> np.ndarray:
        made[arguments[4]] = threading.current_thread()
        return epoch_index(*arguments)

    length = InstanceSequence(store, OPTIONS, 1).length
    monkeypatch.setattr(loader, "epoch_index", record)
    batches(store, start_step=3 * length // GLOBAL + 1, num_steps=1, num_workers=num_workers)
    assert made == {0: threading.main_thread(), 3: threading.main_thread()}


def test_rank_0_says_that_an_index_takes_long(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ignored = shutil.ignore_patterns("index")
    path = shutil.copytree(store_path, tmp_path / "copy", ignore=ignored)
    monkeypatch.setattr("mslt_ds.data.epoch_index._LONG_SECONDS", 0)
    monkeypatch.setattr("mslt_ds.data.epoch_index._DOCUMENTS_PER_BLOCK", 7)
    for rank, lines in ((1, 0), (0, 1)):
        said: list[str] = []
        batches(
            TokenStore.open(path), rank=rank, world_size=2, num_steps=1, seed=rank, say=said.append
        )
        assert len(said) == lines


def test_a_second_phase_at_512_draws_from_the_store_of_the_first(store: TokenStore):
    tokens = {}
    for length in (128, 512):
        options = InstanceOptions(length, 20 * length // 128)
        whole = batches(store, options=options)
        for batch in whole:
            (ids, _, attention, positions, labels, weights, _) = content([batch])
            assert ids.shape == (GLOBAL, length)
            assert weights.shape == (GLOBAL, options.max_predictions)
            lengths, masked = attention.sum(1), weights.sum(1)
            expected = (lengths.double() * 0.15).round().clamp(1, options.max_predictions)
            assert (masked == expected).all() and masked.sum() == batch.denominators[0]
            # What is hidden lies in the text, and some of it is left as it was.
            used = weights == 1
            assert (positions.max(1).values < lengths).all() and (labels[used] > 0).all()
            assert (ids.gather(1, positions) == labels)[used].any()
        parts = [batches(store, options=options, rank=r, world_size=2)[3] for r in range(2)]
        assert_same(content(parts), content([whole[3]]))
        tokens[length] = torch.cat([content([batch])[2].sum(1) for batch in whole])
    # One in ten is short, the others fill an instance where a document is long enough.
    assert (tokens[128] == 128).float().mean() > 0.3
    assert (tokens[512] > 256).float().mean() > 0.5 and (tokens[512] == 512).any()


def test_seeds_differ(store: TokenStore):
    (one,), (two,) = batches(store, num_steps=1), batches(store, num_steps=1, seed=2)
    assert not torch.equal(content([one])[0], content([two])[0])


def test_resuming_reads_nothing_that_lies_before(store: TokenStore):
    """A step that would take years to reach, at once."""
    sequence = InstanceSequence(store, OPTIONS, 1)
    far = 10**6 * sequence.length // GLOBAL
    (batch,) = batches(store, start_step=far, num_steps=1, num_workers=1)
    assert batch.num_instances == GLOBAL


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_caller(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, num_workers: int
):
    def fail(*_: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(InstanceOptions, "build", fail)
    with pytest.raises(KeyError, match="a mistake"):
        batches(store, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_disk_that_fails_is_named(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, num_workers: int
):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(InstanceOptions, "build", fail)
    with pytest.raises(DataError, match=f"{store.path}: can't be read at step 0 .Input/output"):
        batches(store, num_workers=num_workers)


@pytest.mark.parametrize("name", ["tokens.bin", "sentences.bin", "documents.bin", "index"])
def test_a_file_that_becomes_shorter_is_named_before_it_is_read(
    store_path: Path, tmp_path: Path, name: str
):
    ignored = shutil.ignore_patterns("index")
    path = shutil.copytree(store_path, tmp_path / "copy", ignore=ignored)
    iterator = global_batches(
        TokenStore.open(path), OPTIONS, NSP, seed=1, global_batch_size=GLOBAL, micro_batch_size=MICRO,
        rank=0, world_size=1, first_instance=0, num_steps=10,
    )  # fmt: skip
    next(iterator)
    (file,) = path.glob(f"{name}/*") if name == "index" else (path / name,)
    os.truncate(file, 16)
    with pytest.raises(DataError, match=f"{file}: damaged while it was in use, 16 bytes are"):
        next(iterator)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_for_a_gpu_lie_in_pinned_memory(store: TokenStore, num_workers: int):
    device = torch.device("cuda", torch.cuda.current_device())
    mine = batches(store, num_workers=num_workers, device=device)
    for batch, plain in zip(mine, batches(store), strict=True):
        for micro_batch in batch.micro_batches:
            assert all(micro_batch.fields[name].is_pinned() for name in NAMES)
        assert_same(content([batch]), content([plain]))


def test_workers_end_with_the_iteration(store: TokenStore):
    def workers() -> int:
        return sum(thread.name.startswith("mslt-data") for thread in threading.enumerate())

    iterator = global_batches(
        store, OPTIONS, NSP, seed=1, global_batch_size=GLOBAL,
        micro_batch_size=MICRO, rank=0, world_size=1, first_instance=0, num_steps=1000, num_workers=2,
    )  # fmt: skip
    next(iterator)
    assert workers() > 0
    del iterator
    gc.collect()
    assert workers() == 0


MASKINGS: list[Masking] = ["token", "whole_word", "ngram", "span"]
FORMATS: list[str] = ["nsp", "sop", "full_sentences", "doc_sentences"]


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("input_format", FORMATS)
def test_the_place_of_an_instance_does_not_depend_on_the_masked_share(
    store: TokenStore, input_format: str, masking: Masking
):
    places, masked = [], []
    for prob, predictions in ((0.15, 10), (0.3, 20), (0.02, 1)):
        options = InstanceOptions(
            SEQUENCE, predictions, prob, input_format=input_format, masking=masking
        )
        sequence = InstanceSequence(store, options, 1)
        entries, _ = sequence.entries(sequence.length // 2, 2 * sequence.length)
        places.append(first_sentence(entries))
        masked.append(num_predictions(entries).sum())
    assert np.array_equal(places[0], places[1]) and np.array_equal(places[0], places[2])
    assert masked[1] > 1.5 * masked[0] > 5 * masked[2]


def unmasked(parts: list[GlobalBatch]) -> list[tuple[int, ...]]:
    """The tokens of a global batch's instances before any was hidden."""
    ids, _, _, positions, labels, weights, _ = content(parts)
    rows, columns = weights.nonzero(as_tuple=True)
    ids[rows, positions[rows, columns]] = labels[rows, columns]
    return [tuple(row) for row in ids.tolist()]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_stages_of_other_batches_and_masks_go_on_in_one_sequence_on_any_ranks(
    store: TokenStore, world_size: int
):
    """Over an epoch and more, each instance comes in its turn, once, whichever stage takes it."""
    length = InstanceSequence(store, OPTIONS, 1).length
    plan = {
        "method": "mslt",
        "num_stages": 4,
        "steps_per_stage": length // 200,
        "joint_steps": length // 200,
        "global_batch_size": [16, 32, 48, 64, 80],
        "masked_lm_prob": {"first": 0.3, "last": 0.1},
    }
    recipe = parse_recipe(
        {
            "name": "run",
            "plan": plan,
            "data": {"path": "store", "seq_length": SEQUENCE},
            "train": {"global_batch_size": GLOBAL, "micro_batch_size": MICRO},
            "optimizer": {"learning_rate": 1e-3},
        }
    )
    seen: list[tuple[int, ...]] = []
    for stage in recipe.plan.stages:
        predictions = recipe.config.max_predictions(SEQUENCE, stage.masked_lm_prob)
        ranks = [
            batches(
                store,
                options=InstanceOptions(SEQUENCE, predictions, stage.masked_lm_prob),
                global_batch_size=stage.global_batch_size,
                first_instance=stage.first_instance,
                num_steps=stage.steps,
                rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        for parts in zip(*ranks, strict=True):
            seen += unmasked(list(parts))
    assert len(seen) == recipe.plan.stages[-1].end_instance > length
    (whole,) = batches(store, global_batch_size=len(seen), micro_batch_size=len(seen), num_steps=1)
    assert seen == unmasked([whole])


def test_places_to_run_are_part_of_a_micro_batch_that_leaves_padding_out(store: TokenStore):
    for batch in batches(store, unpadded_sizes=64, num_steps=2):
        for micro in batch.micro_batches:
            real = micro.fields["attention_mask"]
            places = micro.fields.get("token_places", torch.arange(real.numel()))
            assert int(real.flatten()[places].sum()) == int(real.sum()) > len(places) - 4
            weights = micro.fields["masked_weights"]
            places = micro.fields.get("prediction_places", torch.arange(weights.numel()))
            assert float(weights.flatten()[places].sum()) == float(weights.sum())
