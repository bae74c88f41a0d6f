"""What trackers are told: a process beside each run sends what its files say, and cannot end or change it."""

from fl.tracking.base import Tracker
from fl.tracking.beside import renew, tracked
from fl.tracking.mlflow import Mlflow
from fl.tracking.tensorboard import TensorBoard
from fl.tracking.wandb import Wandb

__all__ = ["Mlflow", "TensorBoard", "Tracker", "Wandb", "renew", "tracked"]
