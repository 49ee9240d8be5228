"""Sites: federations, manifests, reading, preparing, caching, splitting and checking images."""

from __future__ import annotations

from fedshift.sites.doctor import Finding, check
from fedshift.sites.federation import load_federation
from fedshift.sites.fingerprint import fingerprint
from fedshift.sites.opening import open_site, pooled_site
from fedshift.sites.settings import DataSettings

__all__ = [
    "DataSettings",
    "Finding",
    "check",
    "fingerprint",
    "load_federation",
    "open_site",
    "pooled_site",
]
