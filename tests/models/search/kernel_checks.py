"""What the GPU kernels must do, on any device: run by test_kernels.py.

    TRITON_INTERPRET=1 python tests/models/kernel_checks.py

runs them on a CPU through Triton's interpreter.
"""

import sys

import numpy as np
import torch

from src.models.coreset import duplicates, selection, sharding, statistics, working_set
from src.models.coreset.selection import farthest_first
from src.models.coreset.sharding import Shards
from src.models.search import distances, flat_index
from src.models.search.distances import Centres, ProductScaling
from src.models.search.flat_index import Exclusion, FlatIndex, paired_distances

DTYPES = (torch.float32, torch.float16)


def rows_of(n, d, seed, dtype, device, offset=2.0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + offset
    return rows.to(dtype).to(device)


def brute_force(queries, rows):
    return ((queries.double()[:, None] - rows.double()) ** 2).sum(2)


def the_nearest_row_is_brute_force_s(device):
    for d, offset in ((20, 0.0), (20, 100.0), (64, 2.0)):
        for dtype in DTYPES:
            queries = rows_of(70, d, 1, dtype, device, offset)
            rows = rows_of(300, d, 2, dtype, device, offset)
            squared, index = FlatIndex(rows).nearest(queries)
            expected = brute_force(queries, rows).min(1)
            assert torch.equal(index, expected.indices)
            torch.testing.assert_close(squared, expected.values.float(), rtol=1e-5, atol=0)


def queries_far_beyond_the_rows_are_answered(device):
    rows, queries = (rows_of(n, 20, n, torch.float32, device) for n in (300, 9))
    queries = queries * 1e4
    expected = brute_force(queries, rows).min(1)
    squared, _ = FlatIndex(rows).nearest(queries)
    torch.testing.assert_close(squared, expected.values.float(), rtol=1e-5, atol=0)


def rows_left_out_are_not_found(device):
    group = torch.arange(70, device=device) % 3
    kept = torch.arange(300, device=device)[None] % 4
    one_owner = kept == torch.arange(3, device=device)[:, None]
    for without in (one_owner, one_owner | (kept == 0)):
        for dtype in DTYPES:
            queries, rows = (rows_of(n, 20, n, dtype, device) for n in (70, 300))
            allowed = brute_force(queries, rows).masked_fill(without[group], torch.inf)
            for k in (1, 5):
                expected = allowed.topk(k, largest=False)
                squared, index = FlatIndex(rows).k_nearest(queries, k, Exclusion(without, group))
                assert torch.equal(index, expected.indices)
                torch.testing.assert_close(squared, expected.values.float(), rtol=1e-5, atol=0)
            squared, index = FlatIndex(rows).nearest(queries, Exclusion(without, group))
            assert torch.equal(index, allowed.min(1).indices)
    everything = torch.ones(3, 300, dtype=torch.bool, device=device)
    squared, index = FlatIndex(rows).nearest(queries, Exclusion(everything[:1], group * 0))
    assert torch.isinf(squared).all()
    assert (index < 300).all()


def a_rough_product_keeps_its_bound(device):
    for dtype in DTYPES:
        for d in (20, 200):
            queries, rows = (rows_of(n, d, n, dtype, device, 0.5) for n in (70, 300))
            reach = torch.tensor(30.0, device=device)
            scalings = [ProductScaling.around(rows.float().mean(0), reach)]
            if dtype in distances.HALF_DTYPES:
                scalings.append(ProductScaling.identity(d, rows.device))
            for scaling in scalings:
                centres = Centres(rows, scaling)
                affinity, _ = centres.approximate(queries)
                scaled, others = (scaling.apply(each).double() for each in (queries, rows))
                exact = scaled @ others.T - (others * others).sum(1) / 2
                tiles = [slice(at, at + centres.tile) for at in range(0, 300, centres.tile)]
                best = torch.stack([exact[:, tile].max(1).values for tile in tiles])
                bound = centres.error_bound(*scaling.norms(queries))
                assert ((affinity - best).abs() <= bound).all()


def a_difference_takes_any_index(device):
    queries, rows = (rows_of(n, 20, n, torch.float32, device) for n in (40, 30))
    index = (torch.arange(80, device=device) % 30).view(40, 2)
    picked = torch.arange(40, device=device).flip(0)
    for column in index.unbind(1):
        expected = (queries[picked].double() - rows[column].double()).square().sum(1)
        found = paired_distances(queries, rows, column, picked)
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)


def copies_are_found(device):
    for dtype in (*DTYPES, torch.float64):
        rows = rows_of(50, 20, 0, dtype, device)[torch.arange(200, device=device) % 50]
        rows[60], rows[70] = 0.0, -0.0
        found = duplicates.find_duplicates(Shards(rows), 120).sort().values.tolist()
        assert found == sorted({*range(50, 200), 20} - {120, 60})


def picks_are_the_float64_loop_s(device):
    for dtype, offset in ((torch.float32, 50.0), (torch.float16, 0.0)):
        rows = rows_of(300, 24, 5, dtype, device, offset)
        wide = rows.double()
        direction = torch.as_tensor(np.random.default_rng(42).standard_normal(24)).to(device)
        picks = [int((wide @ direction).argmax())]
        distances = (wide - wide[picks[0]]).square().sum(1)
        while len(picks) < 70:
            picks.append(int(distances.argmax()))
            distances = torch.minimum(distances, (wide - wide[picks[-1]]).square().sum(1))
        chosen = farthest_first(rows, 70, working_set=32)
        assert chosen.indices.tolist() == picks
        assert abs(chosen.radii[-1] - float(distances.max().sqrt())) < 1e-5


def a_selection_goes_on_from_a_bank(device):
    for dtype in DTYPES:
        rows, bank = (rows_of(n, 20, n, dtype, device) for n in (600, 40))
        wide = rows.double()
        distances = brute_force(rows, bank).min(1).values
        picks = []
        while len(picks) < 50:
            picks.append(int(distances.argmax()))
            distances = torch.minimum(distances, (wide - wide[picks[-1]]).square().sum(1))
        chosen = farthest_first(rows, 50, existing=bank, working_set=32)
        assert chosen.indices.tolist() == picks
        assert abs(chosen.radii[-1] - float(distances.max().sqrt())) < 1e-5


CHECKS = [
    the_nearest_row_is_brute_force_s,
    queries_far_beyond_the_rows_are_answered,
    rows_left_out_are_not_found,
    a_rough_product_keeps_its_bound,
    a_difference_takes_any_index,
    copies_are_found,
    picks_are_the_float64_loop_s,
    a_selection_goes_on_from_a_bank,
]

if __name__ == "__main__":
    for module in (distances, flat_index, statistics, working_set, sharding, duplicates):
        vars(module)["uses_kernels"] = lambda rows: True
    selection.IN_CACHE = 0
    for check in CHECKS:
        check("cpu")
        print(check.__name__)
    assert "src.models.search.kernels" in sys.modules
