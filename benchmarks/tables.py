"""Every table and headline of README.md and docs/ that comes from stored figures, made again from their JSON.

    python benchmarks/tables.py [--check]

A generated part stands between `<!-- made by make tables: NAME -->` and `<!-- end: NAME -->`; what is written there by
hand is lost. A part whose JSON is not there (a benchmark that was not stored yet) stays as it is. With --check nothing
is written, and any difference fails.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import contacts_table
import faults_table
import headlines
import network_table
import orbit_table
import precision_table
import screening_table
import split_table
import traffic_table
from grid import ROOT, Runs, stored
from table import markdown, parser_of
from traffic_plot import plot_traffic

from fl.core.console import say
from fl.core.errors import RunError, one_line_errors
from fl.core.files import read_json, read_jsonl, write_bytes

DOCS = ROOT / "docs"
PART = re.compile(r"<!-- made by make tables: (?P<name>[a-z0-9-]+) -->(?P<old>.*?)<!-- end: (?P=name) -->", re.DOTALL)
SHOWN_BATCHES = (1, 32, 128)
"""Of the table of model files side by side; docs/bench.json has all."""
SPEED = (
    *("startup", "round", "reference-flower-ray", "training-speed", "layer-speed", "codec-speed", "sensitivity"),
    *("averaging", "scale", "clock", "contact-plan"),
)
"""Benchmarks; docs/speed/NAME.json is what `--json` stored."""


def traffic(folder: Path) -> str:
    """Returns the table of codecs, and which runs it is of."""
    runs = stored(folder / traffic_table.KEPT)
    lines = traffic_table.lines_of(folder)
    return f"{traffic_table.table(lines)}\n{traffic_table.made_with(runs)}\n{traffic_table.to_beat(lines)}\n"


def traffic_behind(folder: Path) -> str:
    """Returns how many rounds coded traffic is behind."""
    return traffic_table.behind(stored(folder / traffic_table.KEPT))


def traffic_tuned(folder: Path) -> str:
    """Returns the table of codecs of the seeds that settings were compared on."""
    return traffic_table.table(traffic_table.lines_of(folder, traffic_table.TUNED_ROWS, traffic_table.KEPT_TUNED))


def precisions_trained(folder: Path) -> str:
    """Returns the table of training precisions."""
    return precision_table.trained_table(stored(folder / precision_table.KEPT))


def precisions_after(folder: Path) -> str:
    """Returns the table of quantization after training."""
    return precision_table.after_table(stored(folder / precision_table.KEPT))


def screening(folder: Path) -> str:
    """Returns the table of settings that were tried on validation images."""
    return screening_table.table(stored(folder / screening_table.KEPT))


def splits(folder: Path) -> str | None:
    """Returns the table of splits, if docs/splits.json is there."""
    return split_table.table(stored(folder / split_table.KEPT)) if (folder / split_table.KEPT).exists() else None


def faults(folder: Path) -> str | None:
    """Returns the table of clients that fail or attack, if docs/faults.json is there."""
    return faults_table.table(stored(folder / faults_table.KEPT)) if (folder / faults_table.KEPT).exists() else None


def networks(shown: Callable[[Runs], str]) -> Callable[[Path], str | None]:
    """Returns the function that gives a table of networks, if docs/networks.json is there."""

    def made(folder: Path) -> str | None:
        path = folder / network_table.KEPT
        return shown(stored(path)) if path.exists() else None

    return made


def contacts(folder: Path) -> str:
    """Returns the table of stored runs that are replayed over contacts."""
    return markdown(*contacts_table.table(folder))


def contacts_bits(folder: Path) -> str:
    """Returns the table of supposed payloads over slow links."""
    return markdown(*contacts_table.bits_table(folder))


def contacts_training(folder: Path) -> str:
    """Returns the table of computers on board."""
    return markdown(*contacts_table.training_table(folder))


def contacts_sentences(folder: Path) -> str:
    """Returns what all these figures say, in a list."""
    trained, rounds = (stored(folder / kept) for kept in (orbit_table.KEPT, traffic_table.KEPT))
    told = [*contacts_table.sentences(folder), orbit_table.staleness(trained, rounds)]
    return "".join(f"- {sentence}\n" for sentence in told)


def antennas(folder: Path) -> str | None:
    """Returns the table of antennas, if docs/antennas.json is there."""
    path = folder / "antennas.json"
    return markdown(*(read_json(path)["printed"][0][key] for key in ("columns", "rows"))) if path.exists() else None


def orbit(folder: Path) -> str | None:
    """Returns the table of runs that contacts drove, if docs/orbit.json is there."""
    return orbit_table.table(stored(folder / orbit_table.KEPT), stored(folder / traffic_table.KEPT))


def orbit_choice(folder: Path) -> str | None:
    """Returns what the server's step was chosen by, if docs/orbit.json has it."""
    return orbit_table.choice_table(stored(folder / orbit_table.KEPT))


def speed(name: str) -> Callable[[Path], str | None]:
    """Returns the function that shows what a benchmark stored."""

    def shown(folder: Path) -> str | None:
        path = folder / "speed" / f"{name}.json"
        if not path.exists():
            return None
        report = read_json(path)
        told = f"{report['measured']}, {traffic_table.machine(report['environment'])}"
        parts = [f"{each['title']}\n\n{markdown(each['columns'], each['rows'])}" for each in report["printed"]]
        return "\n".join([f"Measured {told}.\n", *parts])

    return shown


def waiting(when: str) -> Callable[[Path], str]:
    """Returns the function that shows what threads cost that wait, on an idle machine or a busy one."""

    def shown(folder: Path) -> str:
        report = read_json(folder / "speed" / f"waiting-{when}.json")
        ways = list(next(iter(report["milliseconds"].values())))
        rows = []
        for kind, each in report["milliseconds"].items():
            others = (f"{each[way]:.2f} ({each[way] / each[ways[0]]:.2f})" for way in ways[1:])
            rows.append([kind, f"{each[ways[0]]:.2f}", *others])
        return markdown([f"{when}: ms of a step, median of {len(report['turns'])} turns", *ways], rows)

    return shown


def peers(folder: Path) -> str | None:
    """Returns the table of other codecs on the same updates, if docs/peers.json is there."""
    path = folder / "peers.json"
    if not path.exists():
        return None
    report = read_json(path)
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items() if number)
    columns = ["codec", "bytes", "bits per element", "error", "`ecq` at these bytes", "`tcq`", "`stc`"]
    keys = ("error", "ecq_error", "tcq_error", "stc_error")
    rows = [
        [
            row["codec"],
            f"{row['bytes']:,.0f}",
            f"{row['bits_per_element']:.3f}",
            *("" if row[key] is None else f"{row[key]:.4f}" for key in keys),
        ]
        for row in report["rows"]
    ]
    return (
        f"{len(report['updates'])} updates of {report['elements']:,} elements; {versions}.\n\n{markdown(columns, rows)}"
    )


def bench(folder: Path) -> str | None:
    """Returns the table of model files side by side, if docs/bench.json is there."""
    from fl.deployment.bench import COLUMNS, table_rows

    path = folder / "bench.json"
    rows = table_rows(read_json(path)) if path.exists() else ()
    return markdown(COLUMNS, [row for row in rows if int(row[1]) in SHOWN_BATCHES]) if path.exists() else None


def formats(folder: Path) -> str | None:
    """Returns the table of deployment files, if docs/formats.json, a stored comparison, is there."""
    from fl.deployment.files import COLUMNS, table_rows

    path = folder / "formats.json"
    report = read_json(path) if path.exists() else None
    return report and markdown(COLUMNS, list(table_rows(report["formats"], report["precisions"])))


def default_precisions(folder: Path) -> str | None:
    """Returns what compare_quantizations.py says of the model in examples/, if docs/formats.json is there."""
    path = folder / "formats.json"
    if not path.exists():
        return None
    columns = "precision", "loss", "accuracy", "agreement with FP32", "file", "of FP32", "ms per image", "kernels"
    found = read_json(path)["precisions"]
    rows = [
        [
            name,
            f"{each['loss']:.4f}",
            f"{each['accuracy_percent']:.2f} %",
            f"{100 * each['agreement_with_fp32']:.2f} %",
            f"{each['file_size_bytes']:,} B",
            f"{100 / each['compression_ratio']:.1f} %",
            f"{each['inference_ms']:.3f} ({found['fp32']['inference_ms'] / each['inference_ms']:.1f}×)",
            each["kernels"],
        ]
        for name, each in found.items()
    ]
    return markdown(columns, rows)


def default_run(folder: Path) -> str | None:
    """Returns the rounds of the run in examples/."""
    path = folder.parent / "examples" / "rounds.jsonl"
    if not path.exists():
        return None
    scores = "test accuracy", "test loss", "train loss"
    columns = "round", *scores, "clients", "broadcast", "update", "training", "evaluation", "aggregation"
    rows = [
        [
            str(each["round"]),
            f"{100 * each['test_accuracy']:.2f} %",
            *(f"{each[key]:.4f}" for key in ("test_loss", "train_loss")),
            f"{each['clients_completed']}/{each['clients_asked']}",
            *(f"{each[way]['payload_bytes']:,} B" for way in ("broadcast", "update")),
            *(f"{each[key]:.{places}f} s" for key, places in (("train_s", 1), ("evaluate_s", 1), ("aggregate_s", 2))),
        ]
        for each in read_jsonl(path)
    ]
    return markdown(columns, rows)


def example_traffic(folder: Path) -> str:
    """Returns what the comparison says of the traffic of the run in examples/run/."""
    from fl.comparison.printed import show_measured
    from fl.core.console import console
    from fl.core.presets import preset

    report = read_json(folder.parent / "examples" / "run" / "quantization_comparison.json")
    titles = {name: preset("precision", name)["title"] for name in report["precisions"]}
    with console.capture() as told:
        show_measured(report["communication"], titles)
    lines = told.get().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("Sent in"))
    kept = (line for line in lines[first:] if line and "Modelled" not in line)
    return "\n".join(["```", *kept, "```", ""])


PARTS: Mapping[str, Callable[[Path], str | None]] = {
    "headline-precisions": headlines.precisions,
    "headline-traffic": headlines.traffic,
    "headline-qat": headlines.qat,
    "headline-images": contacts_table.break_even,
    "codecs": traffic,
    "codecs-behind": traffic_behind,
    "codecs-tuned": traffic_tuned,
    "screening": screening,
    "splits": splits,
    "faults": faults,
    "contacts": contacts,
    "contacts-bits": contacts_bits,
    "contacts-training": contacts_training,
    "contacts-antennas": antennas,
    "contacts-sentences": contacts_sentences,
    "orbit": orbit,
    "orbit-choice": orbit_choice,
    "networks": networks(network_table.traffic),
    "networks-precisions": networks(network_table.precisions),
    "networks-formats": networks(network_table.formats),
    "networks-channels": networks(network_table.channels),
    "networks-times": networks(network_table.times),
    "networks-targets": networks(network_table.targets),
    "precisions-after": precisions_after,
    "precisions-trained": precisions_trained,
    "bench": bench,
    "formats": formats,
    "default-run": default_run,
    "example-traffic": example_traffic,
    "default-precisions": default_precisions,
    **{name: speed(name) for name in SPEED},
    "peers": peers,
    **{f"waiting-{when}": waiting(when) for when in ("idle", "busy")},
}
"""Each from the folder of the JSON files; a text without line breaks goes within a line."""


def render(text: str, folder: Path, place: str) -> str:
    """Returns a document with every generated part made anew.

    Raises:
        RunError: a part has no maker.
    """

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in PARTS:
            raise RunError(f"{place}: nothing makes the part {name}; parts are {', '.join(PARTS)}")
        new = PARTS[name](folder)
        if new is None:
            return match[0]
        inside = f"\n\n{new}\n" if "\n" in new else new
        return f"<!-- made by make tables: {name} -->{inside}<!-- end: {name} -->"

    return PART.sub(made, text)


def documents(folder: Path) -> Iterator[Path]:
    """Yields the documents that show figures of a folder: those in it, and README.md beside docs/."""
    yield from sorted(folder.glob("*.md"))
    readme = folder.parent / "README.md"
    if folder.resolve() == DOCS and readme.exists():
        yield readme


def changes(folder: Path) -> dict[Path, str]:
    """Returns the text of every file that would be another one if it were made now."""
    new = {path: render(path.read_text(), folder, path.name) for path in documents(folder)}
    if (folder / traffic_table.KEPT).exists():
        new[folder / "codecs.csv"] = traffic_table.to_csv(traffic_table.lines_of(folder))
    return {path: text for path, text in new.items() if not path.exists() or path.read_text() != text}


def write(folder: Path) -> None:
    """Makes every table of a folder's figures anew, and the picture of codecs."""
    for path, text in changes(folder).items():
        write_bytes(path, text.encode())
        say(f"Written: {path}")
    if (folder / traffic_table.KEPT).exists():
        plot_traffic(folder / "codecs.png", traffic_table.lines_of(folder))


def main() -> None:
    """Writes or checks."""
    parser = parser_of(str(__doc__), "# writes README.md and docs/", "--check")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if anything would change")
    check = parser.parse_args().check
    with one_line_errors():
        if not check:
            write(DOCS)
        elif old := changes(DOCS):
            raise RunError(f"{', '.join(path.name for path in old)}: not what the stored figures give; run make tables")


if __name__ == "__main__":
    main()
