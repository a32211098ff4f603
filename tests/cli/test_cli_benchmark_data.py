"""The benchmark of the latent cache measures what it says."""

from __future__ import annotations

from omegaconf import OmegaConf

from ldm_lightning.cli.benchmark_data import DEFAULTS, measure


def test_both_loaders_are_measured() -> None:
    small = {"samples": 600, "shards": 3, "files": 128, "latent_size": 2, "batch": 64, "rounds": 1}
    result = measure(OmegaConf.create({**small, "what": "data", "batch_size": 16}))
    assert result["figures"].keys() == {"latent cache", "a file a sample"}
    for row in result["figures"].values():
        assert row.keys() == {"samples_per_s", "samples_per_cpu_s"}
        assert all(value > 0 for value in row.values())
    assert {key: result["protocol"][key] for key in DEFAULTS} == {**DEFAULTS, **small}
