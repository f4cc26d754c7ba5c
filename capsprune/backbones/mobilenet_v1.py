"""MobileNetV1 (Howard et al. 2017), with the module names of the published EagleEye state dicts."""

from __future__ import annotations

from torch import Tensor, nn

#: Output channels and stride of each depthwise separable block (Table 1 of the MobileNets paper).
BLOCKS: tuple[tuple[int, int], ...] = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
STEM_CHANNELS = 32


class DepthwiseSeparable(nn.Module):
    """Depthwise 3 x 3 and pointwise 1 x 1 convolution, each with batch norm and ReLU."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, C, H, W] to [batch, C', H / stride, W / stride]."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class MobileNetV1(nn.Module):
    """MobileNetV1 of width 1."""

    def __init__(self, num_classes: int = 1000, stem_stride: int = 2) -> None:
        """Make the network.

        Args:
            num_classes: outputs of the classifier.
            stem_stride: stride of the first convolution: 2 as published for ImageNet, 1 for images
                of some 32 pixels, of which stride 32 in all would leave a single position.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for out_channels, stride in BLOCKS:
            blocks.append(DepthwiseSeparable(channels, out_channels, stride))
            channels = out_channels
        self.layers = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, 3, H, W] to logits [batch, num_classes]."""
        x = self.layers(self.relu(self.bn1(self.conv1(x))))
        return self.linear(self.pool(x).flatten(1))
