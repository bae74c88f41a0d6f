"""What the report says of a run that contacts drove: hours and money until an accuracy, and what satellites did."""

from collections.abc import Iterator, Mapping
from typing import Any

from fl.core.run_folder import ROUNDS, SUMMARY, TIMELINE
from fl.report.charts import Line, Picture, lines, spans
from fl.report.parts import Section, Table
from fl.report.records import RunRecords

HOUR_S = 3600.0
MOST_SATELLITES = 60
PHASES = {
    "received": "receives",
    "trained": "trains",
    "failed": "trains",
    "arrived": "waits and sends",
    "late": "waits and sends",
    "relayed": "waits and sends",
    "summed": "waits and sends",
}
"""What a satellite did until an event."""


def contacts(run: RunRecords) -> Iterator[Section]:
    """Yields simulated time, where the run had its own."""
    told = run.summary.get("contacts")
    if not told:
        return
    hours = [each["simulated_s"] / HOUR_S for each in run.rounds]
    accuracy = [100 * each["test_accuracy"] for each in run.rounds]
    pictures = []
    if hours:
        drawn = lines([Line("test", hours, accuracy)], "simulated hours", "test accuracy (%)")
        words = f"test accuracy of {accuracy[-1]:.2f} % after {hours[-1]:,.1f} simulated hours"
        pictures.append(Picture(drawn, words, f"{ROUNDS}: simulated_s", "Accuracy over simulated time"))
    done = activity(run.timeline)
    if 0 < len(done) <= MOST_SATELLITES:
        names = [f"satellite {number}" for number in sorted(done)]
        drawn = spans(names, [done[number] for number in sorted(done)], "simulated hours")
        words = f"what {len(done)} satellites did over {told['hours']:,.1f} simulated hours"
        pictures.append(Picture(drawn, words, TIMELINE, "What each satellite did"))
    rows = [
        [f"{goal} %", f"{each['hours']:,.1f}", f"{each['cost_usd']:,.2f}", f"{each['payload_bytes']['total']:,.0f}"]
        for goal, each in told["reached"].items()
        if each
    ]
    columns = ["test accuracy", "simulated hours", "US$", "payload bytes"]
    tables = [Table("What a goal took", columns, rows, f"{SUMMARY}: contacts.reached")] if rows else []
    share = told["contact_share"]
    spent = f"{told['hours']:,.1f} simulated hours and ${told['cost_usd']:,.2f}"
    texts = [
        f"{told['updates_used']:,} updates in {told['versions']:,} versions took {spent}. Satellites neither "
        f"transferred nor trained {100 * told['idle_share']:.1f} % of the time"
        + (f", and used {100 * share:.1f} % of their contacts." if share is not None else ".")
    ]
    if error := told.get("coding_error"):
        texts.append(
            f"Satellites of a plane passed on {told['inter_satellite_bytes']:,} bytes; the second coding of their sums "
            f"changed them by {100 * error['mean']:.1f} % of their length."
        )
    if told["never_returned"]:
        texts.append(f"Never returned: satellites {', '.join(map(str, told['never_returned']))}.")
    yield Section("Simulated time", texts, pictures, tables)


def activity(timeline: list[Mapping[str, Any]]) -> dict[int, list[tuple[str, float, float]]]:
    """Returns what each satellite did, from when to when in hours."""
    done: dict[int, list[tuple[str, float, float]]] = {}
    last: dict[int, tuple[str, float]] = {}
    for event in timeline:
        number, time, kind = event["satellite"], event["time_s"] / HOUR_S, event["event"]
        if number is None:
            continue
        before, since = last.get(number, ("", time))
        if kind in PHASES and before and (kind != "received" or before == "sends"):  # else its neighbour sent it
            done.setdefault(number, []).append((PHASES[kind], since, time))
        last[number] = kind, time
    return done
