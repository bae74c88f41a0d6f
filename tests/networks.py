"""Networks as users bring them: nothing of the project is in them."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """A residual block with a depthwise convolution, BatchNorm and ReLU."""

    def __init__(self, num_classes=10, in_channels=3, width=16):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(2 * width * 16, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        inner = F.relu(self.norm(self.depthwise(x)))
        x = F.relu(x + self.last_norm(self.pointwise(inner)))
        x = self.pool(F.relu(self.down(x))).flatten(1)
        return self.head(self.drop(x))


class Grouped(nn.Module):
    """GroupNorm, the usual stand-in for BatchNorm in federated learning, and SiLU."""

    def __init__(self, num_classes=10, in_chans=3):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 16, 5, stride=2),
            nn.GroupNorm(4, 16),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.GroupNorm(4, 32),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(32 * 9, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x))


class Attention(nn.Module):
    """Patches that attend to those before them, as an infinite mask says."""

    def __init__(self, num_classes=10, in_channels=3, width=24, heads=2):
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(in_channels, width, 16, stride=16)
        self.place = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.register_buffer("mask", torch.full((16, 16), float("-inf")).triu(1))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        q, k, v = (
            each.reshape(each.shape[0], 16, self.heads, -1).transpose(1, 2)
            for each in self.qkv(self.norm(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        return self.head(x.mean(1))


class Branching(Residual):
    """What it does depends on values, so it cannot be traced."""

    def forward(self, x):
        return super().forward(x if x.mean() > -2 else -x)


class SevenClasses(Residual):
    """Takes no number of classes."""

    def __init__(self):
        super().__init__(7)


class TwoAnswers(Residual):
    """Answers with a tuple."""

    def forward(self, x):
        return super().forward(x), x


def function_of_a_network(num_classes, in_channels=3):
    return Residual(num_classes, in_channels, width=8)
