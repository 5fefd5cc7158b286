import pytest

from damage import in_place_of, outcome
from kerneldna.reading import text
from kerneldna.reading.text import check_file, read_json, read_text


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "notes.json"
        path.write_bytes(content)
        return path

    return write


def test_what_is_read(write):
    assert read_json(write(b'\xef\xbb\xbf{"a": [1, 2.5, null],\r\n "b": "\xc3\xa9"}')) == {
        "a": [1, 2.5, None],
        "b": "é",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: Expecting value: line 1 column 1"),
        (b'{"a": 1,\n "b"}', "is damaged: Expecting ':' delimiter: line 2 column 5"),
        (b'{"a": NaN}', "'NaN' is no finite number"),
        (b'{"a": -1e999}', "'-1e999' is no finite number"),
        (b'{"a": 1, "a": 2}', "the key 'a' is given twice"),
        (b"[" * 40 + b"]" * 40, "its values are nested more than 32 deep"),
        (b"[" * 10**5 + b"]" * 10**5, "its values are nested more than 32 deep"),
        (b"9" * 5000, "is damaged: Exceeds the limit"),
        (b'"\xff"', "its byte 1 is no text in UTF-8; restore the file, or save it as UTF-8"),
    ],
)
def test_what_is_refused(write, content, message):
    path = write(content)
    with pytest.raises(ValueError, match=r"notes\.json is damaged: ") as caught:
        read_json(path)
    assert message in str(caught.value)


def test_a_huge_file_is_not_read(write, monkeypatch):
    path = write(b" " * 100)
    monkeypatch.setattr(type(path), "read_bytes", None)
    with pytest.raises(ValueError, match="has 100 bytes; such a file has 99 at most"):
        read_text(path, largest=99)


def test_what_is_no_file(write):
    path = write(b"{}")
    for what in in_place_of(path):
        opened, message = outcome(lambda: read_json(path), path.name)
        assert not opened, what
        assert message.startswith((f"no file '{path}'", f"{path} ")), message
    assert read_json(path) == {}
    check_file(path)
    assert text.DEEPEST == 32


def test_a_file_of_another_user_s_alone(write, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = write(b"{}")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ValueError, match=r"cannot be read: Permission denied; check its permissions"):
        check_file(path)
