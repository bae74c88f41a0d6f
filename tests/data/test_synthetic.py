"""The built-in images are hard enough to need structure, easy enough for a demo, and the same for a seed."""

import numpy as np
import pytest
from conftest import train
from data.test_sources import opened

from fl.core.files import read_jsonl
from fl.data import Synthetic, open_images, split_images


@pytest.fixture(scope="module")
def colour_baseline(cache_dir):
    """Test accuracy of a logistic regression on each image's mean RGB."""
    from sklearn.linear_model import LogisticRegression

    images = open_images(Synthetic().plan(cache_dir), cache_dir)
    split = split_images(images.labels, test_fraction=0.2, validation_fraction=0.0, seed=42)
    colours = np.stack([image.mean(axis=(0, 1)) for image in images.images]) / 255
    baseline = LogisticRegression(max_iter=2000, C=100).fit(colours[split.train], images.labels[split.train])
    return baseline.score(colours[split.test], images.labels[split.test])


@pytest.mark.long
def test_the_demo_ends_in_the_promised_band_well_above_colour(command, tmp_path, colour_baseline):
    folder = train(command, "experiment=demo", "threads_per_client=1", cwd=tmp_path)
    accuracy = read_jsonl(folder / "rounds.jsonl")[-1]["test_accuracy"]
    print(f"demo {accuracy:.3f}, logistic regression on mean RGB {colour_baseline:.3f}")
    assert 0.70 <= accuracy <= 0.97
    assert colour_baseline <= accuracy - 0.15
    assert colour_baseline > 0.15, "colours should say something, as on real land cover"


def test_synthetic_images_depend_on_seed_and_position_only(tmp_path):
    small, large = opened(Synthetic(60), tmp_path), opened(Synthetic(90), tmp_path)
    other = opened(Synthetic(60, seed=1), tmp_path)
    assert np.array_equal(small.images, large.images[:60])
    assert not np.array_equal(small.images, other.images)
    assert "SYNTHETIC" in small.title
    assert np.bincount(small.labels).tolist() == [6] * 10


def test_images_of_a_class_differ(tmp_path):
    images = opened(Synthetic(60), tmp_path)
    assert len({image.tobytes() for image in images.images}) == 60


@pytest.mark.parametrize("arguments", [{"num_images": 10}, {"num_images": 1.5}, {"seed": -1}])
def test_impossible_synthetic_settings_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Synthetic(**arguments)
