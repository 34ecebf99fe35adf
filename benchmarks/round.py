"""Time the stages of a round: clients extract and select, the server merges, clients calibrate.

    python -m benchmarks.round [--clients 8] [--images 1000] [--side 224] [--fraction 0.01]
        [--oversample 6] [--backbone wide_resnet50_2] [--files] [--device cuda]

Runs the functions of a round without Flower, one client after another on one device. The synthetic
images are all different; they are in memory or, with --files, in PNG files. The backbone has random
weights. Checks that every client's patches lie within the radius that the merge certifies. Prints
the seconds of each stage, images per second next to those of the backbone's forward pass alone, and
a JSON line at the end.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.common import check_device, device_name, median_seconds, report, wait
from src.data.dataset import read_image
from src.federated.calibration import calibrate
from src.federated.candidates import encode_bank, find_candidates
from src.federated.merge import merge_coresets
from src.federated.types import ClientBank
from src.models.extraction import BATCH_PIXELS
from src.models.patchcore import PatchCore


class SyntheticImages:
    """Random images [3, S, S] of one client.

    Args:
        client: the seed.
        images: number of images.
        side: S.
        folder: where to write the images as files, which are decoded at each access; None keeps
            them in memory.
    """

    def __init__(self, client: int, images: int, side: int, folder: Path | None = None) -> None:
        generator = torch.Generator().manual_seed(client)
        coarse = torch.rand(images, 3, side // 8, side // 8, generator=generator)
        self.images = list(F.interpolate(coarse, (side, side), mode="bilinear"))
        self.paths = [folder / f"{client}-{i}.png" for i in range(images)] if folder else []
        for path, image in zip(self.paths, self.images, strict=False):
            Image.fromarray((255 * image.permute(1, 2, 0)).byte().numpy()).save(path)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return read_image(self.paths[i]) if self.paths else self.images[i]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


class StageTimer:
    """Seconds by stage, summed over clients."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        wait(self.device)
        started = time.perf_counter()
        yield
        wait(self.device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def main() -> None:
    """Run a warm-up round and a timed round, and print the result."""
    args = parse_arguments()
    model = PatchCore(
        args.backbone,
        device=args.device,
        pretrained=False,
        image_size=args.side,
        coreset_percentage=args.fraction,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if args.files else None
        warm_up = [SyntheticImages(client, args.warm_up, args.side, folder) for client in (-1, -2)]
        run_round(model, warm_up, args)
        clients = [SyntheticImages(c, args.images, args.side, folder) for c in range(args.clients)]
        banks, seconds = run_round(model, clients, args)
    total, rate = sum(seconds.values()), args.clients * args.images / seconds["extract"]
    forward = forward_rate(model, args.side)
    report(
        f"{args.clients} clients of {args.images} images of {args.side} px, {args.backbone}",
        {stage: {"seconds": s, "share": s / total} for stage, s in seconds.items()},
        {
            "device": device_name(args.device),
            "torch": torch.__version__,
            "images_in": "files" if args.files else "memory",
            "seconds": total,
            "largest": max(seconds, key=lambda stage: seconds[stage]),
            "patches": sum(bank.stats.patches for bank in banks.values()),
            "rows_sent": sum(len(bank.features) for bank in banks.values()),
            "bytes_sent": sum(2 * bank.features.size for bank in banks.values()),
            "rows_merged": sum(bank.stats.share for bank in banks.values()),
            "images_a_second": rate,
            "forward_images_a_second": forward,
            "extraction_over_forward": rate / forward,
        },
    )


def run_round(
    model: PatchCore, clients: list[Any], args: argparse.Namespace
) -> tuple[dict[int, ClientBank], dict[str, float]]:
    """Return the bank that each client sends, and the seconds by stage.

    Raises:
        SystemExit: a patch lies outside the radius that the merge certifies.
    """
    timer, banks = StageTimer(args.device), {}
    for client, images in enumerate(clients):
        with timer.time("extract"):
            for _ in model.embed(images):
                pass
        with timer.time("extract and select"):
            candidates = find_candidates(model, images, args.oversample)
            share_radius = candidates.local_bank().radius
            banks[client] = encode_bank(
                candidates, len(candidates.rows), "float16", share_radius
            ).bank
    both = timer.seconds.pop("extract and select")
    timer.seconds["select"] = both - timer.seconds["extract"]
    with timer.time("merge"):
        merged = merge_coresets(banks, device=model.device)
    for images in clients:
        with timer.time("calibrate"):
            model.set_memory_bank(merged.features)
            radius = calibrate(model, images).radius
        if radius > 1.001 * merged.certificate.radius_bound:
            bound = merged.certificate.radius_bound
            raise SystemExit(f"a patch is {radius} from the merged bank, beyond the bound {bound}")
    return banks, timer.seconds


def forward_rate(model: PatchCore, side: int) -> float:
    """Return images per second of the backbone alone, with the precision and batch of a round."""
    device = model.device
    images = torch.rand(max(1, BATCH_PIXELS // side**2), 3, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=images.is_cuda):
            model.backbone.network(images)

    return len(images) / median_seconds(forward, str(device), 20)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--fraction", type=float, default=0.01)
    parser.add_argument("--oversample", type=float, default=6.0)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--files", action="store_true", help="decode images from PNG files")
    parser.add_argument(
        "--warm-up", type=int, default=300, help="images of an untimed round before"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    check_device(args.device)
    return args


if __name__ == "__main__":
    main()
