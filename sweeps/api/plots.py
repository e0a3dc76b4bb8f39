"""Plots of a sweep as matplotlib figures: those of its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lt_train.core.errors import UserError
from lt_train.core.imports import require
from sweeps.analysis.load import Sweep
from sweeps.reporting import class_figures, search_figures
from sweeps.reporting.model import Figure as FigureData
from sweeps.reporting.svg import draw
from sweeps.search.algorithms import MIN_TRIALS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Plots"]


class Plots:
    """The figures of a sweep's report. Each method returns a new matplotlib figure, which may be changed and saved.

    Methods raise UserError if the sweep has nothing to show in the figure; the message says what it would need.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def history(self) -> Figure:
        """The objective by trial, with the best so far; one panel per searched method."""
        return self._draw(search_figures.history, "a complete trial of a search")

    def smooth_factor(self) -> Figure:
        """Test accuracy against the smooth factor (paper, Fig. 4)."""
        return self._draw(
            lambda sweep: search_figures.smooth_factor([sweep]), "two trials that searched method.smooth_factor"
        )

    def lr_weight_decay(self) -> Figure:
        """The objective over learning rate and weight decay (paper, Fig. 5); one panel per searched method."""
        return self._draw(search_figures.lr_weight_decay, "two trials that searched method.lr and method.weight_decay")

    def slices(self) -> Figure:
        """The objective against each searched parameter of the winning method."""
        return self._draw(search_figures.slices, "two trials of the winning method with a searched parameter")

    def importance(self) -> Figure:
        """The share of the variance of the objective that each searched parameter explains (fANOVA)."""
        return self._draw(
            search_figures.importance,
            f"two searched parameters and {MIN_TRIALS} complete trials with different objectives",
        )

    def parallel(self) -> Figure:
        """Parallel coordinates of the searched parameters and the objective."""
        return self._draw(search_figures.parallel, "two complete trials of a search")

    def epochs(self) -> Figure:
        """Accuracy of the winner, and of its extended training, after every epoch."""
        return self._draw(search_figures.epochs, "a winner that is trained for two or more epochs")

    def class_accuracy(self) -> Figure:
        """Accuracy of each class against its number of training images."""
        return self._draw(
            lambda sweep: class_figures.class_accuracy(sweep, class_figures.classes_shown(sweep)),
            "a complete trial and the feature bank in its storage",
        )

    def loma(self) -> Figure:
        """Logits Magnitude and regularised standard deviation by group of classes (paper, Fig. 3)."""
        return self._draw(
            lambda sweep: class_figures.loma(sweep, class_figures.classes_shown(sweep)),
            "a complete trial and the feature bank in its storage",
        )

    def logits(self) -> Figure:
        """Logits of true and other classes before and after re-training (paper, Fig. 2)."""
        return self._draw(_of_heads(class_figures.logit_histograms), _HEADS)

    def one_image(self) -> Figure:
        """Logits of a test image of a rare class before and after re-training (paper, Fig. 1)."""
        return self._draw(_of_heads(class_figures.one_image), _HEADS)

    def _draw(self, figure: Callable[[Sweep], FigureData | None], needs: str) -> Figure:
        require("matplotlib")
        found = figure(self._sweep)
        if found is None:
            raise UserError(f"sweep {self._sweep.spec.name} has nothing to show in this plot; it needs {needs}")
        return draw(found)


_HEADS = "stored heads of the winner and of a baseline, and the test features in the storage"


def _of_heads(figure: Callable[[class_figures.TwoHeads], FigureData | None]) -> Callable[[Sweep], FigureData | None]:
    def of_sweep(sweep: Sweep) -> FigureData | None:
        heads = class_figures.two_heads(sweep)
        return None if heads is None else figure(heads)

    return of_sweep
