"""Scores and maps of a test set: kept by image, joined over clients, turned into figures."""

from dataclasses import replace

import numpy as np
import pytest

from src.data import open_dataset, write_synthetic
from src.evaluation import image_metrics, pixel_metrics
from src.evaluation.score_set import AnomalyMaps, ScoreSet, compute_metrics, mean_metrics
from src.models import FileError
from src.models.patchcore import Prediction

SIDE = 64


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Six test images of one object, three of them with defects and masks."""
    root = tmp_path_factory.mktemp("parts") / "set"
    write_synthetic(root, ("bracket",), train=1, good=3, defects=3, size=(SIDE, SIDE))
    return open_dataset("synthetic", root, "all", "test")


@pytest.fixture
def scored(parts, random_state) -> ScoreSet:
    """Scores and distances out of the blue."""
    predictions = (
        Prediction(float(random_state.gamma(4)), grid, (SIDE, SIDE))
        for grid in random_state.gamma(4, size=(len(parts), 8, 8)).astype(np.float32)
    )
    return ScoreSet.of(parts.samples, predictions)


def assert_same(one: ScoreSet, other: ScoreSet) -> None:
    assert one.keys == other.keys
    for a, b in zip(one.predictions, other.predictions, strict=True):
        assert (a.score, a.image_size) == (b.score, b.image_size)
        assert a.distances.dtype == b.distances.dtype
        np.testing.assert_array_equal(a.distances, b.distances)


def part(scored: ScoreSet, *indices: int) -> ScoreSet:
    keys = tuple(scored.keys[i] for i in indices)
    return ScoreSet(keys, tuple(scored.predictions[i] for i in indices))


def test_file_gives_back_what_was_saved(scored: ScoreSet, tmp_path) -> None:
    scored.save(tmp_path / "made" / "as needed" / "0.safetensors")
    assert_same(ScoreSet.load(tmp_path / "made" / "as needed" / "0.safetensors"), scored)


def test_images_of_several_sizes_and_none_at_all_are_kept_too(tmp_path) -> None:
    wide = Prediction(0.1 + 0.2, np.ones((2, 5), np.float32), (17, 41))
    odd = Prediction(np.inf, np.zeros((1, 1), np.float32), (8, 8))
    for mixed in (ScoreSet(("ü/wide.png", "b"), (wide, odd)), ScoreSet((), ())):
        mixed.save(tmp_path / "file")
        assert_same(ScoreSet.load(tmp_path / "file"), mixed)


def test_other_files_are_refused_by_name(tmp_path) -> None:
    (tmp_path / "scores").write_bytes(b"not scores")
    with pytest.raises(FileError, match="scores"):
        ScoreSet.load(tmp_path / "scores")


def test_joined_parts_are_the_whole_in_whatever_order_they_come(scored: ScoreSet) -> None:
    parts = [part(scored, 4, 1), part(scored), part(scored, 0, 5, 2), part(scored, 3)]
    assert_same(ScoreSet.join(parts), ScoreSet.join(parts[::-1]))
    assert ScoreSet.join(parts).keys == tuple(sorted(scored.keys))
    assert ScoreSet.join(parts).by_key() == scored.by_key()


def test_figures_are_those_of_scores_and_drawn_maps_found_by_key(model, parts, scored) -> None:
    labels = [sample.label for sample in parts.samples]
    maps = [model.anomaly_map(prediction) for prediction in scored.predictions]
    truth = [parts.defects(i) for i in range(len(parts))]
    expected = image_metrics([p.score for p in scored.predictions], labels)
    expected |= pixel_metrics(maps, truth)
    assert compute_metrics(model, parts, scored) == expected
    assert compute_metrics(model, parts, part(scored, 3, 0, 5, 1, 4, 2)) == expected
    assert {"image_auroc", "pixel_auroc", "aupro", "au_spro"} <= expected.keys()


def test_figures_of_some_images_need_no_others(model, parts, scored) -> None:
    some = parts.select([0, 5])
    labels = [sample.label for sample in some.samples]
    assert sorted(labels) == [0, 1]
    scores = [scored.predictions[i].score for i in (0, 5)]
    assert (
        compute_metrics(model, some, scored)["image_auroc"]
        == image_metrics(scores, labels)["image_auroc"]
        == image_metrics(scores, labels)["image_auroc"]
    )


def test_data_without_masks_has_image_figures_only(model, parts, scored) -> None:
    bare = parts.select(range(len(parts)))
    bare.samples = [replace(sample, masks=()) for sample in bare.samples]
    assert set(compute_metrics(model, bare, scored)) == {"image_auroc", "image_ap", "image_f1_max"}


def test_normal_images_alone_have_no_figures(model, parts, scored) -> None:
    normal = parts.select([i for i, sample in enumerate(parts.samples) if not sample.label])
    assert compute_metrics(model, normal, scored) == {}


def test_maps_are_drawn_one_by_one_when_asked_for(model, scored, monkeypatch) -> None:
    drawn = []
    draw = type(model).anomaly_map
    monkeypatch.setattr(model, "anomaly_map", lambda p: drawn.append(p) or draw(model, p))
    maps = AnomalyMaps(model, scored.predictions)
    assert (len(maps), drawn) == (6, [])
    assert maps[2].shape == (SIDE, SIDE)
    assert drawn == [scored.predictions[2]]


def test_mean_is_over_figures_that_all_have() -> None:
    one = {"image_auroc": 0.5, "aupro": 0.1, "au_spro": {"0.05": 0.2, "0.3": 0.4}}
    other = {"image_auroc": 1.0, "au_spro": {"0.05": 0.4}}
    assert mean_metrics([one, other]) == {
        "image_auroc": 0.75,
        "au_spro": {"0.05": pytest.approx(0.3)},
    }
    assert mean_metrics([one]) == one
    assert mean_metrics([]) == mean_metrics([{}, one]) == {}
