"""Which cells an experiment has, what each of them runs, and the tables of their results."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.evidence import experiment as design
from benchmarks.evidence.experiment import Cell, cells, grid, load, parts, recipe_of, tuned_rate
from benchmarks.evidence.hours import hours_of, predicted
from benchmarks.evidence.page import flops_at, page
from benchmarks.evidence.running import Results, is_same, write_recipe
from benchmarks.evidence.tables import Evidence, crossing, fine_tuning, tables
from benchmarks.evidence.timing import shortened
from benchmarks.record import RESULTS
from mslt_ds.analysis.table import Table
from mslt_ds.errors import RecipeError
from mslt_ds.plan.hours import Cluster

FOLDER = Path(design.__file__).parent
TINY = load(FOLDER / "tiny.yaml").model_copy(
    update={"seeds": [1, 2], "learning_rates": [1e-3, 3e-3, 1e-2, 3e-2]}
)
BEST = {"full": 3e-3, "mslt": 1e-2}
VOCAB = 1000


def losses_of(
    experiment: design.Experiment, wanted: list[Cell], best: dict[str, float] = BEST
) -> dict[Cell, float]:
    """Made-up losses: each method has a best rate, each step helps, and mslt is ahead."""
    of = {name: experiment.variants[name].of for name in experiment.variants}
    far = {c: abs(math.log(c.learning_rate / best[of.get(c.method, c.method)])) for c in wanted}
    ahead = {c: 0.02 if c.method == "mslt" else 0.0 for c in wanted}
    return {c: 5.0 + 0.01 * far[c] - c.budget / 1000 - ahead[c] for c in wanted}


def run_all(experiment: design.Experiment) -> dict[Cell, float]:
    losses: dict[Cell, float] = {}
    while missing := [cell for cell in cells(experiment, losses) if cell not in losses]:
        losses |= losses_of(experiment, missing)
    return losses


def test_later_cells_follow_from_the_losses_of_earlier_ones():
    first = parts(TINY, {})
    assert len(first.pop("tune")) == 8 and not any(first.values())
    losses = losses_of(TINY, parts(TINY, {})["tune"])
    assert tuned_rate(TINY, "full", losses) == 3e-3 and tuned_rate(TINY, "mslt", losses) == 1e-2
    second = parts(TINY, losses)
    assert {(c.method, c.learning_rate) for c in second["main"]} == {("full", 3e-3), ("mslt", 1e-2)}
    assert len(second["main"]) == 2 * len(TINY.budgets) * len(TINY.seeds)
    assert [c.learning_rate for c in second["check"]] == [1e-3, 1e-2, 3e-3, 3e-2]
    assert not second["finals"]
    everything = run_all(TINY)
    assert [c.name for c in parts(TINY, everything)["finals"]] == ["mslt_random/80/0.01/1"]
    assert len(everything) == 8 + 8 - 2 + 4 + 1 + 1


def test_rates_are_checked_and_variants_compared_at_a_budget_of_ones_own():
    experiment = TINY.model_copy(update={"budgets": [40, 80, 160], "checked_at": 80})
    found = parts(experiment, run_all(experiment))
    assert {c.budget for part in ("check", "finals") for c in found[part]} == {80}
    assert {c.budget for c in found["main"]} == {40, 80, 160}


def test_the_grid_grows_until_the_best_rate_lies_between_two_others():
    experiment = TINY.model_copy(update={"learning_rates": [4e-3, 8e-3], "variants": {}})
    best = {"full": 1e-3, "mslt": 3.2e-2}
    losses: dict[Cell, float] = {}
    while missing := [c for c in cells(experiment, losses) if c not in losses]:
        losses |= losses_of(experiment, missing, best)
    assert grid(experiment, "full", losses) == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    assert grid(experiment, "mslt", losses) == [4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
    assert {m: tuned_rate(experiment, m, losses) for m in experiment.methods} == best
    checks = parts(experiment, losses)["check"]
    assert [c.learning_rate for c in checks] == [5e-4, 2e-3, 1.6e-2, 6.4e-2]


def test_a_grid_does_not_grow_for_ever():
    losses: dict[Cell, float] = {}
    while missing := [c for c in parts(TINY, losses)["tune"] if c not in losses]:
        losses |= dict.fromkeys(missing, math.inf)
    assert grid(TINY, "full", losses)[:4] == [3.7e-5, 1.11e-4, 3.33e-4, 1e-3]
    assert len(grid(TINY, "full", losses)) == 4 + 3


def test_a_rate_is_chosen_by_the_mean_of_the_seeds_that_tune():
    both = TINY.model_copy(update={"num_tuning_seeds": 2})
    wanted = parts(both, {})["tune"]
    assert len(wanted) == 2 * 8
    losses = losses_of(both, wanted, {"full": 4e-3, "mslt": 1e-2})
    losses[Cell("full", 40, 3e-3, 2)] = 5.9  # stays on the plateau
    assert tuned_rate(TINY, "full", losses) == 3e-3 and tuned_rate(both, "full", losses) == 1e-2
    del losses[Cell("full", 40, 1e-3, 2)]
    assert tuned_rate(both, "full", losses) is None


def test_the_variants_that_gain_most_over_their_method_go_to_the_largest_budget():
    experiment = TINY.model_copy(
        update={
            "variants": {
                "better": design.Variant(of="full", changes={"plan": {"init": "random"}}),
                "worse": design.Variant(of="mslt", changes={"plan": {"init": "random"}}),
            }
        }
    )
    losses = run_all(experiment)
    losses[Cell("better", 40, 3e-3, 1)] = losses[Cell("full", 40, 3e-3, 1)] - 0.01
    losses[Cell("worse", 40, 1e-2, 1)] = losses[Cell("mslt", 40, 1e-2, 1)] + 0.001
    assert losses[Cell("worse", 40, 1e-2, 1)] < losses[Cell("better", 40, 3e-3, 1)]
    assert [c.name for c in parts(experiment, losses)["finals"]] == ["better/80/0.003/1"]


def test_the_hours_of_a_cell_follow_from_its_steps():
    experiment = load(FOLDER / "base.yaml")
    eight = Cluster.named(8, "h100", None)
    hours = [
        hours_of(experiment, Cell("full", budget, 8.8e-4, 1), eight) for budget in (15625, 31250)
    ]
    assert hours[1] == pytest.approx(2 * hours[0])
    a_cell = hours_of(experiment, Cell("full", 15625, 8.8e-4, 1), eight)
    one = experiment.model_copy(
        update={
            "methods": {"full": experiment.methods["full"]}, "variants": {}, "seeds": [1, 2, 3],
            "budgets": [15625, 31250], "num_tuning_seeds": 2,
        }
    )  # fmt: skip
    told = dict(line.split(": ", 1) for line in predicted(one, eight).splitlines() if ": " in line)
    found = {part: float(text.split()[0]) / a_cell for part, text in told.items()}
    # Eight to tune; three of the small and three of the large budget, less the two that tuned.
    expected = {"tune, at least": 8, "main": 3 + 6 - 2, "check": 4, "finals, at most": 0}
    assert found == pytest.approx(expected, rel=0.01)
    with pytest.raises(RecipeError, match="a v100 has no bf16"):
        predicted(experiment, Cluster.named(8, "v100", None))


def test_a_diverged_run_never_gives_the_tuned_rate():
    losses = losses_of(TINY, parts(TINY, {})["tune"])
    losses[Cell("mslt", 40, 3e-2, 1)] = math.inf
    losses[Cell("mslt", 40, 1e-2, 1)] = math.inf
    assert tuned_rate(TINY, "mslt", losses) == 3e-3


@pytest.mark.parametrize("scale", ["tiny", "small", "long", "narrow", "base"])
def test_every_cell_of_a_scale_is_a_recipe_and_keeps_to_the_budget(scale):
    experiment = load(FOLDER / f"{scale}.yaml")
    small = experiment.budgets[0]
    for method in [*experiment.methods, *experiment.variants]:
        cell = Cell(method, small, 1e-3, 5)
        recipe = recipe_of(experiment, cell, VOCAB)
        checked = design.checked(recipe)
        assert checked.config.seed == 5 and checked.config.optimizer.learning_rate == 1e-3
        steps = checked.plan.total_steps
        allowed = design.flops(experiment, Cell("full", small, 1e-3, 5), small, VOCAB)
        spent = design.flops(experiment, cell, steps, VOCAB)
        assert 0.85 * allowed < spent <= allowed, method
    assert (
        design.checked(recipe_of(experiment, Cell("full", small, 1e-3, 1), VOCAB)).plan.total_steps
        == small
    )


def test_cells_that_run_side_by_side_have_recipe_files_of_their_own(tmp_path):
    results = Results(tmp_path)
    cells = [Cell("full", 40, rate, seed) for rate in (5e-4, 1e-3) for seed in (1, 2)]
    files = {}
    for cell in cells:
        files[cell] = write_recipe(results, results.run_dir(cell), recipe_of(TINY, cell, VOCAB))
    for cell, path in files.items():
        recipe = yaml.safe_load(path.read_text())
        assert (recipe["optimizer"]["learning_rate"], recipe["seed"]) == (
            cell.learning_rate,
            cell.seed,
        )
        assert Path(recipe["output_dir"], recipe["name"]) == results.run_dir(cell)


def test_a_scale_s_schedule_ends_where_the_cell_ends():
    recipe = recipe_of(TINY, Cell("mslt", 80, 1e-3, 1), VOCAB)
    config, plan = design.checked(recipe).config, design.checked(recipe).plan
    assert config.schedule.decay_steps == round(0.2 * plan.total_steps)
    assert config.schedule.warmup_steps == round(0.05 * plan.total_steps)


def test_the_stages_of_a_timing_are_those_of_the_cell():
    recipe = recipe_of(TINY, Cell("mslt", 80, 1e-3, 1), VOCAB)
    short, whole = design.checked(shortened(recipe, 3)).plan, design.checked(recipe).plan
    assert [stage.steps for stage in short.stages] == [3, 3, 3]
    assert [(s.depth, s.frozen_layers) for s in short.stages] == [
        (s.depth, s.frozen_layers) for s in whole.stages
    ]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("reference: full", "reference: fall", "fall isn't one of the methods"),
        ("budgets: [40, 80]", "budgets: [80, 40]", r"\[80, 40\] have to increase"),
        ("budgets: [40, 80]", "budgets: [40, 80]\nchecked_at: 60", "checked_at 60 isn't one of"),
        ("[3.0e-3, 1.0e-2]", "[1.0e-2, 3.0e-3]", r"\[0.01, 0.003\] have to increase"),
        ("seeds: [1]", "seeds: [1]\nnum_tuning_seeds: 2", "num_tuning_seeds 2 is more than"),
        ("seeds: [1]", "seeds: [1, 1]", r"\[1, 1\] have to differ"),
        ("budgets: [40, 80]", "budgets: []", "budgets"),
        ("[3.0e-3, 1.0e-2]", "[3.0e-3, 3.001e-3]", "at most three digits"),
        ("finalists: 1", "finalist: 1", "finalist"),
        ("{packages: [pydantic], vocab_size: 1000}", "{vocab_size: 1000}", "either packages"),
    ],
)
def test_a_mistake_in_an_experiment_is_named(tmp_path, old, new, named):
    text = (FOLDER / "tiny.yaml").read_text()
    if old not in text:
        text += f"\n{old}\n"
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(RecipeError, match=named):
        load(path)


# ---- tables --------------------------------------------------------------------------------


def result_of(cell: Cell, loss: float) -> dict:
    stages = [{"steps": 10, "flops": 1e9}, {"steps": 30, "flops": 6e9}]
    return {
        "diverged": False, "held_out_loss": loss, "unigram_entropy": 6.0, "steps": 40,
        "flops": 7e9, "stages": stages, "curve": [[0, 7.0], [5, 5.9], [10, 4.9], [15, 4.8], [20, 4.8], [25, 4.7], [30, None]],
    }  # fmt: skip


def evidence() -> Evidence:
    losses = run_all(TINY)
    results = {cell: result_of(cell, loss) for cell, loss in losses.items()}
    return Evidence(TINY, results, {"full": [0.1, 0.2], "mslt": [0.05, 0.1]})


def test_the_tables_hold_what_the_cells_hold(tmp_path):
    found = {table.name: table for table in tables(evidence())}
    assert found.keys() == {"budgets", "reached", "rates", "check", "variants"}
    row = [cell.text for cell in found["budgets"].rows[0]]
    # 10 steps of 0.1 s and 30 of 0.2 s; at step 10 of 40 the median is 1 nat below 6.0.
    assert row == [
        "40",
        "full",
        "0.003",
        "2",
        "4.960",
        "4.960 to 4.960",
        "7e+09",
        "40",
        "0.1",
        "25%",
    ]
    # mslt is as good at 40 x 2^0.5 steps of full's 80, and a FLOP takes it half the time.
    assert [c.text for c in found["reached"].rows[0]] == ["80", "4.920", "mslt", "71%", "35%"]
    page(evidence(), tmp_path).write(tmp_path)
    with (tmp_path / "tables" / "budgets.csv").open() as file:
        values = list(csv.reader(file))[1]
    assert values[:2] == ["40", "full"] and float(values[4]) == pytest.approx(4.960)
    assert (tmp_path / "figures" / "budgets.svg").exists()
    assert "entropy of word frequencies" in (tmp_path / "index.html").read_text()


def test_the_goal_is_the_best_of_the_rates_tried_at_the_budget():
    shown = evidence()
    tuned = shown.goal(80)
    assert tuned == shown.mean("full", 80)
    other = Cell("full", 80, 1e-2, 1)
    shown.results[other] |= {"held_out_loss": 4.5}
    assert shown.goal(80) == 4.5 and shown.mean("full", 80) == tuned


def test_every_larger_budget_is_a_goal_once_the_tuned_rate_is_done_there():
    experiment = TINY.model_copy(update={"budgets": [40, 80, 160], "checked_at": 80})
    results = {cell: result_of(cell, loss) for cell, loss in run_all(experiment).items()}
    rows = reached_rows(Evidence(experiment, results, {}))
    # Both lose 0.001 a step, mslt is 0.02 ahead: halfway from 40 to 80, a quarter of the way from 160 back to 80.
    assert rows == [
        ["80", "4.920", "mslt", "71%", ""],
        ["160", "4.840", "mslt", "84%", ""],
    ]
    for seed in experiment.seeds:
        del results[Cell("full", 80, 3e-3, seed)]  # its neighbours are still there
        results[Cell("full", 160, 3e-3, seed)] |= {"diverged": True}
    assert reached_rows(Evidence(experiment, results, {})) == []


def reached_rows(shown: Evidence) -> list[list[str]]:
    found = {table.name: table for table in tables(shown)}
    return [[c.text for c in row] for row in found["reached"].rows] if "reached" in found else []


def test_one_easy_batch_does_not_end_the_plateau():
    cell = Cell("full", 40, 3e-3, 1)
    result = result_of(cell, 5.9)
    result["curve"] = [[step, 4.5 if step == 20 else 5.8] for step in range(40)]
    assert Evidence(TINY, {cell: result}, {}).left_plateau(cell) is None


def test_seeds_that_left_the_plateau_are_counted_beside_those_that_did_not():
    shown = evidence()
    shown.results[Cell("full", 40, 3e-3, 2)]["curve"] = [[step, 5.9] for step in range(0, 40, 5)]
    assert shown_left(shown) == "25% (1 of 2 seeds)"
    shown.results[Cell("full", 40, 3e-3, 1)]["curve"] = [[step, 5.9] for step in range(0, 40, 5)]
    assert shown_left(shown) == "never"


def shown_left(shown: Evidence) -> str:
    return {t.name: t for t in tables(shown)}["budgets"].rows[0][-1].text


def test_what_is_the_same_when_a_cell_is_trained_again():
    whole = {"diverged": False, "weights": "a", "curve": [[0, 7.0]]}
    gone = {"diverged": True, "curve": [[0, 7.0]]}
    assert is_same(whole, whole | {"curve": []}) and not is_same(whole, whole | {"weights": "b"})
    assert is_same(gone, gone) and not is_same(gone, gone | {"curve": [[0, 7.1]]})
    assert not is_same(whole, gone) and not is_same(gone, whole)


def test_a_diverged_cell_is_told_and_not_averaged_away():
    shown = evidence()
    cell = Cell("full", 40, 1e-2, 1)
    shown.results[cell] = json.loads(json.dumps(shown.results[cell])) | {"diverged": True}
    assert "diverged" in {t.name: t for t in tables(shown)}["rates"].rows[0][3].text
    # Its later stages never were, so it has no time.
    cell = Cell("full", 80, 3e-3, 1)
    shown.results[cell] |= {"diverged": True, "stages": shown.results[cell]["stages"][:1]}
    row = [cell.text for cell in {t.name: t for t in tables(shown)}["budgets"].rows[2]]
    assert row[:2] == ["80", "full"] and row[4] == "diverged" and row[8] == "–"


def test_scores_of_fine_tuning_are_medians_with_the_spread_of_the_seeds():
    score = {"median": 0.5, "spread": 0.04, "scores": [0.48, 0.5, 0.52], "one_answer_for_all": 0.4}
    column = {"metric": "accuracy", "accuracy": score}
    results = {"tasks": {"SST-2": {"columns": {"SST-2": column}}}}
    found = fine_tuning({"full": results, "other": {"tasks": {}}})
    assert found.header == ("model", "SST-2, accuracy")
    rows = [[cell.text for cell in row] for row in found.rows]
    assert rows == [["full", "50.0 (4.0)"], ["other", "–"], ["one answer for all", "40.0"]]


COMMITTED = sorted(path.parent for path in (RESULTS / "evidence").glob("*/experiment.yaml"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_tables_are_those_of_the_committed_cells_and_stand_in_the_docs(folder: Path):
    results = Results(folder)
    assert results.step_seconds()
    found = page(Evidence(load(results.experiment), results.read(), results.step_seconds()), folder)
    docs = (Path(__file__).parents[3] / "docs" / "evidence.md").read_text()
    shown = [part for s in found.sections for part in s.parts if isinstance(part, Table)]
    for table in shown:
        assert (folder / "tables" / f"{table.name}.md").read_text() == table.markdown()
        if not table.name.startswith("attention"):
            assert table.markdown().split("\n\n")[1].strip() in docs, table.name
    assert {table.name for table in shown} >= {"budgets"}
    for files in ("*.md", "*.csv"):
        drawn = {path.stem for path in (folder / "tables").glob(files)}
        assert drawn == {table.name for table in shown}


@given(st.lists(st.floats(4, 6) | st.just(math.inf), min_size=2, max_size=4), st.floats(4, 6))
def test_the_crossing_lies_between_the_budgets_that_enclose_the_goal(losses, goal):
    budgets = [100 * 2**i for i in range(len(losses))]
    found = crossing([(math.log(b), loss) for b, loss in zip(budgets, losses, strict=True)], goal)
    if found is None:
        assert all(loss > goal for loss in losses)
        return
    first = next(i for i, loss in enumerate(losses) if loss <= goal)
    assert budgets[max(0, first - 1)] * 0.999 <= found <= budgets[first] * 1.001


def test_flops_of_a_step_inside_of_a_stage():
    result = result_of(Cell("full", 40, 1e-3, 1), 5.0)
    assert flops_at(result, 0) == 0 and flops_at(result, 10) == 1e9
    assert flops_at(result, 25) == 1e9 + 3e9 and flops_at(result, 40) == 7e9
