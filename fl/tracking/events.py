"""TensorBoard's event files; imported where tensorboard is installed."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fl.tracking.base import Value

ENDED = ("completed", "time_limit")


class Events:
    """One more event file of a run.

    Args:
        folder: of all of them.
        rounds: that earlier ones hold; readers forget what follows these.
    """

    def __init__(self, folder: Path, rounds: int) -> None:
        self._writer = EventFileWriter(str(folder))
        self._add(rounds + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Adds figures, and has them on disk."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(step, summary=Summary(value=values))
        self._writer.flush()

    def picture(self, name: str, content: bytes, width: int, height: int) -> None:
        """Adds a PNG of three or four channels."""
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=content)
        self._add(0, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def parameters(self, values: Mapping[str, Value]) -> None:
        """Adds the settings of the run."""
        self._add(0, summary=hparams_pb({name: "null" if each is None else each for name, each in values.items()}))

    def close(self, state: str | None) -> None:
        """Has everything on disk, and that the run ended well if it did: readers keep the first that they are told."""
        if state in ENDED:
            ended = SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
            told = metadata.create_summary_metadata(
                HParamsPluginData(session_end_info=ended, version=metadata.PLUGIN_DATA_VERSION)
            )
            self._add(0, summary=Summary(value=[Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=told)]))
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))
