from kerneldna.conversion.rows import Row, every_second, pairs_of, rows_of


def always(_, __):
    return True


def test_layers_of_one_kind_make_a_row():
    layers = [("a", 1), ("b", 2), ("c", 1), ("d", 1), ("e", 3)]
    assert rows_of("s", layers, follows=always) == [Row("s", ("a", "c", "d"))]


def test_branches_side_by_side_are_rows_of_their_own():
    block = {"a": 0, "b": 0, "c": 1, "d": 1}
    layers = [(name, "3x3") for name in block]
    rows = rows_of("s", layers, follows=lambda first, second: block[first] < block[second])
    assert [row.layers for row in rows] == [("a", "c"), ("b", "d")]


def test_every_second_layer_has_a_later_parent():
    row = Row("s", ("a", "b", "c", "d", "e"))
    assert every_second(row) == ["b", "d"]
    assert pairs_of(row, every_second(row)) == {"b": "c", "d": "e"}


def test_a_child_without_a_later_parent_takes_the_nearest_earlier_one():
    assert pairs_of(Row("s", ("a", "b", "c")), {"b", "c", "of another row"}) == {"b": "a", "c": "a"}
