"""From checked settings to a run: nothing below this module sees a configuration."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid

from fl.core.console import say
from fl.core.errors import ConfigError, DataError, PayloadError, counted
from fl.core.files import read_json, remove_partial_files, sha256, write_bytes, write_json, write_npz
from fl.core.run_folder import (
    CLIENTS,
    HYDRA_FOLDER,
    INDICES,
    MODEL,
    MODELS,
    PARTITION,
    PARTITION_PLOT,
    SETTINGS,
    SHARES,
)
from fl.core.run_lock import sole_writer
from fl.core.seeds import derive, numpy_generator
from fl.data import ImageSet, Split
from fl.data.partition import label_distribution, read_shares, share_images
from fl.data.settings import open_data
from fl.experiment.settings import Settings, settings_from
from fl.federation.client_app import ClientSettings, make_client_app
from fl.federation.engine import LocalGrid, RemoteGrid
from fl.federation.plots import plot_label_distribution
from fl.federation.server_app import initial_arrays, make_server_app
from fl.federation.task import ServerTask


def run(
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
    if grid is None:
        _refuse_timeouts_that_nobody_keeps(settings)
    run_dir, config = run_dir.absolute(), _with_absolute_paths(config)

    with sole_writer(run_dir):
        if not resume and (run_dir / SETTINGS).exists():
            raise ConfigError(f"hydra.run.dir={run_dir}: already holds a run; choose another folder")
        return _run(settings, config, run_dir, resume=resume, mods=mods, hydra_files=hydra_files or {}, grid=grid)


def _run(
    settings: Settings,
    config: dict[str, Any],
    run_dir: Path,
    *,
    resume: bool,
    mods: Sequence[Mod],
    hydra_files: Mapping[str, str],
    grid: Grid | None,
) -> Path:

    remove_partial_files(run_dir, *(run_dir / name for name in (HYDRA_FOLDER, MODELS, CLIENTS)))
    images, split = open_data(settings.data, settings.rounds.seed)
    if settings.server.checkpoint.keep == "best" and not len(split.validation):
        raise ConfigError(
            f"checkpoint.keep=best: data.validation_fraction={settings.data.validation_fraction:g} of so few images "
            "leaves no validation images to judge by"
        )
    _refuse_rates_below_the_floor(settings, len(images.class_names))
    shares_file = _share_out(settings, images, split, run_dir / SHARES)
    shares = read_shares(shares_file)
    sizes = f"{len(split.train):,} training, {len(split.validation):,} validation, {len(split.test):,} test images"
    say("\n  note: ".join([f"Data: {images.title}: {sizes}", *images.notes]))
    inputs = _describe_inputs(images, split, shares)
    if resume and (run_dir / PARTITION).exists():
        _check_inputs(run_dir, inputs)
    if not resume:
        for name, text in hydra_files.items():
            (run_dir / HYDRA_FOLDER).mkdir(exist_ok=True)
            write_bytes(run_dir / HYDRA_FOLDER / name, text.encode())
        write_json(run_dir / SETTINGS, config)  # from here on the run can be resumed
    _write_inputs(run_dir, images, split, shares, inputs)

    device, rounds = settings.compute.chosen(settings.engine.reaches_gpu), settings.rounds
    clients = f"{rounds.clients_per_round} of {counted(rounds.num_clients, 'client')} per round"
    kinds = (settings.server.strategy, settings.training.optimizer)
    names = " + ".join(target.target.rpartition(".")[2] for target in kinds)
    rate, arithmetic = f"lr {rounds.lr:g} {rounds.lr_schedule}", settings.training.arithmetic.describe(device)
    say(f"Training: {counted(rounds.num_rounds, 'round')}, {clients}, {names}, {rate}, {arithmetic}, {device}")
    if settings.faults is not None:
        say(f"Faults: {settings.faults.told(rounds.seed, rounds.num_clients)}")
    task = ServerTask(
        run_dir=run_dir,
        images_folder=images.folder,
        split=split,
        device=device,
        arithmetic=arithmetic,
        config=config,
        rounds=replace(rounds, images_of=[len(share) for share in shares], spool_folder=run_dir),
        server=settings.server,
        compute=settings.compute,
        codecs=settings.codecs,
    )
    client_app = make_client_app(_client_settings(settings, images, shares_file), mods)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    engine = settings.engine
    with nullcontext(grid) if grid else engine.open(client_app, rounds.num_clients, run_dir / CLIENTS) as opened:
        reached = opened if isinstance(opened, LocalGrid) else RemoteGrid(opened)
        reached.reply_timeout_s = rounds.reply_timeout_s
        make_server_app(task, resume=resume)(reached, context)
    return run_dir / MODEL


def _refuse_timeouts_that_nobody_keeps(settings: Settings) -> None:
    if settings.engine.abandons_clients:
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
    return make_client_app(_client_settings(settings, images, _share_out(settings, images, split)))


def _refuse_rates_below_the_floor(settings: Settings, num_classes: int) -> None:
    """Lets each codec encode once before anybody trains: it then says which rate this network needs at least."""
    for way in ("broadcast", "update"):
        if (codec := getattr(settings.codecs, way)) is not None:
            tensors = {name: array.numpy() for name, array in initial_arrays(num_classes, settings.rounds.seed).items()}
            try:
                codec.encode(tensors, numpy_generator(settings.rounds.seed, "floor"))
            except PayloadError as error:
                raise ConfigError(f"{way}: {error}") from error


def _client_settings(settings: Settings, images: ImageSet, shares_file: Path) -> ClientSettings:

    return ClientSettings(
        images_folder=images.folder,
        shares_file=shares_file,
        num_classes=len(images.class_names),
        num_clients=settings.rounds.num_clients,
        seed=settings.rounds.seed,
        device=settings.compute.chosen(settings.engine.reaches_gpu),
        compute=settings.compute,
        training=settings.training,
        codecs=settings.codecs,
        faults=settings.faults,
    )


def _with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration with paths as a comparison started elsewhere will need them."""
    data, link = dict(config["data"]), dict(config["link"])
    if data.get("path"):
        data["path"] = str(Path(data["path"]).expanduser().absolute())
    if Path(str(link.get("windows"))).is_file():
        link["windows"] = str(Path(link["windows"]).absolute())
    return {**config, "data": data, "link": link}


def _share_out(settings: Settings, images: ImageSet, split: Split, otherwise: Path | None = None) -> Path:
    """Returns the file of positions in the image set, one array per client, made unless it is in the cache."""
    seed, num_clients = derive(settings.rounds.seed, "partition"), settings.rounds.num_clients
    folder = settings.data.cache_dir.expanduser().absolute() / "shares"
    return share_images(folder, settings.partition, images.labels, split.train, num_clients, seed, otherwise)


def _describe_inputs(images: ImageSet, split: Split, shares: list[np.ndarray]) -> dict[str, Any]:
    """Returns the content of `partition.json`: hashes and the label distribution."""
    counts = label_distribution(images.labels, shares, len(images.class_names))
    return {
        "data": images.title,
        "synthetic": images.synthetic,
        "class_names": images.class_names,
        "images_sha256": images.sha256,
        "split_sha256": split.sha256,
        "shares_sha256": sha256(*(part for share in shares for part in (np.array([len(share)]), share))),
        "label_distribution": counts,
        "images_per_client": counts.sum(axis=1),
    }


def _write_inputs(
    run_dir: Path, images: ImageSet, split: Split, shares: list[np.ndarray], description: dict[str, Any]
) -> None:
    """Stores which image is where, before training, unless that was done before the run was killed."""
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    counts = description["label_distribution"]
    writers: dict[str, Callable[[Path], object]] = {
        INDICES: lambda path: write_npz(path, parts),
        SHARES: lambda path: write_npz(path, {str(client): share for client, share in enumerate(shares)}),
        PARTITION: lambda path: write_json(path, description),
        PARTITION_PLOT: lambda path: plot_label_distribution(path, counts, images.class_names, images.title),
    }
    for name, write in writers.items():
        if not (run_dir / name).exists():
            write(run_dir / name)


def _check_inputs(run_dir: Path, description: dict[str, Any]) -> None:
    """Refuses to continue a run on other images, another split or other shares than it began with."""
    stored = read_json(run_dir / PARTITION)
    for key in ("images_sha256", "split_sha256", "shares_sha256"):
        if stored.get(key) != description[key]:
            raise DataError(f"{run_dir}: the data has changed since the run began ({key}); it cannot be continued")
