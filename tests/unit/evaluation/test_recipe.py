"""The paper's numbers are the defaults, each can be changed, and mistakes are named."""

from __future__ import annotations

import pytest

from mslt_ds.errors import RecipeError
from mslt_ds.evaluation.glue.recipe import QUICK_GLUE, GlueRecipe
from mslt_ds.evaluation.grid import Cell, make_cells, share
from mslt_ds.evaluation.recipe import load
from mslt_ds.evaluation.squad.recipe import SQUAD_DEFAULTS, SquadRecipe
from mslt_ds.shard import Shard


def glue(*overrides, path=None, defaults=None):
    return load(GlueRecipe, path, overrides, defaults or {})


def test_the_papers_numbers():
    recipe = glue()
    assert sorted(recipe.learning_rates) == [2e-5, 3e-5, 4e-5, 5e-5]
    assert (len(recipe.seeds), recipe.batch_size, recipe.warmup_share) == (5, 32, 0.1)
    epochs = {task: recipe.epochs_for(task) for task in ("CoLA", "MNLI", "STS-B", "RTE")}
    assert epochs == {"CoLA": 3, "MNLI": 3, "STS-B": 10, "RTE": 10}
    one, two = (load(SquadRecipe, None, (), SQUAD_DEFAULTS[v]) for v in ("1.1", "2.0"))
    assert (one.batch_size, one.epochs, one.learning_rates) == (12, 2, (3e-5,))
    assert (two.batch_size, two.epochs, two.learning_rates) == (48, 2, (5e-5,))
    assert {(r.max_length, r.stride) for r in (one, two)} == {(384, 128)}
    assert {r.protocol() for r in (recipe, one, two)} == {"the paper's"}


def test_every_default_can_be_changed(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("epochs: 2\nepochs_of: {RTE: 4}\nseeds: [7]\n")
    recipe = glue("learning_rates=[1e-4]", "epochs_of.MNLI=1", path=path)
    assert (recipe.epochs, recipe.seeds, recipe.learning_rates) == (2, (7,), (1e-4,))
    assert recipe.epochs_of == {"STS-B": 10, "RTE": 4, "MNLI": 1}
    assert recipe.protocol() == (
        'the paper\'s, but learning_rates [0.0001], seeds [7], epochs 2, '
        'epochs_of {"STS-B": 10, "RTE": 4, "MNLI": 1}'
    )  # fmt: skip
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert glue(path=again) == recipe


def test_quick_says_what_is_smaller():
    recipe = glue(defaults=QUICK_GLUE)
    assert len(recipe.learning_rates) * len(recipe.seeds) == 6
    assert "but learning_rates [5e-05, 3e-05], seeds [1, 2, 3]" in recipe.protocol()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batchsize=8", r"batchsize: unknown key; did you mean batch_size\?"),
        ("epochs=0", r"epochs: 0; it has to be a number of at least 1"),
        ("learning_rates=[]", r"learning_rates: "),
        ("learning_rates=[1e-5, 1e-5]", r"learning_rates: .*twice"),
        ("learning_rates=[-1e-5]", r"learning_rates.0: -1e-05; it has to be a number above 0"),
        ("epochs_of.WNLI=3", r"epochs_of: .*WNLI is no task"),
        ("precision=fp16", r'precision: "fp16" is not known'),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(RecipeError, match=message):
        glue(override)


def test_what_scores_depend_on_is_not_the_grids_extent():
    def changes(task, *overrides):
        mine, papers = (r.what_scores_depend_on(task) for r in (glue(*overrides), glue()))
        return mine != papers

    assert not changes("RTE", "seeds=[9]", "device=cpu", "train_examples=9")
    assert changes("RTE", "batch_size=16")
    # Of the epochs, the task's own.
    assert changes("RTE", "epochs_of.RTE=5")
    assert not changes("CoLA", "epochs_of.RTE=5")
    assert changes("CoLA", "epochs=2")
    assert not changes("RTE", "epochs=2")
    assert not changes("CoLA", "epochs_of.CoLA=3")


def test_cells_of_nearly_equal_rates_have_names_of_their_own():
    names = [Cell("RTE", rate, 1).name for rate in (2e-5, 2.0000001e-5)]
    assert names == ["RTE_2e-05_1", "RTE_2.0000001e-05_1"]


def test_the_grid_is_dealt_out_whole():
    cells = make_cells({"RTE": 1.0, "MNLI": 9.0}, (5e-5, 2e-5), (1, 2, 3))
    assert len(cells) == len({cell.name for cell in cells}) == 12
    assert cells[0].task == "MNLI"  # the longest first
    parts = [share(cells, Shard(number, 5)) for number in range(1, 6)]
    assert sorted((c for part in parts for c in part), key=cells.index) == cells
    assert {len(part) for part in parts} == {2, 3}
