"""The trunk of CapsNet (Sabour et al. 2017, section 4), with a linear classifier to train it by."""

from __future__ import annotations

from torch import Tensor, nn

#: Filters of the one convolution, and their height and width.
FILTERS = 256
KERNEL = 9
#: Standard deviation of the weights at first, which are normal and cut off at twice as much, and
#: the bias: as in the authors' code.
_DEVIATION = 5e-2
_BIAS = 0.1


class CapsNet(nn.Module):
    """One convolution, 9 x 9 with 256 filters of stride 1, on grey images.

    CapsNet itself is this trunk with `attach-caps --primary spatial`. Its paper trains no such
    classifier as it has here, which is one linear layer on the pooled features.
    """

    def __init__(self, num_classes: int = 10) -> None:
        """Make the network.

        Args:
            num_classes: outputs of the classifier.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(1, FILTERS, KERNEL)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(FILTERS, num_classes)
        conv, cut = self.conv1, 2 * _DEVIATION
        nn.init.trunc_normal_(conv.weight, std=_DEVIATION, a=-cut, b=cut)
        assert conv.bias is not None
        nn.init.constant_(conv.bias, _BIAS)

    def forward(self, x: Tensor) -> Tensor:
        """Map grey images [batch, 1, H, W] to logits [batch, num_classes]."""
        return self.linear(self.pool(self.relu(self.conv1(x))).flatten(1))
