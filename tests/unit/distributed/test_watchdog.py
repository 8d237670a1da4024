"""Who is to blame when ranks wait: the judgement, without processes."""

from __future__ import annotations

from mslt_ds.distributed.watchdog import INDEX_PATIENCE, PATIENCE, Beat, Heard, judge

TIMEOUT = 10.0
IN_STEP = Beat("a", step=7, doing="step 7", waits=True, patience=1.0)
AT_DATA = Beat("b", step=6, doing="the batch of step 7")
NOW = 1000.0


def heard(beat: Beat, at: float = 0, moved: float = 0) -> Heard:
    """at, moved: seconds ago"""
    return Heard(beat, NOW - at, NOW - moved)


def blamed(
    *ranks: Heard, mine: Beat = IN_STEP, read: float = 0, silent_after: float | None = None
) -> list[int]:
    verdict = judge(ranks, mine, NOW, TIMEOUT, read=NOW - read, silent_after=silent_after)
    return [] if verdict is None else verdict[0]


def test_all_is_well_while_ranks_are_heard_of_and_one_moves():
    assert blamed(heard(IN_STEP, 9, 9), heard(IN_STEP, 1, 9)) == []
    assert blamed(heard(IN_STEP, 1, 500), heard(IN_STEP, 1, 9)) == []


def test_a_silent_rank_is_blamed_after_the_timeout():
    assert blamed(heard(IN_STEP), heard(IN_STEP, 11, 11), heard(IN_STEP)) == [1]
    assert blamed(heard(IN_STEP), heard(IN_STEP, 11), heard(IN_STEP, 12)) == [1, 2]


def test_one_that_may_take_long_is_given_more_time():
    late = PATIENCE * TIMEOUT + 1
    assert blamed(heard(IN_STEP), heard(AT_DATA, 11)) == [
        1
    ]  # not for one that is silent, in a step
    assert blamed(heard(AT_DATA), heard(AT_DATA, 11), mine=AT_DATA) == []
    assert blamed(heard(AT_DATA), heard(AT_DATA, late), mine=AT_DATA) == [1]
    assert blamed(heard(IN_STEP, 0, 11), heard(AT_DATA, 0, 11)) == []
    assert blamed(heard(IN_STEP, 0, late), heard(AT_DATA, 0, late)) == [1]
    index = Beat("b", doing="an index", patience=INDEX_PATIENCE)
    assert blamed(heard(index, 0, late), heard(index, 0, late), mine=index) == []
    assert blamed(heard(index), heard(index, late), mine=index) == [1]


def test_after_an_error_a_few_seconds_are_enough():
    assert blamed(heard(IN_STEP), heard(AT_DATA, 4), silent_after=5) == []
    assert blamed(heard(IN_STEP), heard(AT_DATA, 6), silent_after=5) == [1]


def test_rank_0_is_blamed_for_a_store_that_does_not_answer():
    assert blamed(heard(IN_STEP, 11), heard(IN_STEP, 11), read=11) == [0]


def test_of_ranks_that_all_live_the_one_that_the_others_wait_for_is_blamed():
    hung = Beat("c", step=7, doing="step 7", waits=False, patience=1.0)
    assert blamed(heard(IN_STEP, 0, 11), heard(hung, 0, 12), heard(IN_STEP, 0, 13)) == [1]
    behind = Beat("c", step=6, doing="step 6", waits=True, patience=1.0)
    assert blamed(heard(IN_STEP, 0, 11), heard(behind, 0, 12)) == [1]
    assert blamed(heard(IN_STEP, 0, 11), heard(IN_STEP, 0, 12)) == [0, 1]
