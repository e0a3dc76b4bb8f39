"""Logit statistics: LoMa and regularised standard deviation.

Shapes: N images, B a batch of them, K classes, L any lane axes (possibly none), G groups of classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from lt_train.core.imports import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LogitStatistics", "loma_by_group", "loma_cv"]


class LogitStatistics:
    """Streaming accumulator for LoMa and regularised std; batches give the same result as all logits at once.

    Add batches with `update`. Memory is a few `[*L, K]` arrays in float64, independent of the number of images.

    Args:
        num_classes: K.
        lanes: sizes of the lane axes L.
        center: subtract the mean logit of each image, which makes the column form independent of per-image shifts.
    """

    def __init__(
        self, num_classes: int, lanes: tuple[int, ...] = (), *, center: bool = False, device: str | torch.device = "cpu"
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.num_classes, self.lanes, self.center = num_classes, lanes, center
        self.count = zeros(num_classes)
        self._true_sum, self._true_square = zeros(num_classes, *lanes), zeros(num_classes, *lanes)
        self._sum, self._square = zeros(*lanes, num_classes), zeros(*lanes, num_classes)
        self._mean_sum = zeros(num_classes, *lanes)

    def update(self, logits: Tensor, labels: Tensor) -> Self:
        """Add a batch: logits `[B, *L, K]`, labels int64 `[B]`. Returns self."""
        logits = logits.double()
        if self.center:
            logits = logits - logits.mean(dim=-1, keepdim=True)
        index = labels.view(-1, *([1] * len(self.lanes)), 1).expand(*logits.shape[:-1], 1)
        true = logits.gather(-1, index).squeeze(-1)
        self.count += torch.bincount(labels, minlength=self.num_classes)
        self._true_sum.index_add_(0, labels, true)
        self._true_square.index_add_(0, labels, true.square())
        self._mean_sum.index_add_(0, labels, logits.mean(dim=-1))
        self._sum += logits.sum(dim=0)
        self._square += logits.square().sum(dim=0)
        return self

    def loma(self, form: Literal["column", "row"] = "column") -> Tensor:
        """Logits Magnitude of every class (paper, Def. 1, Eq. 6).

        `column`: mean of column i over images of class i, minus its mean over all other images (Fig. 1 and Fig. 3). A
        bias added to a class does not change it, because both means shift equally. `row`: mean over images of class i
        of the own logit minus the mean of the other logits. A bias added to a class changes it.

        Returns:
            float64 `[*L, K]`, in logits; NaN for a class without images and, in column form, without other images.
        """
        if form == "row":
            scale = self.num_classes / (self.num_classes - 1)
            return scale * (self._true_mean() - self._mean_sum.movedim(0, -1) / self._some(self.count))
        return self._true_mean() - self._other_sum() / self._some(self._others())

    def regularised_std(
        self,
        std: Literal["population", "pos", "neg", "within"] = "population",
        form: Literal["column", "row"] = "column",
    ) -> Tensor:
        """Regularised standard deviation `R_i = std(z_.i) / L_i` (paper, Def. 2, Eq. 7).

        `population` is over the whole column and is at least sqrt(p(1-p)) for a class of share p (0.30 at K = 10).
        `pos` and `neg` are over the images of class i and over the others. `within` pools both around their own means;
        use it when K is near 10. All divide by the count.

        Returns:
            float64 `[*L, K]`, dimensionless; NaN where L_i <= 0 or a class has no images (see `flags`).
        """
        others = self._others()
        positive = self._scatter(self._true_sum.movedim(0, -1), self._true_square.movedim(0, -1), self.count)
        negative = self._scatter(self._other_sum(), self._square - self._true_square.movedim(0, -1), others)
        total = self.count.sum()
        scatter, count = {
            "population": (self._scatter(self._sum, self._square, total.expand_as(self.count)), total),
            "pos": (positive, self.count),
            "neg": (negative, others),
            "within": (positive + negative, total),
        }[std]
        deviation = (scatter.clamp(min=0) / self._some(count)).sqrt()
        magnitude = self.loma(form)
        return torch.where(magnitude > 0, deviation / magnitude, torch.nan)

    def flags(self, form: Literal["column", "row"] = "column") -> Tensor:
        """Bool `[*L, K]`: classes whose regularised std is undefined (empty, or L_i <= 0)."""
        return ~(self.loma(form) > 0)

    def _true_mean(self) -> Tensor:
        return self._true_sum.movedim(0, -1) / self._some(self.count)

    def _others(self) -> Tensor:
        return self.count.sum() - self.count

    def _other_sum(self) -> Tensor:
        return self._sum - self._true_sum.movedim(0, -1)

    @staticmethod
    def _some(count: Tensor) -> Tensor:
        """A count as divisor: NaN instead of zero."""
        return torch.where(count > 0, count, torch.nan)

    @staticmethod
    def _scatter(total: Tensor, square: Tensor, count: Tensor) -> Tensor:
        """Sum of squared deviations from the mean; zero for an empty set."""
        return torch.where(count > 0, square - total.square() / count.clamp(min=1), 0.0)


def loma_cv(loma: Tensor) -> Tensor:
    """Coefficient of variation of LoMa over classes (population std over mean), `[*L, K] -> [*L]`.

    NaN classes are ignored. 0 means equal magnitudes. NaN if the mean is not positive.
    """
    seen = ~loma.isnan()
    count = seen.sum(dim=-1)
    mean = loma.nansum(dim=-1) / count
    variance = torch.where(seen, loma - mean.unsqueeze(-1), 0.0).square().sum(dim=-1) / count
    return torch.where(mean > 0, variance.sqrt() / mean, torch.nan)


def loma_by_group(loma: Tensor, counts: Tensor, groups: int = 10) -> Tensor:
    """`L / sum|L|`, averaged over groups of consecutive classes by descending size (Fig. 3, left).

    Args:
        loma: float `[*L, K]`.
        counts: int `[K]`, training images per class.
        groups: number of groups; classes are distributed over them as evenly as K allows.

    Returns:
        float `[*L, G]` with G = min(groups, K); NaN classes are ignored.
    """
    share = loma / loma.abs().nansum(dim=-1, keepdim=True)
    order = counts.argsort(descending=True, stable=True)
    chunks = share[..., order].tensor_split(min(groups, loma.shape[-1]), dim=-1)
    return torch.stack([chunk.nanmean(dim=-1) for chunk in chunks], dim=-1)
