"""Make up for primary capsules that are gone: solve OutputCaps anew for those that stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capsprune.capsules.network import CapsuleNetwork
from capsprune.capsules.output import OutputCaps
from capsprune.pruning.capsule_criteria import RIDGE, routed
from capsprune.pruning.channels import Selected
from capsprune.pruning.criteria import Batches, poses_on
from capsprune.pruning.least_squares import Rows

#: Values of the capsules kept, I x D1, above which nothing is solved.
MOST_VALUES = 512


@dataclass(frozen=True)
class LeastSquares:
    """Solves OutputCaps' weight and bias so that the capsules kept say what all of them said.

    By ridge regression on calibration images, the sums s_j of equation (2) in the unpruned
    network's last iteration are reproduced from the poses of the capsules kept, the mean by the
    bias. What is found are products of a coupling coefficient with a transformation matrix. After a
    single iteration all coefficients are 1/J, so that dividing by them is exact; after more, they
    are taken as their means over the images in the unpruned network, from which trained networks
    depart little.

    It is a `capsprune.pruning.channels.Compensation`. It holds statistics, not images, and goes to
    other processes as it is. A candidate costs one Cholesky decomposition, cubic in the values
    kept. Where more than `most_values` are kept, so that little is missing, and where no capsule
    and no iteration is gone, the network stays as it is. Changes of the poses themselves, by
    channels that the trunk has lost or by a lower rank, are not accounted for.
    """

    rows: Rows
    #: Mean coupling coefficients in the last iteration, [J, I].
    couplings: Tensor
    #: Of the unpruned network.
    iterations: int
    ridge: float = RIDGE
    most_values: int = MOST_VALUES

    @classmethod
    def of(cls, network: CapsuleNetwork, batches: Batches, ridge: float = RIDGE) -> LeastSquares:
        """Gather the statistics of an unpruned network, with one forward pass.

        Args:
            network: is left as it is.
            batches: calibration images and labels, on its device.
            ridge: see `capsprune.pruning.least_squares.Rows.penalty`.

        Raises:
            ValueError: if there are no images.
        """
        couplings = torch.zeros(network.output_caps.weight.shape[:2], dtype=torch.float64)
        parts: list[tuple[Tensor, Tensor]] = []
        for u, _, _, step in routed(network, poses_on(network, batches)):
            couplings += step.couplings.double().sum(dim=0).cpu()
            parts.append((u.flatten(1), step.sums.flatten(1)))
        rows = Rows.gather(parts)
        images = sum(len(columns) for columns, _ in parts)
        iterations = network.output_caps.iterations
        return cls(rows, couplings / images, iterations, ridge, MOST_VALUES)

    @torch.no_grad()
    def __call__(self, pruned: nn.Module, selected: Selected) -> None:
        """Change the weight and the bias of the pruned network's OutputCaps, in place."""
        layer = pruned.get_submodule("output_caps")
        assert isinstance(layer, OutputCaps)
        classes, capsules, d1, d2 = layer.weight.shape
        whole = capsules == self.couplings.shape[1] and layer.iterations == self.iterations
        if whole or capsules * d1 > self.most_values:
            return
        kept = selected.get("output_caps", {}).get("in", torch.arange(capsules)).cpu()
        values = (kept.unsqueeze(1) * d1 + torch.arange(d1)).flatten()
        found = self.rows.solve(values, self.ridge)  # [I x D1, J x D2]
        means = self.rows.target_means - self.rows.column_means[values] @ found
        products = found.unflatten(1, (classes, d2)).unflatten(0, (capsules, d1))
        if layer.iterations == 1:
            couplings = torch.full((classes, capsules), 1 / classes, dtype=torch.float64)
        else:
            couplings = self.couplings[:, kept]
        weight = products.permute(2, 0, 1, 3) / couplings[:, :, None, None]
        layer.weight.copy_(weight)
        layer.bias.add_(means.unflatten(0, (classes, d2)).to(layer.bias))
