"""How much should clients send? AUROC and covering radius of the merge by oversampling.

    python benchmarks/oversample.py DATA_ROOT [--fraction 0.01] [--seeds 0 1 2] [--factors 1 2 4 6]

A client's selection is made once a seed, at the largest factor: smaller ones are its prefixes. The
same features, budget and scoring throughout. Prints a table, and one JSON line last.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import platformdirs

from src.banks import ClientBank
from src.client import select_bank
from src.data import FolderDataset
from src.data.partition import make_partition
from src.evaluation import image_metrics
from src.merge import merge_banks
from src.models import PatchCore
from src.models.nearest import nearest


def main() -> None:
    """Measure and print."""
    args = arguments()
    model = PatchCore(
        "efficientnet_lite0", coreset_percentage=args.fraction, device=args.device,
        image_size=256, cache=args.cache,
    )  # fmt: skip
    train, test = FolderDataset(args.root, split="train"), FolderDataset(args.root, split="test")
    patches = np.concatenate([grids.features.flatten(0, 2) for grids in model.embed(train)])
    rows = []
    for seed in args.seeds:
        model.seed = seed
        central = select_bank(model, train, 1, "float16")
        rows.append(measure(model, test, patches, "centralized", seed, central.features, 0))
        shares = make_partition(
            train.samples, test.samples, args.clients, args.partition, column=args.column, seed=seed
        ).clients
        banks = {}
        for client, share in enumerate(shares):
            held = set(share.train)
            images = train.select([i for i, s in enumerate(train.samples) if s.key in held])
            banks[client] = select_bank(model, images, max(args.factors), "float16")
        for factor in args.factors:
            sent = {client: prefix(bank, factor) for client, bank in banks.items()}
            merged = merge_banks(sent, seed).features
            size = sum(bank.features.nbytes for bank in sent.values())
            rows.append(measure(model, test, patches, f"federated x{factor}", seed, merged, size))
    report(rows, args)


def prefix(bank: ClientBank, factor: int) -> ClientBank:
    """What the client would have sent at a smaller factor."""
    return replace(bank, features=bank.features[: factor * bank.share])


def measure(model, test, patches, name, seed, bank, sent) -> dict:
    """Score the test set with a bank."""
    model.set_memory_bank(bank)
    scores = [p.score for p in model.score(test)]
    figures = image_metrics(scores, [s.label for s in test.samples])
    radius = float(nearest(*map(to_tensor, (patches, bank)))[0].max().sqrt())
    row = {
        "bank": name,
        "seed": seed,
        "rows": len(bank),
        "bytes": sent,
        "radius": radius,
        **figures,
    }
    print(json.dumps(row), flush=True)
    return row


def to_tensor(array):
    import torch

    return torch.as_tensor(array)


def report(rows: list[dict], args: argparse.Namespace) -> None:
    """Means over the seeds."""
    table = []
    for name in dict.fromkeys(row["bank"] for row in rows):
        mine = [row for row in rows if row["bank"] == name]
        auroc = np.array([row["image_auroc"] for row in mine])
        radius = float(np.mean([row["radius"] for row in mine]))
        table.append(
            {"bank": name, "image_auroc": auroc.mean(), "sd": auroc.std(), "radius": radius,
             "bytes": mine[0]["bytes"]}
        )  # fmt: skip
        print(f"{name:14} AUROC {auroc.mean():.4f} ± {auroc.std():.4f}  radius {radius:.2f}")
    print(json.dumps({"fraction": args.fraction, "partition": args.partition, "seeds": args.seeds,
                      "means": table}))  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--fraction", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2, 4, 6])
    parser.add_argument("--partition", default="attribute")
    parser.add_argument("--column", default="exposure")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", default=platformdirs.user_cache_dir("fedpatchcore"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
