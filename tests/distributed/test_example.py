"""The example of docs/lamb.md runs, learns, and is what the page shows."""

from __future__ import annotations

import re

from tests.distributed.conftest import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "lamb_under_zero.py"


def test_lamb_in_anyones_program(launch) -> None:
    output = launch(EXAMPLE, 2).output
    losses = {step: float(loss) for step, loss in re.findall(r"step (\d+) loss ([0-9.]+)", output)}
    assert losses["99"] < 0.5 * losses["0"]
    assert "trust_ratio" in output


def test_the_page_shows_the_example() -> None:
    """Every line of the page's first program is one of the example's."""
    page = (REPOSITORY / "docs" / "lamb.md").read_text()
    program = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0]
    example = EXAMPLE.read_text().splitlines()
    assert [line for line in program.splitlines() if line not in example] == []
