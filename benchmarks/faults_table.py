"""What clients that fail or attack cost, by aggregation and traffic: the runs, and the table of them."""

import re

from grid import Row, Runs
from table import markdown
from traffic_table import ONE, both

KEPT = "faults.json"
SEED = 101
ROUNDS, EPOCHS = 5, 1
COMMON = (f"num_rounds={ROUNDS}", f"local_epochs={EPOCHS}", "min_completed=1")
TRAFFIC = {"plain": (), "ecq": both("ecq", bits=ONE)}
RULES = {"mean": "fedavg", "median": "median", "trimmed mean": "trimmed_mean", "Krum": "krum"}
FAULTS = {
    "none": (),
    "30 % drop out": ("faults=dropout", "faults.probability=0.3"),
    "50 % drop out": ("faults=dropout", "faults.probability=0.5"),
    **{f"{number} of 10 flip the sign": ("faults=sign_flip", f"faults.clients={number}") for number in (1, 2, 4)},
}
ATTACKERS = {"none": 2, "1 of 10 flip the sign": 1, "2 of 10 flip the sign": 2, "4 of 10 flip the sign": 4}
"""How many clients a rule is told to bear."""


def rule_settings(rule: str, fault: str) -> tuple[str, ...] | None:
    """Returns the overrides of a rule under a fault, None where it is not run: Krum bears at most 3 of 10."""
    if rule == "mean":
        return ("strategy=fedavg",) if fault != "4 of 10 flip the sign" else None
    if fault not in ATTACKERS or (rule == "Krum" and ATTACKERS[fault] > 3):
        return None
    bears = ATTACKERS[fault]
    own = {
        "median": (),
        "trimmed mean": (f"strategy.beta={bears / 10:g}",),
        "Krum": (f"strategy.num_malicious_nodes={bears}",),
    }
    return (f"strategy={RULES[rule]}", *own[rule])


def name_of(fault: str, rule: str, traffic: str) -> str:
    """Returns the name of a run."""
    return "-".join(re.sub(r"[^a-z0-9]+", "_", part.lower()) for part in (fault, rule, traffic))


ROWS = tuple(
    Row(
        name_of(fault, rule, traffic),
        f"{fault}, {rule}, {traffic}",
        (*COMMON, *settings, *overrides, *coded),
        (SEED,),
        name_of("none", "mean", traffic),
    )
    for traffic, coded in TRAFFIC.items()
    for fault, overrides in FAULTS.items()
    for rule in RULES
    if (settings := rule_settings(rule, fault)) is not None
)


def table(runs: Runs) -> str:
    """Returns one line for each fault and kind of traffic, and a column for each rule; what was not run is empty."""
    columns = ["traffic", "clients", *RULES, "MB sent (mean)"]
    rows = []
    for traffic in TRAFFIC:
        for fault in FAULTS:
            found = {rule: runs.get((name_of(fault, rule, traffic), SEED)) for rule in RULES}
            accuracies = [f"{100 * each['test_accuracy']:.2f} %" if each else "" for each in found.values()]
            sent = f"{found['mean']['payload_bytes'] / 2**20:.1f}" if found["mean"] else ""
            rows.append([traffic, fault, *accuracies, sent])
    done = sum((row.name, SEED) in runs for row in ROWS)
    told = f"{ROUNDS} rounds of {EPOCHS} local epoch, IID, the random split, one seed ({SEED}), so no interval"
    left = "" if done == len(ROWS) else f" Not finished: {done} of {len(ROWS)} runs."
    return f"{markdown(columns, rows)}\n{told}.{left}\n"
