import pytest

from mslt_ds.errors import DataError
from mslt_ds.shard import Shard


def test_shards_are_read_from_the_command_line():
    assert Shard.parse("3/8") == Shard(3, 8)
    for text in ("0/8", "9/8", "3", "3/", "/8", "a/b", "-1/8", "1.5/8", ""):
        with pytest.raises(DataError, match="--shard: .*I from 1 to N"):
            Shard.parse(text)
