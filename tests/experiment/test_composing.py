"""Every choice of every group builds; whatever is typed otherwise is understood, or refused with what was meant."""

import re
import sys

import pytest
import torch
from conftest import REPOSITORY, SMALL, composed

from fl.core.errors import ConfigError
from fl.core.targets import Target
from fl.experiment.composing import explained, literal, overrides_first, typed_targets
from fl.experiment.settings import settings_from

GROUPS = {
    group: sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))
    for group in ("data", "partition", "strategy", "optimizer", "codec", "link", "faults", "experiment")
}


NAMED = {"trimmed_mean": "trimmedavg", "norm_clipping": "normclipping"}


PLACES = {"codec": ("codec@broadcast", "codec@update")}


CHOICES = [(place, c) for group, choices in GROUPS.items() for place in PLACES.get(group, (group,)) for c in choices]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_gives_valid_settings(group, choice):
    overrides = [f"{group}={choice}"] + (["data.path=some_folder"] if choice in ("folder", "eurosat_ms") else [])
    settings = settings_from(composed(*overrides))
    places = {"strategy": settings.server.strategy, "optimizer": settings.training.optimizer}
    if target := (places | {"partition": settings.partition}).get(group):
        assert target.resolve().__name__.lower().endswith(NAMED.get(choice, choice))


def test_the_defaults_are_the_documented_recipe():
    settings = settings_from(composed())
    rounds, training = settings.rounds, settings.training
    assert (rounds.num_rounds, rounds.num_clients, training.local_epochs, training.batch_size) == (10, 10, 2, 32)
    assert (rounds.fraction_train, rounds.fraction_evaluate) == (1.0, 0.0)
    assert settings.server.strategy.target.endswith(".FedAvg")


REFUSED = {
    "num_clients=0": ["num_clients=0", "greater than or equal to 1"],
    "num_clients=two": ["num_clients=two", "integer"],
    "num_rounds=1.5": ["num_rounds=1.5", "integer"],
    "num_rounds=true": ["num_rounds=True", "integer"],
    "lr=-1": ["lr=-1", "greater than 0"],
    "lr=nan": ["lr=nan"],
    "lr=inf": ["lr=inf", "finite"],
    "seed=-1": ["seed=-1"],
    "batch_size=0": ["batch_size=0"],
    "fraction_train=0": ["fraction_train=0"],
    "fraction_train=1.5": ["fraction_train=1.5"],
    "fraction_evaluate=-0.1": ["fraction_evaluate=-0.1"],
    "lr_schedule=step": ["lr_schedule=step", "'constant', 'linear' or 'cosine'"],
    "augmentation=mixup": ["augmentation=mixup", "'none', 'flips' or 'dihedral'"],
    "device=tpu": ["device=tpu", "'auto', 'cpu' or 'cuda'"],
    "min_completed=11": ["min_completed=11", "only 10 clients are asked"],
    "min_completed=0": ["min_completed=0"],
    "time_limit_min=0": ["time_limit_min=0"],
    "threads_per_client=0": ["threads_per_client=0"],
    "label_smoothing=1": ["label_smoothing=1"],
    "data.validation_fraction=1": ["data.validation_fraction=1"],
    "data.test_fraction=0": ["data.test_fraction=0"],
    "optimizer.betas=[0.9,1.5]": ["optimizer", "Invalid beta"],
    "strategy=fedavgg": ["strategy=fedavgg", "fedadam, fedavg, fedavgm, fedprox, krum, median, multikrum, nesterov"],
    "data=mars": ["data=mars", "eurosat, eurosat_ms, folder, synthetic"],
    "partition=random": ["partition=random", "dirichlet, iid, regions, shards"],
    "optimizer=rmsprop": ["optimizer=rmsprop", "adam, adamw, muon, sgd"],
    "experiment=nonsense": ["experiment=nonsense", "best, demo"],
    "lr=true": ["lr=True"],
    "data.path=123": ["data.path=123", "string"],
    "optimizer.betas=[0.9]": ["optimizer", "betas"],
    "strategy.server_momentum=2": ["server_momentum"],
    "+strategy.weighted_by_key=x": ["strategy.weighted_by_key", "set by the run itself"],
    "num_client=3": ["num_client=3", "did you mean num_clients?", "num_rounds"],
    "partition.alpa=3": ["partition.alpa=3"],
    "+rounds=3": ["rounds", "did you mean num_rounds?"],
    "+strategy.speed=3": ["strategy.speed", "FedAvg has no such setting"],
    "+partition.alpha=3": ["partition.alpha", "Iid has no such setting"],
    "num_rounds": ["num_rounds", "key=value"],
    "strategy._target_=flwr.serverapp.strategy.Nothing": ["strategy._target_", "cannot be imported"],
    "strategy._target_=os.system": ["os.system"],
    "data=folder": ["data=folder", "data.path=DIR"],
    "codec@update=gzip": ["codec@update=gzip", "ecq, eden, fp16, int4, int8, none, raw, stc"],
    "update=ecq": ["update=ecq", "codec@update=ecq"],
    "update.bits=3": ["update.bits=3", "codec@update=ecq"],
    "server_model=both": ["server_model=both", "'exact' or 'reference'"],
    "link=mars": ["link=mars", "cubesat_sband, flat_rate, ttc_uhf"],
}


@pytest.mark.parametrize("override", REFUSED)
def test_impossible_overrides_are_refused_with_one_line(override):
    """As the command does it: composed by Hydra, errors explained, settings checked; no data is looked at."""
    with pytest.raises(ConfigError) as caught, explained([override]):
        settings_from(composed(override), typed_targets([override]))
    assert "\n" not in str(caught.value)
    for word in REFUSED[override]:
        assert word in str(caught.value)


IN_THE_COMMAND = ["num_clients=0", "lr=-1", "strategy=fedavgg", "num_client=3", "strategy._target_=os.system"]


@pytest.mark.parametrize("override", IN_THE_COMMAND)
def test_the_command_refuses_before_data_is_loaded(override, refused):
    """The data path does not exist: an error that named it would have come from loading data."""
    refused("fl.train", override, "data.path=/does/not/exist.zip", words=REFUSED[override])


@pytest.mark.parametrize(
    ("strategy", "override"),
    [
        ("fedadam", "eta=fast"),
        ("fedadam", "eta=-1"),
        ("nesterov", "momentum=2"),
        ("fedavgm", "server_learning_rate=-1"),
    ],
)
def test_impossible_strategies_are_refused(strategy, override):
    arguments = [f"strategy={strategy}", f"strategy.{override}"]
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        settings_from(composed(*arguments))


@pytest.mark.parametrize(
    ("codec", "setting"),
    [
        ("ecq", "bits=0"),
        ("ecq", "bits=33"),
        ("ecq", "offset=0.6"),
        ("ecq", "bits=true"),
        ("ecq", "entropy=none"),
        ("ecq", "decay=2"),
        ("ecq", "decay=0.5"),
        ("ecq", "entropy=gzip"),
        ("int8", "bits=9"),
        ("int8", "rounding=up"),
        ("int8", "scales=row"),
        ("eden", "bits=1.5"),
        ("eden", "error_feedback=maybe"),
        ("stc", "fraction=0"),
    ],
)
def test_impossible_settings_of_a_codec_are_refused(codec, setting):
    with pytest.raises(ConfigError, match=re.escape(f"update.{setting.partition('=')[0]}")) as caught:
        settings_from(composed(f"codec@update={codec}", f"update.{setting}"))
    assert "\n" not in str(caught.value)


def test_a_refused_run_leaves_no_folder(refused, tmp_path):
    refused("fl.train", "num_clients=0", words=["num_clients=0"])
    assert not list((tmp_path / "outputs").rglob("*.*"))
    assert not any(path.is_dir() for path in (tmp_path / "outputs").glob("*/*"))


def test_cuda_where_there_is_none_is_refused(refused):

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    refused("fl.train", "device=cuda", words=["device=cuda", "device=cpu"])


def test_more_clients_than_images_is_refused_before_training(refused):
    refused("fl.train", *SMALL, "num_clients=5000", words=["num_clients=5000", "320 training images"])


def test_a_class_from_a_stored_file_is_not_built_unless_allowed():
    config = composed("strategy._target_=subprocess.Popen")
    with pytest.raises(ConfigError, match=r"only the classes in conf/.*are built from files"):
        settings_from(config)
    assert typed_targets(["strategy._target_=my.Strategy", "lr=1"]) == ["my.Strategy"]
    assert Target.from_config("strategy", {"_target_": "my.Strategy"}, ["my.Strategy"]).target == "my.Strategy"


@pytest.mark.parametrize("arguments", [["fl.train"], ["fl", "resume"], ["compare_quantizations.py"]])
def test_every_command_has_help(arguments, command):
    done = command(*arguments, "--help", check=0)
    assert len(done.stdout.splitlines()) > 5
    assert not done.stderr


def test_the_shown_configuration_is_what_help_promises(command):
    shown = command("fl.train", "--cfg", "job", check=0).stdout
    for knob in re.findall(r"^(\w+):", (REPOSITORY / "conf" / "config.yaml").read_text(), re.MULTILINE):
        assert knob in ("defaults", "hydra") or f"{knob}:" in shown


def test_this_python_is_supported():
    assert sys.version_info >= (3, 11)


def test_run_folders_are_made_exclusively(tmp_path, monkeypatch):
    from fl.experiment.composing import new_folder

    monkeypatch.chdir(tmp_path)
    assert new_folder("outputs/x") == new_folder("outputs/x") == "outputs/x"
    new_folder.cache_clear()  # as another process would
    assert new_folder("outputs/x") == "outputs/x-2"


def test_a_missing_launcher_says_how_to_install_it():
    from hydra.errors import MissingConfigException

    with (
        pytest.raises(Exception, match=r"submitit_slurm.*pip install -c constraints.txt -e '.\[slurm\]'"),
        explained([]),
    ):
        raise MissingConfigException("missing", "hydra/launcher/submitit_slurm", ["basic"])


TEXTS = [
    "run mit ümlaut",
    "a=b",
    "it's",
    'so "it" goes',
    "a,b",
    "a(b)",
    "1.50",
    "true",
    "[a",
    "a;b & c|d",
    "ends with \\",
    "back\\'slash",
    "$HOME {x} #1",
    "卫星",
    "'quoted' twice",
    " spaces at both ends ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_it_was_typed(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = literal([f"hydra.run.dir={text}"])
    assert OverridesParser.create().parse_override(override).value() == text


def test_what_hydra_can_read_stays_as_it_is():
    kept = ["num_rounds=2,4", "lr=0.1", "data.path='a b'", "strategy=fedavg", "seed=range(1,3)", "+x.y=[1,2]", "~link"]
    assert literal(kept) == kept
    assert literal(["seed=rnge(1,3)"]) == ["seed=rnge(1,3)"]  # to be refused, not taken as a text
    assert literal(["data.path=bilder/März"]) == ["data.path='bilder/März'"]
    assert literal(["hydra.run.dir=${new_folder:outputs/x}"]) == ["hydra.run.dir='${new_folder:outputs/x}'"]


def test_a_path_with_a_comma_that_is_there_is_one_path(tmp_path, monkeypatch):
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert literal(["data.path=a,b", "data.path=c,d"]) == ["data.path='a,b'", "data.path=c,d"]


DASHES = {
    "--num-rounds 3": "num_rounds=3",
    "--num_rounds=3": "num_rounds=3",
    "--rounds=3": "num_rounds=3",
    "--clients 5": "num_clients=5",
    "--lr 0.1": "lr=0.1",
    "--learning-rate 0.1": "lr=0.1",
    "--epochs 2": "local_epochs=2",
    "--data.path x": "data.path=x",
    "--data-path=x": "data.path=x",
    "--update.bits 2": "update.bits=2",
    "--codec int4": "codec@update=int4 codec@broadcast=int4",
    "--strategy fedavg": "strategy=fedavg",
    "--output here": "hydra.run.dir=here",
    "--nonsense": "see python -m fl.train --help",
    "-x": "see python -m fl.train --help",
    "-rounds=3": "num_rounds=3",
    "--cfg nonsense": "job",
}


@pytest.mark.parametrize("typed", DASHES)
def test_a_setting_with_dashes_is_told_how_it_is_given(typed):
    with pytest.raises(ConfigError) as caught:
        overrides_first(["data=synthetic", *typed.split(), "seed=3"])
    told = str(caught.value)
    assert "\n" not in told
    assert DASHES[typed] in told
    assert typed in told or typed.startswith("--cfg")


def test_hydras_own_options_pass_and_may_stand_anywhere():
    assert overrides_first(["a=1", "-m", "b=2,3"]) == ["a=1", "b=2,3", "-m"]
    assert overrides_first(["--cfg", "job", "a=1"]) == ["a=1", "--cfg", "job"]
    for each in (["-h"], ["--help"], ["--multirun"], []):
        assert overrides_first(each) == each


MEANT = {
    "codec=int4": "codec@update=int4 codec@broadcast=int4",
    "codec@up=int4": "codec@update=int4 codec@broadcast=int4",
    "+codec=int4": "codec@update=int4 codec@broadcast=int4",
    "codec@update=INT4": "codec@update=INT4: there is no such choice; did you mean int4?",
    "strategy=FedAvg": "did you mean fedavg?",
    "engine=inprocess": "did you mean in_process?",
    "precision=int8": "compare_quantizations.py --precisions int8",
    "rounds=3": "did you mean num_rounds?",
    "+rounds=3": "did you mean num_rounds?",
    "learning_rate=3": "did you mean lr?",
    "Num_Rounds=3": "did you mean num_rounds?",
    "link.train=3": "did you mean train_s?",
    "partition.alpha=0.3": "partition=dirichlet has alpha",
    "training.bits=4": "training=qat has bits",
    "+strategy.proximal=1": "FedAvg has no such setting",
    "data=folder": "data.path=DIR is needed",
    "data.num_image=3": "there is no setting data.num_image",
    "model=resnet": "did you mean resnet18?",
    "mod=net": "there is no setting mod",
    "lr=ä": "lr=ä: input should be a valid number",
    "seed=rnge(1,2)": "Unknown function 'rnge'",
}


def test_a_setting_of_a_class_of_ones_own_is_told_to_need_a_plus():
    overrides = ["model._target_=networks.Residual", "model.width=8"]
    with pytest.raises(ConfigError, match=r"added with a plus, as in \+model.width=8"), explained(overrides):
        composed(*literal(overrides))
    assert composed(overrides[0], "+model.width=8")["model"]["width"] == 8


@pytest.mark.parametrize("override", MEANT)
def test_a_misspelt_setting_is_told_what_was_meant(override):
    from fl.experiment.settings import settings_from

    with pytest.raises(ConfigError) as caught, explained([override]):
        settings_from(composed(*literal([override])))
    assert MEANT[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_demo_codes_its_traffic_and_fp32_does_not():
    demo, fp32 = composed("experiment=demo"), composed("experiment=[demo,fp32]")
    assert demo["broadcast"]["_target_"] == demo["update"]["_target_"] == "fl.codec.Ecq"
    assert not fp32["broadcast"]
    assert not fp32["update"]
