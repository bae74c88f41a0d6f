"""A run folder is known by what lies in it."""

import pytest

from fl.core.errors import ConfigError
from fl.core.run_folder import model_in


def test_a_run_folder_is_taken_for_its_model(small_run, tmp_path):
    assert model_in(small_run) == small_run / "final_model.pt"
    assert model_in(small_run / "final_model.pt") == small_run / "final_model.pt"
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(ConfigError, match=r"is a sweep.*none of them has a final model"):
        model_in(tmp_path)
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "final_model.pt").touch()
    with pytest.raises(ConfigError, match=f"is a sweep.*such as {tmp_path}/3"):
        model_in(tmp_path)
    (tmp_path / "new run").mkdir()
    with pytest.raises(ConfigError, match="is no run folder"):
        model_in(tmp_path / "new run")
    (tmp_path / "new run" / "settings.json").touch()
    with pytest.raises(ConfigError, match=r"no final_model.pt yet.*fl resume .*'"):
        model_in(tmp_path / "new run")
