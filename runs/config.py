"""From the command line's overrides to a plain configuration, with one sentence for a mistake."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedshift import UserError
from fedshift.protocol.settings import suggest
from fedshift.protocol.storage import read_yaml
from fedshift.runs import plugins
from fedshift.sites.settings import AUTO

Config = dict[str, Any]

_CONFIGS = Path(__file__).parent.parent / "configs"
_COMPOSING = threading.Lock()
"""Hydra composes for one at a time in a process."""


def load(overrides: Sequence[str], config_dir: Path | None = None, *, whole: bool = True) -> Config:
    """Compose the config from ``KEY=VALUE`` texts, in Hydra's grammar, with what ``config_dir``
    holds in folders such as ``method/`` beside the shipped configs.

    A value that the grammar cannot read, such as a regular expression, is taken as it stands.
    Raises :class:`UserError` for an unknown key or choice, with the nearest names, and, unless it
    need not be ``whole``, for a setting without a default that is given no value.
    """
    pairs = [_split(override) for override in overrides]
    groups = _groups(_CONFIGS)
    added = _added(config_dir, groups)
    selected = {key: value for key, value in pairs if key in groups}
    own: dict[str, Path] = {}
    for key, value in {**_chosen(groups), **selected}.items():
        names = choices(key, config_dir)
        if value not in names:
            raise UserError(f"{key}={value} is unknown{suggest(value, names)}")
        files = _own_files(key, value, added)
        if files:
            own[key] = files[0]
        _store_plugins(key, value, files)
    where = []
    if config_dir is not None:
        where = [f"hydra.searchpath=[{_in_quotes(f'file://{config_dir.resolve()}')}]"]
    with _COMPOSING, initialize_config_module("fedshift.configs", version_base="1.3"):
        defaults = _composed([*where, *(f"{key}={name}" for key, name in selected.items())], own)
        known = _keys(OmegaConf.to_container(defaults))
        for key, _ in pairs:
            if key not in known | groups:
                raise _unknown(key, known)
        composed = _compose(
            where,
            [(key, _quoted(key, value)) for key, value in pairs],
            own,
            mappings={key for key in known if OmegaConf.is_dict(OmegaConf.select(defaults, key))},
        )
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    if whole:
        _check_whole(config)
    _check(config, [key for key, _ in pairs], own)
    return {str(key): value for key, value in config.items()}


_OF_A_RUN = ("out", "resume", "left_out")
"""What a run's own config says of that run alone."""


def from_file(path: Path, overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """Compose the config from the YAML file ``path``, such as a run's ``config.yaml``, and from
    ``overrides``, which come after it. A group may be a choice's name or its settings.

    What a run planned is taken as it stands. Raises :class:`UserError` as :func:`load` does.
    """
    node = {key: value for key, value in read_yaml(path).items() if key not in _OF_A_RUN}
    if isinstance(node.get("data"), dict):
        node["data"] = {key: value for key, value in node["data"].items() if key != "planned"}
    groups = _groups(_CONFIGS)
    again = {key for key, _ in map(_split, overrides)} & groups
    chosen = {}
    for group in groups & node.keys() - again:
        found = node[group].get("name") if isinstance(node[group], dict) else node[group]
        if group == "federation" and isinstance(node[group], dict):
            # It is called as its manifest is.
            found = found if found in choices(group, config_dir) else "manifest"
        if found is not None:
            chosen[group] = found
    node = {
        key: value
        for key, value in node.items()
        if key not in groups or (key not in again and isinstance(value, dict))
    }
    first = [f"{key}={name}" for key, name in chosen.items()]
    config = load([*first, *overrides], config_dir, whole=False)
    said = [key for key, _ in map(_split, overrides)]
    _fill(config, node, said)
    _check_whole(config)
    return config


def _fill(config: Config, node: Mapping[str, Any], said: Sequence[str], prefix: str = "") -> None:
    """Put what ``node`` says into ``config``, but for the keys ``said`` elsewhere."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if name not in config:
            raise _unknown(key, _keys(config, prefix))
        known = config[name]
        if isinstance(value, Mapping) and isinstance(known, dict) and known:
            _fill(known, value, said, f"{key}.")
        elif key not in said:
            config[name] = value


def _unknown(key: str, known: Iterable[str]) -> UserError:
    return UserError(f"{key} is not a key of the configuration{suggest(key, known)}")


def _check_whole(node: Mapping[Any, Any], prefix: str = "") -> None:
    for key in sorted(node, key=str):
        if node[key] == MISSING:
            raise UserError(f"{prefix}{key} has no default; give it a value")
        if isinstance(node[key], Mapping):
            _check_whole(node[key], f"{prefix}{key}.")


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
    """What this fedshift sets where nobody says otherwise, in the groups that ``config`` chose;
    without a group in which it chose what is not fedshift's, such as the sites of a manifest, which
    are called as that is: no other choice's settings are its own."""
    groups = _groups(_CONFIGS) & config.keys()
    chosen = {group: config[group]["name"] for group in groups if "name" in config[group]}
    known = {group: name for group, name in chosen.items() if name in choices(group)}
    found = load([f"{group}={name}" for group, name in known.items()], whole=False)
    return {key: node for key, node in found.items() if key in known or key not in chosen}


_OUTSIDE = {"data": ("manifest", "label_table", "cache"), "policy": ("hash_key",)}


def outside(config: Config) -> dict[tuple[str, str], Any]:
    """The settings that name files or folders outside of a run's own, by group and key: the user
    gives them, and no folder that was received does."""
    keys = {**_OUTSIDE, "method": sorted(plugins.own_settings(config))}
    return {(group, key): config[group].get(key) for group in keys for key in keys[group]}


def as_made(config: Config, earlier: Config) -> Config:
    """``config`` for going on with what another fedshift made with the config ``earlier``: the
    run's own values where nobody says otherwise, as defaults may have changed; what it planned
    stays to be planned, and what lies :func:`outside` is as ``config`` says."""
    earlier = _renewed(earlier)
    kept = _as_made(config, earlier, shipped(config))
    planned = {("data", key) for key in ("planned", *earlier["data"].get("planned", {}))}
    for group, key in planned | outside(config).keys():
        if key in kept[group]:
            kept[group] = {**kept[group], key: config[group][key]}
    return {**kept, **{key: config[key] for key in ("engine", "out", "resume")}}


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


def _chosen(groups: set[str]) -> dict[str, str]:
    """By group the name that is chosen where nobody says otherwise."""
    listed = read_yaml(_CONFIGS / "config.yaml")["defaults"]
    found = {
        key: name for entry in listed if isinstance(entry, dict) for key, name in entry.items()
    }
    return {key: name for key, name in found.items() if key in groups}


def _own_files(group: str, name: str, added: Mapping[str, Mapping[str, Path]]) -> list[Path]:
    """The user's file of that name, if any, and those of his that it builds on.

    Raises :class:`UserError` for one that cannot be read, and for one whose name fedshift has."""
    found: list[Path] = []
    names = [name]
    for asked in names:
        file = added.get(group, {}).get(asked)
        if file is None or file in found:
            continue
        if (_CONFIGS / group / file.name).exists():
            raise UserError(f"{file} has the name of a config of fedshift; give it another")
        found.append(file)
        names += _bases(file)
    return found


def _bases(file: Path) -> list[str]:
    """The names of the configs of the same group that a user's ``file`` builds on."""
    listed = read_yaml(file).get("defaults")
    return [entry for entry in listed if isinstance(entry, str)] if isinstance(listed, list) else []


def _store_plugins(group: str, name: str, files: Sequence[Path]) -> None:
    """Give Hydra the defaults of the plug-ins without a file that are asked for by ``name`` or that
    the user's ``files`` build on."""
    if group not in plugins.KINDS:
        return
    asked = {name, *(base for file in files for base in _bases(file))}
    asked -= {*_files(_CONFIGS / group), *(file.stem for file in files)}
    for plugin in asked.intersection(plugins.KINDS[group].names()):
        ConfigStore.instance().store(plugin, plugins.defaults(group, plugin), group=group)


def _added(folder: Path | None, groups: set[str]) -> dict[str, dict[str, Path]]:
    """The files by name that a user's folder of configs adds to each group."""
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
    for group in _groups(folder):
        if group not in groups:
            raise UserError(f"{folder / group} is no group of configs{suggest(group, groups)}")
    return {
        group: {name: folder / group / f"{name}.yaml" for name in _files(folder / group)}
        for group in _groups(folder)
    }


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
