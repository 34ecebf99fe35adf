"""Rows for benchmarks: synthetic, or patch features of Magnetic Tile Defects, also rotated."""

import argparse

import numpy as np
import torch
from torch import Tensor

from src.data import DataError, FolderDataset
from src.models import PatchCore
from src.models.search.distances import tiles

SETS = ("synthetic", "mtd", "mtd-rotated")
CHUNK = 8192
CODES = 64  # dominant directions of synthetic rows


def features(args: argparse.Namespace, count: int) -> Tensor:
    """Rows [count, D] with the set, dtype and device of the command line; the seed is fixed.

    Raises:
        SystemExit: the command line lacks what the set needs.
    """
    if args.features == "synthetic":
        return _synthetic(count, args)
    rows = _patches(count, args)
    if args.features == "mtd-rotated":
        return _rotated(rows, args)
    return rows.to(args.device, getattr(torch, args.dtype))


def _synthetic(count: int, args: argparse.Namespace) -> Tensor:
    """Rows that resemble patch features: a few dozen dominant directions, and noise."""
    generator = torch.Generator(args.device).manual_seed(0)
    place = {"generator": generator, "device": args.device}
    strength = 2 * torch.rand(CODES, **place)
    directions = torch.randn(CODES, args.dim, **place) / CODES**0.5
    rows = _empty(count, args.dim, args)
    for part in tiles(count, CHUNK):
        codes = torch.randn(part.stop - part.start, CODES, **place) * strength
        rows[part] = codes @ directions + 0.3 * torch.randn(len(codes), args.dim, **place)
    return rows


def _patches(count: int, args: argparse.Namespace) -> Tensor:
    """Random patch features of the training images, without replacement: [count, 152] float16."""
    if args.data is None:
        raise SystemExit(f"--features {args.features}: pass the folder of the data set, --data")
    model = PatchCore("efficientnet_lite0", device=args.device, image_size=256, cache=args.cache)
    try:
        train = FolderDataset(args.data, split="train")
    except DataError as error:
        raise SystemExit(f"--data: {error}") from error
    grids = [batch.features.flatten(0, 2) for batch in model.embed(train)]
    total = sum(map(len, grids))
    if count > total:
        raise SystemExit(f"the training images have {total} rows, not {count}")
    sample = np.random.default_rng(0).choice(total, count, replace=False)
    return torch.cat(grids)[torch.from_numpy(sample)]


def _rotated(rows: Tensor, args: argparse.Namespace) -> Tensor:
    """Rows rotated into more dimensions, with noise of 1 % of their standard deviation."""
    if args.dim < rows.shape[1]:
        raise SystemExit(f"--features mtd-rotated: --dim must be at least {rows.shape[1]}")
    generator = torch.Generator(args.device).manual_seed(0)
    place = {"generator": generator, "device": args.device}
    rotation = torch.linalg.qr(torch.randn(args.dim, rows.shape[1], **place)).Q.T
    noise = 0.01 * float(rows.float().std())
    rotated = _empty(len(rows), args.dim, args)
    for part in tiles(len(rows), CHUNK):
        tile = rows[part].float().to(args.device) @ rotation
        rotated[part] = tile + noise * torch.randn(tile.shape, **place)
    return rotated


def _empty(count: int, dim: int, args: argparse.Namespace) -> Tensor:
    return torch.empty(count, dim, dtype=getattr(torch, args.dtype), device=args.device)
