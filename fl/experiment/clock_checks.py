"""What cannot go together with a clock."""

from fl.communication.constellation import Constellation
from fl.communication.planes import check_planes
from fl.communication.policies import FedAsync, FedBuff, IntraPlane, Policy, Synchronous
from fl.core.errors import ConfigError
from fl.core.presets import preset
from fl.core.targets import Target
from fl.federation.clock_settings import ClockSettings
from fl.federation.codecs import Codecs
from fl.federation.faults import Fault, Straggler
from fl.federation.rounds import RoundSettings
from fl.federation.strategy import MEANS, Aggregator
from fl.federation.task import ServerSettings

USUAL_COMPUTER = "jetson_orin_nano"
"""Which `conf/config.yaml` chooses, whatever the clock."""


def check_clock(
    clock: ClockSettings,
    rounds: RoundSettings,
    server: ServerSettings,
    codecs: Codecs,
    faults: Fault | None,
    constellation: Constellation | None,
) -> None:
    """Refuses settings that a clock does not obey.

    Raises:
        ConfigError: names the setting, its value and what to do.
    """
    if not clock.by_contacts:
        _refuse_what_only_contacts_obey(clock)
        if constellation is not None:
            raise ConfigError("constellation: is for clock=contacts alone; add that, or leave it out")
        return
    for name, value, why in _not_with_contacts(rounds, server, codecs, faults):
        if value:
            raise ConfigError(f"{name}={value:g}: {why}" if isinstance(value, float) else f"{name}={value}: {why}")
    windows, link = server.link.windows, server.link
    if constellation is not None and rounds.num_clients != constellation.satellites:
        raise ConfigError(
            f"num_clients={rounds.num_clients}: each client is a satellite, and the constellation has "
            f"{constellation.satellites}"
        )
    if constellation is None and windows is not None and rounds.num_clients > len(windows.windows):
        raise ConfigError(
            f"num_clients={rounds.num_clients}: each client is a satellite, and link.windows of link={link.name} holds "
            f"{len(windows.windows)}"
        )
    if link.train_s is None and clock.computer.images_per_s is None:
        raise ConfigError(
            "computer.images_per_s=null: nobody knows how long a training on board takes; choose a computer, as in "
            "computer=jetson_orin_nano, or give the seconds, as in link.train_s=1000"
        )
    _check_policy(clock.policy, rounds, server)
    if isinstance(clock.policy, IntraPlane):
        check_planes(link, constellation.rings() if constellation else ())


def _refuse_what_only_contacts_obey(clock: ClockSettings) -> None:
    default, usual = ClockSettings(), Target.from_config("computer", preset("computer", USUAL_COMPUTER)).build()
    for name, ours in {"policy": [default.policy], "computer": [default.computer, usual], "max_days": [None]}.items():
        if (value := getattr(clock, name)) not in ours:
            raise ConfigError(f"{name}={value}: is for clock=contacts alone; add that, or leave {name} out")


def _not_with_contacts(
    rounds: RoundSettings, server: ServerSettings, codecs: Codecs, faults: Fault | None
) -> list[tuple[str, object, str]]:
    """Returns settings, their values where they are set, and why clock=contacts cannot honour them."""
    time = "is by wall clock, and clock=contacts goes by simulated time; policy=synchronous has policy.deadline_s"
    by_weight = codecs.update is not None and codecs.update.by_weight
    return [
        (
            "server_model",
            server.server_model == "reference" and "reference",
            "with clock=contacts every satellite holds a reference of its own; use server_model=exact",
        ),
        ("fraction_evaluate", rounds.fraction_evaluate, "clients do not evaluate with clock=contacts; set it to 0"),
        ("reply_timeout_s", rounds.reply_timeout_s, time),
        ("round_timeout_s", rounds.round_timeout_s, time),
        ("update.by_weight", by_weight, "a contact serves one satellite, so there is nobody to share bits with"),
        ("faults", isinstance(faults, Straggler) and "stragglers", time),
    ]


def _check_policy(policy: Policy, rounds: RoundSettings, server: ServerSettings) -> None:
    if isinstance(policy, Synchronous):
        return
    name = type(policy).__name__.lower()
    inner = Aggregator(server.strategy).inner
    kind = type(inner).__name__
    if rounds.fraction_train < 1:
        raise ConfigError(
            f"fraction_train={rounds.fraction_train:g}: policy={name} draws nobody, every satellite comes when it "
            "is in contact; use fraction_train=1.0"
        )
    if rounds.min_completed is not None and policy.takes_stale:
        raise ConfigError(
            f"min_completed={rounds.min_completed}: policy={name} makes a version when it has the updates for it, "
            "however many fail; leave it out"
        )
    if isinstance(policy, FedBuff) and policy.buffer_size > rounds.num_clients:
        raise ConfigError(
            f"policy.buffer_size={policy.buffer_size}: would never be full, there are {rounds.num_clients} satellites "
            "(num_clients) and none trains twice on one version"
        )
    if not isinstance(policy, FedAsync) and type(inner) not in MEANS:
        has = "updates to several" if isinstance(policy, FedBuff) else "sums of them"
        raise ConfigError(
            f"strategy={kind}: compares updates to one model, and policy={name} has {has}; use an averaging strategy, "
            "as strategy=fedavg or fedadam, or policy=synchronous"
        )
    if isinstance(policy, FedAsync) and kind != "FedAvg":
        raise ConfigError(f"strategy={kind}: policy=fedasync mixes models by itself; use strategy=fedavg")
