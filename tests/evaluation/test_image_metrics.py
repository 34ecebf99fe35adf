import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.evaluation import image_metrics

scored = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=2, max_size=30).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def chance_of_the_right_order(scores, labels):
    """AUROC by its meaning: how often an anomalous image outscores a normal one."""
    pairs = [
        (anomalous > normal) + 0.5 * (anomalous == normal)
        for anomalous in scores[labels == 1]
        for normal in scores[labels == 0]
    ]
    return np.mean(pairs)


def f1_at(threshold, scores, labels):
    flagged = scores >= threshold
    hits = np.sum(flagged & (labels == 1))
    return 2 * hits / (flagged.sum() + labels.sum())


def test_a_hand_worked_case():
    # from the top: 9 hit, 8 false alarm, 7 hit, 1 normal
    # AUROC: of 2 x 2 pairs only (7, 8) is in the wrong order: 3/4
    # AP: precision 1/1 at recall 1/2, 2/3 at recall 1: (1 + 2/3) / 2 = 5/6
    # F1: at 9: 2*1/(1+2) = 2/3; at 8: 2*1/(2+2) = 1/2; at 7: 2*2/(3+2) = 4/5; at 1: 4/6
    found = image_metrics([9, 8, 7, 1], [1, 0, 1, 0])
    assert found == pytest.approx({"image_auroc": 3 / 4, "image_ap": 5 / 6, "image_f1_max": 4 / 5})


@given(scored)
def test_agrees_with_the_definitions_ties_included(rows):
    scores, labels = np.array(rows).T
    found = image_metrics(scores, labels)
    assert found["image_auroc"] == pytest.approx(chance_of_the_right_order(scores, labels))
    assert found["image_f1_max"] == pytest.approx(max(f1_at(t, scores, labels) for t in scores))


def test_equal_scores_tell_nothing():
    assert image_metrics([3.0] * 5, [0, 1, 0, 1, 1])["image_auroc"] == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_metrics(label):
    assert image_metrics([0.1, 0.2], [label, label]) == {}


def test_bad_input_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="2 of 3 scores are not finite, first at 1"):
        image_metrics([0.0, np.nan, np.inf], [0, 1, 1])
    with pytest.raises(ValueError, match="3 scores for 2 labels"):
        image_metrics([1, 2, 3], [0, 1])
    with pytest.raises(ValueError, match="labels must be 0"):
        image_metrics([1, 2], [0, 2])
