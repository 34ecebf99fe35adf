"""Runs that share a folder for baselines compute the centralized one once."""

import fl.results.baseline


def test_the_centralized_baseline_is_computed_once_for_runs_that_share_a_folder(
    run, tmp_path, monkeypatch
) -> None:
    changes = {"evaluate__baseline_dir": str(tmp_path)}
    one = run(**changes)
    with monkeypatch.context() as patch:
        patch.setattr(fl.results.baseline, "centralize", None)  # a second call would fail
        two = run(**changes, clients=2)
    assert two.metrics["centralized"] == one.metrics["centralized"]
    assert two.metrics["heterogeneity"].keys() == one.metrics["heterogeneity"].keys()
    other = run(**changes, seed=1)
    assert other.metrics["centralized"]["radius"] != one.metrics["centralized"]["radius"]
