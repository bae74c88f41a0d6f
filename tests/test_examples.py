"""What lies in examples/ works: the run can be read and verified, the notebook runs; what a Docker image is made of."""

import json
import re
import shlex
from dataclasses import replace

import documents
import pytest
from conftest import REPOSITORY

from fl.communication.clock import ContactClock
from fl.communication.constellation import File, load_constellation
from fl.communication.policies import FedBuff
from fl.communication.pricing import load_link
from fl.core.files import read_json, read_jsonl
from fl.core.run_folder import is_complete
from fl.report.plots import draw

RUN, ORBIT = REPOSITORY / "examples" / "run", REPOSITORY / "examples" / "orbit"
NETWORK = ("--model", "examples.small_net.SmallNet")


@pytest.mark.parametrize(("run", "most_bytes"), [(RUN, 2e6), (ORBIT, 1.5e6)], ids=["run", "orbit"])
def test_the_run_is_whole_small_and_says_that_its_images_are_synthetic(run, most_bytes):
    assert is_complete(run)
    assert sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) < most_bytes
    assert "SYNTHETIC" in (run / "report.html").read_text()
    listed = (REPOSITORY / "outputs" / "README.md").read_text()
    for path in run.iterdir():
        assert path.name in listed or path.stem in listed or path.name.startswith("model_"), path.name
    for path in run.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml", ".html"):
            assert not re.search(r"(?<![\w.~:/])/(work|home|root|tmp)/", path.read_text()), path


@pytest.mark.parametrize(("run", "place"), [(RUN, "outputs/example"), (ORBIT, "outputs/orbit")], ids=["run", "orbit"])
def test_it_is_the_run_that_the_documents_make(run, place):
    text = (REPOSITORY / "examples" / "README.md").read_text()
    (line,) = re.findall(rf"^python -m fl\.train (.*) hydra\.run\.dir={place}$", text, re.MULTILINE)
    assert read_json(run / "settings.json") is not None
    recorded = [each.removeprefix("- ") for each in (run / ".hydra" / "overrides.yaml").read_text().splitlines()]
    assert recorded == shlex.split(line)


class Recorded:
    """Sends what the timeline of a run says was sent; what was still on the way at its end takes longer than that."""

    shares_start = True

    def __init__(self, timeline, train_s):
        self._sent = {}
        for event in timeline:
            if event["event"] in ("sends", "arrived", "late"):
                key = event["event"] == "sends", event["satellite"], event["version"]
                self._sent[key] = event["payload_bytes"]
        self._version, self._train_s = {}, train_s

    def broadcast_bytes(self, satellite):
        self._version[satellite] = self.clock.version
        return self._sent[True, satellite, self.clock.version]

    def train_s(self, satellite):
        return self._train_s

    def update_bytes(self, satellite):
        return self._sent.get((False, satellite, self._version[satellite]), 10**7)

    def arrived(self, satellite, *, late):
        return True

    def aggregate(self, updates):
        pass


def test_the_run_in_orbit_is_what_the_clock_makes_of_its_bytes(tmp_path):
    timeline, settings = read_jsonl(ORBIT / "timeline.jsonl"), read_json(ORBIT / "settings.json")
    link = load_link("ttc_uhf", settings["link"]["train_s"])
    plan = File(str(ORBIT / "contacts.json"), "unused", None).plan(tmp_path, link.acquisition_s)
    assert plan == load_constellation("plane_10").plan(tmp_path, link.acquisition_s)
    world = Recorded(timeline, link.train_s)
    world.clock = clock = ContactClock(replace(link, windows=plan.contacts), 10, 10, FedBuff(), world)
    found = []
    while clock.used < 10 * settings["num_rounds"]:
        for event in clock.step():
            seen = event.satellite is not None and event.contact is not None
            found.append(event.to_json(plan.station(event.satellite, event.contact) if seen else None))
    assert found == timeline


def test_the_pictures_of_the_run_in_orbit_are_those_that_are_drawn_of_its_files(tmp_path):
    drawn = {path.with_suffix(".svg") for path, _ in draw([ORBIT], tmp_path)}
    kept = [path for path in ORBIT.glob("*.svg") if path.name not in ("rounds.svg", "partition.svg")]
    assert len(kept) == 3
    for path in kept:
        assert tmp_path / path.name in drawn
        assert (tmp_path / path.name).read_text() == path.read_text()


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
