import re
from itertools import pairwise
from xml.etree import ElementTree

from kerneldna.figures.diagram import stage_svg

SVG = "{http://www.w3.org/2000/svg}"


def layer(name, role="full", parent=None, shape=(8, 8, 3, 3)):
    return {"name": name, "role": role, "parent": parent, "shape": list(shape)}


def stage(*blocks, name="layer3", pattern="FS-SF"):
    return {
        "name": name,
        "pattern": pattern,
        "blocks": [{"name": f"{name}.{index}", "layers": layers} for index, layers in enumerate(blocks)],
    }


FAMILY = stage(
    [layer("layer3.0.conv1", shape=(8, 4, 3, 3)), layer("layer3.0.conv2", "child", "layer3.1.conv2")],
    [layer("layer3.1.conv1", "child", "layer3.1.conv2"), layer("layer3.1.conv2", "parent")],
)


def groups(root, kind):
    return [group for group in root.iter(f"{SVG}g") if kind in group.get("class").split()]


def heights(root):
    """The height of the horizontal part of every link."""
    paths = [group.find(f"{SVG}path").get("d") for group in groups(root, "link")]
    return [float(re.search(r"Q[-\d.]+ ([-\d.]+)", path)[1]) for path in paths]


def test_every_layer_is_a_box_with_its_role_and_hint():
    root = ElementTree.fromstring(stage_svg(FAMILY))
    boxes = groups(root, "layer")

    assert [box.get("class") for box in boxes] == ["layer full", "layer child", "layer child", "layer parent"]
    assert [box.find(f"{SVG}title").text for box in boxes] == [
        "layer3.0.conv1: full, kernel 8×4×3×3",
        "layer3.0.conv2: child of layer3.1.conv2, kernel 8×8×3×3",
        "layer3.1.conv1: child of layer3.1.conv2, kernel 8×8×3×3",
        "layer3.1.conv2: parent, kernel 8×8×3×3",
    ]
    assert root.get("aria-label") == "layer3: 2 blocks, 4 layers, 2 children"


def test_every_child_has_a_link_and_a_family_can_be_found_by_its_parent():
    root = ElementTree.fromstring(stage_svg(FAMILY))
    families = [element.get("data-family") for element in root.iter() if element.get("data-family")]

    assert len(groups(root, "link")) == 2
    assert families == ["layer3.1.conv2"] * 5


def test_boxes_stand_apart_and_inside_the_picture():
    root = ElementTree.fromstring(stage_svg(FAMILY))
    rects = [group.find(f"{SVG}rect") for group in groups(root, "layer")]
    edges = [(float(rect.get("x")), float(rect.get("x")) + float(rect.get("width"))) for rect in rects]

    assert all(right < left for (_, right), (left, _) in pairwise(edges))
    assert edges[-1][1] < float(root.get("width"))


def test_families_side_by_side_share_a_track_and_crossing_ones_do_not():
    pair = [layer("a", "child", "b"), layer("b", "parent")]
    beside = stage(pair, [layer("c", "child", "d"), layer("d", "parent")])
    across = stage(
        [layer("a", "child", "c"), layer("b", "child", "d")], [layer("c", "parent"), layer("d", "parent")]
    )

    assert len(set(heights(ElementTree.fromstring(stage_svg(beside))))) == 1
    assert len(set(heights(ElementTree.fromstring(stage_svg(across))))) == 2


def test_no_link_leaves_the_picture_with_fifteen_families():
    children = [layer(f"c{index}", "child", f"p{index}") for index in range(15)]
    parents = [layer(f"p{index}", "parent") for index in range(15)]
    root = ElementTree.fromstring(stage_svg(stage(children, parents)))

    assert len(set(heights(root))) == 15
    assert min(heights(root)) > 0


def test_a_parent_elsewhere_draws_no_link_and_no_block_is_no_error():
    alone = ElementTree.fromstring(stage_svg(stage([layer("a", "child", "layer2.0.conv1")])))

    assert not groups(alone, "link")
    assert (
        ElementTree.fromstring(stage_svg(stage())).get("aria-label")
        == "layer3: 0 blocks, 0 layers, 0 children"
    )


def test_linear_shapes_and_strange_names():
    root = ElementTree.fromstring(stage_svg(stage([layer('<fc> & "x"', shape=(4, 8))], name="<s>")))
    texts = [text.text for text in root.iter(f"{SVG}text")]

    assert texts == ["<s>.0", '<fc> & "x"', "4×8"]
