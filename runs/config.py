"""From the command line's overrides to a plain configuration, with one sentence for a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedshift import UserError
from fedshift.protocol.settings import suggest
from fedshift.sites.settings import AUTO

Config = dict[str, Any]

_CONFIGS = Path(__file__).parent.parent / "configs"


def load(overrides: Sequence[str]) -> Config:
    """Compose the config from ``KEY=VALUE`` texts, in Hydra's grammar.

    A value that the grammar cannot read, such as a regular expression, is taken as it stands.
    Raises :class:`UserError` for an unknown key or choice, with the nearest names.
    """
    pairs = [_split(override) for override in overrides]
    groups = _groups()
    selected = []
    for key, value in pairs:
        if key in groups:
            names = choices(key)
            if value not in names:
                raise UserError(f"{key}={value} is unknown{suggest(value, names)}")
            selected.append(f"{key}={value}")
    with initialize_config_module("fedshift.configs", version_base="1.3"):
        defaults = compose("config", overrides=selected)
        known = _keys(OmegaConf.to_container(defaults))
        for key, _ in pairs:
            if key not in known | groups:
                raise UserError(f"{key} is not a key of the configuration{suggest(key, known)}")
        composed = _compose(
            [(key, _quoted(key, value)) for key, value in pairs],
            mappings={key for key in known if OmegaConf.is_dict(OmegaConf.select(defaults, key))},
        )
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    if config["data"]["planned"]:
        raise UserError("data.planned is written by a run, never by hand; leave it out")
    return {str(key): value for key, value in config.items()}


def shipped(config: Config) -> Config:
    """What this fedshift sets where nobody says otherwise, in the groups that ``config`` chose."""
    chosen = {group: str(config[group].get("name")) for group in _groups() & config.keys()}
    return load([f"{group}={name}" for group, name in chosen.items() if name in choices(group)])


def as_made(config: Config, earlier: Config) -> Config:
    """``config`` for going on with what another fedshift made with the config ``earlier``: the
    run's own values where nobody says otherwise, as defaults may have changed; what it planned
    stays to be planned."""
    kept = _as_made(config, earlier, shipped(config))
    planned = {"planned", *earlier["data"].get("planned", {})}
    data = {
        key: config["data"][key] if key in planned else kept["data"][key] for key in kept["data"]
    }
    return {**kept, "data": data, **{key: config[key] for key in ("engine", "out", "resume")}}


def _as_made(now: Any, then: Any, default: Any) -> Any:
    if not all(isinstance(node, dict) for node in (now, then, default)):
        return then if now == default else now
    shared = now.keys() & then.keys() & default.keys()
    return {k: _as_made(v, then[k], default[k]) if k in shared else v for k, v in now.items()}


def completed(earlier: Config, config: Config) -> Config:
    """The config ``earlier`` of another fedshift as that of a run like ``config``: with defaults
    for the keys that were not known then, and with what was chosen image by image as planned."""
    filled: Config = _filled(earlier, shipped(config))
    open_then = {key for key, value in earlier["data"].items() if value == AUTO}
    return {**filled, "data": filled["data"] | {key: config["data"][key] for key in open_then}}


def _filled(node: Any, default: Any) -> Any:
    if not isinstance(node, dict) or not isinstance(default, dict):
        return node
    return default | {key: _filled(value, default.get(key)) for key, value in node.items()}


def _groups() -> set[str]:
    return {path.name for path in _CONFIGS.iterdir() if path.is_dir() and path.name[0] != "_"}


def choices(group: str) -> list[str]:
    """The names that the config group offers, sorted."""
    return sorted(path.stem for path in (_CONFIGS / group).glob("*.yaml"))


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not KEY=VALUE; write for example rounds=5")
    return key, value


def _quoted(key: str, value: str) -> str:
    try:
        OverridesParser.create().parse_overrides([f"{key}={value}"])
    except HydraException:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return f"{key}={value}"


def _compose(overrides: list[tuple[str, str]], mappings: set[str]) -> DictConfig:
    """Compose; a mapping given as a whole, such as ``federation.sites``, replaces the default."""
    whole = [text for key, text in overrides if key in mappings and key not in _groups()]
    others = [text for _, text in overrides if text not in whole]
    try:
        composed = compose("config", overrides=others)
        for override in OverridesParser.create().parse_overrides(whole):
            with open_dict(composed):
                OmegaConf.update(composed, override.key_or_group, override.value(), merge=False)
        return composed
    except (HydraException, OmegaConfBaseException) as error:
        lines = str(error).strip().splitlines()
        raise UserError(f"the configuration cannot be composed: {lines[0]}") from error


def _keys(node: Any, prefix: str = "") -> set[str]:
    """Every key of a nested mapping, dotted."""
    if not isinstance(node, Mapping):
        return set()
    keys = set()
    for name, value in node.items():
        key = f"{prefix}{name}"
        keys |= {key} | _keys(value, f"{key}.")
    return keys
