"""What a site tells of its files before a run, as far as its policy lets it go."""

from __future__ import annotations

from collections.abc import Sequence

from fedshift.client.policy import Policy
from fedshift.protocol.messages import Purpose
from fedshift.sites import Summary, summarise
from fedshift.sites.facts import Surveyed
from fedshift.sites.likeness import keyed


def summary(surveyed: Sequence[Surveyed], policy: Policy) -> Summary | None:
    """The summary that settings are chosen from; None where the policy withholds it or there are
    fewer images or subjects than it lets be summarised."""
    subjects = {one.subject for one in surveyed if one.facts is not None}
    if not policy.releases(Purpose.SUMMARY) or len(subjects) < policy.min_subjects:
        return None
    return summarise(surveyed, policy.min_count)


def hashes(surveyed: Sequence[Surveyed], policy: Policy) -> list[list[str]] | None:
    """The keyed quarters of every image's perceptual hash, an entry a row of the table; None where
    the policy withholds them, as it does unless told otherwise."""
    if not policy.releases(Purpose.HASHES):
        return None
    return [
        list(keyed(one.facts.picture, policy.secret)) if one.facts is not None else []
        for one in surveyed
    ]
