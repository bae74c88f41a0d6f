"""Generated tables and headlines are what the stored figures give, and nothing else stands in README as one."""

import re
import shutil
import sys

import pytest
from conftest import REPOSITORY

from fl.core.errors import RunError
from fl.core.files import read_json, write_json

sys.path.append(str(REPOSITORY / "benchmarks"))

import tables

HEADLINE = re.compile(r"[+−-]\d+\.\d+ points|\d+(\.\d+)? times fewer|\d(\.\d+)?×|± \d|\d\.\d\d %|\d\.\d+ ms")
"""Accuracies, changes, ratios and times: what README may only say by way of stored figures."""
KEPT = ("codecs.json", "codecs_tuned.json", "precisions.json")


def texts():
    return {path: path.read_text() for path in tables.documents(tables.DOCS)}


def test_making_the_tables_again_changes_nothing():
    assert {path.name for path in texts()} > {"README.md", "results.md", "performance.md"}
    assert tables.changes(tables.DOCS) == {}


def test_every_maker_has_one_place_and_every_place_a_maker():
    found = [match["name"] for text in texts().values() for match in tables.PART.finditer(text)]
    assert sorted(found) == sorted(tables.PARTS)
    assert sum(text.count("<!-- made by make tables") for text in texts().values()) == len(found)


@pytest.mark.parametrize("name", [name for name in KEPT if '"test_accuracy"' in (tables.DOCS / name).read_text()])
def test_another_figure_in_the_json_is_noticed(name, tmp_path):
    folder = shutil.copytree(tables.DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.png"))
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.pt"))
    assert tables.changes(folder) == {}
    text = (folder / name).read_text()
    figure = re.compile(r'("(test_accuracy|fp32)": 0\.)\d(?=\d)')
    (folder / name).write_text(figure.sub(r"\g<1>3", text))
    assert folder / "results.md" in tables.changes(folder)


def test_a_figure_edited_by_hand_is_noticed_and_made_again(tmp_path):
    folder = shutil.copytree(tables.DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.png"))
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("*.pt"))
    path = folder / "results.md"
    before = path.read_text()
    place = next(match for match in tables.PART.finditer(before) if match["name"] == "codecs-tuned")
    path.write_text(before[: place.start()] + place[0].replace("92.84 %", "92.85 %") + before[place.end() :])
    assert path.read_text() != before
    tables.write(folder)
    assert path.read_text() == before
    assert (folder / "codecs.png").stat().st_size > 10_000


def test_what_no_json_tells_stays_as_it_is_and_what_one_tells_is_made(tmp_path):
    text = "<!-- made by make tables: round -->\n\nby hand\n\n<!-- end: round -->\n"
    assert tables.render(text, tmp_path, "x.md") == text
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "round.json").write_text(
        '{"measured": "2026-11-25", "printed": [{"title": "One round", "columns": ["way", "s (median)"], '
        '"rows": [["ours", "1.25"]]}], "environment": {"cpu": "EPYC", "cpu_capability": "AVX512", '
        '"packages": {"torch": "2.13.0"}}}'
    )
    made = tables.render(text, tmp_path, "x.md")
    assert "by hand" not in made
    assert "Measured 2026-11-25, EPYC (AVX512), torch 2.13.0." in made
    assert "| way | s (median) |\n|---|---|\n| ours | 1.25 |" in made
    assert tables.render(made, tmp_path, "x.md") == made


def test_a_stored_comparison_makes_its_two_tables(tmp_path):
    docs = tmp_path / "docs"
    entry = {
        "loss": 0.2124, "accuracy_percent": 92.59, "accuracy_drop_percent": 0.0, "agreement_with_fp32": 1.0,
        "file_size_bytes": 1747986, "compression_ratio": 1.0, "inference_ms": 0.387, "kernels": "cpu-fp32",
        "agreement_with_model_file": 1.0, "largest_logit_difference": 4.6e-05,
    }  # fmt: skip
    docs.mkdir()
    report = {"precisions": {"fp32": entry}, "formats": {"onnx": {"fp32": {**entry, "file_size_bytes": 1740008}}}}
    assert (
        tables.formats(docs)
        is tables.default_precisions(docs)
        is tables.bench(docs)
        is tables.default_run(docs)
        is None
    )
    write_json(docs / "formats.json", report)
    row = "| fp32 | 0.2124 | 92.59 % | 100.00 % | 1,747,986 B | 100.0 % | 0.387 (1.0×) | cpu-fp32 |"
    assert row in tables.default_precisions(docs)
    assert "1,747,986" in tables.formats(docs)
    assert "| onnx | fp32 | 1,740,008 |" in tables.formats(docs)


def test_benchmarks_store_what_they_print(tmp_path, monkeypatch, capsys):
    import table

    monkeypatch.setattr(table, "PRINTED", [])
    table.print_table("Start-up, median of 5", ["seconds (median)"], [["1.25"]])
    table.write_results(tmp_path / "speed" / "startup.json", {"seconds": [1.25]})
    found = read_json(tmp_path / "speed" / "startup.json")
    assert found["seconds"] == [1.25]
    assert {"cpu", "packages", "threads"} <= set(found["environment"])
    made = tables.render("<!-- made by make tables: startup --><!-- end: startup -->", tmp_path, "x.md")
    assert "Start-up, median of 5\n\n| seconds (median) |\n|---|\n| 1.25 |" in made
    assert found["environment"]["packages"]["torch"] in made


def test_every_benchmark_can_store_its_figures():
    for path in (REPOSITORY / "benchmarks").glob("*.py"):
        if "options_of(str(__doc__)," in (text := path.read_text()) and "from table import" in text:
            assert "write_results(options.json, " in text, path
            assert any(name.startswith(path.stem.replace("_", "-")) for name in tables.PARTS), path


def test_a_part_that_nothing_makes_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"x\.md: nothing makes the part other"):
        tables.render("<!-- made by make tables: other --><!-- end: other -->", tmp_path, "x.md")


def test_headlines_of_the_readme_come_from_stored_figures():
    text = (REPOSITORY / "README.md").read_text()
    by_hand = tables.PART.sub("", text)
    assert HEADLINE.search(text)
    assert [match[0] for match in HEADLINE.finditer(by_hand)] == []


def test_readme_says_of_what_its_means_are():
    parts = {match["name"]: match["old"] for match in tables.PART.finditer((REPOSITORY / "README.md").read_text())}
    for words in ("n = ", "seeds ", "random split", "IID", "[95 %]"):
        assert words in parts["headline-precisions"].replace("\n", " ")
    for words in ("95 % interval", "n = ", "IID", "Dirichlet 0.3", "from the same start"):
        assert words in parts["headline-traffic"].replace("\n", " ")


def test_the_check_of_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    tables.main()
    (tmp_path / "results.md").write_text("<!-- made by make tables: codecs -->old<!-- end: codecs -->")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        tables.main()
    assert stopped.value.code != 0
    assert "results.md: not what the stored figures give; run make tables" in capsys.readouterr().err
