"""`--shard I/N`: one task's part of work that several tasks share."""

from __future__ import annotations

from dataclasses import dataclass

from mslt_ds.errors import DataError


@dataclass(frozen=True)
class Shard:
    """Part `number`, counted from 1, of `count` parts."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that an option's value I/N names; DataError if it names none."""
        number, slash, count = text.partition("/")
        if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        raise DataError(f"--shard: {text!r}; expected I/N with I from 1 to N, for example 3/8")

    def takes(self, index: int) -> bool:
        """Whether item `index`, counted from 0, belongs to this part: every `count`-th item does."""
        return index % self.count == self.number - 1
