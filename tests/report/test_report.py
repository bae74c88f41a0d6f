"""The page of a run: every figure as its file has it, nothing from outside, text as text, and never in a run's way."""

import html
import json
import re
import shutil

import numpy as np
import pytest
from conftest import compared, composed

from fl.core.errors import ConfigError
from fl.core.files import read_json, read_jsonl, write_json
from fl.core.intervals import paired_interval
from fl.experiment.run import run
from fl.report import write_report, write_report_or_say
from fl.report.charts import Line, lines
from fl.report.content import of_run
from fl.report.records import RunRecords

SCRIPT = '<script>alert("1")</script>$x^2$'


@pytest.fixture(scope="session")
def reported(small_run, tmp_path_factory):
    """A run with its comparison and its page; read only."""
    folder = shutil.copytree(small_run, tmp_path_factory.mktemp("report") / "a run")
    compared(folder / "final_model.pt", "fp16", "int8", "int2")
    write_report([folder])
    return folder


@pytest.fixture
def copied(reported, tmp_path):
    return shutil.copytree(reported, tmp_path / "copy")


def words(page):
    """Returns the text that a reader sees, without pictures."""
    text = re.sub(r"<(script|style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def table(page, title):
    """Returns the cells of a table, by its title."""
    body = re.search(rf"<h3[^>]*>{re.escape(title)}</h3>.*?<tbody>(.*?)</tbody>", page, re.DOTALL)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]


def test_every_figure_is_that_of_its_file(reported):
    page = (reported / "report.html").read_text()
    summary, rounds = read_json(reported / "summary.json"), read_jsonl(reported / "rounds.jsonl")
    report, ledger = read_json(reported / "quantization_comparison.json"), read_json(reported / "communication.json")
    text = words(page)
    assert f"{100 * summary['final']['test_accuracy']:.2f} % of {summary['data']['num_test']} test images" in text
    assert "Net on synthetic (SYNTHETIC images), 320 training and 80 test images, 4 clients" in text
    assert "SYNTHETIC images. Nothing here says anything about satellite images." in text
    for cells, record in zip(table(page, "Rounds"), rounds, strict=True):
        assert cells[:2] == [str(record["round"]), f"{100 * record['test_accuracy']:.2f}"]
        assert cells[4:6] == [f"{record[way]['payload_bytes']:,}" for way in ("broadcast", "update")]
    assert table(page, "All rounds")[2][1] == f"{ledger['measured']['total']['payload_bytes']:,}"
    for cells, (name, entry) in zip(table(page, "Precisions"), report["precisions"].items(), strict=True):
        told = [name, f"{entry['file_size_bytes']:,}", f"{entry['compression_ratio']:.2f}"]
        assert cells[:5] == [*told, f"{entry['accuracy_percent']:.2f}", f"{entry['accuracy_drop_percent']:+.2f}"]
        if name != "fp32":
            ends = paired_interval(entry["only_this_right"], entry["only_fp32_right"], 80)
            assert cells[5] == " to ".join(f"{100 * end:+.2f}" for end in ends)
    links = ledger["modelled"]["links"]
    assert list(links) == ["flat_rate", "cubesat_sband", "ttc_uhf"], "the run's own first, then every other"
    for cells, (name, link) in zip(table(page, "Over each link"), links.items(), strict=True):
        assert cells[:2] == [name, f"{link['cost_usd']['total']:,.2f}"]
        assert f"{name} ${link['cost_usd']['total']:,.2f}" in page
    stored = np.load(reported / "predictions.npz")
    for place, cells in enumerate(table(page, "Accuracy of each class (%)")):
        own = stored["labels"] == place
        assert cells[0] == report["class_names"][place]
        assert cells[1] == f"{100 * (stored['fp32'][own] == place).mean():.1f}"
        assert cells[3] == f"{100 * (stored['int8'][own] == place).mean():.1f}"


def test_it_recommends_what_was_recommended_last_and_says_why(copied, command):
    told = read_json(copied / "recommendation.json")
    assert [cells[1] for cells in table((copied / "report.html").read_text(), "What to do")] == [
        told[what]["choice"] or "nothing" for what in ("train", "ship", "transmit")
    ]
    done = command("fl", "recommend", copied, "--max-drop", "40", check=0)
    told = read_json(copied / "recommendation.json")
    assert told["max_drop_points"] == 40
    assert {each["judged"] for each in told["evidence"].values()} == {"kept"}
    page = (copied / "report.html").read_text()
    for cells, what in zip(table(page, "What to do"), ("train", "ship", "transmit"), strict=True):
        assert cells[1:] == [told[what]["choice"], told[what]["why"]]
        assert told[what]["why"] in done.stdout
    for cells, (name, each) in zip(table(page, "By 80 test images"), told["evidence"].items(), strict=True):
        assert cells[0] == name
        assert cells[3] == ("" if name == "fp32" else " to ".join(f"{end:+.2f}" for end in each["change_ci95_points"]))


def test_predictions_are_those_of_the_report_and_changed_images_those_of_the_test_set(reported):
    stored, report = np.load(reported / "predictions.npz"), read_json(reported / "quantization_comparison.json")
    for name, entry in report["precisions"].items():
        assert (stored[name] == stored["labels"]).mean() == pytest.approx(entry["accuracy"])
        assert (stored[name] == stored["fp32"]).mean() == pytest.approx(entry["agreement_with_fp32"])
    changed = stored["changed"]
    assert 0 < len(changed) <= 12
    assert all(any(stored[n][each] != stored["fp32"][each] for n in ("fp16", "int8", "int2")) for each in changed)
    from fl.data.provenance import find_inputs, find_run

    made = find_run(reported / "final_model.pt", report["model_sha256"])
    images = find_inputs(made, None, 10).test.images
    for position, image in zip(changed, stored["changed_images"], strict=True):
        assert np.array_equal(images[int(position) : int(position) + 1][0], image)
    page = (reported / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == len(changed)


def test_the_page_needs_nothing_from_outside_and_is_small(reported):
    page = (reported / "report.html").read_text()
    assert len(page.encode()) < 3 * 1024**2
    loaded = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import""", page)
    for place in {"".join(each) for each in loaded}:
        known = place.startswith(("#", "data:image/png;base64,")) or (reported / place).is_file()
        assert known, place
    assert len(re.findall(r"<svg", page)) == len(re.findall(r'role="img" aria-label="[^"]{10,}"', page)) >= 8
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:url\(#|href="#)([^")]+)', page):
        assert used in ids


def test_text_from_files_is_text(copied):
    """In names of classes, reasons of failures, settings and titles."""
    for name, keys in (("partition.json", ["class_names"]), ("quantization_comparison.json", ["class_names"])):
        told = read_json(copied / name)
        for key in keys:
            told[key][0] = SCRIPT
        write_json(copied / name, told)
    settings = read_json(copied / "settings.json")
    write_json(copied / "settings.json", {**settings, "note": SCRIPT})
    records = read_jsonl(copied / "rounds.jsonl")
    records[0]["clients_failed"] = [{"partition_id": 1, "node_id": 2, "reason": SCRIPT}]
    (copied / "rounds.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in records))
    page = write_report([copied]).read_text()
    assert page.count("<script>") == 1, "the page's own"
    assert "alert" not in re.sub(r"&lt;script&gt;alert\((&#34;|\")1(&#34;|\")\)&lt;/script&gt;", "", page)
    assert table(page, "Who failed, and why") == [["1", "1", SCRIPT]]
    assert table(page, "Accuracy of each class (%)")[0][0] == SCRIPT


DAMAGES = {
    "summary.json": b"{",
    "partition.json": b"[1]",
    "communication.json": b'{"measured": {"total": []}, "modelled": {"links": {"flat_rate": 1}}}',
    "quantization_comparison.json": b'{"class_names": 3, "precisions": {"fp32": []}}',
    "rounds.jsonl": b'{"round": "x"}\n',
    "predictions.npz": b"PK",
    "settings.json": b"",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_a_file_lacks_is_said_and_the_rest_is_shown(copied, name):
    (copied / name).write_bytes(DAMAGES[name])
    page = write_report([copied]).read_text()
    assert page.count("<section") >= 3
    assert "cannot be read" in words(page)


def test_a_missing_file_is_a_missing_part(copied):
    for name in ("quantization_comparison.json", "predictions.npz", "communication.json"):
        (copied / name).unlink()
    page = words(write_report([copied]).read_text())
    assert "Training" in page
    assert "Precisions" not in page
    assert "cannot be read" not in page


def test_a_run_writes_it_in_the_end_and_also_where_it_fails(tmp_path, capsys):
    small = ["data=synthetic", "data.num_images=60", "num_clients=2", "num_rounds=2", "local_epochs=1"]
    small += ["threads_per_client=1", "batch_size=16"]

    def breaks(message, context, call_next):
        if message.content["config"]["server-round"] == 2:
            raise ValueError("battery empty")
        return call_next(message, context)

    with pytest.raises(Exception, match="battery empty"):
        run(composed(*small), tmp_path, mods=[breaks])
    page = words((tmp_path / "report.html").read_text())
    assert "1 of 2 rounds, seed 42, ended as failed: round 2: " in page
    assert "battery empty" in page
    assert "could not be written" not in capsys.readouterr().out


def test_a_report_that_fails_ends_nothing(copied, capsys, monkeypatch):
    from fl.report import write

    monkeypatch.setattr(write, "of_run", lambda run: 1 / 0)
    write_report_or_say(copied)
    assert "report.html could not be written (division by zero)" in capsys.readouterr().out
    assert "No report: division by zero" in words((copied / "report.html").read_text())


def test_several_runs_stand_side_by_side(reported, copied, tmp_path):
    settings = read_json(copied / "settings.json")
    write_json(copied / "settings.json", {**settings, "seed": 7})
    page = write_report([reported, copied], tmp_path / "both.html").read_text()
    assert table(page, "Settings") == [["seed", "42", "7"]]
    rows = table(page, "After the last round")
    assert [each[0] for each in rows] == ["a run", "copy"]
    assert rows[1][2] == "+0.00"
    assert page.count("<svg") == 3


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is no folder of a run, it has no settings\.json"):
        write_report([tmp_path])


def test_the_command_writes_and_says_where(reported, tmp_path, command, refused):
    told = command("fl", "report", reported, "--output", "page.html", check=0).stdout
    assert told == "Report: page.html\n"
    assert (tmp_path / "page.html").read_text().count('href="file://') > 5
    refused("fl", "report", tmp_path, words=["is no folder of a run"])


def test_pareto_front_and_classes_that_lose_are_named(reported):
    content = of_run(RunRecords(reported))
    (picture,) = next(each for each in content.sections if each.title == "Precisions").pictures
    entries = read_json(reported / "quantization_comparison.json")["precisions"]
    told = {name: (entry["accuracy"], -entry["file_size_bytes"]) for name, entry in entries.items()}
    beaten = {
        one for one, (a, s) in told.items() if any(b >= a and z >= s and (b, z) != (a, s) for b, z in told.values())
    }
    assert "int2" in set(told) - beaten, "nothing is smaller"
    assert "fp32" in beaten or told["int8"][0] < told["fp32"][0]
    assert picture.caption.rpartition(": ")[2].split(", ") == [name for name in told if name not in beaten]


def test_equal_pictures_share_no_ids():
    drawn = [lines([Line("a", [1, 2], [3, 4])], "x", "y") for _ in range(2)]
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in drawn]
    assert ids[0]
    assert not ids[0] & ids[1]
