"""Scores of features as an outlier detector of scikit-learn."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted, validate_data

from gradscore.methods import make_spec
from gradscore.methods.memory_run import FeatureRun
from gradscore.scoring import score_sets

FIT, NEW, CLUSTERS = "fit", "new", 8


class GradNormOutlier(OutlierMixin, BaseEstimator):
    """Outlier detection by GradNorm, or another score of features and a last layer.

    The last layer is given; or it is fitted: a logistic regression on the classes ``y``, or where
    there are none on eight clusters. As everywhere in scikit-learn ``offset_``, the threshold,
    comes from the training features themselves; a promise needs features of its own.

    Args:
        weight: Weight of the network's last layer, shape ``[classes, features]``, or None.
        bias: Its bias, shape ``[classes]``, or None.
        method: One of :data:`gradscore.methods.METHODS` that reads features and logits alone.
        options: Options of the method, such as ``{"p": 2.0, "temperature": 1.0}``.
        contamination: Share of the training features that are to be outliers.
    """

    def __init__(
        self, weight=None, bias=None, method="gradnorm", options=None, contamination=0.05
    ):
        self.weight, self.bias, self.method = weight, bias, method
        self.options, self.contamination = options, contamination

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> "GradNormOutlier":
        """Learn from features ``[samples, features]``, and from their classes where given.

        Raises:
            ValueError: If the contamination is out of range, or the features are none.
            GradScoreError: If the method or an option is unknown, needs more than features and
                logits, or the given head takes other features.
        """
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"Expected contamination in (0, 0.5], got {self.contamination}.")
        features = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self._run = FeatureRun(*self._head(features, y))
        self._run.add_set(FIT, "fit", features)
        self.offset_ = np.percentile(self._scores(features), 100 * self.contamination)
        self._run.drop_rows(FIT)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of features; higher means more like the training features."""
        check_is_fitted(self)
        return self._scores(validate_data(self, X, dtype=np.float64, reset=False))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores less the threshold: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return 1 for inliers and -1 for outliers."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _scores(self, features: NDArray) -> NDArray[np.float64]:
        self._run.add_set(NEW, None, features)
        scored = score_sets(self._run, [NEW], [make_spec(self.method, **(self.options or {}))])
        self._run.drop_rows(NEW)
        return next(iter(scored[NEW].columns.values()))

    def _head(self, features: NDArray, y: ArrayLike | None) -> tuple[ArrayLike, ArrayLike | None]:
        if self.weight is not None:
            return self.weight, self.bias
        if y is None:
            clusters = KMeans(min(CLUSTERS, len(features)), n_init=1, random_state=0)
            y = clusters.fit_predict(features)
        head = LogisticRegression(max_iter=1000).fit(features, y)
        weight, bias = head.coef_, head.intercept_
        if len(weight) == 1:  # of two classes it gives the difference alone
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return weight, bias
