"""In what clients compute: mixed precision and quantization-aware training, on real messages, into comparisons."""

import pytest
import torch
from conftest import SMALL, composed, train

from fl.core.files import read_json, read_jsonl
from fl.core.lines import Lines
from fl.core.run_folder import CLIENTS
from fl.core.targets import Target
from fl.experiment.run import run
from fl.experiment.settings import settings_from
from fl.federation.checkpoint import newest_checkpoint
from fl.federation.client_states import ClientStates
from fl.models.net import Net, initial_model
from fl.quantization import qat
from fl.training.arithmetic import Amp, Fp32, Qat
from fl.training.local import TrainingSettings, train_locally

ADAM = Target("torch.optim.Adam")


def trained(precision, model=None, count=32):
    """Trains a fresh model for an epoch; returns it, its loss and the dtypes of what its layers gave."""
    images = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 10
    model = precision.prepared(Net())
    model.load_state_dict(initial_model(10, 0).state_dict())
    seen = {}
    for name in ("conv2", "fc1"):
        hook = lambda module, args, output, name=name: seen.update({name: output.dtype})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    settings = TrainingSettings(1, 16, "none", ADAM, 0.0, precision)
    generator = torch.Generator().manual_seed(5)
    loss = train_locally(model, images, labels, settings, lr=0.001, proximal_mu=0.0, generator=generator)
    return model, loss, seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_computes_in_16_bits_and_keeps_fp32_weights(dtype):
    exact, exact_loss, seen = trained(Fp32())
    assert set(seen.values()) == {torch.float32}
    mixed, loss, seen = trained(Amp(dtype))
    assert set(seen.values()) == {getattr(torch, dtype)}
    assert loss == pytest.approx(exact_loss, rel=0.02)
    for (name, ours), theirs in zip(mixed.state_dict().items(), exact.state_dict().values(), strict=True):
        assert ours.dtype == theirs.dtype, name
        assert ours.isfinite().all()
    assert not torch.equal(mixed.fc1.weight, exact.fc1.weight)


@pytest.mark.exhaustive
def test_the_16_bit_type_is_chosen_for_the_hardware_and_told(monkeypatch, tmp_path, capsys):
    def cpu(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        return Amp().describe("cpu")

    assert cpu(avx512_bf16=True, amx_bf16=False) == "amp bfloat16"
    assert cpu(avx512_bf16=False, amx_bf16=False) == "amp float32 (no 16-bit instructions here)"
    assert trained(Amp())[1] == trained(Fp32())[1]
    for capability, expected in (((8, 0), "bfloat16"), ((7, 5), "float16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert Amp().describe("cuda") == f"amp {expected}"
    cpu(avx512_bf16=True)
    (tmp_path / "run").mkdir()
    run(composed(*SMALL, "num_rounds=1", "training=amp"), tmp_path / "run")
    assert "amp bfloat16" in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "summary.json")["training_precision"] == "amp bfloat16"


def test_bfloat16_is_chosen_where_the_hardware_has_it(monkeypatch):
    for there, expected in ((True, "amp bfloat16"), (False, "amp float32 (no 16-bit instructions here)")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda there=there: {"avx512_bf16": there, "avx2": True})
        assert Amp().describe("cpu") == expected
    assert Amp("float16").describe("cpu") == "amp float16"
    assert not Amp("bfloat16").scaler("cpu").is_enabled()
    assert Amp("float16").scaler("cpu").is_enabled()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_bits_of_aware_training_are_those_that_were_asked_for(bits):
    """The first layer has 8 bits always; a channel of the second one takes at most so many values in each group."""
    network = Qat(bits).prepared(Net())
    network.load_state_dict(initial_model(10, 0).state_dict())
    weight = network.conv2.weight
    rounded = qat._rounded(weight, network.conv2.groups_of_levels)
    assert network.conv1.groups_of_levels is network.fc3.groups_of_levels is None
    assert not torch.equal(rounded, weight)
    values = max(len(torch.unique(channel.flatten()[:32])) for channel in rounded.detach())
    assert values > 16 if bits == 8 else values <= 15


def scales(folder):
    """Returns what each client's loss is scaled by, from the last checkpoint."""
    listing = newest_checkpoint(folder, Lines(folder / "rounds.jsonl")).clients
    states = ClientStates(folder / CLIENTS)
    states.restore(listing, 1)
    return {node: states.get(node)["quantfl.scaler"]["scale"] for node in listing}


@pytest.mark.long  # CPUs have no quick float16
def test_loss_scaling_is_kept_for_each_client_and_a_run_that_goes_on_has_it(tmp_path):
    """The first steps overflow and halve the scale; a client that forgot it would start its next round at 65536."""
    few = ["data.num_images=60", "num_clients=2", "batch_size=12", "training=amp", "training.dtype=float16"]
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        folder.mkdir()
    run(composed(*SMALL, *few), folders[0])
    run(composed(*SMALL, *few, "time_limit_min=0.0001"), folders[1])
    assert len(read_jsonl(folders[1] / "rounds.jsonl")) == 1
    first, second = scales(folders[1]), scales(folders[0])
    assert len(first) == 2
    assert all(second[node] <= first[node] < 2.0**16 for node in first)
    (folders[1] / "final_model.pt").unlink()
    run(composed(*SMALL, *few), folders[1], resume=True)
    assert scales(folders[1]) == second
    assert folders[0].joinpath("final_model.pt").read_bytes() == folders[1].joinpath("final_model.pt").read_bytes()


@pytest.mark.parametrize(
    "bits", [pytest.param(8, marks=pytest.mark.exhaustive), pytest.param(4, marks=pytest.mark.long)]
)
def test_quantization_aware_training_learns_with_every_codec_and_strategy(bits, tmp_path):
    codecs = ["codec@broadcast=int8", "codec@update=ecq", "update.bits=3"] if bits == 4 else []
    strategy = ["strategy=fedadam"] if bits == 8 else []
    folder = tmp_path / "run"
    folder.mkdir()
    model = run(composed(*SMALL, "training=qat", f"training.bits={bits}", *codecs, *strategy), folder)
    state = torch.load(model, weights_only=True)
    assert list(state) == list(initial_model(10, 0).state_dict())
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert len(torch.unique(state["fc1.weight"][0])) > 2000  # the weights themselves are not rounded
    records = read_jsonl(folder / "rounds.jsonl")
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert read_json(folder / "summary.json")["training_precision"] == f"qat int{bits}"


@pytest.mark.long
def test_both_engines_train_aware_of_quantization_to_the_same_bytes(command, tmp_path):
    pytest.importorskip("ray")
    models = []
    for engine in ("in_process", "ray"):
        (tmp_path / engine).mkdir()
        folder = train(command, *SMALL, "num_rounds=1", "training=qat", f"engine={engine}", cwd=tmp_path / engine)
        models.append((folder / "final_model.pt").read_bytes())
    assert models[0] == models[1]


@pytest.mark.exhaustive
def test_a_model_trained_for_int4_is_marked_as_such(command, tmp_path):
    folder = train(command, *SMALL, "num_rounds=1", "training=qat", "training.bits=4", cwd=tmp_path)
    done = command("compare_quantizations.py", folder / "final_model.pt", "--precisions", "all", check=0)
    entries = read_json(folder / "quantization_comparison.json")["precisions"]
    assert list(entries) == ["fp32", "fp16", "int8", "int8_static", "int4", "int2"]
    assert {name: entry.get("trained_with") for name, entry in entries.items()} == dict.fromkeys(entries) | {
        "int4": "qat int4"
    }
    assert "INT4 QAT" in done.stdout
    assert "INT8 QAT" not in done.stdout
    import fl

    assert fl.load_model(folder / "model_int4.pt").quantization_info["trained_with"] == "qat int4"
    command("compare_quantizations.py", folder / "final_model.pt", "--verify", check=0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training=qat", "training.bits=3"], ["training.bits=3"]),
        (["training=amp", "training.dtype=float8"], ["training.dtype=float8", "bfloat16"]),
        (["training=fp32", "+training.bits=8"], ["training.bits"]),
        (["training=fp8"], ["training=fp8", "amp, fp32, qat"]),
    ],
)
def test_impossible_training_precisions_are_refused(overrides, words, refused):
    refused("fl.train", *SMALL, *overrides, words=words)


@pytest.mark.parametrize(
    ("experiment", "precision", "codec"),
    [("fp32", Fp32, None), ("fp16", Amp, "fl.codec.Fp16"), ("int8", Qat, "fl.codec.Uniform")],
)
def test_experiments_join_training_and_traffic(experiment, precision, codec):
    settings = settings_from(composed(f"experiment={experiment}"))
    assert type(settings.training.arithmetic) is precision
    ways = (settings.codecs.broadcast, settings.codecs.update)
    assert {f"fl.codec.{type(way).__name__}" if way else None for way in ways} == {codec}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("overrides", [["training=amp"], ["training=amp", "training.dtype=float16"], ["training=qat"]])
def test_training_precisions_run_on_cuda(overrides, tmp_path):
    (tmp_path / "run").mkdir()
    model = run(composed(*SMALL, *overrides, "device=cuda"), tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in torch.load(model, weights_only=True).values())
