import pytest
import torch

from kerneldna.detection.difference import detection_difference, detection_differences

BOXES = torch.tensor([[10.0, 10, 30, 30], [50, 50, 90, 70], [12, 60, 40, 95]])
LIMITS = {"size": (100, 200), "least": 0.05, "most": 100}


def found(boxes=BOXES, labels=(1, 2, 1), scores=(0.9, 0.6, 0.3), **masks):
    return {"boxes": boxes, "labels": torch.tensor(labels), "scores": torch.tensor(scores), **masks}


def test_the_order_of_detections_does_not_count():
    turned = found(BOXES.flip(0), labels=(1, 2, 1), scores=(0.3, 0.6, 0.9))
    assert torch.equal(detection_differences(found(), turned, **LIMITS), torch.zeros(6))


def test_scores_and_edges_are_compared_with_the_counterpart():
    moved = BOXES.clone()
    moved[1, 2] += 4  # of 200 pixels
    apart = detection_differences(found(), found(moved, scores=(0.9, 0.6, 0.31)), **LIMITS)
    torch.testing.assert_close(apart, torch.tensor([0, 0.02, 0.01] * 2))


def test_a_detection_without_a_counterpart_counts_by_its_score():
    alone = {name: value[:2] for name, value in found().items()}
    torch.testing.assert_close(
        detection_differences(found(), alone, **LIMITS), torch.tensor([0, 0, 0.25, 0, 0])
    )
    other_label = detection_differences(found(), found(labels=(1, 3, 1)), **LIMITS)
    torch.testing.assert_close(other_label, torch.tensor([0, 0.55, 0] * 2))
    none = {name: value[:0] for name, value in found().items()}
    torch.testing.assert_close(
        detection_differences(none, found(), **LIMITS), torch.tensor([0.85, 0.55, 0.25])
    )


def test_where_a_run_is_full_its_least_score_is_what_a_lost_one_had_to_beat():
    one, other = ({name: value[rows] for name, value in found().items()} for rows in ([0, 1], [0, 2]))
    apart = detection_differences(one, other, **{**LIMITS, "most": 2})
    torch.testing.assert_close(apart, torch.tensor([0, 0.3, 0, 0]))


def test_masks_are_compared_over_the_box():
    masks = torch.zeros(3, 1, 100, 200)
    moved = masks.clone()
    moved[0, 0, 10:31, 10] = 1  # one column of 21
    apart = detection_differences(found(masks=masks), found(masks=moved), **LIMITS)
    torch.testing.assert_close(apart, torch.tensor([1 / 21, 0, 0] * 2))


def test_what_is_not_a_number_is_far_apart():
    scores = torch.tensor([0.9, float("nan"), 0.3])
    apart = detection_differences(found(), {**found(), "scores": scores}, **LIMITS)
    assert not detection_difference([apart], 0.95) <= 1


@pytest.mark.parametrize(("share", "expected"), [(0.95, 0.0), (0.99, 1.0), (0.5, 0.0)])
def test_a_share_may_go_astray(share, expected):
    differences = [torch.zeros(60), torch.cat([torch.ones(1), torch.zeros(39)])]
    assert detection_difference(differences, share) == expected
    assert detection_difference([torch.zeros(0), torch.zeros(0)], share) is None
    assert detection_difference([], share) is None
    assert detection_difference([torch.tensor([0.0, 0.5])], share) == 0.5
