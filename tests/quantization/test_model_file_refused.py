"""Model files that cannot be taken are refused in one line that says what they are, unread and unrun."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

import fl
from fl.core.errors import ModelFileError
from fl.models.net import Net, initial_model
from fl.quantization.model_file import load_fp32, to_bytes

STATE = initial_model(10, 0).state_dict()
WEIGHT = "conv2.weight"


class Payload:
    """Would make a file if it were unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refusal(path):
    """Returns why every way to load a file refuses it, after looking that it is one plain line."""
    told = []
    for load in (load_fp32, lambda path: fl.load_model(path, device="cpu")):
        with pytest.raises(ModelFileError) as caught:
            load(path)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert told[0].startswith(f"{path}: ")
    assert told[0].isprintable()
    for word in ("weights_only", "\x1b", "add_safe_globals", "trust"):
        assert word not in told[0]
    return told[0].removeprefix(f"{path}: ")


def legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def program():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/models/model.json", "{}")
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, *[tensor.numpy() for tensor in STATE.values()])
    return buffer.getvalue()


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1746700\n"
KINDS = {
    "empty": (lambda: b"", ["is empty"]),
    "text": (lambda: b"hello\n", ["a text file", "torch.save"]),
    "long text": (lambda: "å".encode() * 5000, ["a text file"]),
    "git-LFS pointer": (lambda: LFS, ["a git-LFS pointer", "git lfs pull"]),
    "web page": (lambda: b"<!DOCTYPE html><html>404</html>", ["a web page", "download"]),
    "JSON": (lambda: b'{"weights": []}', ["a JSON file"]),
    "TorchScript": (scripted, ["a TorchScript program", "fl bench", ".ts", "state_dict()"]),
    "torch.export": (program, ["a torch.export program", "fl bench", ".pt2"]),
    "LiteRT": (lambda: b"\x1c\0\0\0TFL3" + bytes(64), ["a LiteRT", "fl bench", ".tflite"]),
    "ONNX": (lambda: b"\x08\x0a\x12\x07pytorch" + bytes(64), ["an ONNX model", "fl bench", ".onnx"]),
    "npz": (npz, ["a NumPy archive", "arr_0", "state_dict()"]),
    "npy": (lambda: b"\x93NUMPY\x01\0" + bytes(64), ["a NumPy array"]),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), ["an HDF5 file"]),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(64), ["gzip", "unpack it"]),
    "tar": (lambda: bytes(257) + b"ustar\0" + bytes(250), ["a tar archive"]),
    "zip": (lambda: zipped("final_model.pt", to_bytes(STATE)), ["a zip archive", "final_model.pt", "unpack it"]),
    "empty zip": (lambda: b"PK\5\6" + bytes(18), ["a zip archive", "it is empty"]),
    "noise": (lambda: bytes(range(200, 256)) * 9, ["not a whole model file", "kind known here"]),
    "module": (lambda: to_bytes(Net()), ["refused", "fl.models.net.Net", "never run", "state_dict()"]),
    "legacy module": (lambda: legacy(Net()), ["refused", "fl.models.net.Net", "never run"]),
    "NumPy numbers": (lambda: to_bytes({"model": STATE, "best": np.float64(1)}), ["numpy", "never run"]),
    "pickled arrays": (lambda: pickle.dumps([np.zeros(3)]), ["refused", "a Python pickle", "numpy", "torch.save"]),
    "pickled tensors": (lambda: pickle.dumps(STATE), ["refused", "a Python pickle", "torch.save"]),
    "pickled numbers": (lambda: pickle.dumps({"a": 1}, 2), ["refused", "a Python pickle", "torch.save"]),
    "more pickled numbers": (lambda: pickle.dumps({"a": 1}), ["pickled with protocol 4", "torch.save"]),
    "other protocol": (lambda: other_protocol(), ["pickled with protocol 4", "torch.save"]),
    "cut zip": (lambda: to_bytes(STATE)[:-100_000], ["cut off or is damaged"]),
    "cut legacy": (lambda: legacy(STATE)[:-100_000], ["not a whole model file"]),
    "cut early": (lambda: legacy(STATE)[:400], ["not a whole model file"]),
    "cut safetensors": (lambda: safetensors.torch.save(STATE)[:-1], ["a damaged safetensors file"]),
    "cut header": (lambda: safetensors.torch.save(STATE)[:100], ["a damaged safetensors file", "header"]),
    "list": (lambda: to_bytes([1, 2]), ["no state dict", "a list"]),
    "tensor": (lambda: to_bytes(torch.zeros(3)), ["no state dict", "a Tensor"]),
    "nothing": (lambda: to_bytes({}), ["no state dict", "nothing"]),
    "other network": (lambda: to_bytes(torch.nn.Linear(2, 2).state_dict()), ["no state dict", "it has weight, bias"]),
    "optimizer": (lambda: to_bytes({"optimizer": STATE}), ["no state dict", "it has optimizer"]),
}


def other_protocol():
    buffer = io.BytesIO()
    torch.save(STATE, buffer, pickle_protocol=4)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_file_of_another_kind_is_named(kind, tmp_path):
    make, words = KINDS[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(make())
    told = refusal(path)
    for word in words:
        assert word in told, f"{word!r} is not in {told!r}"


def test_what_is_no_file_is_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.pt")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")


def change(name, tensor):
    return lambda: {**STATE, name: tensor}


def without(*names):
    return {name: tensor for name, tensor in STATE.items() if not name.startswith(names)}


SPOILED = STATE[WEIGHT].clone()
SPOILED[0, 0, 0, 0] = float("nan")
LARGE = STATE[WEIGHT].double()
LARGE[0, 0, 0, 0] = 1e300
STATES = {
    "missing": (lambda: without("conv2"), ["2 wrong keys", "missing conv2.weight, conv2.bias"]),
    "extra": (change("extra.weight", torch.zeros(1)), ["1 wrong keys", "unexpected extra.weight"]),
    "statistics missing": (lambda: without("bn1.running"), ["missing bn1.running_mean, bn1.running_var"]),
    "shape": (change(WEIGHT, torch.zeros(64, 3, 5, 5)), [f"{WEIGHT} is torch.float32[64, 3, 5, 5]", "[64, 32, 5, 5]"]),
    "classes": (change("fc3.bias", torch.zeros(7)), ["fc3.bias is torch.float32[7]", "torch.float32[10]"]),
    "transposed": (change("fc1.weight", torch.zeros(2400, 128)), ["fc1.weight", "[2400, 128]", "[128, 2400]"]),
    "NaN": (change(WEIGHT, SPOILED), [WEIGHT, "NaN"]),
    "infinity": (change(WEIGHT, LARGE.float()), [WEIGHT, "infinity"]),
    "FP16 infinity": (change(WEIGHT, LARGE.half()), [WEIGHT, "infinity"]),
    "beyond float32": (change(WEIGHT, LARGE), [WEIGHT, "1e+300", "beyond float32"]),
    "variances": (change("bn1.running_var", -STATE["bn1.running_var"]), ["bn1.running_var", "negative"]),
    "integers": (change(WEIGHT, STATE[WEIGHT].to(torch.int8)), [WEIGHT, "torch.int8", "FP32"]),
    "booleans": (change("bn1.weight", torch.ones(32).bool()), ["bn1.weight", "torch.bool"]),
    "complex": (change("bn1.weight", torch.ones(32) + 0j), ["bn1.weight", "torch.complex64"]),
    "float8": (change("bn1.weight", torch.ones(32).to(torch.float8_e4m3fn)), ["bn1.weight", "torch.float8_e4m3fn"]),
    "no tensor": (change("epoch", 3), ["no tensors with values: epoch"]),
    "number as a name": (change(5, torch.zeros(1)), ["no tensors with values: 5"]),
    "sparse": (change("fc3.bias", torch.zeros(10).to_sparse()), ["no tensors with values: fc3.bias"]),
    "no values": (change("fc3.bias", torch.zeros(10, device="meta")), ["no tensors with values: fc3.bias"]),
    "counter NaN": (change("bn1.num_batches_tracked", torch.tensor(float("nan"))), ["bn1.num_batches_tracked", "nan"]),
    "counter negative": (change("bn1.num_batches_tracked", torch.tensor(-1)), ["bn1.num_batches_tracked", "-1"]),
    "counter too large": (change("bn1.num_batches_tracked", torch.tensor(1e30)), ["bn1.num_batches_tracked", "1e+30"]),
    "many counters": (change("bn1.num_batches_tracked", torch.zeros(4)), ["bn1.num_batches_tracked", "[4]"]),
    "twice": (
        lambda: {**STATE, f"module.{WEIGHT}": STATE[WEIGHT]},
        [f"{WEIGHT} and module.{WEIGHT} are both {WEIGHT}"],
    ),
    "two entries": (lambda: {"model": STATE, "ema": STATE.copy()}, ["'model' and 'ema' hold state dicts"]),
    "outside and inside": (lambda: {**STATE, "ema": STATE.copy()}, ["the file itself and 'ema'"]),
    "one is not whole": (lambda: {"a": without("fc"), "b": {"c": STATE}}, ["'a' and 'b.c' hold state dicts"]),
    "too deep": (lambda: {"a": {"b": {"c": {"d": STATE}}}}, ["no state dict"]),
    "half prefixed": (lambda: {**without("fc3"), "head.weight": STATE["fc3.weight"]}, ["unexpected head.weight"]),
    "integers within": (
        lambda: {"model_state_dict": change(WEIGHT, SPOILED)(), "quantization_info": {"dtype": "int8"}},
        [WEIGHT, "NaN"],
    ),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
@pytest.mark.parametrize("case", STATES)
def test_a_state_dict_that_does_not_fit_is_refused_and_said_where(case, wrapped, tmp_path):
    make, words = STATES[case]
    if wrapped and case == "too deep":
        pytest.skip("deeper still")
    torch.save({"model": make(), "epoch": 3} if wrapped else make(), tmp_path / "model.pt")
    told = refusal(tmp_path / "model.pt")
    for word in words:
        if not word.startswith("'") and "the file itself" not in word:
            assert word in told, f"{word!r} is not in {told!r}"
        elif not wrapped:
            assert word in told


def test_a_container_does_not_matter_to_what_is_refused(tmp_path):
    for name in ("missing", "NaN", "beyond float32", "integers", "twice"):
        make, words = STATES[name]
        state = {key: tensor.clone().contiguous() for key, tensor in make().items()}
        (tmp_path / "a.pt").write_bytes(safetensors.torch.save(state))
        (tmp_path / "b.pt").write_bytes(legacy(state))
        for word in words:
            assert word in refusal(tmp_path / "a.pt")
            assert word in refusal(tmp_path / "b.pt")


def test_nothing_in_a_file_is_run(tmp_path):
    payload = Payload(tmp_path / "pwned")
    for content in (
        pickle.dumps(payload),
        pickle.dumps(payload, protocol=0),
        pickle.dumps(payload, protocol=2),
        to_bytes({"model": STATE, "more": payload}),
        legacy({"model": STATE, "more": payload}),
        zipped("m/data.pkl", pickle.dumps(payload, protocol=2)),
    ):
        (tmp_path / "m.pt").write_bytes(content)
        told = refusal(tmp_path / "m.pt")
        assert ("posix.system" in told and "never run" in told) or "a text file" in told
    assert not (tmp_path / "pwned").exists()


def rezipped(content, change, compression=zipfile.ZIP_STORED):
    """Returns a file of torch with records changed by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name.split("/")[-1], old.read(name)))
    return out.getvalue()


def bombs():
    """Yields (what it is, bytes, words): small files that claim much."""
    claims = torch.zeros(1)
    huge = {**STATE, "fc3.bias": claims.expand(1 << 40), "fc3.weight": claims.expand(1 << 40, 128)}
    yield "stride 0", to_bytes(huge), ["claim more values than are stored", "fc3"]
    yield "stride 0, legacy", legacy(huge), ["claim more values than are stored"]
    right = {**STATE, "fc1.weight": claims.expand(128, 2400)}
    yield "stride 0, right shape", to_bytes({"state_dict": right}), ["claim more values", "fc1.weight"]
    zeros = to_bytes({**STATE, "fc3.bias": torch.zeros(1 << 20)})
    yield "deflated", rezipped(zeros, lambda name, record: record, zipfile.ZIP_DEFLATED), ["compressed"]
    memory = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R."
    changed = lambda name, record: memory if name == "data.pkl" else record  # noqa: E731
    yield "memory at will", rezipped(to_bytes(STATE), changed), ["bytearray"]
    yield "memory at will, legacy", legacy({})[:18] + memory * 4, ["bytearray"]
    nested = b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."
    yield "nested", rezipped(to_bytes(STATE), lambda n, r: nested if n == "data.pkl" else r), ["no state dict"]
    looped = {"epoch": 1}
    looped["self"] = looped
    yield "looped", to_bytes(looped), ["no state dict"]
    levels = {"a": 1}
    for _ in range(60):
        levels = {"left": levels, "right": levels}
    yield "doubling", to_bytes(levels), ["no state dict"]
    info = {"precision": "int8", "num_classes": 10**9}
    yield "classes", to_bytes({"model_state_dict": STATE, "quantization_info": info}), ["has not the"]
    grown = {
        "model_state_dict": {**STATE, "x": claims.expand(1 << 40)},
        "quantization_info": {**info, "num_classes": 9},
    }
    yield "stride 0 in our own", to_bytes(grown), ["claim more values", "x"]
    header = json.dumps({"fc3.bias": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    yield "safetensors tensor", struct.pack("<Q", len(header)) + header, ["a damaged safetensors file"]
    yield "safetensors header", struct.pack("<Q", 1 << 47) + header, ["a damaged safetensors file", "header"]
    again = json.dumps({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}).encode()
    yield "safetensors overlap", struct.pack("<Q", len(again)) + again + bytes(4), ["a damaged safetensors file"]
    twice = zipped("m/data.pkl", b"\x80\x02}.")
    yield "two of a name", twice[: twice.index(b"PK\1\2")] + two_entries(twice), ["m/data.pkl, m/data.pkl"]


def two_entries(content):
    """Returns the directory of a zip archive with its one entry said twice."""
    entry, end = content[content.index(b"PK\1\2") : content.index(b"PK\5\6")], content[content.index(b"PK\5\6") :]
    count, size = struct.pack("<HH", 2, 2), struct.pack("<I", 2 * len(entry))
    return 2 * entry + end[:8] + count + size + end[16:]


WEIGH = """
import resource, sys, torch
from pathlib import Path
from fl.core.errors import ModelFileError
from fl.quantization.model_file import load_model
for path in sorted(Path(sys.argv[1]).glob("*.pt")):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_model(path, device="cpu")
        print(path.stem, "LOADED")
    except ModelFileError as error:
        print(path.stem, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error, sep="|")
"""


def test_a_file_that_claims_much_takes_little_memory(tmp_path):
    """Each in turn in one process of its own, whose peak may grow by what the file is worth."""
    cases = [*bombs(), ("sparse file", None, ["bytes; no model file"])]
    for name, content, _ in cases:
        with open(tmp_path / f"{name}.pt", "wb") as file:
            if content is None:
                file.truncate(2**40)
            else:
                file.write(content)
    done = subprocess.run(
        [sys.executable, "-c", WEIGH, tmp_path], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = {line.split("|")[0]: line.split("|") for line in done.stdout.splitlines()}
    for name, _, words in cases:
        _, grown, message = told[name]
        assert int(grown) < 64, f"{name}: {grown} MB"
        assert all(word in message for word in words), message


def test_the_commands_end_in_that_line(refused, tmp_path):
    (tmp_path / "m.pt").write_bytes(to_bytes(Net()))
    (tmp_path / "m.safetensors").write_bytes(safetensors.torch.save(without("conv2")))
    words = ["m.pt", "fl.models.net.Net", "never run", "torch.save(model.state_dict(), PATH)"]
    assert refused("compare_quantizations.py", tmp_path / "m.pt", "--data", "synthetic", words=words).isprintable()
    assert refused("fl", "bench", tmp_path / "m.safetensors", words=["2 wrong keys", "conv2.weight"]).isprintable()
