"""Deployment files that others made: foreign programs are not run, and a runtime that dies takes nothing along."""

import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch

from fl.core.errors import ModelFileError
from fl.deployment import memory
from fl.deployment.files import open_file
from fl.deployment.formats.torch_programs import TorchScript
from fl.deployment.memory import peak_memory
from fl.models.architecture import Architecture
from fl.models.net import Net

NOTHING = torch.zeros(1, 3, 64, 64)


@pytest.fixture(scope="session")
def network():
    torch.manual_seed(1)
    return Net(4).eval()


@pytest.fixture(scope="session")
def script(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("script")
    for precision in TorchScript.precisions:
        TorchScript().export(precision, network, torch.rand(8, 3, 64, 64), folder)
    return folder


class Writer(torch.nn.Module):
    """Answers like a network, and writes into a file."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def forward(self, x):
        torch.from_file(self.path, shared=True, size=16, dtype=torch.uint8).fill_(65)
        return x.flatten(1)[:, :4]


@pytest.mark.parametrize("name", ["model_fp32.ts", "model_int8.ts", "model_mine.ts"])
def test_a_script_that_writes_files_is_not_run(tmp_path, name, refused):
    written = tmp_path / "written"
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.script(Writer(written)).save(tmp_path / name)
    with pytest.raises(ModelFileError, match="torchscript cannot run it"):
        open_file(tmp_path / name, 1)
    refused("fl", "bench", tmp_path / name, "--data", "synthetic", words=[name, "torchscript cannot run it"])
    assert not written.exists()


@pytest.mark.parametrize("precision", TorchScript.precisions)
def test_our_own_scripts_are_run_whatever_their_weights_and_when_they_were_recorded(script, precision, network):
    """torch numbers the classes in a file by how many it recorded before; here others came in between."""
    run = TorchScript().load(script / f"model_{precision}.ts", 1, Architecture())
    x = torch.rand(3, 3, 64, 64)
    assert torch.allclose(run(x), network(x), atol=0.01)
    assert TorchScript().weight_bytes(script / f"model_{precision}.ts") > 400_000


def rewritten(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            for name, content in change(entry.filename, old.read(entry)):
                new.writestr(name, content)


def replaced(before, after):
    return lambda name, content: [(name, content.replace(before, after))]


CHANGES = {
    "another operation": replaced(b"torch.relu", b"torch.tanh"),
    "a program more": lambda name, content: [
        (name, content),
        *([(name + "x.py", b"")] if name.endswith("data.pkl") else []),
    ],
    "a part less": lambda name, content: [] if name.endswith("constants.pkl") else [(name, content)],
    "other constants": replaced(b"LongStorage", b"ByteStorage"),
    "shorter weights": lambda name, content: [(name, content[:-4] if name.endswith("data/0") else content)],
    "another class": replaced(b"torch.nn.modules.linear", b"torch.nn.modules.lineax"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_script_with_any_other_part_is_not_run(script, tmp_path, change):
    target = tmp_path / "model_fp32.ts"
    rewritten(script / target.name, target, CHANGES[change])
    assert target.read_bytes() != (script / target.name).read_bytes()
    with pytest.raises(ModelFileError, match="cannot run it"):
        open_file(target, 1)


def test_a_script_that_unpacks_to_more_than_it_is_takes_no_memory(script, tmp_path):
    target = tmp_path / "model_fp32.ts"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model_fp32/data.pkl", bytes(1 << 28))
    with pytest.raises(ModelFileError, match="claims to hold more than it does"):
        open_file(target, 1)


# ONNX


@pytest.fixture
def onnx_file(tmp_path):
    """Writes a model of these nodes around the input and returns its path."""
    onnx = pytest.importorskip("onnx")

    def write(nodes, initializers=(), classes=4):
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            nodes(helper),
            "g",
            [helper.make_tensor_value_info("images", kind, ["n", 3, 64, 64])],
            [helper.make_tensor_value_info("logits", kind, ["n", classes])],
            list(initializers),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / "model_fp32.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


def outside(onnx, path):
    tensor = onnx.numpy_helper.from_array(np.zeros((3 * 64 * 64, 4), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=path)
    return tensor


@pytest.mark.parametrize("where", ["initializer", "attribute", "branch"])
@pytest.mark.parametrize("path", ["weights.bin", "/etc/passwd", "../../secret"])
def test_an_onnx_model_reads_no_other_file(onnx_file, tmp_path, where, path):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "weights.bin").write_bytes(bytes(3 * 64 * 64 * 4 * 4))
    tensor = outside(onnx, path)

    def nodes(helper):
        flat = helper.make_node("Flatten", ["images"], ["flat"])
        product = helper.make_node("MatMul", ["flat", "w"], ["logits"])
        constant = helper.make_node("Constant", [], ["w"], value=tensor)
        if where == "branch":
            value = helper.make_tensor_value_info("w", 1, None)
            branch = helper.make_graph([constant], "b", [], [value])
            yes = helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True)))
            return [flat, yes, helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch), product]
        return [flat, *([constant] if where == "attribute" else []), product]

    target = onnx_file(nodes, [tensor] if where == "initializer" else [])
    with pytest.raises(ModelFileError, match="its tensor w is in another file"):
        open_file(target, 1)


def filled(helper, size):
    import onnx

    shape = onnx.numpy_helper.from_array(np.array([size, 4], np.int64), "shape")
    constant = helper.make_node("Constant", [], ["shape"], value=shape)
    return [constant, helper.make_node("ConstantOfShape", ["shape"], ["logits"])]


@pytest.mark.parametrize("size", [1 << 31, 1 << 40, 1 << 62])
@pytest.mark.long
def test_an_onnx_model_that_asks_for_memory_is_one_line(onnx_file, size):
    target = onnx_file(lambda helper: filled(helper, size))
    with pytest.raises(ModelFileError, match=r"model_fp32\.onnx") as told:
        peak_memory(target, "cpu", 1, [1])
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.long
def test_a_model_that_never_answers_is_left(onnx_file, monkeypatch):
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(memory, "LONGEST_TRIAL_S", 15.0)

    def endless(helper):
        def constant(name, value):
            return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(value)))

        flag = helper.make_tensor_value_info
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["x"], ["y"])],
            "b",
            [flag("i", 7, []), flag("go", 9, []), flag("x", 1, None)],
            [flag("go_on", 9, []), flag("y", 1, None)],
        )
        flat = helper.make_node("Flatten", ["images"], ["flat"])
        loop = helper.make_node("Loop", ["most", "yes", "flat"], ["logits"], body=body)
        return [constant("most", np.int64(2**62)), constant("yes", True), flat, loop]

    with pytest.raises(ModelFileError, match="does not answer within 15"):
        peak_memory(onnx_file(endless), "cpu", 1, [1])


def damaged(source, target, seed):
    rng = np.random.default_rng(seed)
    content = np.frombuffer(source.read_bytes(), np.uint8).copy()
    for place in rng.integers(0, min(len(content), 4096 if seed % 2 else len(content)), size=20):
        content[place] = rng.integers(256)
    target.write_bytes(content.tobytes())


COUNTS = [pytest.param(2), pytest.param(20, marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["onnx", "litert"])
@pytest.mark.exhaustive
def test_damaged_files_run_or_are_one_line(tmp_path, network, name, count):
    """A runtime may crash on them; then that process is all that is lost."""
    kind = next(each for each in candidates_of() if each.name == name)
    for module in kind.needs:
        pytest.importorskip(module)
    kind.export("fp32", network, NOTHING, tmp_path)
    source, target = kind.path(tmp_path, "fp32"), kind.path(tmp_path, "int8")
    for seed in range(count):
        damaged(source, target, seed)
        told = f"{target}: it ran"
        try:
            peak_memory(target, "cpu", 1, [1])
        except ModelFileError as error:
            told = str(error)
        assert len(told.splitlines()) == 1
        assert told.startswith(f"{target}: ")


def candidates_of():
    from fl.deployment.formats import FORMATS

    return FORMATS


OTHER_CONTENT = [b"", b"\0" * 64, b"PK\3\4" + b"\0" * 60, b"\x1c\0\0\0TFL3" + b"\xff" * 500]


@pytest.mark.parametrize("name", ["model_fp32.onnx", "model_fp32.ts", "model_fp32.pt2"])
@pytest.mark.parametrize("content", OTHER_CONTENT, ids=["nothing", "zeros", "zip", "litert"])
def test_other_content_under_a_formats_name_is_one_line(tmp_path, name, content):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError) as told:
        open_file(tmp_path / name, 1)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.exhaustive
def test_other_content_under_litert_s_name_is_one_line_and_costs_no_more_than_a_process(tmp_path):
    """Its runtime is native from the first byte on."""
    pytest.importorskip("ai_edge_litert")
    for number, content in enumerate(OTHER_CONTENT[-2:]):
        path = tmp_path / str(number) / "model_fp32.tflite"
        path.parent.mkdir()
        path.write_bytes(content)
        with pytest.raises(ModelFileError) as told:
            peak_memory(path, "cpu", 1, [1])
        assert len(str(told.value).splitlines()) == 1


def test_a_program_of_torch_export_is_not_run_unless_we_write_it(tmp_path, script):
    shutil.copy(script / "model_fp32.ts", tmp_path / "model_fp32.pt2")
    with pytest.raises(ModelFileError, match="torchexport cannot run it"):
        open_file(tmp_path / "model_fp32.pt2", 1)
