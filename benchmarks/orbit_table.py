"""Runs that contacts drove on real EuroSAT: their rows, and the tables of them."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from grid import Row, Runs
from pairs import paired
from table import markdown
from traffic_table import DIRICHLET, INT8, ONE, both

from fl.core.units import MIB

KEPT = "orbit.json"
SEEDS, CHOSEN_ON = (101, 102, 103), (1,)
"""Those of docs/codecs.json, so that synchronous runs to compare with are stored; and the seed of what is chosen."""
SERVER_LR, MIXING = 1.0, 0.6
"""η of fedbuff and a of fedasync, chosen by validation images."""
CONTACTS = ("clock=contacts", "link.train_s=1000")
PLANE = (*CONTACTS, "constellation=plane_10")
WALKER = (*CONTACTS, "constellation=walker_40_4_1", "num_clients=40", "link=ttc_uhf")
LINKS = {"uhf": ("link=ttc_uhf",), "sband": ("link=cubesat_sband",)}
ECQ = both("ecq", bits=ONE)
TRAFFIC: dict[str, tuple[str, ...]] = {"fp32": (), "int8": INT8, "ecq": ECQ}
TITLES = {
    "fp32": "FP32",
    "int8": "int8 both ways",
    "ecq": f"ecq, {ONE:g} bit",
    "uhf": "ttc_uhf",
    "sband": "cubesat_sband",
}
GOALS = ("85", "90")


def fedbuff(size: int = 5, server_lr: float = SERVER_LR) -> tuple[str, ...]:
    """Returns the overrides of a buffer."""
    return "policy=fedbuff", f"policy.buffer_size={size}", f"policy.server_lr={server_lr:g}"


def fedasync(mixing: float = MIXING) -> tuple[str, ...]:
    """Returns the overrides of a server that takes every update by itself."""
    return "policy=fedasync", f"policy.mixing={mixing:g}"


def plane(policy: str, traffic: str, link: str, settings: Sequence[str], seeds: tuple[int, ...] = SEEDS[:1]) -> Row:
    """Returns a row of ten satellites in a plane."""
    title = f"{policy}, {TITLES[traffic]}, plane_10, {TITLES[link]}"
    name = f"{policy.split(',')[0].lower()}-{traffic}-{link}"
    return Row(name, title, (*PLANE, *LINKS[link], *settings, *TRAFFIC[traffic]), seeds, stored_as(traffic))


def stored_as(traffic: str) -> str:
    """Returns the row of docs/codecs.json that was synchronous with the same traffic."""
    return "ecq-1" if traffic == "ecq" else traffic


ROWS = (
    *(
        plane("FedBuff, K = 5", traffic, link, fedbuff(), SEEDS if link == "uhf" and traffic != "int8" else SEEDS[:1])
        for link in LINKS
        for traffic in TRAFFIC
    ),
    *(plane("FedAsync", "ecq", link, fedasync()) for link in LINKS),
    *(plane("intraplane", "ecq", link, ("policy=intraplane",)) for link in LINKS),
    *(
        Row(
            f"walker-{name}-{traffic}",
            f"{title}, {TITLES[traffic]}, walker_40_4_1, ttc_uhf",
            (*WALKER, *settings, *TRAFFIC[traffic]),
            SEEDS[:1],
            "",
        )
        for name, title, settings in (
            ("synchronous", "synchronous", ("policy=synchronous",)),
            ("fedbuff", "FedBuff, K = 20", fedbuff(20)),
        )
        for traffic in ("fp32", "ecq")
    ),
    *(
        Row(
            f"dirichlet-fedbuff-{traffic}",
            f"FedBuff, K = 5, {TITLES[traffic]}, plane_10, ttc_uhf, Dirichlet 0.3",
            (*PLANE, *LINKS["uhf"], *fedbuff(), *TRAFFIC[traffic], *DIRICHLET),
            SEEDS,
            f"dirichlet-{stored_as(traffic)}",
        )
        for traffic in ("fp32", "ecq")
    ),
)
CHOSEN_ROWS = tuple(
    Row(
        f"choice-{name}",
        title,
        (*PLANE, *LINKS["uhf"], *settings, *ECQ, "data.validation_fraction=0.1"),
        CHOSEN_ON,
    )
    for name, title, settings in (
        *((f"lr-{rate:g}", f"FedBuff, K = 5, η = {rate:g}", fedbuff(server_lr=rate)) for rate in (0.5, 1.0, 1.5)),
        *((f"mixing-{share:g}", f"FedAsync, a = {share:g}", fedasync(share)) for share in (0.3, 0.6, 0.9)),
    )
)


def finished(runs: Runs, one: Row) -> list[dict[str, Any]]:
    """Returns the figures of a row's runs that there are."""
    return [runs[one.name, seed] for seed in one.seeds if (one.name, seed) in runs]


def table(runs: Runs, synchronous: Runs) -> str | None:
    """Returns a line for each row that has a run; None without any.

    Args:
        runs: that contacts drove.
        synchronous: of docs/codecs.json, in rounds.
    """
    goals = [f"{goal} %" for goal in GOALS]
    columns = ["run", "n", *goals, "all updates", "test accuracy", "points from rounds", "staleness", "MB sent"]
    rows = []
    for one in ROWS:
        if own := finished(runs, one):
            change = paired(against_rounds(runs, synchronous, one))
            rows.append([one.title, f"{len(own)} of {len(one.seeds)}", *cells(own), *_ends(own, change)])
    if not rows:
        return None
    done, wanted = sum(len(finished(runs, one)) for one in ROWS), sum(len(one.seeds) for one in ROWS)
    left = "" if done == wanted else f" Not finished: {done} of {wanted} runs."
    told = "Hours and dollars until the first run's test accuracy of a column, simulated; points are paired by seed."
    return f"{markdown(columns, rows)}\n{told}{left}\n"


def cells(own: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what the first run took until its goals, and until its end."""
    first = own[0]["contacts"]
    reached = [first["reached"].get(goal) for goal in GOALS]
    return ["never" if each is None else told(each) for each in reached] + [told(first)]


def _ends(own: Sequence[dict[str, Any]], change: object) -> list[str]:
    accuracy = 100 * fmean(each["test_accuracy"] for each in own)
    sent = fmean(each["contacts"]["payload_bytes"]["total"] for each in own) / MIB
    stale = fmean(each["staleness_mean"] for each in own)
    return [f"{accuracy:.2f} %", f"{change or ''}", f"{stale:.2f}", f"{sent:.1f}"]


def against_rounds(runs: Runs, synchronous: Runs, one: Row) -> list[tuple[float, float]]:
    """Returns pairs of test accuracies of the same seed: driven by contacts, and in rounds."""
    return [
        (runs[one.name, seed]["test_accuracy"], synchronous[one.baseline, seed]["test_accuracy"])
        for seed in one.seeds
        if (one.name, seed) in runs and (one.baseline, seed) in synchronous
    ]


def choice_table(runs: Runs) -> str | None:
    """Returns validation accuracies by what is chosen; None without any run."""
    known = [(one, finished(runs, one)) for one in CHOSEN_ROWS]
    if not any(own for _, own in known):
        return None
    rows = [
        [one.title, f"{100 * own[0]['validation_accuracy']:.2f} %", f"{own[0]['contacts']['hours']:.1f}"]
        if own
        else [one.title, "", ""]
        for one, own in known
    ]
    used = f"Used above: η = {SERVER_LR:g}, a = {MIXING:g}."
    chosen_by = f"{used} Seed {CHOSEN_ON[0]}, a tenth of the training images held out."
    return f"{markdown(('policy', 'validation accuracy', 'simulated hours'), rows)}\n{chosen_by}\n"


def staleness(runs: Runs, synchronous: Runs) -> str:
    """Returns the sentence on what staleness costs."""
    one = next(each for each in ROWS if each.name == "fedbuff-ecq-uhf")
    pairs = against_rounds(runs, synchronous, one)
    if not pairs:
        return "What staleness costs in accuracy is not measured yet."
    own = finished(runs, one)
    stale = fmean(each["staleness_mean"] for each in own)
    return (
        f"Staleness: FedBuff with K = 5 (ecq, {ONE:g} bit, `ttc_uhf`; {stale:.2f} versions behind on average) ends "
        f"{paired(pairs)} points of test accuracy from the same seeds in rounds, n = {len(pairs)}."
    )


def told(each: Any) -> str:
    """Returns hours and dollars."""
    return f"{each['hours']:.1f} h, ${each['cost_usd']:,.0f}"
