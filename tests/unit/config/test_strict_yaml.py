"""YAML as people mean it, and overrides typed by the same rules."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mslt_ds.config import strict_yaml
from mslt_ds.errors import RecipeError


@pytest.mark.parametrize(
    "text",
    [
        "!!int abc", "!!float abc", "!!bool abc", "!!timestamp abc", "!!binary é", "!!int ''", "!!int [1]",
        "!!map [1]", "!!seq {a: 1}", "!!str [1]", "!!set [1]", "!!omap [1]", "!!pairs [1]", "!!null [1]",
        "!!python/object/apply:os.getcwd []", "9" * 5_000, "-" + "9" * 5_000, "!!float " + "9" * 5_000 + "x",
        "[" * 10_000, "{a: " * 10_000, "&a [*a]", "&a {b: *a}", "a\0b", "*a", "!!unknown 1",
    ],
)  # fmt: skip
def test_what_has_no_value_is_one_line(text):
    with pytest.raises(RecipeError) as error:
        strict_yaml.parse(f"key: {text}" if text[0] in "!9-" else text, "recipe.yaml")
    assert len(str(error.value)) < 200 and str(error.value).startswith("recipe.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("1e-4", 1e-4),
        ("8.8e-4", 8.8e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3.", -3.0),
        ("7", 7),
        ("-7", -7),
        ("200_000", 200_000),
        ("010", 10),
        ("1:30", "1:30"),
        ("2026-11-24", "2026-11-24"),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("[1, off]", [1, "off"]),
    ],
)
def test_scalars(text, value):
    parsed = strict_yaml.parse(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["here", "line 3", "a", "twice"]),
        ("s:\n  a: 1\n  a: 1\n", ["line 3", "a", "twice"]),
        ("1: a\n", ["line 1", "1", "text"]),
        ("a: [1\n", ["here", "not valid YAML"]),
        ("a: !!python/object:os.system x\n", ["not valid YAML"]),
        ("a: &x [*x]\n", ["not valid YAML"]),
    ],
)
def test_refused(text, words):
    with pytest.raises(RecipeError) as error:
        strict_yaml.parse(text, "here")
    assert all(word in str(error.value) for word in words)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("aeflnoruxE019.:-+_#'\"~!&*{}[],|>%@` \n\té😀", max_size=12)
    | st.sampled_from(["off", "On", "1e5", "1e-4", "1_0", "010", "~", "null", "2026-11-24", "<<"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", min_size=1), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3), VALUES, max_size=4))
def test_dumped_values_come_back_here_and_in_other_readers(value):
    text = strict_yaml.dump(value)
    assert strict_yaml.parse(text, "here") == value
    assert yaml.safe_load(text) == value


def test_overrides_set_make_and_type():
    recipe = {"plan": {"method": "mslt", "stages": [{"steps": 1}, {"steps": 2}]}, "train": None}
    result = strict_yaml.apply_overrides(
        recipe,
        [
            "plan.method=full",
            "plan.stages.1.steps=7",
            "train.micro_batch_size=8",
            "optimizer.learning_rate=8.8e-4",
            "optimizer.betas=[0.9, 0.98]",
            "train.frozen_dropout=on",
            "name=a=b",
            "name=last wins",
        ],
    )
    assert result == {
        "plan": {"method": "full", "stages": [{"steps": 1}, {"steps": 7}]},
        "train": {"micro_batch_size": 8, "frozen_dropout": "on"},
        "optimizer": {"learning_rate": 8.8e-4, "betas": [0.9, 0.98]},
        "name": "last wins",
    }
    assert recipe["plan"] == {"method": "mslt", "stages": [{"steps": 1}, {"steps": 2}]}


@pytest.mark.parametrize(
    "override", ["plan", "=3", "plan..x=1", "name.x=1", "stages.5.x=1", "stages.x=1", "name={"]
)
def test_overrides_refused(override):
    with pytest.raises(RecipeError, match="--set"):
        strict_yaml.apply_overrides({"name": "a", "stages": [{}]}, [override])


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        strict_yaml.read_mapping(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="directory"):
        strict_yaml.read_mapping(tmp_path)
    for content, words in ((b"", "nothing"), (b"[1]", "list"), (b"\xff\xfe\x00", "UTF-8")):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=words):
            strict_yaml.read_mapping(path)
