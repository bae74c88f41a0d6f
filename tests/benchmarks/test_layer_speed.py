"""The table of layers is made of the network as it is, and stored as it was printed."""

import os
import subprocess
import sys

from conftest import REPOSITORY

from fl.core.files import read_json


def test_every_layer_has_a_row(tmp_path):
    asked = ["--repeats", "1", "--json", str(tmp_path / "layers.json"), "data=synthetic", "data.num_images=400"]
    program = REPOSITORY / "benchmarks" / "layer_speed.py"
    done = subprocess.run([sys.executable, program, *asked, "threads_per_client=1"], env=os.environ, check=False)
    assert done.returncode == 0
    (printed,) = read_json(tmp_path / "layers.json")["printed"]
    steps = [row[0] for row in printed["rows"]]
    assert [each for each in steps if each.startswith(("conv", "fc"))] == [
        "conv1",
        "conv2",
        "conv3",
        "fc1",
        "fc2",
        "fc3",
    ]
    assert printed["title"] == "32 images, 1 thread, median of 1"
