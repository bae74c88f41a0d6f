"""Models from elsewhere load, with a line about what was done; ours load as users' own guides say."""

import json

import jsonschema
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import REPOSITORY, compared, uneven_model
from hypothesis import given, settings
from hypothesis import strategies as st

import fl
from fl.commands.export import parse as export_options
from fl.comparison.verify import verify
from fl.core.errors import VerificationError
from fl.core.files import read_json
from fl.deployment.beside import DeploymentFiles
from fl.deployment.export import export
from fl.models.net import Net, initial_model, to_input
from fl.quantization import precision_of
from fl.quantization.model_file import load_fp32, save_model, save_state

COUNTERS = ("bn1.num_batches_tracked", "bn2.num_batches_tracked", "bn3.num_batches_tracked")


WRAPPERS = [(), ("state_dict",), ("model",), ("model_state_dict",), ("net",), ("checkpoint", "model"), ("a", "b", "c")]


PREFIXES = {
    "": lambda name: name,
    "'module.'": lambda name: f"module.{name}",
    "'_orig_mod.'": lambda name: f"_orig_mod.{name}",
    "'module.', '_orig_mod.'": lambda name: f"module._orig_mod.{name}",
    "'_orig_mod.', 'module.'": lambda name: f"_orig_mod.module.{name}",
    "'module.' ": lambda name: f"module.module.{name}",
    "'module.'  ": lambda name: f"module.{name}" if name.startswith("fc") else name,
    "'_orig_mod.' ": lambda name: name.replace("conv1.", "conv1._orig_mod.").replace("bn2.", "bn2._orig_mod."),
    "'model.'": lambda name: f"model.{name}",
    "'module.', 'net.', 'inner.'": lambda name: f"net.module.inner.{name}",
}


FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


TYPES = [*FLOATS, torch.int64, torch.int32, torch.int16, torch.uint8]


GUIDE = """
checkpoint = torch.load(path)
model.load_state_dict(checkpoint['model_state_dict'])
if checkpoint.get('quantization_info', {}).get('dtype') == 'fp16': model.half()
"""
"""A user's loader, as it stands in their guide."""


def pt(content, path):
    torch.save(content, path)


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def tensors(content, path):
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def network(images):
    return uneven_model(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def foreign(network, rename, dtype, counter):
    """Returns a state dict as another program has it, and the notes on its tensors.

    Args:
        network: whose it is.
        rename: a value of `PREFIXES`.
        dtype: of weights.
        counter: (dtype, shape) of counters, or how many of them are absent.
    """
    state = {name: t.detach().to(dtype) for name, t in network.state_dict().items() if name not in COUNTERS}
    absent = counter if isinstance(counter, int) else 0
    kind, shape = (torch.int64, ()) if isinstance(counter, int) else counter
    for name in COUNTERS[absent:]:
        state[name] = (network.state_dict()[name] + (0.4 if kind.is_floating_point else 0)).to(kind).reshape(shape)
    notes = [] if dtype == torch.float32 else [f"cast {str(dtype)[6:]} to float32"]
    if kind != torch.int64 and absent < len(COUNTERS):
        notes.append(f"counters {str(kind)[6:]} to int64")
    notes += [f"{absent} counters absent, set to 0"] if absent else []
    return {rename(name): tensor for name, tensor in state.items()}, notes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(WRAPPERS),
    st.booleans(),
    st.sampled_from(list(PREFIXES)),
    st.sampled_from(FLOATS),
    st.one_of(st.integers(0, 3), st.tuples(st.sampled_from(TYPES), st.sampled_from([(), (1,)]))),
    st.sampled_from([pt, legacy, tensors]),
)
def test_a_state_dict_from_elsewhere_loads_and_says_how(network, folder, wrappers, beside, prefix, dtype, counter, to):
    state, notes = foreign(network, PREFIXES[prefix], dtype, counter)
    notes = ([f"removed prefix {prefix.strip()}"] if prefix else []) + notes
    content, wrappers = state, () if to is tensors else wrappers
    optimizer = torch.optim.Adam(network.parameters())
    others = {"epoch": 3, "optimizer": optimizer.state_dict(), "optimizer_by_name": state, "best": torch.tensor(0.9)}
    for each in reversed(wrappers):
        content = {**(others if beside else {}), each: content}
    if wrappers:
        notes = [f"took entry {'.'.join(wrappers)!r}", *notes]
    to(content, folder / "foreign.bin")
    loaded, file = load_fp32(folder / "foreign.bin")
    assert list(file.notes) == notes
    for name, tensor in loaded.state_dict().items():
        expected = network.state_dict()[name]
        if name in COUNTERS:
            assert tensor.dtype == torch.int64
            assert tensor == (0 if isinstance(counter, int) and name in COUNTERS[:counter] else expected)
        else:
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected.to(dtype).float()), name
    assert file.state.keys() == loaded.state_dict().keys()


def test_what_flower_averages_loads(network, folder):
    """Its mean makes counters float64."""
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    replies = [
        RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": MetricRecord({"num-examples": examples})})
        for examples in (3, 4)
    ]
    mean = aggregate_arrayrecords(replies, "num-examples").to_torch_state_dict()
    assert mean[COUNTERS[0]].dtype == torch.float64
    pt(mean, folder / "flower.pt")
    loaded, file = load_fp32(folder / "flower.pt")
    assert file.notes == ("counters float64 to int64",)
    assert all(torch.allclose(tensor, loaded.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_loading_says_in_one_line_what_was_done_and_nothing_of_a_usual_file(network, images, folder, capsys):
    state, _ = foreign(network, PREFIXES["'module.'"], torch.float16, (torch.float64, ()))
    pt({"model": state, "epoch": 1}, folder / "told.pt")
    for fp16 in (None, "no"):
        model = fl.load_model(folder / "told.pt", device="cpu", fp16=fp16)
        said = capsys.readouterr()
        assert said.out == (
            f"note: {folder / 'told.pt'}: took entry 'model', removed prefix 'module.', cast float16 to float32, "
            "counters float64 to int64\n"
        )
        assert not said.err
        assert model.quantization_info["dtype"] == "fp32"
        with torch.inference_mode():
            assert torch.allclose(model(to_input(images)), network(to_input(images)), atol=0.05)
    save_state(folder / "final_model.pt", network.state_dict())
    save_model(folder / "model_fp32.pt", precision_of("fp32").convert(network), "0" * 64)
    for name in ("final_model.pt", "model_fp32.pt"):
        fl.load_model(folder / name, device="cpu")
        assert not capsys.readouterr().out


def test_names_in_a_file_cannot_write_to_the_terminal(network, folder, capsys):
    pt({"\x1b[31mred\nline": network.state_dict()}, folder / "coloured.pt")
    fl.load_model(folder / "coloured.pt", device="cpu")
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert said.count("\n") == 1


def test_a_model_of_other_classes_loads(folder):
    pt({"state_dict": {f"module.{name}": t for name, t in Net(3).state_dict().items()}}, folder / "three.pt")
    assert load_fp32(folder / "three.pt")[0].fc3.out_features == 3


def as_fp16(model, output):
    return compared(model, "fp16", output=output, data="synthetic", batch_size=64)


@pytest.fixture(scope="module")
def noted(network, tmp_path_factory):
    """The comparison of a model from elsewhere; returns its folder."""
    folder = tmp_path_factory.mktemp("noted")
    state, _ = foreign(network, PREFIXES["'_orig_mod.'"], torch.float32, (torch.float64, ()))
    tensors(state, folder / "final.safetensors")
    as_fp16(folder / "final.safetensors", None)
    return folder


@pytest.mark.long
def test_the_comparison_stores_what_was_done_and_verifies_it(noted, capsys):
    report = read_json(noted / "quantization_comparison.json")
    assert report["model_notes"] == ["removed prefix '_orig_mod.'", "counters float64 to int64"]
    jsonschema.validate(report, json.loads((REPOSITORY / "docs" / "quantization_comparison.schema.json").read_text()))
    verify(noted / "final.safetensors", None, "synthetic", DeploymentFiles([]))
    changed = {**report, "model_notes": ["nothing"]}
    try:
        (noted / "quantization_comparison.json").write_text(json.dumps(changed))
        with pytest.raises(VerificationError):
            verify(noted / "final.safetensors", None, "synthetic", DeploymentFiles([]))
        assert "DIFFERS  model_notes" in capsys.readouterr().out
    finally:
        (noted / "quantization_comparison.json").write_text(json.dumps(report))


@pytest.mark.long
def test_bench_says_once_what_was_done(network, command, tmp_path):
    state, _ = foreign(network, PREFIXES["'module.'"], torch.float32, 3)
    tensors(state, tmp_path / "foreign.safetensors")
    options = ["--data", "synthetic", "--images", 4, "--batch-sizes", 2]
    done = command("fl", "bench", tmp_path / "foreign.safetensors", *options, check=0)
    line = f"note: {tmp_path / 'foreign.safetensors'}: removed prefix 'module.', 3 counters absent, set to 0"
    assert done.stdout.splitlines().count(line) == 1


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    """Folders of the small run's exports, by what they were quantized to."""
    folders = {}
    for quantize, more in (("fp16", ()), ("none", ()), ("kept", ("--keep-batchnorm-fp32",))):
        options = ["--quantize", "fp16" if more else quantize, *more, "--output"]
        folders[quantize] = tmp_path_factory.mktemp(quantize)
        export(export_options([str(small_run), *options, str(folders[quantize])]))
    return folders


@pytest.fixture(params=["export fp16", "export kept", "export none", "comparison fp16", "comparison fp32"])
def ours(request, exported, noted):
    """Returns a model file of ours and the word of its guide."""
    where, what = request.param.split()
    if where == "comparison":
        return noted / f"model_{what}.pt", what
    return next(exported[what].glob("model_*.pt")), "fp32" if what == "none" else "fp16"


def test_the_guides_loader_works_on_our_files_as_it_stands(ours, images):
    path, word = ours
    model = Net()
    exec(GUIDE, {"torch": torch, "path": path, "model": model})
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[word]
    assert {each.dtype for each in model.parameters()} == {dtype}
    loaded = fl.load_model(path, device="cpu")
    assert loaded.quantization_info["dtype"] == word
    x = to_input(images, dtype)
    with torch.inference_mode():
        answers, expected = model.eval()(x).float(), loaded(x).float()
    assert torch.allclose(answers, expected, atol=2e-3 * float(expected.abs().max()), rtol=0)
    assert (answers.argmax(1) == expected.argmax(1)).float().mean() > 0.9  # FP16 may tie


WORDS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int8_static": "int8", "int4": "int4", "int2": "int2"}


@pytest.mark.parametrize("name", WORDS)
def test_every_file_says_its_type_in_the_guides_words(name, network, images, folder):
    assert {path.stem for path in (REPOSITORY / "conf" / "precision").glob("*.yaml")} == WORDS.keys()
    save_model(folder / "word.pt", precision_of(name).convert(network, to_input(images)), "0" * 64)
    assert torch.load(folder / "word.pt")["quantization_info"]["dtype"] == WORDS[name]
    assert fl.load_model(folder / "word.pt", device="cpu").quantization_info["dtype"] == WORDS[name]


def test_the_words_of_an_export_are_those_of_its_file(exported):
    for quantize, word in (("fp16", "fp16"), ("kept", "fp16"), ("none", "fp32")):
        told = read_json(exported[quantize] / "selection_metadata.json")["quantization_info"]
        content = torch.load(next(exported[quantize].glob("model_*.pt")))
        assert told["dtype"] == content["quantization_info"]["dtype"] == word


@pytest.mark.parametrize("old", ["float16", "float32", None])
@pytest.mark.parametrize("name", ["fp16", "fp32", "int8"])
def test_files_with_the_old_word_or_none_load_and_speak_the_new_one(name, old, network, images, folder):
    model = precision_of(name).convert(network)
    expected = model(to_input(images, model.input_dtype))
    model.quantization_info = {key: value for key, value in model.quantization_info.items() if key != "dtype"}
    model.quantization_info |= {"dtype": old} if old else {}
    save_model(folder / "old.pt", model, "0" * 64)
    loaded = fl.load_model(folder / "old.pt", device="cpu")
    assert loaded.quantization_info["dtype"] == name
    assert torch.equal(loaded(to_input(images, loaded.input_dtype)), expected)


def test_anothers_file_that_says_fp16_is_cast_and_its_words_are_not_ours(network, images, folder, capsys):
    state = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    pt({"model_state_dict": state, "quantization_info": {"dtype": "fp16"}}, folder / "theirs.pt")
    model = fl.load_model(folder / "theirs.pt", device="cpu")
    assert "took entry 'model_state_dict', cast float16 to float32" in capsys.readouterr().out
    assert model.quantization_info["precision"] == "fp32"
    assert model.fc1.weight.dtype == torch.float32


def test_what_is_taken_from_elsewhere_changes_nothing_of_our_own(small_run):
    assert load_fp32(small_run / "final_model.pt")[1].notes == ()


@pytest.mark.parametrize("name", ["os.system", "copy", "_x", "Net", "calibrate", 5])
def test_a_file_cannot_name_what_is_built(name, tmp_path):
    from fl.core.errors import ModelFileError

    info = {"precision": name, "num_classes": 10}
    content = {"model_state_dict": initial_model(10, 0).state_dict(), "quantization_info": info}
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ModelFileError, match="quantization_info cannot be used"):
        fl.load_model(tmp_path / "m.pt")


def test_a_state_dict_within_a_checkpoint_is_found(tmp_path):
    torch.save({"model_state_dict": initial_model(10, 0).state_dict(), "epoch": 3}, tmp_path / "m.pt")
    assert fl.load_model(tmp_path / "m.pt").quantization_info["precision"] == "fp32"


def test_a_plain_state_dict_loads_as_fp32(tmp_path):
    save_state(tmp_path / "m.pt", initial_model(10, 0).state_dict())
    assert fl.load_model(tmp_path / "m.pt").quantization_info["precision"] == "fp32"
