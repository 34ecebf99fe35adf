"""What all tests share: quiet OpenMP threads, hypothesis without deadlines, a small model."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads spin otherwise: before torch

import copy

import numpy as np
import pytest
import torch
from hypothesis import settings

from src.models import PatchCore

settings.register_profile("everyday", deadline=None, max_examples=40)
settings.load_profile("everyday")

SIDE = 64  # pixels: a grid of 8 x 8 patches at stride 8


def _small_model(**options) -> PatchCore:
    arguments = {"backbone": "efficientnet_lite0", "device": "cpu", "image_size": SIDE}
    return PatchCore(**{**arguments, **options})


def _images(count: int, size: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    stripes = torch.linspace(0, 12, size[1]).sin() / 4 + 0.5
    grain = (0.1 * torch.randn(3, *size, generator=generator) for _ in range(count))
    return [(stripes + noise).clamp(0, 1) for noise in grain]


@pytest.fixture
def small_model():
    """small_model(**options) is a new PatchCore on the packaged weights, images at 64 pixels."""
    return _small_model


@pytest.fixture(scope="session")
def _model_once() -> PatchCore:
    return _small_model()


@pytest.fixture
def model(_model_once) -> PatchCore:
    """A PatchCore with an empty bank; tests share its backbone and nothing else."""
    return copy.copy(_model_once)


@pytest.fixture
def images():
    """images(count, size=(64, 64), seed=0): grainy stripes, [3, H, W] float32 in [0, 1]."""
    return _images


@pytest.fixture
def random_state():
    """A numpy Generator, the same in every test."""
    return np.random.default_rng(0)
