"""The app bundle for sites that run Flower's own node: it holds no code, only the name of a module
of the fedshift that is installed there."""

from __future__ import annotations

import hashlib
from functools import cache

from fedshift import __version__
from fedshift.protocol.fleet import CALLS

_PROJECT = f"""\
[project]
name = "fedshift-site"
version = "{__version__}"
description = "Answers a fedshift coordinator with the fedshift that is installed at the site"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41.0"]

[tool.flwr.app]
publisher = "fedshift"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "fedshift.client.agent.stock:server"
clientapp = "fedshift.client.agent.stock:app"
"""
_LICENSE = "Apache-2.0: https://www.apache.org/licenses/LICENSE-2.0\n"


@cache
def bundle() -> tuple[bytes, str]:
    """The bundle, and its hash."""
    # Deferred: few coordinators have such a site, and Flower's command takes a third of a second.
    from flwr.cli.build import build_fab_from_files

    files = {"pyproject.toml": _PROJECT.encode(), "LICENSE": _LICENSE.encode()}
    content, _ = build_fab_from_files(files)
    return content, hashlib.sha256(content).hexdigest()


def described(run: int) -> object:
    """What Flower's node asks about a run."""
    response = CALLS["GetRun"].response()
    response.run.run_id = run
    response.run.fab_id = "fedshift/fedshift-site"
    response.run.fab_version = __version__
    response.run.fab_hash = bundle()[1]
    response.run.status.status = "running"
    return response


def handed_out(name: str) -> object | None:
    """The bundle with that hash; None: there is none."""
    content, own = bundle()
    if name != own:
        return None
    response = CALLS["GetFab"].response()
    response.fab.hash_str = own
    response.fab.content = content
    return response
