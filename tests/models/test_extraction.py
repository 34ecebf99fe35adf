"""Patch grids of images: the same to the bit in whatever way they are asked for."""

import pytest
import torch

from src.models import FeatureExtractor
from src.models.extraction import CHUNK, Preparation, Viewport, _batches, _read_ahead, extract

SQUARE = Preparation(size=(64, 64), interpolation="bicubic")
OWN = Preparation()


@pytest.fixture(scope="module")
def lite():
    return FeatureExtractor("efficientnet_lite0", ["layer2", "layer3"])


@pytest.fixture
def mixed(images):
    """Seven images of four sizes, neighbours alike and unlike."""
    sizes = [(64, 64), (64, 64), (48, 80), (64, 64), (50, 70), (48, 80), (40, 40)]
    return [images(1, size, seed=i)[0] for i, size in enumerate(sizes)]


@pytest.fixture
def threads():
    """threads(n) sets torch's thread count; what it was comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def features(extractor, items, prepare=SQUARE, **options):
    batches = extract(extractor, items, prepare, **options)
    return [grid.features for batch in batches for grid in batch]


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("prepare", [SQUARE, OWN, Preparation(crop=32)])
def test_an_image_s_features_are_the_same_alone_and_in_any_company(lite, mixed, prepare):
    together = features(lite, mixed, prepare)
    assert same(together, [features(lite, [image], prepare)[0] for image in mixed])
    assert same(together[::-1], features(lite, mixed[::-1], prepare))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_they_are_the_same_on_any_number_of_threads(lite, mixed, threads, count):
    threads(1)
    alone = features(lite, mixed)
    threads(count)
    assert same(alone, features(lite, mixed))


def test_items_may_be_tuples_that_begin_with_an_image(lite, mixed):
    labelled = [(image, 0, "path") for image in mixed]
    grids = [grid for batch in extract(lite, labelled, SQUARE) for grid in batch]
    assert same([grid.features for grid in grids], features(lite, mixed))
    assert [grid.image_size for grid in grids] == [tuple(image.shape[1:]) for image in mixed]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("most", [None, 1, 3, 100])
def test_a_gpu_s_batches_are_the_images_in_order_each_of_one_shape(mixed, workers, most):
    given = 5 * mixed + 20 * mixed[:1]
    batches = list(_batches(_read_ahead(given, OWN, workers), most))
    joined = [(torch.cat([stack for stack, _ in batch]), batch) for batch in batches]
    assert same([image for stack, _ in joined for image in stack], given)
    for stack, batch in joined:
        sizes = [size for _, sizes in batch for size in sizes]
        assert sizes == [tuple(stack.shape[2:])] * len(stack)
        assert len(stack) <= (most or 20 + 2)
    if most == 100:
        assert max(len(stack) for stack, _ in joined) > CHUNK


def test_a_decoder_s_error_reaches_who_asked_for_the_images(mixed):
    given = [*mixed, torch.zeros(1, 4, 4)]
    with pytest.raises(ValueError, match=r"an image must be \[3, H, W\]"):
        list(_read_ahead(given, OWN, 2))


def test_an_iterable_without_length_will_do(lite, mixed):
    assert same(features(lite, iter(mixed)), features(lite, mixed))
    assert features(lite, []) == []


def test_features_are_those_of_the_plain_forward_pass(lite, mixed):
    image = mixed[0]
    with torch.inference_mode():
        maps = lite(image[None])
        second = torch.nn.functional.avg_pool2d(maps["layer2"], 3, 1, 1)
    grid = features(lite, [image], OWN)[0]
    assert grid.shape == (8, 8, 152)
    torch.testing.assert_close(grid[..., :40], second[0].permute(1, 2, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (33, 47), (8, 8)])
def test_images_of_any_size_keep_it_unless_told_otherwise(lite, images, size):
    grid = next(iter(next(extract(lite, images(1, size), OWN))))
    assert grid.image_size == size
    assert grid.features.shape == (-(-size[0] // 8), -(-size[1] // 8), 152)
    assert next(extract(lite, images(1, size), SQUARE)).features.shape == (1, 8, 8, 152)


def test_a_centre_crop_sees_the_centre_only(lite, images):
    image = images(1, (80, 100))[0]
    prepare = Preparation(crop=48)
    assert torch.equal(prepare(image), image[:, 16:64, 26:74])
    framed = torch.zeros_like(image)
    framed[:, 16:64, 26:74] = image[:, 16:64, 26:74]
    assert same(features(lite, [image], prepare), features(lite, [framed], prepare))


def test_preparation_gives_its_viewport():
    assert OWN.viewport((30, 40)) == Viewport((30, 40), (30, 40))
    assert Preparation((20, 24), 16).viewport((30, 40)) == Viewport((20, 24), (16, 16))
    assert Preparation(None, 16).viewport((30, 40)) == Viewport((30, 40), (16, 16))


def test_resizing_keeps_images_within_0_and_1():
    checks = (torch.arange(64) % 2).float().expand(3, 64, 64)
    resized = Preparation((100, 100), interpolation="bicubic")(checks)
    assert resized.shape == (3, 100, 100)
    assert resized.min() >= 0
    assert resized.max() <= 1


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (torch.zeros(64, 64), r"must be \[3, H, W\], not \(64, 64\)"),
        (torch.zeros(1, 64, 64), r"must be \[3, H, W\], not \(1, 64, 64\)"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), r"floats in \[0, 1\], not of torch\.uint8"),
    ],
)
def test_what_is_no_image_is_refused(lite, image, sentence):
    with pytest.raises(ValueError, match=sentence):
        features(lite, [image])


def failing(images):
    yield from images
    raise RuntimeError("the camera is gone")


def test_the_caller_s_thread_count_comes_back_after_an_error(lite, images, threads):
    threads(3)
    with pytest.raises(RuntimeError, match="the camera is gone"):
        features(lite, failing(images(3)))
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="an image must be"):
        features(lite, [*images(3), torch.zeros(2, 2)])
    assert torch.get_num_threads() == 3


def test_the_caller_s_thread_count_comes_back_after_stopping_half_way(lite, images, threads):
    threads(3)
    for _ in extract(lite, images(6), SQUARE):
        break
    assert torch.get_num_threads() == 3


def test_the_caller_s_thread_count_comes_back_after_extractions_that_overlap(lite, images, threads):
    threads(3)
    one, other = extract(lite, images(3), SQUARE), extract(lite, images(5), SQUARE)
    for _ in zip(one, other, strict=False):
        assert torch.get_num_threads() == 1
    one.close()
    assert torch.get_num_threads() == 1
    other.close()
    assert torch.get_num_threads() == 3


def test_images_are_read_as_they_are_needed_and_not_all_at_once(lite, images, threads):
    threads(2)
    read = []
    grids = extract(lite, (read.append(i) or image for i, image in enumerate(images(20))), SQUARE)
    next(grids)
    assert len(read) <= 6
    grids.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_features_of_the_cpu_to_the_precision_of_bfloat16(lite, mixed):
    expected = features(lite, mixed)
    on_gpu = FeatureExtractor("efficientnet_lite0", ["layer2", "layer3"]).cuda()
    for one, other in zip(expected, features(on_gpu, mixed, batch_size=2), strict=True):
        assert (one - other.cpu()).norm() < 0.05 * one.norm()


def test_scaled_images_keep_their_shape() -> None:
    half = Preparation(scale=0.5)
    assert half.viewport((101, 60)).resized == (48, 32)  # in steps of 8, no side below 32
    assert half(torch.rand(3, 128, 96)).shape == (3, 64, 48)
    cropped = Preparation(crop=40, scale=0.5)
    assert cropped.viewport((128, 96)) == Viewport((64, 48), (40, 40))


def test_normalizing_brightness_keeps_the_pattern_and_removes_the_lighting() -> None:
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    prepare = Preparation(normalize_brightness=True)
    normalized = prepare(image)
    assert float(normalized.mean()) == pytest.approx(0.45, abs=0.01)
    assert float(normalized.std()) == pytest.approx(0.15, abs=0.01)
    torch.testing.assert_close(prepare(0.2 + 0.5 * image), normalized, atol=5e-3, rtol=0)
    assert torch.isfinite(prepare(torch.full((3, 40, 40), 0.3))).all()
