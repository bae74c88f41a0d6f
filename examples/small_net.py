"""A network of one's own: 25,226 parameters for ten classes, images of any size (docs/tutorials/own-network.md)."""

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Three convolutions, the mean of each channel, one linear layer.

    Args:
        num_classes: logits of an image.
        in_channels: bands of an image.
    """

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(in_channels, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits, [n, num_classes], of images, [n, in_channels, height, width]."""
        logits: Tensor = self.head(self.layers(images).flatten(1))
        return logits
