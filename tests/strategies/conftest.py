"""What the tests of strategies share."""

from __future__ import annotations

import pytest


@pytest.fixture
def convex_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convex sites' risk is their objective."""
    monkeypatch.setattr(
        "fedshift.client.rules.risk.training_loss",
        lambda visit, slices: visit.model.loss().item(),
    )
