"""The grid of networks: which runs, what is measured of each, and what its tables say before and after."""

import sys

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from fl.core.targets import Target
from fl.models.architecture import Architecture
from fl.models.net import to_input
from fl.quantization import precision_of
from fl.quantization.folding import fold_batch_norm

sys.path.append(str(REPOSITORY / "benchmarks"))

import layer_loss
import network_table
import tables
from grid import VERSION, stored
from network_table import ROWS, SEED

from fl.core.files import write_json

ENVIRONMENT = {"cpu": "EPYC", "cpu_capability": "AVX512", "packages": {"torch": "2.13.0"}}
BYTES = {"fp32": 1000, "fp16": 510, "int8": 265, "int8_static": 266, "int4": 140, "int2": 90}


def entry(row, accuracy=0.9, int8_bytes=265, static_ms=4.0):
    files = {
        name: {
            "file_size_bytes": int8_bytes if name == "int8" else size,
            "accuracy": accuracy - 0.001 * place,
            "agreement_with_fp32": 1 - 0.01 * place,
            "kernels": "onednn-int8",
            **({"float_tensors": {"norm.weight": 64, "place": 36}} if name == "int8" else {}),
        }
        for place, (name, size) in enumerate(BYTES.items())
    }
    ms = {"fp32_ms": 1.5, "int8_ms": 1.0}
    losses = {"channels": 4, "low": 1, "median": 30.0, "least": 11.0}
    return {
        "row": row.name, "seed": SEED, "overrides": list(row.overrides), "num_parameters": 1234,
        "test_accuracy": accuracy, "precisions": files, "left_out": ["litert left out (int8): it cannot hold it"],
        "ms_p50": {name: {"1": 2.0, "32": static_ms if name == "int8_static" else 8.0} for name in BYTES},
        "formats": {"onnx": {"int8": {**files["int8"], "agreement_with_model_file": 0.99, "inference_ms": 0.5}}},
        "layers": {
            "a": {"kind": "depthwise", "weights": {**losses, "median": 40.0}, "both": losses, **ms},
            "b": {"kind": "depthwise", "weights": losses, "both": {**losses, "low": 0, "least": 21.0}, **ms},
        },
        **{f"{way}_payload_bytes": 100 for way in ("broadcast", "update")},
        **{f"{way}_fp32_bytes": 3000 for way in ("broadcast", "update")},
        "versions": ENVIRONMENT, "threads": 1, "commit": "0123456789",
    }  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    def kept(*entries):
        write_json(tmp_path / network_table.KEPT, {"version": VERSION, "runs": list(entries)})
        return stored(tmp_path / network_table.KEPT)

    return kept


def test_the_rows_are_those_that_the_tables_promise():
    by_name = {row.name: row.overrides for row in ROWS}
    assert all({"num_rounds=5", "local_epochs=1", "model.stem=published"} <= set(each) for each in by_name.values())
    assert {row.seeds for row in ROWS} == {(101,)}
    assert {"codec@broadcast=ecq", "codec@update=ecq", "model=resnet18"} <= set(by_name["resnet18-ecq"])
    assert {"training=qat", "training.bits=4", "model=resnet18"} <= set(by_name["resnet18-qat4"])
    assert {row.baseline for row in ROWS} <= by_name.keys()
    assert network_table.TOLD == "One seed (101), 5 rounds x 1 local epoch, published stem"


def test_before_any_run_is_stored_documents_stay_as_they_are(tmp_path):
    assert all(tables.PARTS[name](tmp_path) is None for name in tables.PARTS if name.startswith("networks"))


def test_tables_say_what_was_measured(runs, tmp_path):
    plain, coded = ROWS[:2]
    found = runs(entry(plain), entry(coded, 0.895))
    assert tables.PARTS["networks"](tmp_path) == network_table.traffic(found)
    row = "| ResNet-18, ecq, 1 bit both ways | 1,234 | 89.50 % | -0.50 | 30.00× | 30.00× | 30.00× | 0.0 |"
    assert row in network_table.traffic(found)
    assert "Not finished: 2 of 6 runs." in network_table.traffic(found)
    row = "| ResNet-18 | INT8 (dynamic) | 265 | 26.5 % | 89.80 % | -0.20 | 98.00 % | 2.00 (1.00×) | 8.00 (1.00×) |"
    assert f"{row} 100 B in 2 | onednn-int8 |" in network_table.precisions(found)
    assert (
        "| ResNet-18, ecq, 1 bit both ways | onnx | int8 | 265 | 89.30 % | 99.00 % | 0.50 |"
        in network_table.formats(found)
    )
    assert "ResNet-18: litert left out (int8): it cannot hold it." in network_table.formats(found)
    row = "| ResNet-18 | depthwise | 2 | 8 | 35.0 | 30.0 | 12.5 % | 11.0 (`a`) |"
    assert row in network_table.channels(found)
    assert "| ResNet-18 | depthwise | 2 | 3.00 | 2.00 | 1.50× |" in network_table.times(found)
    assert "| ResNet-18 | all else |  | 5.00 | 2.00 |  |" in network_table.times(found)
    told = "One seed (101), 5 rounds x 1 local epoch, published stem"
    assert all(told in tables.PARTS[name](tmp_path) for name in tables.PARTS if name.startswith("networks"))


def test_targets_are_judged_by_what_they_ask(runs):
    plain, trained = ROWS[0], next(row for row in ROWS if row.name == "resnet18-qat4")
    told = network_table.targets(runs(entry(plain), entry(trained, 0.893)))
    for line in (
        "ResNet-18, INT8 file at most 27 % of FP32: 26.50 %, within.",
        "ResNet-18, INT8 (dynamic) within 0.5 points of FP32: -0.20, within.",
        "ResNet-18, INT8 static at least 2× FP32 at batch 32: 2.00×, within.",
        "ResNet-18, qat int4, INT4 within 1 points of FP32: -1.10, not within.",
        "MobileNetV3-small: incomplete.",
    ):
        assert f"- {line}" in told
    told = network_table.targets(runs(entry(plain, int8_bytes=271, static_ms=4.1)))
    assert "27.10 %, not within." in told
    assert "1.95×, not within." in told
    assert "ResNet-18, qat int4, int4: incomplete." in told


class Depthwise(nn.Module):
    """A layer whose channels are of very different size, which one range has to hold."""

    def __init__(self):
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.relu(self.deep(self.first(x))).mean((2, 3)))


def test_a_small_channel_is_what_a_common_range_costs():
    model = Architecture(Target(f"{__name__}.Depthwise", {}, "model")).initial(0)
    with torch.no_grad():
        model.first.weight[0] *= 1e-3
        model.first.bias.zero_()
        model.deep.bias.zero_()
    x = to_input(torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    static = precision_of("int8_static").convert(model, x)
    with torch.inference_mode():
        found = layer_loss.losses(fold_batch_norm(model), static, x)
    assert {name: each["kind"] for name, each in found.items()} == {
        "first": "convolution", "deep": "depthwise", "head": "linear",
    }  # fmt: skip
    deep = found["deep"]
    assert all(each["fp32_ms"] > 0 < each["int8_ms"] for each in found.values())
    assert deep["both"]["least"] < layer_loss.LOW < deep["weights"]["least"]
    assert deep["both"]["least"] < deep["both"]["median"] < deep["weights"]["median"]


def test_decibels_are_of_power_over_error_by_channel():
    exact = torch.ones(2, 3, 4)
    exact[:, 2] = 0  # a channel without any signal is left out
    wrong = exact + torch.tensor([0.09, 0.01, 0.5])[:, None]
    found = layer_loss.decibels(exact, wrong)
    assert (found["channels"], found["low"]) == (2, 0)
    assert found["least"] == pytest.approx(20.915, abs=1e-3)
    assert layer_loss.decibels(exact[:, :1], 1.2 * exact[:, :1])["low"] == 1
