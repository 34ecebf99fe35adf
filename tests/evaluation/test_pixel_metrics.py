import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from src.data.dataset import Defect
from src.evaluation import curve, pixel, pixel_metrics

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
seeds = st.integers(0, 2**32 - 1)


def defect(mask, saturation=None):
    mask = np.asarray(mask, dtype=bool)
    return Defect(mask, float(mask.sum() if saturation is None else saturation))


def union(defects):
    return np.logical_or.reduce([one.mask for one in defects])


def components(mask):
    """The 8-connected components, by flooding from one pixel after the other."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    while left:
        part, frontier = np.zeros(mask.shape, dtype=bool), [left.pop()]
        while frontier:
            y, x = frontier.pop()
            part[y, x] = True
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            frontier += near
        yield part


def known(maps, defects):
    """The images whose ground truth is known, as (map, defects, union mask)."""
    for anomaly_map, present in zip(maps, defects, strict=True):
        marked = [one for one in present or [] if one.mask.any()]
        if marked:
            yield anomaly_map, marked, union(marked)
        elif present is not None and not present:
            yield anomaly_map, [], np.zeros(anomaly_map.shape, dtype=bool)


def area(x, y, limit):
    """Trapezoids up to the limit, the last one cut, divided by the limit."""
    total = 0.0
    for x0, x1, y0, y1 in zip(x[:-1], x[1:], y[:-1], y[1:], strict=True):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            total += (end - x0) * (y0 + y_end) / 2
    return total / limit


def by_thresholds(maps, defects, thresholds):
    """All metrics by their definitions: at each threshold, count what lies strictly above it."""
    images = list(known(maps, defects))
    normals = np.concatenate([m[~mask] for m, _, mask in images])
    anomalous = np.concatenate([m[mask] for m, _, mask in images])
    regions = [m[part] for m, _, mask in images for part in components(mask)]
    flaws = [(m[one.mask], one.saturation) for m, present, _ in images for one in present]

    def share_above(scores):
        return count_above(scores) / scores.size

    def count_above(scores):
        return scores.size - np.searchsorted(np.sort(scores), thresholds, "right")

    x = [0.0, *share_above(normals), 1.0]
    pixels = [0.0, *share_above(anomalous), 1.0]
    pro = [0.0, *np.mean([share_above(region) for region in regions], axis=0), 1.0]
    spro = [np.minimum(count_above(scores) / s, 1) for scores, s in flaws]
    highest = np.mean([min(scores.size / s, 1) for scores, s in flaws])
    spro = [0.0, *np.mean(spro, axis=0), highest]
    return {
        "pixel_auroc": area(x, pixels, 1.0),
        "aupro": area(x, pro, 0.3),
        "aupro_0.05": area(x, pro, 0.05),
        "au_spro": {str(limit): area(x, spro, limit) for limit in LIMITS},
    }


def by_every_score(maps, defects):
    """The exact curves: each distinct score is a threshold, from above all to below none."""
    values = np.concatenate([m.reshape(-1) for m in maps])
    return by_thresholds(maps, defects, np.unique(values)[::-1])


def made_case(seed):
    """A few small images of differing sizes: good, unknown or with overlapping masks; ties."""
    rng = np.random.default_rng(seed)
    maps, defects = [], []
    for kind in ["good", "defective", *rng.choice(["good", "defective", "unknown"], 3)]:
        shape = tuple(rng.integers(2, 9, 2))
        maps.append(rng.integers(0, rng.choice([3, 50]), shape).astype(np.float32))
        masks = [rng.random(shape) < rng.choice([0.1, 0.4]) for _ in range(rng.integers(1, 4))]
        masks[0][0, 0] = True
        present = [defect(mask, rng.uniform(0.2, 1) * mask.sum() or 1.0) for mask in masks]
        defects.append({"good": [], "unknown": None, "defective": present}[kind])
    return maps, defects


def inspection(seed, images=6, shape=(90, 110)):
    """Smooth noise with blobs of heat on some of the defects; several masks an image."""
    rng = np.random.default_rng(seed)
    maps, defects = [], []
    for i in range(images):
        anomaly_map = ndimage.gaussian_filter(rng.normal(size=shape), 2).astype(np.float32) * 5
        masks = []
        for _ in range(i % 3 + 1 if i % 2 else 0):
            y, x = rng.integers(0, 70), rng.integers(0, 90)
            mask = np.zeros(shape, dtype=bool)
            mask[y : y + rng.integers(3, 25), x : x + rng.integers(3, 25)] = True
            masks.append(mask)
            anomaly_map += mask * np.float32(rng.uniform(0, 3))
        maps.append(anomaly_map)
        defects.append([defect(mask, rng.uniform(0.1, 1) * mask.sum()) for mask in masks])
    return maps, defects


def flat(metrics):
    rest = {name: value for name, value in metrics.items() if name != "au_spro"}
    return rest | {f"au_spro {limit}": value for limit, value in metrics["au_spro"].items()}


def same(metrics, others, tolerance=1e-9):
    assert flat(metrics) == pytest.approx(flat(others), abs=tolerance)


def test_a_hand_worked_case():
    # Scores of a defective image, its two defects, and a good image:
    #            9  8  7  6  5  4         7.5  3  2  1
    # A, s = 1   x        x
    # B, s = 2      x  x  x
    # Six normal pixels: 7.5 5 4 3 2 1. From the top:
    #   9 found: sPRO (1/1 + 0)/2 = .5      8 found: (1 + 1/2)/2 = .75      fpr 0
    #   7.5 is a false positive: fpr 1/6    7 found: (1 + 2/2)/2 = 1, and stays
    # The sPRO curve is .75 up to 1/6, then 1:
    #   up to .1: .75;  up to .3: (.75/6 + .3 - 1/6)/.3 = 31/36;  up to 1: .75/6 + 5/6 = 23/24
    # The union 9 8 7 6 is one region: its PRO, and the true positive rate, are 2/4 up to 1/6.
    #   AUPRO .3: (.5/6 + .3 - 1/6)/.3 = 13/18;  .05: .5;  pixel AUROC: .5/6 + 5/6 = 11/12
    maps = [np.array([[9, 8, 7, 6, 5, 4]], np.float32), np.array([[7.5, 3], [2, 1]], np.float32)]
    a, b = defect([[1, 0, 0, 1, 0, 0]], 1), defect([[0, 1, 1, 1, 0, 0]], 2)
    expected = {"0.01": 0.75, "0.05": 0.75, "0.1": 0.75, "0.3": 31 / 36, "1.0": 23 / 24}
    found = pixel_metrics(maps, [[a, b], []])
    assert set(found) == {"pixel_auroc", "aupro", "aupro_0.05", "au_spro"}
    assert found["au_spro"] == pytest.approx(expected)
    assert found["aupro"] == pytest.approx(13 / 18)
    assert found["aupro_0.05"] == pytest.approx(0.5)
    assert found["pixel_auroc"] == pytest.approx(11 / 12)


def test_a_fractional_saturation_area_counts_in_fractions():
    # s = 1.5: one pixel found is 1/1.5 = 2/3, two are 1. Scores 4 3 defective, 3.5 normal
    # and 1 normal: 2/3 up to fpr 1/2, then 1: area 1/3 + 1/2.
    maps = [np.array([[4, 3, 3.5, 1]], np.float32)]
    found = pixel_metrics(maps, [[defect([[1, 1, 0, 0]], 1.5)]], limits=[1.0])
    assert found["au_spro"] == {"1.0": pytest.approx(5 / 6)}


def test_pixels_that_touch_at_a_corner_are_one_region():
    # Found: one of the diagonal's two pixels, none of the third. As two regions that is a PRO
    # of (1/2 + 0)/2; as three it would be 1/3. Normal pixels rank above the remaining two.
    scores = np.full((4, 4), 5, np.float32)
    mask = np.zeros((4, 4), dtype=bool)
    mask[[0, 1, 3], [0, 1, 3]] = True
    scores[0, 0], scores[1, 1], scores[3, 3] = 9, 1, 1
    assert pixel_metrics([scores], [[defect(mask)]])["aupro"] == pytest.approx(0.25)


def test_equal_scores_everywhere_tell_nothing():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:4, 2:4] = True
    found = pixel_metrics([np.ones((8, 8), np.float32)], [[defect(mask)]])
    assert found["pixel_auroc"] == 0.5
    assert found["aupro"] == pytest.approx(0.3 / 2)  # the diagonal's area up to 0.3, over 0.3


@given(seeds)
def test_agrees_with_the_definitions_at_every_score(seed):
    maps, defects = made_case(seed)
    same(pixel_metrics(maps, defects), by_every_score(maps, defects), 1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_evaluators_procedure_of_100000_thresholds(seed):
    maps, defects = inspection(seed)
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    thresholds = np.linspace(high, low, 100_001)
    same(pixel_metrics(maps, defects), by_thresholds(maps, defects, thresholds), 1e-3)


def test_pixel_auroc_is_scikit_learns_over_all_pixels():
    maps, defects = inspection(7)
    truth = [union(d) if d else np.zeros(m.shape, bool) for m, d in zip(maps, defects, strict=True)]
    scores = np.concatenate([m.reshape(-1) for m in maps])
    labels = np.concatenate([mask.reshape(-1) for mask in truth])
    found = pixel_metrics(maps, defects)["pixel_auroc"]
    assert found == pytest.approx(roc_auc_score(labels, scores), abs=1e-5)


def outlier(maps):
    maps[0][0, 0] = 1e6 * max(np.abs(m).max() for m in maps)
    return maps


DISTRIBUTIONS = {
    "one huge outlier": outlier,
    "nearly constant": lambda maps: [(1 + 1e-5 * m).astype(np.float32) for m in maps],
    "heavy-tailed": lambda maps: [np.exp(6 * m) for m in maps],
    "mostly tied at zero": lambda maps: [np.maximum(m - 2, 0) for m in maps],
    "few grey levels": lambda maps: [np.rint(3 * m) for m in maps],
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_large_defects_are_accurate_to_a_ten_thousandth(name):
    maps, defects = inspection(3, images=3, shape=(250, 300))
    half = np.zeros((250, 300), dtype=bool)
    half[:150] = True
    maps[0] += half
    defects[0] = [defect(half), defect(half[::-1], 40_000)]
    assert half.sum() > pixel.MOST_SCORES  # so that it is represented by fewer
    maps = DISTRIBUTIONS[name](maps)
    same(pixel_metrics(maps, defects), by_every_score(maps, defects), 1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_coarse_steps_err_by_no_more_than_their_height(seed, monkeypatch):
    maps, defects = inspection(seed)
    exact = by_every_score(maps, defects)
    monkeypatch.setattr(curve, "STEPS", 50)
    merged = pixel_metrics(maps, defects)
    assert flat(merged) != pytest.approx(flat(exact), abs=1e-6)  # it did merge
    same(merged, exact, 1 / 50)
    monkeypatch.setattr(pixel, "MOST_SCORES", 50)
    same(pixel_metrics(maps, defects), exact, 1 / 50 + 2 / 50)


def test_a_tied_mass_stays_apart_from_its_neighbours_under_coarse_steps(monkeypatch):
    # Most defective and all normal pixels lie at 1, the rest of the defective just beside it.
    scores = np.ones((20, 20), np.float32)
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10] = True
    scores[0, :6], scores[1, :6], scores[2, :6] = 1 - 1e-6, 1 + 1e-6, 1 + 2e-6
    exact = by_every_score([scores], [[defect(mask)]])
    monkeypatch.setattr(curve, "STEPS", 10)
    same(pixel_metrics([scores], [[defect(mask)]]), exact)


@given(seeds)
def test_all_metrics_lie_between_zero_and_one(seed):
    assert all(0 <= value <= 1 for value in flat(pixel_metrics(*made_case(seed))).values())


@given(seeds, st.sampled_from([np.exp, np.cbrt, lambda m: 1e-3 * m - 7]))
def test_a_strictly_increasing_transform_of_all_maps_changes_nothing(seed, transform):
    maps, defects = made_case(seed)
    transformed = [transform(m.astype(np.float64)) for m in maps]
    same(pixel_metrics(transformed, defects), pixel_metrics(maps, defects))


@given(seeds)
def test_with_one_mask_a_component_saturating_at_its_area_spro_is_pro(seed):
    maps, defects = made_case(seed)
    split = [d and [defect(part) for part in components(union(d))] for d in defects]
    found = pixel_metrics(maps, split, limits=[0.05, 0.3])
    assert found["au_spro"] == pytest.approx({"0.05": found["aupro_0.05"], "0.3": found["aupro"]})


@given(seeds)
def test_perfect_maps_score_one_and_inverted_maps_rank_every_pixel_wrong(seed):
    _, defects = made_case(seed)
    defects = [d for d in defects if d]
    maps = [union(d).astype(np.float32) for d in defects] + [np.zeros((3, 3), np.float32)]
    defects = [*defects, []]
    assert flat(pixel_metrics(maps, defects)) == pytest.approx(
        dict.fromkeys(flat(pixel_metrics(maps, defects)), 1.0)
    )
    assert pixel_metrics([-m for m in maps], defects)["pixel_auroc"] == 0


@given(seeds)
def test_the_order_of_images_and_the_size_of_a_chunk_do_not_matter(seed):
    maps, defects = made_case(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "CHUNK", 7)
        found = pixel_metrics(maps[::-1], defects[::-1])
    same(found, pixel_metrics(maps, defects))


def test_images_of_unknown_ground_truth_are_left_out():
    maps, defects = inspection(1)
    hot = np.full((10, 10), 100, np.float32)
    nothing_marked = [defect(np.zeros((10, 10)), 1)]
    alone = pixel_metrics(maps, defects)
    same(pixel_metrics([*maps, hot, hot], [*defects, None, nothing_marked]), alone, 0)
    assert pixel_metrics([*maps, hot], [*defects, []])["aupro"] < alone["aupro"]


class Counted:
    """A sequence that makes its items at indexing, and counts."""

    def __init__(self, items):
        self.items = items
        self.reads = [0] * len(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.items[index].copy() if isinstance(index, int) else None


def test_a_lazy_sequence_is_read_at_most_twice():
    maps, defects = inspection(2)
    lazy, lazy_defects = Counted(maps), Counted(defects)
    same(pixel_metrics(lazy, lazy_defects), pixel_metrics(maps, defects), 0)
    assert max(lazy.reads) <= 2
    assert max(lazy_defects.reads) == 1


def test_no_defect_or_no_normal_pixel_means_no_metrics():
    everywhere = [defect(np.ones((2, 2)))]
    ones = np.ones((2, 2), np.float32)
    assert pixel_metrics([ones, ones], [[], None]) == {}
    assert pixel_metrics([ones], [everywhere]) == {}
    assert pixel_metrics([], []) == {}


def test_bad_input_is_refused_with_its_index():
    good, bad = np.ones((2, 2), np.float32), np.array([[1, np.nan], [1, 1]], np.float32)
    present = [defect([[1, 0], [0, 0]])]
    with pytest.raises(ValueError, match="map 1 holds values that are not finite"):
        pixel_metrics([good, bad], [present, []])
    with pytest.raises(ValueError, match="map 0 holds values that are not finite"):
        pixel_metrics([bad, good], [present, []])
    with pytest.raises(ValueError, match="map 0 has shape"):
        pixel_metrics([np.ones(4)], [present])
    with pytest.raises(ValueError, match="bring the map to its image's size"):
        pixel_metrics([np.ones((3, 3))], [present])
    with pytest.raises(ValueError, match="1 maps, but the defects of 2 images"):
        pixel_metrics([good], [present, []])
    with pytest.raises(ValueError, match="saturation 0"):
        pixel_metrics([good], [[defect([[1, 0], [0, 0]], 0)]])
    with pytest.raises(ValueError, match=r"rates in \(0, 1\]"):
        pixel_metrics([good], [present], limits=[0])
