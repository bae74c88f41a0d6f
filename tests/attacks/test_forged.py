"""Files of a run or a sweep that others wrote: whatever stands in them, a command ends well or in one line."""

import importlib
import io
import json
import random
import shutil
import struct
import sys
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from conftest import REPOSITORY, SMALL, run_small

from fl.communication.pricing import load_link
from fl.core.errors import ConfigError
from fl.core.files import parsed, read_json, read_jsonl, read_npz, write_npz, yaml_text
from fl.core.records import read_rounds
from fl.experiment.run import run
from fl.report import write_report
from fl.report.plots import draw
from fl.report.records import RunRecords

REPLACEMENTS = [None, -1, 10**400, "text", "\x1b[31m=1+1", [], {}, [[1]], True, float("nan"), float("-inf"), 0, 1e308]
MANY = pytest.param(60, marks=pytest.mark.exhaustive)
FILES = {
    "fl.commands.communication": ["rounds.jsonl", "communication.json", "summary.json", "quantization_comparison.json"],
    "fl.commands.recommend": ["quantization_comparison.json", "summary.json", "communication.json"],
    "fl.commands.export": ["summary.json", "rounds.jsonl", "settings.json", "partition.json"],
    "fl.commands.compare": ["summary.json", "settings.json", "partition.json", "communication.json", "rounds.jsonl"],
    "--verify": ["quantization_comparison.json"],
}
CASES = [(command, name) for command, names in FILES.items() for name in names]


def places(value, path=()):
    """Yields every place in a JSON document, to be removed or replaced."""
    if isinstance(value, dict):
        for key in value:
            yield (*path, key), True
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number in range(min(2, len(value))):
            yield from places(value[number], (*path, number))
    yield path, False


def forged(document, path, removed, new):
    if not path:
        return new
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if removed:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


def forgeries(text, lines, count, seed):
    """Returns so many texts with one place of the document changed."""
    document = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    every = [(p, r, new) for p, r in places(document) for new in ([None] if r else REPLACEMENTS)]
    for path, removed, new in random.Random(seed).sample(every, min(count, len(every))):
        changed = forged(document, path, removed, new)
        whole = lines and isinstance(changed, list)
        yield (path, new), "\n".join(map(json.dumps, changed)) + "\n" if whole else json.dumps(changed)


def ended(command, *arguments, monkeypatch, capsys):
    """Runs a command in this process; returns its exit code and what it said on stderr."""
    monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
    capsys.readouterr()
    code = 0
    try:
        importlib.import_module(command).main()
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


@pytest.fixture(scope="session")
def finished(small_run, tmp_path_factory, preloaded):
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(small_run, folder)
    arguments = [REPOSITORY / "compare_quantizations.py", folder, "--precisions", "fp16"]
    assert preloaded.run(arguments, folder).returncode == 0
    return folder


@pytest.mark.parametrize("count", [2, MANY])
@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_forged_file_of_a_run_is_one_line_or_harmless(finished, tmp_path, command, name, count, monkeypatch, capsys):
    module = "fl.commands.compare" if command == "--verify" else command
    options = {"fl.commands.compare": ["--precisions", "fp16"], "--verify": ["--verify"]}.get(command, [])
    for number, (told, text) in enumerate(forgeries((finished / name).read_text(), name.endswith("l"), count, seed=1)):
        folder = tmp_path / str(number)
        shutil.copytree(finished, folder)
        (folder / name).write_text(text)
        code, errors = ended(module, folder, *options, monkeypatch=monkeypatch, capsys=capsys)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code in (0, 1, 2), told
        assert len(lines) == (code != 0), (told, errors)
        assert "\x1b" not in errors, told
        shutil.rmtree(folder)


# Sweeps

SWEEP_FILES = ["0/rounds.jsonl", "0/summary.json", "0/partition.json", "sweep_plan.json"]


@pytest.fixture(scope="session")
def sweep(tmp_path_factory, preloaded):
    folder = tmp_path_factory.mktemp("sweep") / "multirun"
    wanted = [*SMALL, "num_rounds=1", "data.num_images=150", "seed=1,2", f"hydra.sweep.dir={folder}"]
    assert preloaded.run(["-m", "fl.train", "-m", *wanted], folder.parent).returncode == 0
    return folder


@pytest.mark.parametrize("count", [6, MANY])
@pytest.mark.parametrize("name", SWEEP_FILES)
@pytest.mark.long
def test_a_forged_file_of_a_sweep_is_one_line_or_harmless(sweep, tmp_path, name, count, monkeypatch, capsys):
    for number, (told, text) in enumerate(forgeries((sweep / name).read_text(), name.endswith("l"), count, seed=2)):
        folder = tmp_path / str(number)
        shutil.copytree(sweep, folder)
        (folder / name).write_text(text)
        code, errors = ended("fl.commands.sweep", folder, monkeypatch=monkeypatch, capsys=capsys)
        assert code in (0, 1, 2), told
        assert len(errors.splitlines()) == (code != 0), (told, errors)
        shutil.rmtree(folder)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "a bomb of aliases": BOMB,
    "a name that stands for itself": "hydra: &h [*h]\n",
    "nothing": "",
    "a list": "- 1\n- 2\n",
    "no number": "hydra:\n  job:\n    num: many\n",
    "another kind": "hydra: 7\n",
    "no YAML": "{{{",
    "an object": "!!python/object/apply:os.system ['touch was-run']\n",
    "much": "a: " + "x" * (1 << 21),
    "deep": "[" * 5000,
}


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("name", ["0/.hydra/hydra.yaml", "0/.hydra/overrides.yaml"])
def test_forged_yaml_of_a_sweep_is_one_line_or_harmless(sweep, tmp_path, kind, name, monkeypatch, capsys):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep, folder)
    (folder / "sweep_plan.json").unlink()
    (folder / name).write_text(YAML[kind])
    monkeypatch.chdir(tmp_path)
    code, errors = ended("fl.commands.sweep", folder, monkeypatch=monkeypatch, capsys=capsys)
    assert len(errors.splitlines()) == (code != 0), errors
    assert code == 2 or (name.endswith("overrides.yaml") and kind in ("nothing", "a list"))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("kind", YAML)
def test_forged_links_are_one_line(tmp_path, kind):
    (tmp_path / "link.yaml").write_text(YAML[kind])
    with pytest.raises(ConfigError) as told:
        load_link(str(tmp_path / "link.yaml"))
    assert len(str(told.value).splitlines()) == 1
    assert len(str(told.value)) < 1000


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "bomb.yaml").write_text(BOMB)
    with pytest.raises(ValueError, match="has an alias"):
        yaml_text(tmp_path / "bomb.yaml")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1" * 400, "[" * 100_000])
def test_what_python_takes_for_json_and_is_none(text):
    with pytest.raises((ValueError, RecursionError)):
        parsed(text)
    assert parsed('{"a": [1, 2.5e3, -1, 1e308]}') == {"a": [1, 2500.0, -1, 1e308]}


# Examples that are stored, forged

RUN, ORBIT = REPOSITORY / "examples" / "run", REPOSITORY / "examples" / "orbit"


def replaced(path, change):
    """Writes a JSON or JSONL file again after `change` was called with its document."""
    lines = path.suffix == ".jsonl"
    document = read_jsonl(path) if lines else read_json(path)
    change(document)
    path.write_text("".join(f"{json.dumps(each)}\n" for each in document) if lines else json.dumps(document))


CONTRADICTIONS = {
    "a round twice": (lambda lines: lines.insert(1, lines[0]), "line 2: .*round 1 where 2 belongs"),
    "a round is missing": (lambda lines: lines.pop(2), "line 3: .*round 4 where 3 belongs"),
    "not from the first on": (lambda lines: lines.pop(0), "line 1: .*round 2 where 1 belongs"),
    "a half": (lambda lines: lines[1].update(round=2.5), "line 2: .*round 2.5 where 2 belongs"),
    "a sum": (
        lambda lines: lines[3]["update"].update(payload_bytes=1),
        r"line 4: .*update has 1 payload_bytes, its cli",
    ),
    "of messages": (
        lambda lines: lines[3]["broadcast"].update(message_bytes=1),
        "line 4: .*broadcast has 1 message_byte",
    ),
    "of FP32": (
        lambda lines: lines[0]["update"].update(fp32_payload_bytes=10**9),
        "line 1: .*1000000000 fp32_payload_b",
    ),
    "a client": (lambda lines: lines[1]["clients"].pop(), "line 2: .*its clients"),
    "less than nothing": (
        lambda lines: lines[1]["clients"][0].update(update_payload_bytes=-1),
        "line 2: .*bytes is -1",
    ),
    "a part of a byte": (
        lambda lines: lines[1]["clients"][0].update(update_payload_bytes=0.5),
        "line 2: .*bytes is 0.5",
    ),
    "more than were asked": (lambda lines: lines[1].update(clients_completed=10**6), "line 2: .*clients completed"),
    "of before, a sum": (
        lambda lines: (lines[3].pop("version"), lines[3]["update"].update(payload_bytes=1)),
        "line 4: .*update has 1 payload_bytes",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
@pytest.mark.parametrize("example", [RUN, ORBIT])
def test_rounds_that_contradict_themselves_are_refused_by_line(example, kind, tmp_path):
    change, told = CONTRADICTIONS[kind]
    shutil.copy(example / "rounds.jsonl", tmp_path)
    replaced(tmp_path / "rounds.jsonl", change)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/rounds.jsonl: is damaged \({told}"):
        read_rounds(tmp_path / "rounds.jsonl")


@pytest.mark.parametrize("kind", ["some lines alone", "falls"])
def test_simulated_time_goes_on_from_line_to_line(kind, tmp_path):
    def change(lines):
        lines[4].pop("simulated_s") if kind == "some lines alone" else lines[4].update(simulated_s=1.0)

    shutil.copy(ORBIT / "rounds.jsonl", tmp_path)
    replaced(tmp_path / "rounds.jsonl", change)
    with pytest.raises(ConfigError, match=rf"line 5: .*simulated_s.*{kind}"):
        read_rounds(tmp_path / "rounds.jsonl")


def test_rounds_as_runs_write_them_are_read(tmp_path):
    for path in (REPOSITORY / "examples" / "rounds.jsonl", RUN / "rounds.jsonl", ORBIT / "rounds.jsonl"):
        assert [each["round"] for each in read_rounds(path)] == list(range(1, len(read_jsonl(path)) + 1))
    shutil.copy(ORBIT / "rounds.jsonl", tmp_path)
    replaced(tmp_path / "rounds.jsonl", lambda lines: lines[-1].update(train_loss=None))  # no update since the last
    assert read_rounds(tmp_path / "rounds.jsonl")[-1]["train_loss"] is None


@pytest.mark.parametrize("command", ["communication", "export", "plot"])
def test_every_reader_refuses_rounds_that_contradict_themselves(command, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(RUN, tmp_path / "run")
    replaced(folder / "rounds.jsonl", CONTRADICTIONS["a sum"][0])
    options = ["--output", tmp_path / "made"] if command != "communication" else []
    code, errors = ended(f"fl.commands.{command}", folder, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "rounds.jsonl: is damaged (line 4: " in errors


def test_the_page_says_so_too(tmp_path):
    folder = shutil.copytree(RUN, tmp_path / "run")
    replaced(folder / "rounds.jsonl", CONTRADICTIONS["a sum"][0])
    for folders in ([folder], [folder, RUN]):
        page = write_report(folders, tmp_path / "page.html").read_text()
        assert "rounds.jsonl cannot be read" in page
        assert "is damaged (line 4: " in page


WRONG_SUMS = {
    "bytes of all rounds": ("summary.json", lambda told: told["totals"]["update"].update(payload_bytes=1)),
    "messages of all rounds": ("summary.json", lambda told: told["totals"]["broadcast"].update(message_bytes=1)),
    "rounds": ("summary.json", lambda told: told.update(rounds_completed=9)),
    "the last round's accuracy": ("summary.json", lambda told: told["final"].update(test_accuracy=0.99)),
    "bytes of the ledger": ("communication.json", lambda told: told["measured"]["update"].update(payload_bytes=1)),
}


@pytest.mark.parametrize("kind", WRONG_SUMS)
def test_sums_that_are_not_those_of_the_rounds_are_refused_and_said_on_the_page(
    finished, kind, tmp_path, monkeypatch, capsys
):
    name, change = WRONG_SUMS[kind]
    folder = shutil.copytree(finished, tmp_path / "run")
    told = read_json(folder / name)
    change(told)
    (folder / name).write_text(json.dumps(told))
    for options in (["--precisions", "fp16"], ["--verify"]):
        code, errors = ended("fl.commands.compare", folder, *options, monkeypatch=monkeypatch, capsys=capsys)
        assert (code, len(errors.splitlines())) == (2, 1), errors
        assert f"{name}: is damaged (ValueError(" in errors
        assert "where the rounds have" in errors
    assert f"{name} cannot be read" in write_report([folder], tmp_path / "page.html").read_text()


def npy(shape, content=b"", descr="<i8"):
    """Returns an array's file that claims this shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue() + content


def zipped(content, kind=zipfile.ZIP_STORED, changes=()):
    """Returns a zip of one array, with some bytes of its two headers changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr("labels.npy", content)
    made = bytearray(buffer.getvalue())
    for local, central, value in changes:
        made[local] = made[made.rindex(b"PK\x01\x02") + central] = value
    return bytes(made)


def overlapping():
    """Returns a zip whose hundred entries are one and the same."""
    made = zipped(npy((2**13,), b"\0" * 2**16))
    start, end = made.rindex(b"PK\x01\x02"), made.rindex(b"PK\x05\x06")
    entries = 100 * made[start:end]
    places = struct.pack("<HHII", 100, 100, len(entries), start)
    return made[:start] + entries + made[end : end + 8] + places + made[end + 20 :]


BOMB_OF_ZEROS = zipped(npy((2**23,), b"\0" * 2**26), zipfile.ZIP_DEFLATED)
CLAIM = BOMB_OF_ZEROS.rindex(b"PK\x01\x02") + 24
"""Where the list of entries has the length."""
ARCHIVES = {
    "claims much": zipped(npy((2**40,))),
    "claims more than can be counted": zipped(npy((2**62, 2**62))),
    "claims less than nothing": zipped(npy((-1,))),
    "objects": zipped(npy((1,), b"\0" * 8, "|O")),
    "a deep header": zipped(b"\x93NUMPY\x01\0" + struct.pack("<H", 4000) + b"(" * 4000),
    "no array": zipped(b"text"),
    "a bomb": BOMB_OF_ZEROS,
    "a bomb that claims little": BOMB_OF_ZEROS[:CLAIM] + struct.pack("<I", 8) + BOMB_OF_ZEROS[CLAIM + 4 :],
    "a method that nobody knows": zipped(npy((1,), b"\0" * 8), changes=[(8, 10, 99)]),
    "a password": zipped(npy((1,), b"\0" * 8), changes=[(6, 8, 1)]),
    "one for many": overlapping(),
    "cut": zipped(npy((1,), b"\0" * 8))[:-10],
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_forged_predictions_are_said_in_a_line_and_take_no_memory(kind, tmp_path):
    (tmp_path / "predictions.npz").write_bytes(ARCHIVES[kind])
    run = RunRecords(tmp_path)
    tracemalloc.start()
    try:
        assert run.predictions == {}
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert len(run.unread["predictions.npz"].splitlines()) == 1


def test_arrays_that_are_written_are_read(tmp_path):
    arrays = {"none": np.zeros((0, 64, 64, 3), np.uint8), "turned": np.arange(6).reshape(2, 3).T, "one": np.ones(())}
    write_npz(tmp_path / "arrays.npz", arrays)
    found = read_npz(tmp_path / "arrays.npz")
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[name], each) and found[name].dtype == each.dtype for name, each in arrays.items())


NAME = "a\x1b[31m\x07\ud800b"
SHOWN = "a\\x1b[31m\\x07\\ud800b"


def test_names_with_control_bytes_are_shown_escaped(tmp_path):
    """On the page and in pictures, whose letters have no such shapes, and in a file of UTF-8, which has none either."""
    first, second = (shutil.copytree(RUN, tmp_path / name) for name in ("first", "second"))
    for name in ("partition.json", "quantization_comparison.json"):
        replaced(first / name, lambda told: told["class_names"].__setitem__(0, NAME))
    replaced(first / "settings.json", lambda told: told["strategy"].update({NAME: NAME}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report([first], tmp_path / "page.html").read_text()
        assert write_report([first, second], tmp_path / "both.html").read_text().count(SHOWN) >= 2
        list(draw([first, second], tmp_path))
    assert page.count(SHOWN) >= 5
    assert not {"\x1b", "\x07"} & set(page)


def test_more_classes_than_fit_into_a_picture_are_said(tmp_path):
    folder = shutil.copytree(RUN, tmp_path / "run")
    names = [f"class {number}" for number in range(61)]
    replaced(folder / "quantization_comparison.json", lambda told: told.update(class_names=names))
    assert "Not shown: 61 classes, more than 60 fit" in write_report([folder]).read_text()


ODD = {
    "data is a list": ("summary.json", lambda told: told.update(data=[1])),
    "measured is a list": ("communication.json", lambda told: told.update(measured=[1])),
    "precisions are a list": ("quantization_comparison.json", lambda told: told.update(precisions=[1])),
    "a part of a byte": ("communication.json", lambda told: told["measured"]["total"].update(payload_bytes=0.5)),
    "a number of images that is none": ("summary.json", lambda told: told["data"].update(num_train="many")),
    "deep": ("settings.json", lambda told: told.update(strategy=json.loads("[" * 900 + "]" * 900))),
    "links are a list": ("communication.json", lambda told: told["modelled"].update(links=[1])),
}


@pytest.mark.parametrize("kind", ODD)
def test_forged_figures_of_several_runs_are_said_in_a_line(kind, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(RUN, tmp_path / "run")
    name, change = ODD[kind]
    replaced(folder / name, change)
    page = write_report([folder, RUN], tmp_path / "page.html").read_text()
    assert "Settings that differ" in page
    code, errors = ended("fl.commands.plot", folder, RUN, "--output", tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert code in (0, 2)
    assert len(errors.splitlines()) == (code != 0), errors


def test_contacts_that_repeat_without_end_are_a_line(tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(ORBIT, tmp_path / "run")
    replaced(folder / "contacts.json", lambda told: told.update(period_s=1e-6))
    assert "more than 10,000 repetitions" in write_report([folder]).read_text()
    code, errors = ended("fl.commands.plot", folder, "--output", tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "more than 10,000 repetitions" in errors


# What a recommendation rests on


def precision(key, value):
    return lambda told: told["precisions"]["int8"].__setitem__(key, value)


EVIDENCE = {
    "more than all": precision("accuracy_percent", 7425.0),
    "a fraction": precision("accuracy_percent", 0.7425),
    "less than none": precision("accuracy_percent", -1),
    "another change": precision("accuracy_drop_percent", 20.0),
    "true": precision("inference_ms", True),
    "not a number": precision("accuracy_percent", float("nan")),
    "a size below zero": precision("file_size_bytes", -1),
    "a time below zero": precision("inference_ms", -0.5),
    "text": precision("inference_ms", "fast"),
    "a ratio below zero": precision("compression_ratio", -2),
    "more than all images": precision("only_this_right", 10**6),
    "another difference": precision("only_this_right", 2),
    "half an image": lambda told: told["test_set"].update(num_images=400.5),
    "no images": lambda told: told["test_set"].update(num_images=0),
    "no FP32": lambda told: told["precisions"].pop("fp32"),
    "traffic below zero": lambda told: told["communication"]["measured"].update(compression_ratio=-1),
}


@pytest.mark.parametrize("kind", EVIDENCE)
def test_evidence_that_can_be_none_is_one_line(kind, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(RUN, tmp_path / "run")
    (folder / "recommendation.json").unlink()
    replaced(folder / "quantization_comparison.json", EVIDENCE[kind])
    code, errors = ended("fl.commands.recommend", folder, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, len(errors.splitlines())) == (2, 1)
    why = "valid JSON" if kind == "not a number" else "whole report"
    assert f"{folder / 'quantization_comparison.json'}: is no" in errors
    assert why in errors
    assert not (folder / "recommendation.json").exists()


# Where a run that is resumed writes


def test_a_run_that_is_resumed_writes_into_no_cache_that_its_folder_names(tmp_path, monkeypatch, capsys):
    own, named = tmp_path / "own", tmp_path / "named"
    monkeypatch.setenv("QUANTFL_CACHE", str(own))
    run_small(tmp_path / "run", "data.num_images=80", "num_rounds=1")
    (tmp_path / "run" / "summary.json").unlink()
    replaced(tmp_path / "run" / "settings.json", lambda told: told["data"].update(cache_dir=str(named)))
    settings = read_json(tmp_path / "run" / "settings.json")
    run(settings, tmp_path / "run", resume=True)
    assert f"note: data.cache_dir={named}: is no cache of before" in capsys.readouterr().out
    assert not named.exists()
    shutil.move(own, named)
    (tmp_path / "run" / "summary.json").unlink()
    run(settings, tmp_path / "run", resume=True)
    assert "is no cache of before" not in capsys.readouterr().out
    assert not own.exists()
