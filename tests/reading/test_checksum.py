import hashlib

from kerneldna.reading.checksum import checksum_of_data, checksum_of_file


def test_of_a_file(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert checksum_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_of_data_does_not_depend_on_its_layout():
    assert checksum_of_data({"a": (1, 2.5), "b": {1: None}}) == checksum_of_data(
        {"b": {"1": None}, "a": [1, 2.5]}
    )
    assert checksum_of_data({"a": 1}) != checksum_of_data({"a": 2})
