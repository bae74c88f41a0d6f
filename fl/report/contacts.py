"""What the report says of a run that contacts drove: hours and money until an accuracy, and what satellites did."""

from collections.abc import Iterator

from fl.core.run_folder import ACTIVITY_PLOT, ROUNDS, SUMMARY
from fl.report.charts import Line, Picture, lines, svg
from fl.report.orbit import ACCURACY, HOURS, hours_of, pictures_of
from fl.report.parts import Section, Table
from fl.report.records import RunRecords


def contacts(run: RunRecords) -> Iterator[Section]:
    """Yields simulated time, where the run had its own."""
    told = run.summary.get("contacts")
    if not told:
        return
    hours, accuracy = hours_of(run), [100 * each["test_accuracy"] for each in run.rounds]
    pictures = []
    if hours:
        drawn = lines([Line("test", hours, accuracy)], HOURS, ACCURACY)
        words = f"test accuracy of {accuracy[-1]:.2f} % after {hours[-1]:,.1f} simulated hours"
        pictures.append(Picture(drawn, words, f"{ROUNDS}: simulated_s", "Accuracy over simulated time"))
    for name, source, height, draw in pictures_of(run):
        caption, words = (
            ("What each satellite did", f"what satellites did over {told['hours']:,.1f} simulated hours")
            if name == ACTIVITY_PLOT
            else (
                "Where satellites fly in one orbit, and what stations see",
                "ground tracks of satellites and stations",
            )
        )
        pictures.append(Picture(svg(draw, height), words, source, caption))
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
