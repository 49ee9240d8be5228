"""From the command line's overrides to a plain configuration, with one sentence for a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedshift import UserError
from fedshift.protocol.settings import suggest
from fedshift.protocol.storage import read_yaml
from fedshift.runs import plugins
from fedshift.sites.settings import AUTO

Config = dict[str, Any]

_CONFIGS = Path(__file__).parent.parent / "configs"


def load(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """Compose the config from ``KEY=VALUE`` texts, in Hydra's grammar, with what ``config_dir``
    holds in folders such as ``method/`` beside the shipped configs.

    A value that the grammar cannot read, such as a regular expression, is taken as it stands.
    Raises :class:`UserError` for an unknown key or choice, with the nearest names.
    """
    pairs = [_split(override) for override in overrides]
    groups = _groups(_CONFIGS)
    added = _added(config_dir, groups)
    selected = []
    own: dict[str, Path] = {}
    for key, value in pairs:
        if key in groups:
            names = choices(key, config_dir)
            if value not in names:
                raise UserError(f"{key}={value} is unknown{suggest(value, names)}")
            if config_dir is not None and value in added.get(key, ()):
                own[key] = config_dir / key / f"{value}.yaml"
                read_yaml(own[key])
            elif value not in _files(_CONFIGS / key):
                ConfigStore.instance().store(value, plugins.defaults(key, value), group=key)
            selected.append(f"{key}={value}")
    where = []
    if config_dir is not None:
        where = [f"hydra.searchpath=[{_in_quotes(f'file://{config_dir.resolve()}')}]"]
    with initialize_config_module("fedshift.configs", version_base="1.3"):
        defaults = _composed([*where, *selected], own)
        known = _keys(OmegaConf.to_container(defaults))
        for key, _ in pairs:
            if key not in known | groups:
                raise UserError(f"{key} is not a key of the configuration{suggest(key, known)}")
        composed = _compose(
            where,
            [(key, _quoted(key, value)) for key, value in pairs],
            own,
            mappings={key for key in known if OmegaConf.is_dict(OmegaConf.select(defaults, key))},
        )
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    _check(config, [key for key, _ in pairs], own)
    return {str(key): value for key, value in config.items()}


def _check(config: dict[Any, Any], given: Sequence[str], own: Mapping[str, Path]) -> None:
    """Raise :class:`UserError` for what cannot go together, the keys ``given`` and, by group, the
    files ``own`` being the user's."""
    if config["data"]["planned"]:
        raise UserError("data.planned is written by a run, never by hand; leave it out")
    for kind in plugins.KINDS:
        if not isinstance(config[kind], dict) or not config[kind].get("name"):
            file = own.get(kind, "its config")
            raise UserError(f"{kind} has no name; write name: NAME of a {kind} into {file}")
    method = config["method"]["name"]
    asked = [key for key in given if key.partition(".")[0] == plugins.AUGMENTATION]
    if asked and not plugins.takes_augmentation(method):
        raise UserError(f"method={method} takes no augmentation; leave {asked[0]}=... out")


def shipped(config: Config) -> Config:
    """What this fedshift sets where nobody says otherwise, in the groups that ``config`` chose."""
    groups = _groups(_CONFIGS) & config.keys()
    chosen = {group: str(config[group].get("name")) for group in groups}
    return load([f"{group}={name}" for group, name in chosen.items() if name in choices(group)])


def as_made(config: Config, earlier: Config) -> Config:
    """``config`` for going on with what another fedshift made with the config ``earlier``: the
    run's own values where nobody says otherwise, as defaults may have changed; what it planned
    stays to be planned."""
    earlier = _renewed(earlier)
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
    filled: Config = _filled(_renewed(earlier), shipped(config))
    open_then = {key for key, value in earlier["data"].items() if value == AUTO}
    return {**filled, "data": filled["data"] | {key: config["data"][key] for key in open_then}}


def _renewed(config: Config) -> Config:
    """With the augmentation as a node of its own, which older runs have in the method's."""
    method = dict(config["method"])
    if plugins.AUGMENTATION not in method:
        return config
    return {**config, plugins.AUGMENTATION: method.pop(plugins.AUGMENTATION), "method": method}


def _filled(node: Any, default: Any) -> Any:
    if not isinstance(node, dict) or not isinstance(default, dict):
        return node
    return default | {key: _filled(value, default.get(key)) for key, value in node.items()}


def choices(group: str, config_dir: Path | None = None) -> list[str]:
    """The names that the config group offers, sorted."""
    names = {*_files(_CONFIGS / group)}
    if group in plugins.KINDS:
        names |= {*plugins.KINDS[group].names()}
    if config_dir is not None:
        names |= {*_files(config_dir / group)}
    return sorted(names)


def _groups(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"}


def _files(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.yaml")]


def _added(folder: Path | None, groups: set[str]) -> dict[str, list[str]]:
    """The names that a user's folder of configs adds to each group."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise UserError(
            f"--config-dir {folder} is no folder; name one that holds configs, such as "
            "method/NAME.yaml"
        )
    for path in sorted([*folder.glob("*.y*ml"), *folder.glob("*/*.yml")]):
        raise UserError(
            f"{path} would not be read: a folder of configs holds files such as method/NAME.yaml, "
            "one for each choice; move it there, or say what it sets on the command line"
        )
    found = {group: _files(folder / group) for group in _groups(folder)}
    for group, names in found.items():
        if group not in groups:
            raise UserError(f"{folder / group} is no group of configs{suggest(group, groups)}")
        for name in names:
            if (_CONFIGS / group / f"{name}.yaml").exists():
                raise UserError(
                    f"{folder / group / name}.yaml has the name of a config of fedshift; give it "
                    "another"
                )
    return found


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not KEY=VALUE; write for example rounds=5")
    return key, value


def _in_quotes(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _quoted(key: str, value: str) -> str:
    try:
        OverridesParser.create().parse_overrides([f"{key}={value}"])
    except HydraException:
        return f"{key}={_in_quotes(value)}"
    return f"{key}={value}"


def _composed(overrides: list[str], own: Mapping[str, Path]) -> DictConfig:
    """Compose; the user's files ``own`` are named in what goes wrong."""
    try:
        return compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        lines = str(error).strip().splitlines()
        files = "".join(f" with {path}" for path in own.values())
        raise UserError(f"the configuration cannot be composed{files}: {lines[0]}") from error


def _compose(
    where: list[str],
    overrides: list[tuple[str, str]],
    own: Mapping[str, Path],
    mappings: set[str],
) -> DictConfig:
    """Compose; a mapping given as a whole, such as ``federation.sites``, replaces the default."""
    groups = _groups(_CONFIGS)
    whole = [text for key, text in overrides if key in mappings and key not in groups]
    others = [text for _, text in overrides if text not in whole]
    composed = _composed([*where, *others], own)
    for override in OverridesParser.create().parse_overrides(whole):
        with open_dict(composed):
            OmegaConf.update(composed, override.key_or_group, override.value(), merge=False)
    return composed


def _keys(node: Any, prefix: str = "") -> set[str]:
    """Every key of a nested mapping, dotted."""
    if not isinstance(node, Mapping):
        return set()
    keys = set()
    for name, value in node.items():
        key = f"{prefix}{name}"
        keys |= {key} | _keys(value, f"{key}.")
    return keys
