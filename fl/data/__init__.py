"""Images: where they come from, how they are decoded once, and which are for training and which for testing."""

from fl.data.images import ImageSet, open_images
from fl.data.sources import EuroSat, EuroSatMs, Folder, Source
from fl.data.split import Split, split_images
from fl.data.synthetic import Synthetic

__all__ = ["EuroSat", "EuroSatMs", "Folder", "ImageSet", "Source", "Split", "Synthetic", "open_images", "split_images"]
