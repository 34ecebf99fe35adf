"""The model as its users call it."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.models import FileError, MemoryBank, PatchCore, patchcore
from src.models.coreset.selection import greedy_coreset_selection
from src.models.patchcore import Prediction
from src.storage.tensor_file import read_tensors, write_tensors


@pytest.fixture
def fitted(model, images):
    return model.fit(images(6))


def pasted(image, top=40, left=16, side=12):
    """A copy with a checked square in it."""
    image = image.clone()
    checks = (torch.arange(side)[:, None] // 3 + torch.arange(side) // 3) % 2
    image[:, top : top + side, left : left + side] = checks.float()
    return image


def patches(model, dataset):
    return [grid.features.reshape(-1, 152) for grids in model.embed(dataset) for grid in grids]


class TestTheUsersCalls:
    def test_fit_predict_save_and_load_run_as_they_are_written(self, images, tmp_path):
        train = [(image, 0, "path") for image in images(3)]
        model = PatchCore(
            backbone="efficientnet_lite0",
            layers=["layer2", "layer3"],
            coreset_percentage=0.1,
            device="cuda",
        )
        assert isinstance(model.backbone, torch.nn.Module)
        assert isinstance(model.memory_bank, MemoryBank)
        assert model.fit(train) is model
        assert len(model.predict(train)) == 3
        assert model.predict_single(train[0][0]).shape == (64, 64)
        model.save(tmp_path / "model.safetensors")
        model = PatchCore.load(tmp_path / "model.safetensors")
        bank = model.get_memory_bank()
        model.set_memory_bank(bank)
        assert bank.shape == (round(0.1 * 3 * 64), model.backbone.get_feature_dim())

    def test_a_gpu_that_is_not_there_is_said_once_and_replaced(self, small_model, caplog):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        patchcore._available_device.cache_clear()
        with caplog.at_level(logging.WARNING, "src.models.patchcore"):
            models = [small_model(device="cuda") for _ in range(2)]
        assert caplog.text.count("no GPU is available here, running on the CPU") == 1
        assert {model.device.type for model in models} == {"cpu"}

    @pytest.mark.parametrize("fraction", [0, -0.1, 1.1, 10])
    def test_a_coreset_percentage_is_a_fraction(self, small_model, fraction):
        with pytest.raises(ValueError, match=r"coreset_percentage is .*: a fraction in \(0, 1\]"):
            small_model(coreset_percentage=fraction)


class TestFit:
    def test_the_bank_is_the_greedy_coreset_of_all_patches(self, model, images):
        train = images(4)
        everything = torch.cat(patches(model, train))
        expected = greedy_coreset_selection(everything, round(0.1 * len(everything)), model.seed)
        np.testing.assert_array_equal(model.fit(train).get_memory_bank(), expected)

    def test_two_fits_give_the_same_bank(self, fitted, small_model, images):
        again = small_model().fit(images(6))
        np.testing.assert_array_equal(fitted.get_memory_bank(), again.get_memory_bank())

    def test_at_least_one_patch_is_kept(self, small_model, images):
        assert len(small_model(coreset_percentage=1e-6).fit(images(1)).memory_bank) == 1

    def test_a_small_memory_limit_is_kept(self, small_model, images):
        limit = 100 * 152 * 4  # a hundred rows, of the 384 that come
        model = small_model(coreset_percentage=0.2, memory_limit=limit)
        selection = model.select(images(6), 0.2)
        assert len(selection.features) == 77
        assert selection.seen == 384
        everything = torch.cat(patches(model, images(6)))
        measured = torch.cdist(everything, selection.features).min(1).values.max()
        assert measured <= selection.radii[-1] * (1 + 1e-5)

    def test_progress_is_told_of_images_and_of_picks(self, model, images):
        extracted, picked = [], []
        list(model.embed(images(3), lambda *x: extracted.append(x)))
        model.select(images(3), 0.5, progress=lambda *x: picked.append(x))
        assert extracted == [(1, 3), (2, 3), (3, 3)]
        assert picked[-1] == (96, 96)

    def test_anomalous_images_are_refused_where_the_dataset_knows_them(self, model, images):
        class Labelled(list):
            samples = tuple(SimpleNamespace(label=label) for label in (0, 1, 1))

        for use in (model.fit, model.calibrate):
            with pytest.raises(ValueError, match="2 of 3 images are anomalous"):
                use(Labelled(images(3)))

    def test_no_images_are_refused(self, model):
        with pytest.raises(ValueError, match="no features to select from"):
            model.fit([])


class TestPredict:
    @pytest.mark.parametrize(
        "options", [{}, {"image_size": None}, {"image_size": (48, 72)}, {"crop": 48}]
    )
    def test_maps_are_float32_at_each_image_s_own_size(self, small_model, images, options):
        model = small_model(**options).fit(images(3))
        sizes = [(64, 64), (50, 90), (101, 64)]
        maps = model.predict([images(1, size)[0] for size in sizes])
        assert [x.shape for x in maps] == sizes
        assert {x.dtype for x in maps} == {np.dtype(np.float32)}
        assert all(np.isfinite(x).all() and (x >= 0).all() for x in maps)

    def test_at_a_full_bank_training_patches_are_at_distance_zero(self, small_model, images):
        model = small_model(coreset_percentage=1.0).fit(images(3))
        for prediction in model.score(images(3)):
            assert (prediction.distances == 0).all()
            assert prediction.score == 0

    def test_a_defect_raises_the_score_and_the_map_peaks_there(self, fitted, images):
        normal = images(1, seed=5)[0]
        before, after = fitted.score([normal, pasted(normal)])
        assert after.score > 1.5 * before.score
        peak = np.unravel_index(fitted.anomaly_map(after).argmax(), (64, 64))
        assert 40 <= peak[0] < 52
        assert 16 <= peak[1] < 28

    def test_a_defect_is_found_at_its_place_in_a_larger_image(self, small_model, images):
        model = small_model(image_size=None).fit(images(4, (96, 160)))
        drawn = model.predict_single(pasted(images(1, (96, 160), seed=5)[0], top=64, left=120))
        peak = np.unravel_index(drawn.argmax(), drawn.shape)
        assert 64 <= peak[0] < 76
        assert 120 <= peak[1] < 132

    def test_patch_distances_are_those_of_brute_force(self, fitted, images):
        test = images(1, seed=5)
        gaps = torch.cdist(patches(fitted, test)[0], torch.as_tensor(fitted.get_memory_bank()))
        prediction = next(fitted.score(test))
        expected = gaps.min(1).values.view(8, 8)
        np.testing.assert_allclose(prediction.distances, expected, rtol=1e-4)

    def test_the_score_is_at_most_the_largest_distance_and_is_it_without_neighbors(
        self, fitted, images
    ):
        test = images(3, seed=5)
        weighted = list(fitted.score(test))
        fitted.neighbors = 1
        for one, other in zip(weighted, fitted.score(test), strict=True):
            assert other.score == other.distances.max()
            assert one.score < other.score

    def test_an_image_is_predicted_the_same_alone_and_in_company(self, fitted, images):
        test = images(3, seed=5)
        for one, drawn in zip(test, fitted.predict(test), strict=True):
            np.testing.assert_array_equal(fitted.predict_single(one), drawn)

    def test_an_empty_bank_is_refused(self, model, images):
        with pytest.raises(ValueError, match="the memory bank is empty: call fit"):
            model.predict(images(1))


class TestTheBank:
    @pytest.mark.parametrize("as_given", [np.asarray, torch.as_tensor])
    def test_a_bank_is_installed_in_place_of_the_one_before(self, fitted, as_given, random_state):
        fitted.threshold = 1.0
        rows = random_state.normal(size=(20, 152)).astype(np.float16)
        fitted.set_memory_bank(as_given(rows))
        np.testing.assert_array_equal(fitted.get_memory_bank(), rows)
        assert fitted.threshold is None

    @pytest.mark.parametrize(
        ("rows", "sentence"),
        [
            (np.zeros((3, 100)), r"features are \(3, 100\), the bank takes \[M, 152\]"),
            (np.zeros(152), r"the bank takes \[M, 152\]"),
            (np.full((3, 152), np.nan), "3 of 3 rows hold NaN"),
            (np.zeros((0, 152)), "needs at least one row"),
        ],
    )
    def test_what_is_no_bank_is_refused_and_the_old_one_stays(self, fitted, rows, sentence):
        before = fitted.memory_bank
        with pytest.raises(ValueError, match=sentence):
            fitted.set_memory_bank(rows)
        assert fitted.memory_bank is before


class TestCalibration:
    def test_about_the_asked_share_of_training_images_lies_above_the_threshold(
        self, small_model, images
    ):
        model, train = small_model(image_size=32), images(40, (32, 32))
        model.fit(train)
        for rate in (0.05, 0.25, 0.5):
            threshold = model.calibrate(train, rate)
            scores = [p.score for p in model.score(train, exclude_own=True)]
            above = sum(score > threshold for score in scores)
            assert abs(above - rate * 40) <= 1
            assert model.threshold == threshold

    @pytest.mark.parametrize("neighbors", [1, 9])
    @pytest.mark.parametrize("fraction", [0.2, 1.0])
    def test_training_images_score_as_with_a_bank_that_never_saw_them(
        self, small_model, images, neighbors, fraction
    ):
        model = small_model(coreset_percentage=fraction, neighbors=neighbors)
        train = images(3)
        model.fit(train)
        other = small_model(neighbors=neighbors)
        rows = model.get_memory_bank()
        kept = list(model.score(train, exclude_own=True))
        for image, own, prediction in zip(train, patches(model, train), kept, strict=True):
            mine = (rows[:, None] == own.numpy()).all(2).any(1)
            assert mine.any()
            other.set_memory_bank(rows[~mine])
            assert prediction.score == pytest.approx(next(other.score([image])).score, rel=1e-4)

    def test_distances_shown_are_to_the_whole_bank(self, small_model, images):
        model = small_model(coreset_percentage=1.0).fit(images(3))
        prediction = next(model.score(images(3), exclude_own=True))
        assert (prediction.distances == 0).all()
        assert prediction.score > 0

    def test_a_bank_of_one_image_cannot_be_calibrated_on_it(self, small_model, images):
        model = small_model(coreset_percentage=1.0).fit(images(1))
        with pytest.raises(ValueError, match="calibrate needs images, and a bank of more than one"):
            model.calibrate(images(1))


class TestTheFile:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "deep" / "model.safetensors"

    @pytest.mark.parametrize(
        "options",
        [{}, {"image_size": None}, {"image_size": (48, 64), "crop": 40}, {"pretrained": False},
         {"layers": ["layer1"], "patch_size": 5, "neighbors": 2}],
    )  # fmt: skip
    def test_a_model_comes_back_with_identical_predictions(
        self, small_model, images, path, options
    ):
        model, test = small_model(**options).fit(images(3)), images(2, (50, 70), seed=5)
        model.threshold = 3.25
        model.save(path)
        again = PatchCore.load(path, device="cpu")
        assert again.threshold == 3.25
        for one, other in zip(model.score(test), again.score(test), strict=True):
            assert one.score == other.score
            np.testing.assert_array_equal(model.anomaly_map(one), again.anomaly_map(other))

    def test_a_bank_in_half_precision_stays_so(self, fitted, path):
        fitted.set_memory_bank(fitted.get_memory_bank().astype(np.float16))
        fitted.save(path)
        again = PatchCore.load(path, device="cpu")
        assert again.get_memory_bank().dtype == np.float16
        assert again.threshold is None

    def test_a_model_made_from_a_weights_file_asks_for_it(self, small_model, images, path):
        weights = path.parent / "mine.pth"
        path.parent.mkdir()
        torch.save(small_model(pretrained=False).backbone.network.state_dict(), weights)
        model = small_model(weights=weights, pretrained=False).fit(images(2))
        model.save(path)
        with pytest.raises(FileError, match=r"created with the weights file mine\.pth"):
            PatchCore.load(path, device="cpu")
        again = PatchCore.load(path, device="cpu", weights=weights)
        np.testing.assert_array_equal(again.predict(images(1))[0], model.predict(images(1))[0])

    def test_other_weights_are_refused(self, fitted, small_model, path):
        fitted.save(path)
        weights = path.parent / "other.pth"
        torch.save(small_model(pretrained=False).backbone.network.state_dict(), weights)
        with pytest.raises(FileError, match=r"model\.safetensors was created with other .*weights"):
            PatchCore.load(path, device="cpu", weights=weights)

    @pytest.mark.parametrize("length", [0, 20, 5000])
    def test_a_truncated_file_is_refused(self, fitted, path, length):
        fitted.save(path)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(FileError, match=r"model\.safetensors is truncated or not a safetens"):
            PatchCore.load(path, device="cpu")

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (
                {"format": "fedpatchcore-model-7"},
                "has format fedpatchcore-model-7; this version",
            ),
            ({"format": "bank"}, "has format bank; this version reads fedpatchcore-model-2"),
            ({"format": "fedpatchcore-model-1"}, "has format fedpatchcore-model-1; this version"),
            ({"config": None}, "has no 'config' in its header"),
        ],
    )
    def test_another_version_and_an_unreadable_header_are_refused(
        self, fitted, path, change, sentence
    ):
        fitted.save(path)
        header, tensors = read_tensors(path, "fedpatchcore-model-2")
        changed = {key: value for key, value in {**header, **change}.items() if value is not None}
        write_tensors(path, changed.pop("format"), changed, tensors)
        with pytest.raises(FileError, match=rf"model\.safetensors {sentence}"):
            PatchCore.load(path, device="cpu")

    def test_a_missing_file_is_named(self, path):
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
            PatchCore.load(path, device="cpu")

    def test_of_several_banks_one_is_named(self, fitted, path):
        rows = fitted.get_memory_bank()
        banks = {"bracket": rows[:9], "connector": rows[:12]}
        fitted.as_file(banks, {"connector": 2.0}).write(path)
        model = PatchCore.load(path, device="cpu", bank="connector")
        assert (len(model.memory_bank), model.threshold) == (12, 2.0)
        with pytest.raises(FileError, match=r"holds several banks: name one of bracket, connector"):
            PatchCore.load(path, device="cpu")
        with pytest.raises(FileError, match=r"has no bank 'lid': name one of bracket, connector"):
            PatchCore.load(path, device="cpu", bank="lid")

    def test_options_of_the_constructor_may_be_given_on_loading(self, fitted, path):
        fitted.save(path)
        assert PatchCore.load(path, device="cpu", batch_size=2, neighbors=1).neighbors == 1


def test_a_prediction_can_be_drawn_without_its_image(fitted, images):
    prediction = Prediction(1.0, np.ones((8, 8), np.float32), (30, 50))
    np.testing.assert_allclose(fitted.anomaly_map(prediction), np.ones((30, 50)), rtol=1e-5)
