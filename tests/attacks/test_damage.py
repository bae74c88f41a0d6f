"""Whatever happens to the files of a run while it is not running: it is noticed, and the run ends as it would have."""

import hashlib
import io
import json
import os
import random
import resource
import shutil
import zipfile

import pytest
import torch
from attacks.test_kills import RUN
from conftest import composed

from fl.core.errors import QuantflError, RunError
from fl.core.files import read_json, write_json
from fl.core.lines import Lines
from fl.core.run_folder import CHECKPOINT, CLIENTS, PREVIOUS_CHECKPOINT
from fl.core.units import MIB
from fl.experiment.run import run
from fl.federation.checkpoint import MARK, newest_checkpoint
from fl.federation.client_states import ClientStates
from fl.quantization.model_file import to_bytes

BLOCK = 4096


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed after its second round of three, and the final model of one that was not."""
    folder = tmp_path_factory.mktemp("stopped")
    for name in ("whole", "run"):
        (folder / name).mkdir()
    whole = run(composed(*RUN), folder / "whole")
    rounds, saved = 0, os.replace

    def replace(source, target):
        nonlocal rounds
        rounds += str(target).endswith(CHECKPOINT)
        saved(source, target)
        if rounds == 2 and str(target).endswith(CHECKPOINT):
            raise SystemExit

    os.replace = replace
    try:
        with pytest.raises(SystemExit):
            run(composed(*RUN), folder / "run")
    finally:
        os.replace = saved
    assert Lines(folder / "run" / "rounds.jsonl").count() == 2
    return folder / "run", whole.read_bytes()


@pytest.fixture
def copy(stopped, tmp_path):
    """A copy of the stopped run, and the bytes that it must end with."""
    shutil.copytree(stopped[0], tmp_path / "run")
    return tmp_path / "run", stopped[1]


def restored(folder):
    return newest_checkpoint(folder, Lines(folder / "rounds.jsonl")).round


def bits(content, number):
    """Flips one bit, in each part of the file."""
    rng = random.Random(number)
    for part in range(number):
        at = rng.randrange(len(content) * part // number, len(content) * (part + 1) // number)
        yield content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def blocks(content, number):
    """Zeroes one block that is not zero."""
    places = [at for at in range(0, len(content), BLOCK) if any(content[at : at + BLOCK])]
    for at in random.Random(number).sample(places, min(number, len(places))):
        yield content[:at] + bytes(len(content[at : at + BLOCK])) + content[at + BLOCK :]


def ends(content, number):
    """Cuts it off, or adds to it."""
    for part in range(number):
        yield content[: len(content) * part // number]
    yield content + b"\0"
    yield content + content


@pytest.mark.parametrize("damage", [bits, blocks, ends])
def test_no_damage_of_a_checkpoint_goes_unnoticed(damage, copy, capsys):
    folder, _ = copy
    content = (folder / CHECKPOINT).read_bytes()
    assert restored(folder) == 2
    for damaged in damage(content, {bits: 100, blocks: 30, ends: 20}[damage]):
        (folder / CHECKPOINT).write_bytes(damaged)
        assert restored(folder) == 1
        said = capsys.readouterr().out
        assert said.count("\n") == 1
        assert f"{CHECKPOINT}: is damaged" in said
        assert f"going on after round 1, from {PREVIOUS_CHECKPOINT}" in said
        assert not (folder / CHECKPOINT).exists(), "it would be kept as the previous one"


def test_with_a_damaged_checkpoint_a_run_ends_in_the_same_bytes(copy):
    folder, whole = copy
    content = (folder / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(next(bits(content, 1)))
    assert run(composed(*RUN), folder, resume=True).read_bytes() == whole


def named_in(path):
    """Names of the files of clients' states that a checkpoint lists."""
    listing = torch.load(path, weights_only=True)["clients"]
    return {name for held in listing.values() for name in held.values()}


@pytest.mark.parametrize("damage", [bits, blocks, ends])
@pytest.mark.exhaustive
def test_no_damage_of_what_a_client_remembers_goes_unnoticed(damage, copy, capsys):
    folder, whole = copy
    newest = named_in(folder / CHECKPOINT) - named_in(folder / PREVIOUS_CHECKPOINT)
    assert len(newest) >= 3, "the reference, and what two clients kept for themselves"
    assert {path.name for path in (folder / CLIENTS).iterdir()} == named_in(folder / CHECKPOINT) | named_in(
        folder / PREVIOUS_CHECKPOINT
    )
    checkpoint = (folder / CHECKPOINT).read_bytes()
    for name in sorted(newest):
        content = (folder / CLIENTS / name).read_bytes()
        for damaged in damage(content, 5):
            (folder / CLIENTS / name).write_bytes(damaged)
            (folder / CHECKPOINT).write_bytes(checkpoint)
            assert restored(folder) == 1
            assert f"{name}: is damaged" in capsys.readouterr().out
        (folder / CLIENTS / name).write_bytes(content)
    (folder / CHECKPOINT).write_bytes(checkpoint)
    (folder / CLIENTS / name).write_bytes(damaged)
    assert run(composed(*RUN), folder, resume=True).read_bytes() == whole
    assert {path.name for path in (folder / CLIENTS).iterdir()} == named_in(folder / CHECKPOINT) | named_in(
        folder / PREVIOUS_CHECKPOINT
    )


def test_what_both_checkpoints_need_is_not_gone_without(copy):
    folder, _ = copy
    name = min(named_in(folder / CHECKPOINT) & named_in(folder / PREVIOUS_CHECKPOINT))
    (folder / CLIENTS / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: what a client remembers cannot be read .*start the run again in a"):
        run(composed(*RUN), folder, resume=True)


@pytest.mark.parametrize("keep", [1, 0])
def test_with_lines_missing_a_run_ends_in_the_same_bytes_or_does_not_begin(keep, copy):
    folder, whole = copy
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text("".join(lines[:keep]))
    if keep:
        assert run(composed(*RUN), folder, resume=True).read_bytes() == whole
        return
    with pytest.raises(RunError, match=r"rounds\.jsonl: is not what the checkpoint of round 2 was saved with"):
        run(composed(*RUN), folder, resume=True)
    assert (folder / CHECKPOINT).exists()
    assert (folder / PREVIOUS_CHECKPOINT).exists()


@pytest.mark.parametrize("change", ['"round": -1,', '"round": 3,', '"round":1,'])
def test_changed_lines_are_not_continued(change, copy):
    folder, _ = copy
    text = (folder / "rounds.jsonl").read_text()
    (folder / "rounds.jsonl").write_text(text.replace('"round": 1,', change))
    with pytest.raises(RunError, match=r"rounds\.jsonl: is not what .*start the run again in a new folder"):
        run(composed(*RUN), folder, resume=True)


def test_a_line_whose_writer_died_is_written_again(copy):
    folder, whole = copy
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"version": 2, "round": 3, "lr"')
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "cl')
    assert run(composed(*RUN), folder, resume=True).read_bytes() == whole
    assert [json.loads(line)["round"] for line in (folder / "rounds.jsonl").read_text().splitlines()] == [1, 2, 3]
    events = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "resumed", "completed"]


@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "checkpoint_previous.pt", "events.jsonl", "shares.npz", "partition.json"]
)
@pytest.mark.exhaustive
def test_a_missing_file_is_made_again(name, copy):
    folder, whole = copy
    (folder / name).unlink()
    assert run(composed(*RUN), folder, resume=True).read_bytes() == whole
    assert (folder / name).exists()


def test_without_any_checkpoint_a_run_is_not_guessed(copy):
    folder, _ = copy
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        (folder / name).unlink()
    with pytest.raises(RunError, match=r"holds no checkpoint\.pt, though rounds were recorded; start the run again"):
        run(composed(*RUN), folder, resume=True)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("lr=0.004", "lr was 0.003 when round 2 was saved, and is 0.004 now"),
        ("update.decay=0.5", "update.decay was 1.0 when"),
        ("~update", "update._target_ was fl.codec.Uniform when"),
        ("seed=7", "the data has changed since the run began"),
    ],
)
def test_a_run_goes_on_with_its_own_settings(override, told, copy):
    folder, _ = copy
    settings = read_json(folder / "settings.json")
    key, _, value = override.removeprefix("update.").partition("=")
    if override == "~update":
        settings["update"] = None
    else:
        (settings["update"] if override.startswith("update.") else settings)[key] = json.loads(value)
    write_json(folder / "settings.json", settings)
    with pytest.raises(QuantflError, match=told):
        run(read_json(folder / "settings.json"), folder, resume=True)


# Checkpoints that somebody wrote, with a right checksum

CLAIMED = torch.zeros(1).expand(1 << 30)
TWICE = torch.zeros(1 << 18)
KERNEL = "fc1.weight"


def signed(body):
    return body + MARK + hashlib.sha256(body).digest()


def deflated(body):
    with zipfile.ZipFile(io.BytesIO(body)) as archive, zipfile.ZipFile(packed := io.BytesIO(), "w", 8) as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, archive.read(entry))
    return packed.getvalue()


def in_state(make):
    def change(told):
        told["state"][KERNEL] = make(told["state"][KERNEL])

    return change


def part(*path, value):
    def change(told):
        for name in path[:-1]:
            told = told[name]
        told[path[-1]] = value

    return change


def endless(told):
    told["inputs"]["again"] = [told["inputs"]["settings"]]
    for _ in range(100):
        told["inputs"]["again"] = [told["inputs"]["again"]] * 10


FORGED = {
    "claimed values": (in_state(lambda old: CLAIMED), "these claim more values than are stored: state"),
    "claimed momentum": (part("strategy", "m_t", value={"dict": {"w": CLAIMED}}), "are stored: strategy"),
    "one tensor many times": (part("strategy", "m_t", value={"list": [TWICE] * 999}), "it claims tensors of 1,05"),
    "another layout": (in_state(torch.Tensor.to_sparse), "these are no tensors with values: state"),
    "a parameter": (in_state(torch.nn.Parameter), "state holds a Parameter"),
    "nested without end": (endless, "it is nested without end"),
    "NaN": (in_state(lambda old: old * torch.nan), "fc1.weight holds NaN or infinity"),
    "infinity": (in_state(lambda old: old / 0), "fc1.weight holds NaN or infinity"),
    "another shape": (in_state(lambda old: old[:1].clone()), "1 wrong shapes or types: fc1.weight"),
    "another type": (in_state(torch.Tensor.double), "1 wrong shapes or types: fc1.weight"),
    "another network": (part("state", value={"w": torch.zeros(3)}), "wrong keys for this network"),
    "a list": (lambda told: [told], "it is a list"),
    "no round": (lambda told: told.pop("round") * 0, "TypeError"),
    "a round as text": (part("round", value="2"), "ValidationError"),
    "a mark that is none": (part("records", value=5), "ValidationError"),
    "a mark before the file": (part("records", value=(-5, hashlib.sha256().hexdigest())), "ValidationError"),
    "clients that are none": (part("clients", value=5), "AttributeError"),
    "a round of its own": (part("round", value=7), "is not what the checkpoint of round 7 was saved with"),
    "no settings": (part("inputs", value={}), "KeyError"),
    "settings of tensors": (part("inputs", "settings", "lr", value=TWICE), "inputs holds a Tensor"),
    "a link that is none": (part("link", value={}), "KeyError"),
    "a chain that is none": (part("link", "chain", "ids", value=[]), "ValueError"),
    "a checksum that is none": (part("link", "accepted", value={2: "x"}), "ValueError"),
    "a method": (part("strategy", "configure_train", value={"number": 5}), "configure_train of the strategy is no num"),
    "a class": (part("strategy", "__class__", value={"number": 5}), "__class__ of the strategy is no number"),
    "another kind": (part("strategy", "m_t", value={"number": torch.zeros(1)}), ""),
}


def forged(content, change):
    told = torch.load(io.BytesIO(content[: -len(MARK) - 32]), weights_only=True)
    changed = change(told)
    return signed(to_bytes(changed if isinstance(changed, list) else told))


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_checkpoint_is_one_line_and_takes_no_memory(kind, copy):
    folder, _ = copy
    change, told = FORGED[kind]
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        (folder / name).write_bytes(forged((folder / name).read_bytes(), change))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match="start the run again in a new folder") as caught:
        run(composed(*RUN), folder, resume=True)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * MIB / 1024


@pytest.mark.parametrize("kind", ["compressed", "a folder", "a pipe"])
def test_what_is_no_plain_archive_is_not_read(kind, copy, capsys):
    folder, _ = copy
    path = folder / CHECKPOINT
    if kind == "compressed":
        path.write_bytes(signed(deflated(to_bytes({"state": {KERNEL: torch.zeros(1 << 22)}}))))
    else:
        path.unlink()
        os.mkfifo(path) if kind == "a pipe" else path.symlink_to(folder)
    assert restored(folder) == 1
    told = {
        "compressed": "is refused: its tensors are compressed, which torch never does)",
        "a folder": f"{CHECKPOINT}: Is a directory",
        "a pipe": f"{CHECKPOINT}: is no regular file",
    }
    assert told[kind] in capsys.readouterr().out


def test_before_a_forged_checkpoint_a_run_goes_on_to_the_same_bytes(copy, capsys):
    folder, whole = copy
    (folder / CHECKPOINT).write_bytes(forged((folder / CHECKPOINT).read_bytes(), FORGED["NaN"][0]))
    assert run(composed(*RUN), folder, resume=True).read_bytes() == whole
    assert f"holds NaN or infinity); going on after round 1, from {PREVIOUS_CHECKPOINT}" in capsys.readouterr().out


def test_what_a_client_remembers_is_parsed_or_refused(copy):
    folder, _ = copy
    content = b"\xff no record"
    name = f"00001-{hashlib.sha256(content).hexdigest()}"
    (folder / CLIENTS / name).write_bytes(content)
    states = ClientStates(folder / CLIENTS)
    states.restore({2: {"told": name}}, 2)
    with pytest.raises(RunError, match="what a client remembers is damaged"):
        states.get(2)
