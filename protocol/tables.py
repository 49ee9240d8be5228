"""The tables of a run folder: their columns, which other programs read, and their metrics."""

from __future__ import annotations

CASE_COLUMNS = (
    "model",
    "trained_on",
    "site",
    "vendor",
    "split",
    "subject",
    "case",
    "structure",
    "dice",
    "hd95_mm",
    "assd_mm",
    "nsd",
    "volume_ml",
    "reference_volume_ml",
    "failed",
)
"""``cases.csv``: one row a model, case and structure. ``failed`` is 1 when exactly one of the two
masks is empty, 0 otherwise."""

CROSS_SITE_COLUMNS = (
    "model",
    "trained_on",
    "site",
    "vendor",
    "structure",
    "metric",
    "n",
    "n_failed",
    "mean",
    "std",
    "median",
    "ci_low",
    "ci_high",
)
"""``cross_site.csv``: one row a model, site, structure and metric, over the test split."""

SHIFT_COLUMNS = ("site_a", "site_b", "metric", "value")

EXTRA_METRICS = ("jaccard", "precision", "recall", "volume_error_ml")
"""Measured for each case and summarised in ``cross_site.csv``, not listed in ``cases.csv``."""

METRICS = ("dice", "hd95_mm", "assd_mm", "nsd", "volume_ml", *EXTRA_METRICS)
"""Every metric of ``cross_site.csv``."""

HIGHER_IS_BETTER = frozenset({"dice", "nsd", "jaccard", "precision", "recall"})

LOWER_IS_BETTER = frozenset({"hd95_mm", "assd_mm"})
"""The distances; of the volumes neither more nor less is better."""
