"""Deployment files answer as the model does: in ONNX Runtime, as torch programs, in the LiteRT interpreter."""

import builtins
import contextlib
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, uneven_model
from torch import nn

from fl.core.errors import ConfigError, ModelFileError
from fl.core.files import read_json
from fl.core.targets import Target
from fl.deployment.files import deployed, measure_file, open_file
from fl.deployment.formats import FORMATS, formats
from fl.models.architecture import Architecture, network_named
from fl.models.net import to_input
from fl.quantization import kernels, modules, precision_of
from fl.quantization.model_file import load_fp32

EVERY = [(each, precision) for each in FORMATS for precision in each.precisions]
OURS = ("torchexport", "torchscript")
"""Formats of the very same quantization as model_<precision>.pt."""


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (48, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(images):
    return uneven_model(images)


@pytest.fixture(scope="module")
def files(model, images, tmp_path_factory):
    """One file of each format and precision."""
    folder = tmp_path_factory.mktemp("formats")
    for each, precision in EVERY:
        try:
            each.check_installed("--format")
        except ConfigError:
            continue
        each.export(precision, model, to_input(images), folder)
    return folder


@pytest.fixture
def executor(files):
    def load(each, precision):
        if not each.path(files, precision).is_file():
            pytest.skip(f"the extra [{each.extra}] is not installed")
        return each.load(each.path(files, precision), 1, Architecture())

    return load


@pytest.mark.parametrize(("each", "precision"), EVERY, ids=lambda value: getattr(value, "name", value))
def test_a_file_answers_batches_of_any_size_as_the_model_does(each, precision, executor, model, images):
    execute, x = executor(each, precision), to_input(images)
    ours = precision_of(precision).convert(model, x)
    with torch.inference_mode():
        exact = model(x)
        answers = execute(x)
        expected = ours(x.to(ours.input_dtype)).float()
    assert answers.dtype == torch.float32
    assert answers.shape == exact.shape
    if precision == "fp32":
        assert (answers - exact).abs().max() <= 1e-4
    elif each.name in OURS:
        assert (answers - expected).norm() <= 0.02 * exact.norm()
        assert (answers.argmax(1) == expected.argmax(1)).float().mean() >= 0.95  # of an untrained network
    else:
        assert (answers - exact).norm() <= 0.1 * exact.norm()
    for size in (1, 5):
        few = execute(x[:size])
        if precision == "int8_static":  # sums in another order may round an activation to the next integer
            assert (few - answers[:size]).norm() <= 0.02 * answers[:size].norm()
        elif precision != "int8":  # whose ranges are of the batch
            assert torch.allclose(few, answers[:size], atol=1e-4 * float(exact.abs().max()) + 1e-4)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8_static"])
def test_files_are_as_small_as_their_precision(precision, files):
    limit = {"fp16": 0.55, "int8": 0.45, "int8_static": 0.45}[precision]
    for each in FORMATS:
        path = each.path(files, precision)
        if precision in each.precisions and path.is_file():
            assert path.stat().st_size <= limit * each.path(files, "fp32").stat().st_size, path.name


@pytest.mark.parametrize("each", FORMATS, ids=lambda each: each.name)
def test_a_deployment_file_is_named_where_a_model_file_is_wanted(each, files, tmp_path):
    if not each.path(files, "fp32").is_file():
        pytest.skip(f"the extra [{each.extra}] is not installed")
    shutil.copy(each.path(files, "fp32"), tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=f"fl bench runs it under the name model_PRECISION{each.suffix}"):
        load_fp32(tmp_path / "model.pt")


def test_onnx_int8_convolves_in_integers(files):
    onnx = pytest.importorskip("onnx")
    kinds = [node.op_type for node in onnx.load(files / "model_int8.onnx").graph.node]
    assert kinds.count("ConvInteger") == 3
    assert kinds.count("MatMulInteger") == 3
    assert "Conv" not in kinds
    static = onnx.load(files / "model_int8_static.onnx").graph
    assert sum(node.op_type == "Conv" for node in static.node) == 3
    weights = [each.data_type for each in static.initializer if len(each.dims) > 1]
    assert weights == [onnx.TensorProto.UINT8] * 6  # signed ones saturate on x86 without VNNI


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("onnxruntime", "litert_torch"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    import importlib

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(
        ConfigError, match=r"--formats onnx: needs onnxruntime .*pip install -c constraints.txt -e '\.\[onnx\]'"
    ):
        formats(["onnx"], "--formats")
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e '\.\[edge\]'"):
        formats(["litert"], "--formats")
    assert [each.name for each in formats(["torchscript", "torchexport"], "--formats")] == [
        "torchscript",
        "torchexport",
    ]


def test_damaged_and_foreign_files_are_refused(files, tmp_path):
    from fl.data.provenance import TestSet

    test = TestSet(np.zeros((2, 64, 64, 3), np.uint8), np.zeros(2, np.int64), "none", True, ())
    for each in FORMATS:
        if each.path(files, "fp32").is_file():
            damaged = each.path(tmp_path, "fp32")
            damaged.write_bytes(each.path(files, "fp32").read_bytes()[:1000])
            with pytest.raises(ModelFileError, match=f"{each.name} cannot run it"):
                measure_file(damaged, test, 2, Architecture())
    with pytest.raises(ModelFileError, match="no known format"):
        measure_file(tmp_path / "model.bin", test, 2, Architecture())
    assert deployed(tmp_path / "model_int8_static.onnx")[1] == "int8_static"


def test_files_do_not_say_where_they_were_made(files):
    for each, precision in EVERY:
        if each.path(files, precision).is_file():
            content = each.path(files, precision).read_bytes()
            assert str(REPOSITORY).encode() not in content
            assert b".debug_pkl" not in content


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pt2_file_that_asks_for_more_than_weights_is_refused_unread(files, tmp_path):
    """torch.export.load alone would unpickle the first two and evaluate the text of the third."""
    (torchexport,) = formats(["torchexport"], "--formats")
    trace, forged = tmp_path / "trace", tmp_path / "model_fp32.pt2"
    config, payload = "archive/data/weights/model_weights_config.json", pickle.dumps(Bomb(trace))
    shape = "Symbol('s77', positive=True, integer=True)"
    forgeries = (
        {config: (b'"use_pickle": false', b'"use_pickle": true'), "archive/data/weights/weight_0": payload},
        {"archive/data/sample_inputs/model.pt": payload},
        {"archive/models/model.json": (shape.encode(), f"open('{trace}', 'w').close()".encode())},
    )
    for changes in forgeries:
        with zipfile.ZipFile(torchexport.path(files, "fp32")) as old, zipfile.ZipFile(forged, "w") as new:
            for name in old.namelist():
                change = changes.get(name, old.read(name))
                new.writestr(name, old.read(name).replace(*change) if isinstance(change, tuple) else change)
        with pytest.raises(ModelFileError, match="not the fp32 program"):
            open_file(forged, 1)
        assert not trace.exists()
        with contextlib.suppress(Exception):
            torch.export.load(forged)
        assert trace.exists(), "the forgery does nothing"
        trace.unlink()


@pytest.mark.exhaustive
def test_comparison_and_export_write_evaluate_and_verify_them(small_run, command, tmp_path):
    """Both commands, in the formats that need no extra; the others are tested above and on real images."""
    folder = shutil.copytree(small_run, tmp_path / "run")
    options = ["--precisions", "fp32,int8", "--formats", "torchscript,torchexport"]
    done = command("compare_quantizations.py", folder / "final_model.pt", *options, check=0)
    report = read_json(folder / "quantization_comparison.json")
    import json

    import jsonschema

    jsonschema.validate(report, json.loads((REPOSITORY / "docs" / "quantization_comparison.schema.json").read_text()))
    assert list(report["formats"]) == ["torchscript", "torchexport"]
    for name, precisions in report["formats"].items():
        assert list(precisions) == ["fp32", "int8", "int8_static"]
        for precision, entry in precisions.items():
            path = folder / f"model_{precision}{'.ts' if name == 'torchscript' else '.pt2'}"
            assert entry["file_size_bytes"] == path.stat().st_size
            assert entry["agreement_with_model_file"] >= (1.0 if precision == "fp32" else 0.98)
            assert f"{path.stat().st_size:,}" in done.stdout
        assert precisions["fp32"]["largest_logit_difference"] <= 1e-4
        assert precisions["fp32"]["accuracy"] == report["precisions"]["fp32"]["accuracy"]
    assert re.search(r"torchexport.*int8_static", done.stdout)
    command("compare_quantizations.py", folder / "final_model.pt", "--verify", check=0)
    (folder / "model_int8.ts").write_bytes((folder / "model_fp32.ts").read_bytes())
    refused = command("compare_quantizations.py", folder / "final_model.pt", "--verify")
    assert refused.returncode == 1
    assert "formats.torchscript.int8.file_sha256" in refused.stdout
    command("fl", "export", folder, "--format", "torchexport", check=0)
    table = read_json(folder / "export" / "formats.json")["formats"]
    assert list(table["torchexport"]) == ["fp32", "int8", "int8_static"]
    assert (folder / "export" / "model_int8.pt2").is_file()


def test_unknown_formats_are_refused_before_any_work(small_run, refused):
    refused(
        "compare_quantizations.py", small_run / "final_model.pt", "--formats", "tensorrt", words=["tensorrt", "onnx"]
    )
    refused("fl", "export", small_run, "--format", "tensorrt", words=["--format tensorrt", "litert"])


@pytest.fixture
def in_float(monkeypatch):
    """Integers are computed in floating point, as programs do: kernels may round one to the next."""
    monkeypatch.setattr(modules, "cpu_kernels", lambda: kernels.REFERENCE)


@pytest.mark.parametrize("name", ["networks.Residual", "networks.Attention", "linear"])
@pytest.mark.parametrize("kind", OURS)
def test_programs_of_any_network_are_run_if_they_are_ours(kind, name, tmp_path, in_float):
    """Whatever the number of classes, which the file tells; a program of another network is not run."""
    (each,), x = formats([kind], "--formats"), torch.rand(3, 3, 64, 64) * 2 - 1
    network = Architecture(network_named(name), num_classes=7).initial(0).eval()
    for precision in ("fp32", "int8_static"):
        each.export(precision, network, x, tmp_path)
        run = each.load(each.path(tmp_path, precision), 1, Architecture(network_named(name)))
        expected = precision_of(precision).convert(network, x)(x).detach()
        for way in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with way():
                assert torch.allclose(run(x), expected, atol=1e-5)
    with pytest.raises(ModelFileError, match=r"not the fp32 program|claims to hold"):
        open_file(each.path(tmp_path, "fp32"), 1, Architecture())


class Joined(nn.Module):
    """A sum of two convolutions, one of which nothing else takes."""

    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        self.first, self.short = nn.Conv2d(in_channels, 8, 5, stride=4), nn.Conv2d(8, 8, 1)
        self.long, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 225, num_classes)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head((self.short(x) + self.long(x)).relu().flatten(1))


@pytest.mark.parametrize("kind", OURS)
def test_programs_add_what_integers_stand_for(kind, tmp_path, in_float):
    (each,), x = formats([kind], "--formats"), torch.rand(16, 3, 64, 64) * 2 - 1
    architecture = Architecture(Target(f"{__name__}.Joined", {}, "model"))
    network = architecture.initial(0).eval()
    ours = precision_of("int8_static").convert(network, x)
    assert ours.long.added_from == (ours.short,)
    each.export("int8_static", network, x, tmp_path)
    with torch.inference_mode():
        found = each.load(each.path(tmp_path, "int8_static"), 1, architecture)(x)
        assert torch.allclose(found, ours(x), atol=1e-5)
        assert (found - network(x)).norm() <= 0.05 * found.norm()


def test_a_script_that_would_forget_a_branch_is_not_written(tmp_path):
    network = Architecture(network_named("networks.Branching")).initial(0).eval()
    (each,) = formats(["torchscript"], "--formats")
    with pytest.raises(ValueError, match="its code depends on values"):
        each.export("fp32", network, torch.zeros(1, 3, 64, 64), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pt2_file_may_claim_no_more_than_it_holds(files, tmp_path):
    source, forged = files / "model_int8.pt2", tmp_path / "model_int8.pt2"
    config = "archive/data/weights/model_weights_config.json"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(forged, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == config:
                told = json.loads(content)
                for tensor in ("fc3.bias", "fc3.weight"):
                    told["config"][tensor]["tensor_meta"]["sizes"][0]["as_int"] = 10**11
                content = json.dumps(told).encode()
            new.writestr(name, content)
    with pytest.raises(ModelFileError, match="claims to hold 12,900,000,4"):
        open_file(forged, 1, Architecture())
