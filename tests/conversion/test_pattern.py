import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import outcome
from kerneldna.conversion.pattern import Slot, parse, resolve, written

BIG, SMALL = (8, 8, 3, 3), (8, 4, 3, 3)


def slots(*blocks):
    return [
        [Slot(f"s.{b}.conv{i}", shape) for i, shape in enumerate(block)] for b, block in enumerate(blocks)
    ]


@pytest.mark.parametrize("text", ["F", "FS-SF-SF", "F-S-F", "F1S2-S2F2", "FF-FFF"])
def test_parse_writes_back(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty block"),
        ("FS--F", "empty block"),
        ("FX-F", "'X' is not a letter"),
        ("fs", "'f' is not a letter"),
        ("F1S2-F3", "S2 has no F2"),
        ("F1F1-S1", "F1 stands twice"),
    ],
)
def test_parse_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_paper_pattern_prefers_the_nearest_later_parent():
    pairs = resolve(parse("FS-SF-SF"), slots((SMALL, BIG), (BIG, BIG), (BIG, BIG)))
    assert pairs == {"s.0.conv1": "s.1.conv1", "s.1.conv0": "s.1.conv1", "s.2.conv0": "s.2.conv1"}


def test_failing_a_later_parent_the_nearest_earlier():
    pairs = resolve(parse("FF-SS"), slots((BIG, BIG), (BIG, BIG)))
    assert pairs == {"s.1.conv0": "s.0.conv1", "s.1.conv1": "s.0.conv1"}


def test_an_index_binds_by_hand():
    pairs = resolve(parse("F1S2-S1F2"), slots((BIG, BIG), (BIG, BIG)))
    assert pairs == {"s.0.conv1": "s.1.conv1", "s.1.conv0": "s.0.conv0"}


def test_a_child_without_a_fitting_parent_is_named_with_both_shapes():
    with pytest.raises(ValueError, match=r"stage 'layer3'.*'s.0.conv0' has a \(8, 4, 3, 3\).*\(8, 8, 3, 3\)"):
        resolve(parse("SF"), slots((SMALL, BIG)), stage="layer3")


def test_a_bound_parent_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"'s.0.conv0' \(S1\).*'s.0.conv1' \(F1\)"):
        resolve(parse("S1F1"), slots((SMALL, BIG)))


def test_letters_and_layers_must_agree():
    with pytest.raises(ValueError, match=r"stands for \[2\] layers a block, the stage has \[1\]"):
        resolve(parse("FS"), slots((BIG,)))


def test_pairs_are_written_as_the_pattern_that_they_are_read_from():
    blocks = slots((SMALL, BIG), (BIG, BIG), (BIG, BIG))
    pairs = {"s.1.conv0": "s.1.conv1", "s.2.conv0": "s.2.conv1"}
    pattern = written(blocks, pairs)
    assert str(pattern) == "FF-SF-SF"
    assert resolve(pattern, blocks) == pairs


def test_pairs_that_are_not_the_nearest_have_numbers():
    blocks = slots((BIG, BIG), (BIG, BIG))
    pairs = {"s.0.conv0": "s.1.conv0", "s.0.conv1": "s.1.conv1"}
    pattern = written(blocks, pairs)
    assert str(pattern) == "S1S2-F1F2"
    assert resolve(pattern, blocks) == pairs


LETTERS = st.text("FS-0123456789 １²x", max_size=14) | st.text(max_size=14) | st.just("F" + "9" * 5000)


@settings(max_examples=200)
@given(LETTERS)
def test_any_text_is_a_pattern_or_refused_by_name(text):
    opened, pattern = outcome(lambda: parse(text), "pattern ")
    if opened:
        assert str(pattern) == text
        assert parse(str(pattern)) == pattern


@settings(max_examples=100)
@given(
    st.lists(st.lists(st.sampled_from([BIG, SMALL]), min_size=1, max_size=3), min_size=1, max_size=4),
    st.data(),
)
def test_any_pattern_on_any_stage_finds_parents_of_one_shape_or_says_which_layer_has_none(shapes, data):
    blocks = slots(*shapes)
    text = "-".join("".join(data.draw(st.sampled_from("FS")) for _ in block) for block in shapes)
    opened, pairs = outcome(lambda: resolve(parse(text), blocks, stage="layer3"), "layer3")
    if opened:
        shape_of = {slot.name: slot.shape for block in blocks for slot in block}
        assert len(pairs) == text.count("S")
        assert all(shape_of[child] == shape_of[parent] for child, parent in pairs.items())
        assert not pairs.keys() & set(pairs.values())
        assert resolve(written(blocks, pairs), blocks) == pairs
