"""From checked settings to a run: nothing below this module sees a configuration."""

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid

from fl.codec.tensors import not_finite
from fl.communication.constellation import ground
from fl.communication.plan import Plan
from fl.communication.planes import Rings
from fl.communication.policies import IntraPlane
from fl.core.console import progress, say
from fl.core.errors import ConfigError, PayloadError, counted
from fl.core.files import remove_partial_files, sha256, write_bytes, write_json, write_jsonl
from fl.core.output import OF_THE_PROCESS, speak
from fl.core.run_folder import CLIENTS, CONTACTS, HYDRA_FOLDER, MODEL, MODELS, SETTINGS, SHARES
from fl.core.run_lock import sole_writer
from fl.core.seeds import numpy_generator
from fl.data.settings import open_data
from fl.experiment.run_images import RunImages, share_out
from fl.experiment.settings import Settings, settings_from
from fl.federation.client_app import ClientSettings, make_client_app
from fl.federation.engine import LocalGrid, RemoteGrid
from fl.federation.server_app import make_server_app
from fl.federation.task import ServerTask
from fl.models.architecture import WEIGHTS
from fl.report import draw_contacts_or_say, write_report_or_say
from fl.tracking import tracked
from fl.training.start import Start


def run(  # seven: the four after `trusted` are for doors and tests, each alone
    config: Mapping[str, Any],
    run_dir: Path,
    *,
    trusted: Collection[str] = (),
    resume: bool = False,
    mods: Sequence[Mod] = (),
    hydra_files: Mapping[str, str] | None = None,
    grid: Grid | None = None,
) -> Path:
    """Trains as configured and returns the path of `final_model.pt`.

    Args:
        config: resolved, as plain data.
        run_dir: an existing folder that holds no run, or, to resume, the run's.
        trusted: `_target_` values the user typed.
        resume: continue after the last checkpoint.
        mods: Flower mods around every client's training.
        hydra_files: texts to keep in `.hydra/`, by file name.
        grid: where clients already wait; without one the configured engine runs them.

    Raises:
        QuantflError: settings, data or too many clients are at fault, or another process is writing into the folder.
    """
    settings = settings_from(config, trusted)
    if settings.output is not None:
        speak(settings.output)
    settings, plan = _planned(_usable(settings, resume=resume, elsewhere=grid is not None))
    run_dir, config = run_dir.absolute(), _as_written_down(config)
    with sole_writer(run_dir):
        if not resume and (run_dir / SETTINGS).exists():
            raise ConfigError(f"hydra.run.dir={run_dir}: already holds a run; choose another folder")
        remove_partial_files(run_dir, *(run_dir / name for name in (HYDRA_FOLDER, MODELS, CLIENTS)))
        with progress("opening images"):
            inputs = _open_inputs(settings, run_dir / SHARES)
        if resume:
            inputs.refuse_others(run_dir)
        else:
            _write_settings(run_dir, config, hydra_files or {})
        inputs.write(run_dir)
        _write_contacts(run_dir, settings, plan)
        server = make_server_app(_task(settings, inputs, run_dir, config, plan), resume=resume)
        clients = make_client_app(_client_settings(settings, inputs), mods)
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        engine, rounds = settings.engine, settings.rounds
        with (
            tracked(run_dir, settings.tracking, config.get("tracking", {}), resume),
            nullcontext(grid) if grid else engine.open(clients, rounds.num_clients, run_dir / CLIENTS) as opened,
        ):
            reached = opened if isinstance(opened, LocalGrid) else RemoteGrid(opened)
            reached.reply_timeout_s = rounds.reply_timeout_s
            try:
                server(reached, context)
            finally:
                if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                    _show(run_dir, settings)
    return run_dir / MODEL


def _write_settings(run_dir: Path, config: dict[str, Any], hydra_files: Mapping[str, str]) -> None:
    """Writes what the run was asked for; from here on it can be resumed."""
    for name, text in hydra_files.items():
        (run_dir / HYDRA_FOLDER).mkdir(exist_ok=True)
        write_bytes(run_dir / HYDRA_FOLDER / name, text.encode())
    write_json(run_dir / SETTINGS, config)


def _write_contacts(run_dir: Path, settings: Settings, plan: Plan | None) -> None:
    """Writes who can see whom when, as `constellation=file` reads it, and where they are, as far as anybody knows."""
    windows, content = settings.server.link.windows, dict[str, Any]()
    if not settings.clock.by_contacts or windows is None:
        return
    if settings.constellation is not None:
        try:
            content = {"ground": ground(settings.constellation)}
        except ConfigError as error:
            say(f"note: there will be no picture of ground tracks ({error})")
    write_jsonl(
        run_dir / CONTACTS,
        [{**(plan.to_json() if plan else {"period_s": windows.period_s, "windows": windows.windows}), **content}],
    )


def _show(run_dir: Path, settings: Settings) -> None:
    """Makes of the files of a run that is over what people look at."""
    if settings.clock.by_contacts:
        draw_contacts_or_say(run_dir)
    if settings.server.report:
        write_report_or_say(run_dir)


def _open_inputs(settings: Settings, otherwise: Path) -> RunImages:
    """Opens the images, refuses what of the settings does not go with them, shares them out, and says what they are."""
    images, split = open_data(settings.data, settings.rounds.seed)
    if settings.server.checkpoint.keep == "best" and not len(split.validation):
        raise ConfigError(
            f"checkpoint.keep=best: data.split={settings.data.split} with data.validation_fraction="
            f"{settings.data.validation_fraction:g} leaves no validation images to judge by"
        )
    inputs = share_out(settings, images, split, otherwise)
    _refuse_rates_below_the_floor(settings, inputs.start)
    say(inputs.told())
    return inputs


def _task(
    settings: Settings, inputs: RunImages, run_dir: Path, config: dict[str, Any], plan: Plan | None
) -> ServerTask:
    """Returns what the server is given, and says what is about to be trained."""
    device, rounds = settings.compute.chosen(settings.engine.reaches_gpu), settings.rounds
    clients = f"{rounds.clients_per_round} of {counted(rounds.num_clients, 'client')} per round"
    kinds = (settings.server.strategy, settings.training.optimizer)
    names = " + ".join(target.target.rpartition(".")[2] for target in kinds)
    rate, arithmetic = f"lr {rounds.lr:g} {rounds.lr_schedule}", settings.training.arithmetic.describe(device)
    say(f"Training: {counted(rounds.num_rounds, 'round')}, {clients}, {names}, {rate}, {arithmetic}, {device}")
    if settings.faults is not None:
        say(f"Faults: {settings.faults.told(rounds.seed, rounds.num_clients)}")
    images_of, clock = [len(share) for share in inputs.shares], settings.clock
    train_s: Sequence[float] = ()
    if clock.by_contacts:
        train_s = clock.train_s(settings.server.link, settings.training.local_epochs, images_of)
        say(f"On board: a training takes {clock.told(settings.server.link, train_s)}")
    return ServerTask(
        run_dir=run_dir,
        images_folder=inputs.images.folder,
        split=inputs.split,
        device=device,
        arithmetic=arithmetic,
        config=config,
        rounds=replace(rounds, images_of=images_of, spool_folder=run_dir),
        server=settings.server,
        compute=settings.compute,
        codecs=settings.codecs,
        start=inputs.start,
        clock=clock,
        train_s=train_s,
        rings=_rings(settings),
        plan=plan,
    )


def _usable(settings: Settings, *, resume: bool, elsewhere: bool) -> Settings:
    """Returns the settings that this run goes by; what it cannot obey is refused (`ConfigError`)."""
    _refuse_what_nobody_keeps(settings, elsewhere=elsewhere)
    if settings.tracking is not None:
        settings.tracking.refuse_missing()
    if resume and not elsewhere:  # the settings lie in a folder; where clients wait elsewhere they were typed
        return replace(settings, data=settings.data.in_a_known_cache())
    return settings


def _planned(settings: Settings) -> tuple[Settings, Plan | None]:
    """Returns settings whose link has the contacts of the constellation, and their plan; as they are without one."""
    if settings.constellation is None:
        return settings, None
    link = settings.server.link
    with progress("planning contacts"):
        plan = settings.constellation.plan(settings.data.cache_dir, link.acquisition_s)
    server = replace(settings.server, link=replace(link, windows=plan.contacts))
    return replace(settings, server=server), plan


def _rings(settings: Settings) -> Rings:
    """Returns the satellites of each plane, where they pass models on."""
    constellation = settings.constellation
    return constellation.rings() if constellation and isinstance(settings.clock.policy, IntraPlane) else ()


def _refuse_what_nobody_keeps(settings: Settings, elsewhere: bool) -> None:
    """Refuses simulated time for clients that Flower runs, and time limits for those that cannot be left alone."""
    if elsewhere and settings.clock.by_contacts:
        raise ConfigError(
            "clock=contacts: simulated time cannot be kept by clients that Flower runs (flwr run, SuperNodes); start "
            "the run with python -m fl.train"
        )
    if elsewhere or settings.engine.abandons_clients:
        return
    for name in ("reply_timeout_s", "round_timeout_s"):
        if (limit := getattr(settings.rounds, name)) is not None:
            raise ConfigError(
                f"{name}={limit:g}: clients run in this process, where one that does not answer cannot be left alone; "
                "use engine=ray"
            )


def client_app(config: Mapping[str, Any], trusted: Collection[str] = ()) -> ClientApp:
    """Returns the clients of a run as configured, for a process that Flower starts.

    Args:
        config: resolved, as plain data.
        trusted: `_target_` values the user typed.

    Raises:
        QuantflError: settings or data are at fault.
    """
    settings = settings_from(config, trusted)
    images, split = open_data(settings.data, settings.rounds.seed)
    return make_client_app(_client_settings(settings, share_out(settings, images, split)))


def _refuse_rates_below_the_floor(settings: Settings, start: Start) -> None:
    """Lets each codec encode once before anybody trains: it then says which rate this network needs at least."""
    for way in ("broadcast", "update"):
        if (codec := getattr(settings.codecs, way)) is not None:
            arrays = start.arrays()
            for name, array in arrays.items():
                if (endless := not_finite(array)) is not None:  # a constant, such as a mask, which is never coded
                    arrays[name] = np.where(endless, 0, array).astype(array.dtype)
            try:
                codec.encode(arrays, numpy_generator(settings.rounds.seed, "floor"))
            except PayloadError as error:
                raise ConfigError(f"{way}: {error}") from error


def _client_settings(settings: Settings, inputs: RunImages) -> ClientSettings:
    return ClientSettings(
        images_folder=inputs.images.folder,
        shares_file=inputs.shares_file,
        start=inputs.start,
        num_clients=settings.rounds.num_clients,
        seed=settings.rounds.seed,
        device=settings.compute.chosen(settings.engine.reaches_gpu),
        compute=settings.compute,
        training=settings.training,
        codecs=settings.codecs,
        faults=settings.faults,
        shares_sha256=sha256(inputs.shares_file.read_bytes()),
    )


def _as_written_down(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the run's own settings, with paths as a comparison started elsewhere will need them."""
    config = {name: value for name, value in config.items() if name not in OF_THE_PROCESS}
    data, link, model = dict(config["data"]), dict(config["link"]), dict(config.get("model") or {})
    if constellation := dict(config.get("constellation") or {}):
        if Path(str(constellation.get("path"))).is_file():
            constellation["path"] = str(Path(constellation["path"]).absolute())
        config["constellation"] = constellation
    if model.get(WEIGHTS):
        model[WEIGHTS] = str(Path(model[WEIGHTS]).expanduser().absolute())
    for name in ("path", "split_files"):
        if data.get(name):
            data[name] = str(Path(data[name]).expanduser().absolute())
    if Path(str(link.get("windows"))).is_file():
        link["windows"] = str(Path(link["windows"]).absolute())
    return {**config, "data": data, "link": link, **({"model": model} if model else {})}
