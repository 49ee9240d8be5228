"""Sites: federations, manifests, reading, preparing, caching, splitting and checking images."""

from __future__ import annotations

from fedshift.sites.doctor import check
from fedshift.sites.federation import load_federation
from fedshift.sites.findings import Finding
from fedshift.sites.fingerprint import fingerprint
from fedshift.sites.opening import open_site, pooled_site
from fedshift.sites.plan import Decision, Summary, plan, summarise
from fedshift.sites.settings import DataSettings
from fedshift.sites.survey import survey

__all__ = [
    "DataSettings",
    "Decision",
    "Finding",
    "Summary",
    "check",
    "fingerprint",
    "load_federation",
    "open_site",
    "plan",
    "pooled_site",
    "summarise",
    "survey",
]
