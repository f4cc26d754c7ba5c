"""Linear least squares in blocks of columns: which blocks reproduce a target, and how.

Columns are the values of primary capsules on calibration images, a block is one capsule, and the
target is what reaches the class capsules.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Most values, in double precision, that the rows take before they are compressed.
VALUES = 2**24


@dataclass(frozen=True)
class Rows:
    """Centred columns and targets of a regression, in double precision on the CPU.

    Products of columns and targets are those of all images, though there may be fewer rows: where
    there are more images than columns, the triangle of a QR decomposition stands for them.
    """

    #: [R, P].
    columns: Tensor
    #: [R, Q].
    targets: Tensor
    #: Means over images, which the rows are without: [P] and [Q].
    column_means: Tensor
    target_means: Tensor
    #: How many images there were.
    images: int

    @classmethod
    def gather(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> Rows:
        """Take in columns [batch, P] and targets [batch, Q] of batches, up to `VALUES`.

        Raises:
            ValueError: if there are no images.
        """
        parts: list[Tensor] = []
        width, values = 0, 0
        for columns, targets in batches:
            width = columns.shape[1]
            parts.append(torch.cat((columns, targets), dim=1).detach().double().cpu())
            values += parts[-1].numel()
            if values >= VALUES:
                break
        if not parts:
            raise ValueError("There are no images to calibrate by.")
        rows = torch.cat(parts)
        images, means = len(rows), rows.mean(dim=0)
        rows -= means
        if images > rows.shape[1]:
            rows = torch.linalg.qr(rows, mode="r").R
        return cls(rows[:, :width], rows[:, width:], means[:width], means[width:], images)

    def penalty(self, ridge: float) -> float:
        """Return what is added to the squares of every column: a part of their mean.

        Args:
            ridge: the part.
        """
        mean = float(self.columns.square().sum()) / self.columns.shape[1]
        return max(ridge * mean, torch.finfo(torch.float64).tiny ** 0.5)

    def solve(self, chosen: Tensor, ridge: float) -> Tensor:
        """Return the coefficients by which some of the columns reproduce the targets best.

        Args:
            chosen: positions of the columns, [p].
            ridge: see `penalty`.

        Returns:
            Coefficients, [p, Q]: `columns[:, chosen] @ coefficients` is close to `targets`.
        """
        penalty = self.penalty(ridge)
        if len(chosen) <= len(self.columns):
            gram, cross = self._products(chosen)
            gram.diagonal().add_(penalty)
            return torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
        columns = self.columns[:, chosen]
        kernel = columns @ columns.T
        kernel.diagonal().add_(penalty)
        return columns.T @ torch.cholesky_solve(self.targets, torch.linalg.cholesky(kernel))

    def _products(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return a copy of columns times columns, [p, p], and times targets, [p, Q]."""
        if self.columns.shape[1] <= len(self.columns):
            gram, cross = self._all_products
            return gram[chosen][:, chosen], cross[chosen]
        columns = self.columns[:, chosen]
        return columns.T @ columns, columns.T @ self.targets

    @functools.cached_property
    def _all_products(self) -> tuple[Tensor, Tensor]:
        return self.columns.T @ self.columns, self.columns.T @ self.targets


def order_of_selection(rows: Rows, width: int, ridge: float) -> Tensor:
    """Choose blocks of columns one by one, each the one that leaves the least of the targets.

    It is orthogonal matching pursuit by blocks: what a block would add is counted with the
    coefficients of all blocks chosen before solved anew. Let U be the columns chosen so far, and
    `H = (1 + U U' / penalty)^-1`, so that `S' H S` is what they leave of the targets S. A block B
    would take `X' G^-1 X` away from it, where `G = penalty + B' H B` and `X = B' H S`. With each
    block that is chosen, H, G and X lose a product of rank `width`: nothing is ever inverted but
    blocks of `width` by `width`.

    Args:
        rows: columns and targets, P a multiple of `width`.
        width: columns in a block.
        ridge: see `Rows.penalty`.

    Returns:
        The blocks, [P / width], those chosen first ahead.
    """
    penalty = rows.penalty(ridge)
    columns, targets = _condensed(rows, penalty)
    columns = columns.T.contiguous()  # [blocks x width, R], which is the fastest to go through
    blocks = len(columns) // width
    left = torch.arange(blocks)
    h = torch.eye(columns.shape[1], dtype=torch.float64)
    g = _by_block(columns, width)
    g = g @ g.mT + penalty * torch.eye(width, dtype=torch.float64)  # [blocks, width, width]
    x = columns @ targets  # [blocks x width, Q]
    remains = torch.ones(blocks, dtype=torch.bool)
    order: list[int] = []
    while len(order) < blocks:
        by_block = _by_block(x, width)
        gains = (torch.linalg.inv(g) * (by_block @ by_block.mT)).sum((1, 2))
        place = int(gains.masked_fill(~remains, -torch.inf).argmax())
        order.append(int(left[place]))
        remains[place] = False
        if 2 * int(remains.sum()) <= len(left) > 1:  # Leave behind what was chosen.
            mine = remains.clone()
            mine[place] = True
            left, g, x = left[mine], g[mine], by_block[mine].flatten(0, 1)
            columns = _by_block(columns, width)[mine].flatten(0, 1)
            remains, place = remains[mine], int(mine[:place].sum())
        chosen = slice(place * width, (place + 1) * width)
        factor = torch.linalg.cholesky(g[place])
        # What the block adds to those before it, scaled so that H loses its square.
        new = torch.linalg.solve_triangular(factor, columns[chosen] @ h, upper=False)
        found = torch.linalg.solve_triangular(factor, x[chosen], upper=False)
        shared = columns @ new.T  # [blocks x width, width]
        h.addmm_(new.T, new, alpha=-1)
        x.addmm_(shared, found, alpha=-1)
        shared = _by_block(shared, width)
        g -= shared @ shared.mT
    return torch.tensor(order)


def _by_block(values: Tensor, width: int) -> Tensor:
    """View [blocks x width, n] as [blocks, width, n]."""
    return values.unflatten(0, (-1, width))


def _condensed(rows: Rows, penalty: float) -> tuple[Tensor, Tensor]:
    """Return columns and targets in as few rows and targets as tell blocks apart.

    Directions of the rows in which the columns have less than a thousandth of the penalty are left
    out: no coefficient would use them. Targets are turned onto their principal axes, of which those
    are kept that have any energy to speak of.
    """
    columns, targets = rows.columns, rows.targets
    values, vectors = torch.linalg.eigh(columns @ columns.T)
    vectors = vectors[:, values > 1e-3 * penalty]
    columns, targets = vectors.T @ columns, vectors.T @ targets
    values, vectors = torch.linalg.eigh(targets.T @ targets)
    return columns, targets @ vectors[:, values > 1e-9 * values.sum()]
