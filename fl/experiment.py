"""From checked settings to a run: nothing below this module sees a configuration."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.errors import ConfigError, DataError, counted
from fl.run_folder import CLIENTS, INDICES, MODEL, PARTITION, PARTITION_PLOT, SETTINGS, SHARES
from fl.settings import DataSettings, Settings, codec_of, fault_of, settings_from

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.clientapp.typing import Mod
    from flwr.serverapp import Grid

    from fl.client_app import ClientSettings
    from fl.data import ImageSet, Split
    from fl.rounds import RoundSettings


def open_data(data: DataSettings, seed: int) -> tuple["ImageSet", "Split"]:
    """Returns the decoded images and their split, from the cache where possible.

    Raises:
        DataError: see `fl.data`.
    """
    from fl.data import open_images, split_images

    plan = data.source.build("data").plan(data.cache_dir)
    images = open_images(plan, data.cache_dir, verify=data.verify_cache)
    split = split_images(
        images.labels, test_fraction=data.test_fraction, validation_fraction=data.validation_fraction, seed=seed
    )
    return images, split


def run(
    config: Mapping[str, Any],
    run_dir: Path,
    *,
    trusted: Collection[str] = (),
    resume: bool = False,
    mods: "Sequence[Mod]" = (),
    hydra_files: Mapping[str, str] | None = None,
    grid: "Grid | None" = None,
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

    from fl.run_lock import sole_writer

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
    mods: "Sequence[Mod]",
    hydra_files: Mapping[str, str],
    grid: "Grid | None",
) -> Path:
    from flwr.app import Context, RecordDict

    from fl.client_app import make_client_app
    from fl.console import say
    from fl.engine import LocalGrid, RemoteGrid
    from fl.partition import read_shares
    from fl.results import remove_partial_files, write_bytes, write_json
    from fl.selection import FOLDER
    from fl.server_app import ServerSettings, make_server_app

    remove_partial_files(run_dir, *(run_dir / name for name in (".hydra", FOLDER, CLIENTS)))
    images, split = open_data(settings.data, settings.seed)
    if settings.checkpoint.keep == "best" and not len(split.validation):
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
            (run_dir / ".hydra").mkdir(exist_ok=True)
            write_bytes(run_dir / ".hydra" / name, text.encode())
        write_json(run_dir / SETTINGS, config)  # from here on the run can be resumed
    _write_inputs(run_dir, images, split, shares, inputs)

    device = _device(settings)
    rounds = _round_settings(settings, [len(share) for share in shares])
    clients = f"{rounds.clients_per_round} of {counted(settings.num_clients, 'client')} per round"
    names = " + ".join(target.target.rpartition(".")[2] for target in (settings.strategy, settings.optimizer))
    rate = f"lr {settings.lr:g} {settings.lr_schedule}"
    precision = settings.training.build("training").describe(device)
    say(f"Training: {counted(settings.num_rounds, 'round')}, {clients}, {names}, {rate}, {precision}, {device}")
    if (fault := fault_of(settings)) is not None:
        say(f"Faults: {fault.told(settings.seed, settings.num_clients)}")
    server = ServerSettings(
        run_dir=run_dir,
        images_folder=images.folder,
        split=split,
        rounds=rounds,
        strategy=settings.strategy,
        device=device,
        threads=settings.threads_per_client,
        broadcast=codec_of(settings, "broadcast"),
        update=codec_of(settings, "update"),
        server_model=settings.server_model,
        link=settings.link.build("link"),
        time_limit_s=None if settings.time_limit_min is None else 60 * settings.time_limit_min,
        config=config,
        training_precision=precision,
        fp16=settings.inference.fp16,
        keep=settings.checkpoint.keep,
    )
    client_app = make_client_app(_client_settings(settings, images, shares_file), mods)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    engine = settings.engine.build("engine")
    with nullcontext(grid) if grid else engine.open(client_app, settings.num_clients, run_dir / CLIENTS) as opened:
        reached = opened if isinstance(opened, LocalGrid) else RemoteGrid(opened)
        reached.reply_timeout_s = settings.reply_timeout_s
        make_server_app(server, resume=resume)(reached, context)
    return run_dir / MODEL


def _refuse_timeouts_that_nobody_keeps(settings: Settings) -> None:
    if settings.engine.build("engine").abandons_clients:
        return
    for name in ("reply_timeout_s", "round_timeout_s"):
        if (limit := getattr(settings, name)) is not None:
            raise ConfigError(
                f"{name}={limit:g}: clients run in this process, where one that does not answer cannot be left alone; "
                "use engine=ray"
            )


def client_app(config: Mapping[str, Any], trusted: Collection[str] = ()) -> "ClientApp":
    """Returns the clients of a run as configured, for a process that Flower starts.

    Args:
        config: resolved, as plain data.
        trusted: `_target_` values the user typed.

    Raises:
        QuantflError: settings or data are at fault.
    """
    from fl.client_app import make_client_app

    settings = settings_from(config, trusted)
    images, split = open_data(settings.data, settings.seed)
    return make_client_app(_client_settings(settings, images, _share_out(settings, images, split)))


def _refuse_rates_below_the_floor(settings: Settings, num_classes: int) -> None:
    """Lets each codec encode once before anybody trains: it then says which rate this network needs at least."""
    from fl.errors import PayloadError
    from fl.seeds import numpy_generator
    from fl.server_app import initial_arrays

    for way in ("broadcast", "update"):
        if (codec := codec_of(settings, way)) is not None:
            tensors = {name: array.numpy() for name, array in initial_arrays(num_classes, settings.seed).items()}
            try:
                codec.encode(tensors, numpy_generator(settings.seed, "floor"))
            except PayloadError as error:
                raise ConfigError(f"{way}: {error}") from error


def _client_settings(settings: Settings, images: "ImageSet", shares_file: Path) -> "ClientSettings":
    from fl.client_app import ClientSettings
    from fl.training import TrainingSettings

    training = TrainingSettings(
        settings.local_epochs,
        settings.batch_size,
        settings.augmentation,
        settings.optimizer,
        settings.label_smoothing,
        settings.training.build("training"),
    )
    return ClientSettings(
        images_folder=images.folder,
        shares_file=shares_file,
        num_classes=len(images.class_names),
        seed=settings.seed,
        device=_device(settings),
        threads=settings.threads_per_client,
        training=training,
        broadcast=codec_of(settings, "broadcast"),
        update=codec_of(settings, "update"),
        fp16=settings.inference.fp16,
        faults=fault_of(settings),
        num_clients=settings.num_clients,
    )


def _with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration with paths as a comparison started elsewhere will need them."""
    data, link = dict(config["data"]), dict(config["link"])
    if data.get("path"):
        data["path"] = str(Path(data["path"]).expanduser().absolute())
    if Path(str(link.get("windows"))).is_file():
        link["windows"] = str(Path(link["windows"]).absolute())
    return {**config, "data": data, "link": link}


def _device(settings: Settings) -> str:
    import torch

    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() and settings.engine.build("engine").reaches_gpu else "cpu"


def _round_settings(settings: Settings, images_of: Sequence[int]) -> "RoundSettings":
    from fl.rounds import RoundSettings, sample_size

    asked = sample_size(settings.fraction_train, settings.num_clients)
    return RoundSettings(
        seed=settings.seed,
        num_rounds=settings.num_rounds,
        num_clients=settings.num_clients,
        fraction_train=settings.fraction_train,
        fraction_evaluate=settings.fraction_evaluate,
        min_completed=settings.min_completed or max(1, (asked + 1) // 2),
        lr=settings.lr,
        lr_schedule=settings.lr_schedule,
        round_timeout_s=settings.round_timeout_s,
        images_of=images_of,
    )


def _share_out(settings: Settings, images: "ImageSet", split: "Split", otherwise: Path | None = None) -> Path:
    """Returns the file of positions in the image set, one array per client, made unless it is in the cache."""
    from fl.partition import share_images
    from fl.seeds import derive

    seed = derive(settings.seed, "partition")
    folder = settings.data.cache_dir.expanduser().absolute() / "shares"
    return share_images(folder, settings.partition, images.labels, split.train, settings.num_clients, seed, otherwise)


def _describe_inputs(images: "ImageSet", split: "Split", shares: "list[np.ndarray]") -> dict[str, Any]:
    """Returns the content of `partition.json`: hashes and the label distribution."""
    from fl.partition import label_distribution
    from fl.results import sha256

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
    run_dir: Path, images: "ImageSet", split: "Split", shares: "list[np.ndarray]", description: dict[str, Any]
) -> None:
    """Stores which image is where, before training, unless that was done before the run was killed."""
    from fl.plots import plot_label_distribution
    from fl.results import write_json, write_npz

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
    from fl.results import read_json

    stored = read_json(run_dir / PARTITION)
    for key in ("images_sha256", "split_sha256", "shares_sha256"):
        if stored.get(key) != description[key]:
            raise DataError(f"{run_dir}: the data has changed since the run began ({key}); it cannot be continued")
