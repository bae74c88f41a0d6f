"""What was written before classes moved: run folders, command lines, users' files, job scripts."""

import json
import shutil

import pytest
from conftest import REPOSITORY, SMALL, composed, run_small, train

from fl.core.files import read_json, write_json
from fl.core.targets import RENAMED, Target, known_classes

OLD = {new: old for old, new in RENAMED.items()}
OLD_DOORS = {"resume": ["RUN"], "export": ["RUN"], "recommend": ["RUN"], "communication": ["RUN"], "sweep": ["RUN"]}


def with_old_names(value):
    """Returns a configuration as older versions wrote it."""
    if isinstance(value, dict):
        return {k: OLD.get(v, v) if k == "_target_" else with_old_names(v) for k, v in value.items()}
    return value


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_that_of_a_class_of_today(old):
    target = Target(RENAMED[old])
    assert target.resolve().__name__ == old.rpartition(".")[2]
    folders = [path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir()]
    (group,) = [folder for folder in folders if RENAMED[old] in known_classes(folder)]
    assert Target.from_config(group, {"_target_": old}).target == RENAMED[old]


def test_a_run_folder_with_old_names_is_resumed_compared_and_verified(command, tmp_path):
    overrides = ["num_rounds=1", "data.num_images=100", "strategy=nesterov"]
    own = run_small(tmp_path / "run", *overrides)
    config = with_old_names(composed(*SMALL, *overrides))
    assert config["strategy"]["_target_"] == "fl.strategy.FedAvgNesterov"
    assert len({name for name in OLD.values() if name in json.dumps(config)}) >= 6
    folder = tmp_path / "old"
    folder.mkdir()
    write_json(folder / "settings.json", config)
    command("fl", "resume", folder, check=0)
    assert (folder / "final_model.pt").read_bytes() == own.read_bytes()
    shutil.copy(folder / "checkpoint.pt", tmp_path)
    for name in ("final_model.pt", "summary.json", "communication.json"):  # killed before they were written
        (folder / name).unlink()
    command("fl", "resume", folder, check=0)
    assert (folder / "final_model.pt").read_bytes() == own.read_bytes()
    command("compare_quantizations.py", folder, "--precisions", "int8", check=0)
    command("compare_quantizations.py", folder, "--verify", check=0)
    report = read_json(folder / "quantization_comparison.json")
    assert report["communication"]["assumptions"]["clients_and_rounds_from"] == "run"


def test_old_names_may_be_typed_and_stand_in_files_of_links(command, tmp_path):
    overrides = [*SMALL, "num_rounds=1", "data.num_images=100", "strategy._target_=fl.strategy.FedAvgNesterov"]
    folder = train(command, *overrides, cwd=tmp_path)
    link = (REPOSITORY / "conf" / "link" / "flat_rate.yaml").read_text()
    (tmp_path / "own.yaml").write_text(link.replace("fl.communication.link.Link", "fl.link.Link"))
    assert "fl.link.Link" in (tmp_path / "own.yaml").read_text()
    command("fl", "communication", folder, "--link", tmp_path / "own.yaml", check=0)


@pytest.mark.parametrize("verb", OLD_DOORS)
def test_job_scripts_find_the_doors_of_before(verb, command, refused, small_run, tmp_path):
    folder = shutil.copytree(small_run, tmp_path / "run")
    if verb in ("recommend", "sweep"):  # nothing was compared, and it is no multirun
        assert refused(f"fl.{verb}", folder) == refused("fl", verb, folder)
    else:
        old, new = (command(*door, folder, check=0) for door in ([f"fl.{verb}"], ["fl", verb]))
        assert old.stdout.splitlines()[-1] == new.stdout.splitlines()[-1]
