"""Whole images on a GPU: what a network makes of them, their scores, and centroids, against a CPU's."""

from pathlib import Path

import numpy as np
import pytest

from eco_fast.data.images import Pixels, write_png
from eco_fast.data.prepare import prepare
from eco_fast.evaluation.scoring import pairs_of, score_network
from eco_fast.inference.centroids import make_centroids
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR

pytestmark = pytest.mark.gpu


@pytest.fixture
def network() -> EDSR:
    return EDSR(2, 16, 2).eval()


def test_scores_are_the_cpus(network: EDSR, hr: list[Pixels]) -> None:
    images = {str(index): image for index, image in enumerate(hr)}
    on_cpu = score_network(network, pairs_of(images, 2))
    on_gpu = score_network(network.to("cuda"), pairs_of(images, 2, device="cuda:0"))
    for name, scores in on_cpu.items():
        assert on_gpu[name].as_dict() == pytest.approx(scores.as_dict(), rel=1e-4)


def test_centroids_are_the_cpus(network: EDSR, hr: list[Pixels], tmp_path: Path) -> None:
    """But for values that lie next to a rounding's edge."""
    for index, image in enumerate(hr):
        write_png(tmp_path / "hr" / f"{index}.png", image)
    save_network(tmp_path / "teacher.safetensors", network)
    made = []
    for device in ("cpu", "cuda:0"):
        store = prepare([str(tmp_path / "hr")], tmp_path / device)
        made.append(make_centroids(store, network.to(device), tmp_path / "teacher.safetensors", device=device))
    assert [entry.name for entry in made[0].entries] == [entry.name for entry in made[1].entries]
    for first, second in zip(*(store.images for store in made), strict=True):
        difference = np.abs(first.astype(int) - second)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
