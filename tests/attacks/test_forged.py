"""Files of a run or a sweep that others wrote: whatever stands in them, a command ends well or in one line."""

import importlib
import json
import random
import shutil
import sys

import pytest
from conftest import REPOSITORY, SMALL

from fl.communication.pricing import load_link
from fl.core.errors import ConfigError
from fl.core.files import parsed, yaml_text

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
