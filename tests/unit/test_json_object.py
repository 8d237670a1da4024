import pytest

from mslt_ds.json_object import read_object


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "delimiter"),
        (b"[1, 2]", "a list instead of an object"),
        (b"null", "a NoneType instead of an object"),
        (b'{"a": ' + b"[" * 100_000, "more brackets"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "integer string conversion"),
        (b'{"a": "\xff"}', "invalid start byte"),
    ],
)
def test_whatever_else_a_file_holds_is_a_value_error(tmp_path, content, why):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why):
        read_object(path)


def test_an_object_is_read(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"ä": [1]}', encoding="utf-8")
    assert read_object(path) == {"ä": [1]}
