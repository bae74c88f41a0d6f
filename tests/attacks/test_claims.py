"""What files claim that cannot be: numbers, contacts, scans, links, modules. Each is refused, or harmless."""

import io
import os
import shutil
import subprocess
import sys

import matplotlib
import pytest
import torch
from attacks.test_files import images, opened  # noqa: F401  a fixture among them
from conftest import REPOSITORY, run_small
from PIL import Image

from fl.communication.billing import Whole
from fl.communication.contacts import MOST_CONTACTS, Contacts, Use, transfer
from fl.communication.pricing import load_link
from fl.core.errors import ConfigError, DataError, ModelFileError, RunError
from fl.core.figures import picture as figure
from fl.core.files import parsed, read_json, write_json
from fl.core.run_folder import CLIENTS, EVENTS, HYDRA_FOLDER, MODELS, ROUNDS, TIMELINE
from fl.core.run_lock import sole_writer
from fl.data import decoding
from fl.deployment.export import export
from fl.quantization.file_content import read
from fl.report.orbit import MOST_CYCLES, windows_of

# Modules in the working folder


def started(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["report", "run"]])
def test_modules_of_a_foreign_folder_are_not_imported(arguments, tmp_path):
    shutil.copytree(REPOSITORY / "examples" / "run", tmp_path / "run")
    (tmp_path / "run" / "settings.json").unlink()  # so that no page is drawn, for which modules are loaded all the same
    for name in ("torch", "numpy", "argparse", "difflib"):
        (tmp_path / f"{name}.py").write_text("open('was-run', 'w').close()\n")
    done = started(tmp_path, "-m", "fl", *arguments)
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    assert "ModuleNotFound" not in done.stderr
    assert not (tmp_path / "was-run").exists()


def test_modules_of_ones_own_are_found_in_the_working_folder(tmp_path):
    (tmp_path / "fl_own.py").write_text("name = 'mine'\n")
    code = "import sys; sys.argv = ['-m']; sys.path.insert(0, __import__('os').getcwd())\nimport fl, fl_own\n"
    done = started(tmp_path, "-c", code + "print(fl_own.name, sys.path[-1])")
    assert done.stdout.split() == ["mine", str(tmp_path)]


def test_pictures_start_no_tex(tmp_path):
    with matplotlib.rc_context({"text.usetex": True}), figure(tmp_path / "a.png", 4, 4) as (_, (axes,)):
        axes.set_title(r"\input{/etc/hostname}")
        assert matplotlib.rcParams["text.usetex"] is False


# Links out of a run's folder


@pytest.mark.parametrize("name", [EVENTS, ROUNDS, TIMELINE, MODELS, CLIENTS, HYDRA_FOLDER])
def test_what_a_run_adds_to_is_no_link_out_of_its_folder(name, tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("kept\n")
    (folder / name).symlink_to(outside)
    with pytest.raises(RunError, match=f"{name}: is a link; a run writes in its own folder alone"), sole_writer(folder):
        pass
    assert sorted(each.name for each in folder.iterdir()) == [name]
    assert outside.read_text() == "kept\n"


@pytest.mark.parametrize("resume", [False, True])
def test_neither_a_training_nor_a_resumed_one_follows_a_link(resume, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ROUNDS).symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match=f"{ROUNDS}: is a link"):
        run_small(tmp_path / "run", resume=resume)
    assert not (tmp_path / "outside").exists()


# Contacts


def test_a_transfer_that_never_ends_is_refused():
    contacts = Contacts(10.0, (((0.0, 1.0),),))
    assert len(transfer(0.0, 1000 / 8, 1.0, contacts)) == 1000
    with pytest.raises(
        ConfigError, match=f"satellite 0 are not through after {MOST_CONTACTS:,} contacts; give smaller"
    ):
        transfer(0.0, 1e18, 1.0, contacts)
    assert transfer(0.0, 1.0, None, contacts) == (Use(0, 0.0, 0.0),)


@pytest.mark.parametrize("period_s", [1e-300, 0.99, 1.01e9, 1e308])
def test_a_period_is_seconds_to_decades(period_s):
    with pytest.raises(ValueError, match="must be seconds from 1 to 1e\\+09"):
        Contacts(period_s, (((0.0, min(0.5, period_s)),),))
    assert [Contacts(each, (((0.0, 0.5),),)).period_s for each in (1.0, 1e9)] == [1.0, 1e9]


def test_whole_numbers_fit_64_bits():
    from pydantic import TypeAdapter, ValidationError

    whole = TypeAdapter(Whole)
    assert whole.validate_python(2**63 - 1) == 2**63 - 1
    for number in (2**63, 10**200, 0):
        with pytest.raises(ValidationError):
            whole.validate_python(number)


def test_a_page_repeats_contacts_so_often_alone():
    contacts = {"period_s": 1.0, "windows": [[[0.0, 0.5]]]}
    assert len(windows_of(contacts, 0, float(MOST_CYCLES))) == MOST_CYCLES
    with pytest.raises(ValueError, match="more than 10,000 repetitions of 1 s"):
        windows_of(contacts, 0, MOST_CYCLES + 1.0)


# Presets, models, images, numbers


def test_a_preset_of_others_tells_nothing_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "link.yaml").write_text("name: ${oc.env:SECRET}\n_target_: fl.communication.link.Link\n")
    with pytest.raises(ConfigError, match=r"link\.yaml: is no valid YAML \(it has an interpolation") as told:
        load_link(str(tmp_path / "link.yaml"))
    assert "hunter2" not in str(told.value)
    (tmp_path / "link.yaml").write_text("{{{")
    with pytest.raises(ConfigError, match="is no valid YAML"):
        load_link(str(tmp_path / "link.yaml"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("number", [2**64, -(2**200), 1 << 5000], ids=["64", "negative", "long"])
def test_a_model_file_holds_no_numbers_beyond_64_bits(number, zipped, tmp_path):
    path = tmp_path / "model.pt"
    for held, good in ((number, False), (2**63 - 1, True)):
        torch.save({"a": torch.zeros(1), held: 1}, path, _use_new_zipfile_serialization=zipped)
        if good:
            assert read(path)[1].keys() == {"a", held}
            continue
        with pytest.raises(ModelFileError, match=r"refused, it holds a whole number of \d+ bits"):
            read(path)


def test_a_jpeg_has_so_many_scans_alone(images, monkeypatch):  # noqa: F811
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "JPEG", progressive=True)
    scans = content.getvalue().count(b"\xff\xda")
    (images / "a" / "x.jpg").write_bytes(content.getvalue())
    assert 1 < scans < decoding.MOST_SCANS == 100
    monkeypatch.setattr(decoding, "MOST_SCANS", scans)
    assert opened(images) == []
    monkeypatch.setattr(decoding, "MOST_SCANS", scans - 1)
    with pytest.raises(DataError, match=rf"a/x\.jpg cannot be decoded \(a JPEG of {scans} scans"):
        opened(images)


@pytest.mark.parametrize("text", ["1e999", "-1e999", '{"a": [1e400]}'])
def test_reals_beyond_every_float_are_no_numbers(text):
    with pytest.raises(ValueError, match="is beyond every number"):
        parsed(text)


def test_what_is_exported_is_what_the_run_wrote(tmp_path, monkeypatch):
    from fl.commands.export import parse

    folder = shutil.copytree(REPOSITORY / "examples" / "run", tmp_path / "run")
    monkeypatch.syspath_prepend(REPOSITORY)
    options = parse([str(folder), "--model", "examples.small_net.SmallNet"])
    options.format = ()
    summary = read_json(folder / "summary.json")
    write_json(folder / "summary.json", summary | {"model_sha256": "0" * 64})
    with pytest.raises(ConfigError, match=r"final_model\.pt: is not the model that this run wrote; summary\.json has"):
        export(options)
    assert not (folder / "export").exists()
    (folder / "partition.json").unlink()
    for told in (summary, {key: value for key, value in summary.items() if key != "model_sha256"}):
        write_json(folder / "summary.json", told)
        assert export(options) == folder / "export"
