"""One more kind is one file: what `simulations.benchmarks.extensibility` counts. It runs them as well, which takes minutes."""

from __future__ import annotations

from pathlib import Path

from simulations.benchmarks import extensibility


def test_a_model_adapter_metric_or_rule_is_one_file_and_a_modality_is_three(tmp_path: Path) -> None:
    folder = extensibility.copy(tmp_path / "copy")
    counts = {toy.kind: len(extensibility.add(toy, folder)) for toy in extensibility.toys()}
    assert counts == {"model": 1, "adapter": 1, "modality": 3, "metric": 1, "aggregation": 1}


def test_a_toy_is_an_example_under_another_name() -> None:
    for toy in extensibility.toys():
        assert any(toy.name in text for text in toy.files.values())
        assert not any(f'name = "{name}"' in text for name in ("my-model", "bias") for text in toy.files.values())
