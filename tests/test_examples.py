"""What lies in examples/ works: the run can be read and verified, the notebook runs; what a Docker image is made of."""

import json
import re
import shlex

import documents
import pytest
from conftest import REPOSITORY

from fl.core.files import read_json
from fl.core.run_folder import is_complete

RUN = REPOSITORY / "examples" / "run"
NETWORK = ("--model", "examples.small_net.SmallNet")


def test_the_run_is_whole_small_and_says_that_its_images_are_synthetic():
    assert is_complete(RUN)
    assert sum(path.stat().st_size for path in RUN.rglob("*") if path.is_file()) < 2e6
    assert "SYNTHETIC" in (RUN / "report.html").read_text()
    listed = (REPOSITORY / "outputs" / "README.md").read_text()
    for path in RUN.iterdir():
        assert path.name in listed or path.stem in listed or path.name.startswith("model_"), path.name
    for path in RUN.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml", ".html"):
            assert not re.search(r"(?<![\w.~:/])/(work|home|root|tmp)/", path.read_text()), path


def test_it_is_the_run_that_the_documents_make():
    text = (REPOSITORY / "examples" / "README.md").read_text()
    (line,) = re.findall(r"^python -m fl\.train (.*)$", text, re.MULTILINE)
    given = [each for each in shlex.split(line) if not each.startswith("hydra.run.dir=")]
    assert read_json(RUN / "settings.json") is not None
    recorded = [each.removeprefix("- ") for each in (RUN / ".hydra" / "overrides.yaml").read_text().splitlines()]
    assert recorded == given


def test_its_report_is_written_again(command, tmp_path):
    command("fl", "report", RUN, "--output", tmp_path / "page.html", check=0)
    assert (tmp_path / "page.html").stat().st_size > 100_000


@pytest.mark.long
def test_every_figure_of_its_comparison_is_verified(command):
    done = command("compare_quantizations.py", RUN, "--verify", *NETWORK, cwd=REPOSITORY, check=0)
    assert "Verified: hashes, sizes, counts, costs and accuracies" in done.stdout


@pytest.mark.long
def test_the_notebook_draws_the_pictures(monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    path = REPOSITORY / "examples" / "explore_run.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "kept without outputs"
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    total = read_json(RUN / "communication.json")["measured"]["total"]
    assert any(f"{total['payload_bytes']:,} bytes sent" in output.get("text", "") for output in outputs)


def test_an_image_is_built_of_pinned_parts_that_are_sent_and_starts_the_demo(monkeypatch):
    text = (REPOSITORY / "Dockerfile").read_text()
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert not [
        line for line in text.splitlines() if "pip install" in line and "--constraint constraints.txt" not in line
    ]
    sent = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert {"fl", "conf", "constraints.txt", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in sent
    assert int(re.findall(r"^USER (\d+)$", text, re.MULTILINE)[-1]) > 0
    shell, option, line = json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[-1])
    assert (shell, option) == ("sh", "-c")
    assignment, _, rest = line.partition("; ")
    assert assignment.startswith("run=")
    commands = list(documents.simple_commands(rest))
    assert [words[:2] for words in commands] == [["quantfl", "train"], ["quantfl", "compare"]]
    for words in commands:
        documents.check(words, monkeypatch)
