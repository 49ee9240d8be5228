"""Methods, strategies and tasks that stand in no list: found as modules, by entry point, or as
registered; and a user's own folder of configs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from kit.measured import SEGMENTATION

import fedshift
from fedshift import UserError, strategies
from fedshift.client.methods import METHODS
from fedshift.client.methods.supervised import Supervised
from fedshift.client.rules import RULES
from fedshift.client.rules.base import LocalRule
from fedshift.client.tasks import TASKS
from fedshift.protocol import registry
from fedshift.protocol.registry import Registry, in_words
from fedshift.runs import plugins
from fedshift.runs.config import as_made, choices, completed, load
from fedshift.server.advice.families import options
from fedshift.server.advice.rules import Evidence, advise
from fedshift.strategies import STRATEGIES
from fedshift.strategies.base import Strategy
from fedshift.strategies.fedavg import FedAvg

Command = Callable[..., Any]

STRATEGY = """
from dataclasses import dataclass
from fedshift.strategies.base import Strategy

@dataclass(eq=False)
class {}(Strategy):
    pace: float = 0.5
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Forget what a test registers and installs."""
    yield
    for kind in (*plugins.KINDS.values(), RULES):
        kind.registered.clear()
    registry._entry_points.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package of one module: its name, its source, its entry points by group."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str, points: dict[str, str]) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        about = tmp_path / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"[{group}]\n{point}\n" for group, point in points.items()]
        (about / "entry_points.txt").write_text("".join(lines))
        registry._entry_points.cache_clear()

    return install


@dataclass(eq=False)
class GentleAverage(Strategy):
    """A strategy of a notebook."""

    pace: float = 0.5
    order: tuple[str, ...] = ("a", "b")


# Modules and folders


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Strategy]:
    """A package of strategies like the one of fedshift."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "shelf_of_strategies"
    for folder in ("", "beta", "base"):
        (package / folder).mkdir()
    sources = {
        "__init__.py": "",
        "alpha.py": STRATEGY.format("Alpha"),
        "beta/__init__.py": "from shelf_of_strategies.beta.core import Beta",
        "beta/core.py": STRATEGY.format("_Part") + STRATEGY.format("Beta"),
        "gamma.py": "from shelf_of_strategies.alpha import Alpha\n\nclass Gamma(Alpha): ...",
        "base/__init__.py": STRATEGY.format("Shared"),
        "_helper.py": STRATEGY.format("Helper"),
        "none.py": "from shelf_of_strategies.alpha import Alpha",
        "two.py": STRATEGY.format("One") + STRATEGY.format("Other"),
    }
    for name, source in sources.items():
        (package / name).write_text(source)
    base = "fedshift.strategies.base:Strategy"
    return Registry("strategy", package.name, "fedshift.no_such_group", base)


def test_a_module_or_folder_is_one_but_for_what_others_share(shelf: Registry[Strategy]) -> None:
    assert shelf.names() == ["alpha", "beta", "gamma", "none", "two"]
    for name in ("alpha", "beta", "gamma"):
        cls = shelf.named(name)
        assert cls.__name__ == name.title()
        assert shelf.name_of(cls) == name


def test_a_module_must_define_one_class(shelf: Registry[Strategy]) -> None:
    with pytest.raises(UserError, match=r"none\.py must define one strategy, .* defines none;"):
        shelf.named("none")
    with pytest.raises(UserError, match=r"two\.py must define one .* defines One and Other;"):
        shelf.named("two")
    with pytest.raises(UserError, match=r"strategy=alfa is not known; did you mean alpha\?"):
        shelf.named("alfa")


def test_what_fedshift_ships_is_found_and_called_as_its_module() -> None:
    assert {"segmentation"} <= {*TASKS.names()}
    assert {"supervised", "drai"} <= {*METHODS.names()} and "base" not in METHODS.names()
    for kind in plugins.KINDS.values():
        for name in kind.names():
            assert kind.name_of(kind.named(name)) == name


@pytest.mark.parametrize("name", ["fedshift.runs.config", "../fedavg", "base", "base.robust", ""])
def test_a_name_is_no_way_to_a_module(name: str) -> None:
    with pytest.raises(UserError, match="is not known"):
        STRATEGIES.named(name)


def test_a_class_must_be_a_dataclass() -> None:
    bare = Registry[Any]("thing", "fedshift.protocol", "fedshift.no_such_group", "builtins:object")
    bare.registered["bare"] = type("Bare", (), {})
    with pytest.raises(UserError, match=r"thing=bare: Bare is no dataclass, .* write @dataclass"):
        bare.build({"name": "bare"})


@dataclass(frozen=True)
class Whole(Supervised):
    """A method that adds a setting."""

    extra: int = 3


class Annotated(Supervised):
    extra: int = 3


class Made(Supervised):
    def __init__(self, width: int = 3) -> None: ...


class Renamed(Whole):
    """Adds no setting, and needs no mark."""

    stages: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Below(Annotated):
    """Its parent's annotation is no setting of it."""


@pytest.mark.parametrize(
    ("cls", "named"), [(Annotated, "Annotated"), (Made, "Made"), (Below, "Annotated")]
)
def test_a_child_of_a_dataclass_that_adds_to_it_must_be_one(cls: type, named: str) -> None:
    fedshift.register(cls, "mine")
    with pytest.raises(UserError, match=f"^method=mine: {named} is no dataclass, .*@dataclass"):
        load(["method=mine"])
    fedshift.register(Renamed, "other")
    assert load(["method=other", "method.extra=4"])["method"]["extra"] == 4


REQUIRED = """
from dataclasses import dataclass
from fedshift.strategies.base import Strategy

@dataclass(eq=False, kw_only=True)
class Asking(Strategy):
    family = "harmonise"
    pace: float
"""


def test_a_strategy_with_a_setting_to_be_given_is_in_nobody_elses_way(
    installed: Callable[..., None], command: Command
) -> None:
    installed("asking_package", REQUIRED, {"fedshift.strategies": "asking = asking_package:Asking"})
    assert command("explain", "federation.subjects=3").code == 0
    evidence = Evidence(shift=[], cross_site=[], task=SEGMENTATION, cards={})
    tried = options("harmonise", advise(evidence))["strategy"]
    assert "asking" not in tried and "fedbn" in tried
    with pytest.raises(UserError, match=r"^strategy\.pace has no default; give it a value$"):
        strategies.build({"name": "asking"})
    assert strategies.build({"name": "asking", "pace": 2}).name == "asking"
    with pytest.raises(UserError, match=r"^strategy\.pace has no default; give it a value$"):
        load(["strategy=asking"])
    config = load(["strategy=asking", "strategy.pace=2"])
    assert config["strategy"]["pace"] == 2
    assert completed({**config, "seed": 7}, config) == {**config, "seed": 7}


# Entry points


def test_another_package_adds_its_own(installed: Callable[..., None]) -> None:
    point = "calm = calm_package:Calm"
    installed("calm_package", STRATEGY.format("Calm"), {"fedshift.strategies": point})
    assert "calm" in STRATEGIES.names() and "calm" in choices("strategy")
    built = strategies.build(load(["strategy=calm", "strategy.pace=2"])["strategy"])
    assert (built.name, built.pace) == ("calm", 2.0)  # type: ignore[attr-defined]


def test_two_of_one_name_are_refused(installed: Callable[..., None]) -> None:
    for package, name in (("one_package", "calm"), ("other_package", "calm"), ("third", "krum")):
        point = f"{name} = {package}:Calm"
        installed(package, STRATEGY.format("Calm"), {"fedshift.strategies": point})
    with pytest.raises(UserError, match=r"strategy=calm is there more than once, in one_package"):
        STRATEGIES.named("calm")
    with pytest.raises(UserError, match=r"in fedshift\.strategies\.krum and in third:Calm"):
        STRATEGIES.named("krum")
    assert STRATEGIES.named("fedavg") is FedAvg


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("broken_package:Other", r"strategy=calm: broken_package:Other of broken_package cannot"),
        (
            "no_such_module:Calm",
            r"no_such_module:Calm of broken_package cannot be imported "
            r"\(ModuleNotFoundError: No module named 'no_such_module'\); repair or remove that",
        ),
        ("broken_package:dataclass", r"is no subclass of fedshift\.strategies\.base:Strategy;"),
    ],
)
def test_a_broken_entry_point_is_named(
    installed: Callable[..., None], value: str, words: str
) -> None:
    point = {"fedshift.strategies": f"calm = {value}"}
    installed("broken_package", STRATEGY.format("Calm"), point)
    with pytest.raises(UserError, match=words):
        STRATEGIES.named("calm")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise KeyError('gone')", "(KeyError: 'gone', at "),
        ("raise SystemExit(3)", "(SystemExit: 3, at "),
        ("1 +", "(SyntaxError: invalid syntax"),
        (
            "from fedshift.client.contract.method import Method as Calm",
            "Method is no whole method: it lacks features, fit, networks, predict, sharing, tasks",
        ),
    ],
)
def test_a_broken_package_is_told_of_and_taken_from_nobody_else(
    installed: Callable[..., None], command: Command, source: str, words: str
) -> None:
    groups = {"methods", "tasks", "strategies"}
    points = {f"fedshift.{group}": "calm = quite_broken:Calm" for group in groups}
    installed("quite_broken", source, points)
    for listing, own in (("methods", "drai"), ("tasks", "landmarks"), ("strategies", "fedavg")):
        found = command(listing)
        assert found.code == 0
        assert any(line.strip().startswith(own) for line in found.out.splitlines())
        told = " ".join(found.out.split())
        assert "Warning: " in told
        if listing != "strategies":
            assert words in told
    assert command("explain", "method=supervised").code == 0
    with pytest.raises(UserError):
        METHODS.named("calm")


# What a notebook registers


def test_a_class_is_registered_by_its_name_in_words() -> None:
    assert fedshift.register(GentleAverage) is GentleAverage
    config = load(["strategy=gentle_average", "strategy.order=[b]"])["strategy"]
    base = {"fraction": 1.0, "min_sites": 1, "weighting": "examples"}
    base |= {"max_share": None}
    assert config == {"name": "gentle_average", **base, "pace": 0.5, "order": ["b"]}
    assert strategies.build(config).name == "gentle_average"
    # A cell that is run again defines the class anew.
    again: type = dataclass(eq=False)(type("GentleAverage", (Strategy,), dict(vars(GentleAverage))))
    fedshift.register(again)
    assert STRATEGIES.named("gentle_average") is again


def test_names_in_words() -> None:
    names = {"FedAvgM": "fed_avg_m", "DRAI": "drai", "UnetGAN": "unet_gan", "Moon2": "moon2"}
    for name, words in names.items():
        assert in_words(type(name, (), {})) == words


def test_what_cannot_be_registered_is_refused() -> None:
    with pytest.raises(UserError, match="there is a strategy called fedavg; register yours by"):
        fedshift.register(GentleAverage, "fedavg")
    with pytest.raises(UserError, match="'Gentle Average' cannot be the name of a strategy; use"):
        fedshift.register(GentleAverage, "Gentle Average")
    with pytest.raises(UserError, match="GentleAverage is given to register as an object and not"):
        fedshift.register(GentleAverage())  # type: ignore[arg-type,type-var]
    with pytest.raises(UserError, match=r"int is none of fedshift\.client\.contract\.method:"):
        fedshift.register(int)
    half = type("Half", (Supervised.__mro__[2],), {})
    with pytest.raises(UserError, match="Half is no whole method: it lacks "):
        fedshift.register(half)


def test_a_registered_method_runs_in_this_process_alone(
    tiny: tuple[str, ...], simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class OfMine(Supervised):
        """A method of a notebook."""

    fedshift.register(OfMine)
    simulate_undrawn(tmp_path / "run", "method=of_mine", "rounds=1", "local_steps=1")
    assert (tmp_path / "run" / "cases.csv").exists()
    with pytest.raises(UserError, match=r"method=of_mine is registered .* add engine.workers=1$"):
        simulate_undrawn(tmp_path / "pool", "method=of_mine", "engine.workers=2")


def test_a_comparison_which_has_workers_refuses_it(command: Command, tmp_path: Path) -> None:
    fedshift.register(GentleAverage)
    found = command("compare", "strategy=fedavg,gentle_average", f"out={tmp_path / 'out'}")
    assert found.code == 2
    assert "strategy=gentle_average is registered in this process and other" in found.err


@dataclass(eq=False)
class Ruled(Strategy):
    """A strategy with a rule of a notebook."""

    rule: str = "quiet"
    loud: bool = False

    def rules(self) -> dict[str, dict[str, Any]]:
        return {self.rule: {"loud": True} if self.loud else {}}


class Quiet(LocalRule):
    """A rule that does nothing."""


class Steep(LocalRule):
    """A rule whose step has a descent of its own, in whatever round it comes."""

    needs = frozenset({"descend"})


@dataclass(eq=False)
class TwoDescents(Strategy):
    """Two rules that say how gradients come about, one from the second round on."""

    def needs(self) -> frozenset[str]:
        return frozenset({"change", "descend"})

    def rules(self) -> dict[str, dict[str, Any]]:
        exchange = {"reach": 0.1, "inner_lr": 0.1, "boundary": 0.0, "temperature": 1.0}
        return {"sharpness": {"rho": 0.1}, "amplitude_exchange": exchange}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("strategy=ruled", "engine.workers=2"),
            r"^rule=quiet is registered .* add engine\.workers=1$",
        ),
        (
            ("strategy=ruled", "strategy.rule=quite"),
            r"^rule=quite is not known; did you mean quiet\?$",
        ),
        (
            ("strategy=ruled", "strategy.loud=true"),
            r"^strategy=ruled gives its rule quiet other settings than that",
        ),
        (
            ("strategy=ruled", "strategy.rule=steep"),
            r"^strategy=ruled has the rule steep, which needs descend, and does not say so",
        ),
        (
            ("strategy=two_descents",),
            r"^strategy=two_descents has the rules sharpness and amplitude_exchange, which all say",
        ),
    ],
)
def test_a_rule_that_no_site_could_follow_is_refused_before_the_run(
    simulate_undrawn: Callable[..., Path],
    command: Command,
    tmp_path: Path,
    options: tuple[str, ...],
    words: str,
) -> None:
    for cls in (Ruled, TwoDescents, Quiet, Steep):
        fedshift.register(cls)
    with pytest.raises(UserError, match=words):
        simulate_undrawn(tmp_path / "run", *options)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
    if "engine.workers=2" not in options:
        assert command("explain", *options).code == 2


def test_a_comparison_refuses_a_registered_rule(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fedshift.register(Quiet)
    monkeypatch.setattr(FedAvg, "rules", lambda self: {"quiet": {}})
    found = command("compare", "strategy=fedavg,fedprox", f"out={tmp_path / 'out'}")
    assert found.code == 2
    assert "rule=quiet is registered in this process and other processes" in found.err


# A user's own configs


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my, 'configs'"
    for group in ("method", "strategy"):
        (folder / group).mkdir(parents=True)
    (folder / "method" / "slim.yaml").write_text("defaults: [supervised]\nwidth: 5\n")
    (folder / "strategy" / "held.yaml").write_text("name: fedprox\nmu: 0.5\n")
    return folder


def test_a_users_configs_stand_beside_the_shipped_ones(config_dir: Path, command: Command) -> None:
    config = load(["method=slim", "method.depth=3", "strategy=held"], config_dir)
    assert config["method"] == {**load([])["method"], "width": 5, "depth": 3}
    assert config["strategy"] == {"name": "fedprox", "mu": 0.5}
    assert "slim" in choices("method", config_dir) and "slim" not in choices("method")
    found = command("explain", "--config-dir", str(config_dir), "method=slim", "strategy=held")
    assert found.code == 0 and "the rule proximal (mu=0.5)" in found.out


@pytest.mark.parametrize(
    ("file", "text", "overrides", "words"),
    [
        ("methods/slim.yaml", "", (), r"methods is no group of configs; did you mean method\?"),
        (
            "method/drai.yaml",
            "name: drai",
            ("method=drai",),
            r"method/drai\.yaml has the name of a config of fedshift; give it another$",
        ),
        # What is chosen unless something else is, would be fedshift's in silence.
        ("strategy/fedavg.yaml", "name: fedavg", (), r"strategy/fedavg\.yaml has the name of a"),
        ("method/slim.yaml", "name: [", ("method=slim",), r"method/slim\.yaml "),
        ("method/slim.yaml", "- 3", ("method=slim",), r"method/slim\.yaml "),
        (
            "method/slim.yaml",
            "defaults: [superviced]",
            ("method=slim",),
            r"cannot be composed with /.*/method/slim\.yaml: In 'method/slim'",
        ),
        (
            "method/slim.yaml",
            "width: 3",
            ("method=slim",),
            r"method has no name; write name: NAME of a method into /.*/method/slim\.yaml$",
        ),
        (
            "config.yaml",
            "rounds: 3",
            (),
            r"config\.yaml would not be read: a folder of",
        ),
        ("slim.yml", "name: drai", (), r"slim\.yml would not be read"),
        ("method/slim.yml", "name: drai", (), r"method/slim\.yml would not be read"),
        ("method/slim.yaml", "", ("method=slin",), r"method=slin is unknown; did you mean slim\?"),
    ],
)
def test_a_wrong_config_is_named(
    tmp_path: Path, file: str, text: str, overrides: tuple[str, ...], words: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=words):
        load(overrides, tmp_path)


def test_a_clash_of_names_is_in_nobodys_way_who_asks_for_neither(
    config_dir: Path,
) -> None:
    (config_dir / "method" / "drai.yaml").write_text("name: drai\nwidth: 3\n")
    assert load(["method=slim"], config_dir)["method"]["width"] == 5
    (config_dir / "method" / "slimmer.yaml").write_text("defaults: [slim]\nwidth: 4\n")
    (config_dir / "method" / "worse.yaml").write_text("defaults: [slimmer, drai]\n")
    assert load(["method=slimmer"], config_dir)["method"]["width"] == 4
    with pytest.raises(UserError, match=r"method/drai\.yaml has the name of a config of fedshift"):
        load(["method=worse"], config_dir)


def test_a_users_config_builds_on_a_plug_in_without_one(
    installed: Callable[..., None], config_dir: Path
) -> None:
    installed(
        "calm_package", STRATEGY.format("Calm"), {"fedshift.strategies": "calm = calm_package:Calm"}
    )
    installed("asking_package", REQUIRED, {"fedshift.strategies": "asking = asking_package:Asking"})
    for name, base in (("calmer", "calm"), ("calmest", "calmer"), ("asked", "asking")):
        text = f"defaults: [{base}]\npace: 0.25\n"
        (config_dir / "strategy" / f"{name}.yaml").write_text(text)
        config = load([f"strategy={name}", "strategy.fraction=0.5"], config_dir)["strategy"]
        assert (config["pace"], config["fraction"], config["min_sites"]) == (0.25, 0.5, 1)


def test_what_is_no_choice_of_fedshift_is_filled_with_no_other_ones_settings() -> None:
    config = load(["federation=manifest", "data.manifest=heads/MANIFEST.tsv"])
    config["federation"]["name"] = "heads"  # As a run calls its sites.
    earlier = {key: node for key, node in config.items() if key != "deadline_s"}
    assert completed(earlier, config) == config
    assert as_made(config, earlier)["federation"] == config["federation"]


def test_a_folder_of_configs_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no folder; name one that holds configs"):
        load([], tmp_path / "nowhere")


# Augmentation


@dataclass(frozen=True)
class Plain(Supervised):
    """A method without augmentation."""


del Plain.__dataclass_fields__["augmentation"]


def test_the_augmentation_goes_to_methods_that_take_one() -> None:
    config = load(["augmentation=fbp"])
    assert config["augmentation"]["fbp"] == 0.5
    assert plugins.method_settings(config)["augmentation"] == config["augmentation"]
    fedshift.register(Plain)
    assert "augmentation" not in plugins.method_settings(load(["method=plain"]))
    with pytest.raises(UserError, match="method=plain takes no augmentation; leave aug"):
        load(["method=plain", "augmentation.fbp=0.1"])


def test_the_augmentation_of_an_older_run_is_in_its_methods_node() -> None:
    config = load([])
    older = {**config, "method": {**config["method"], "augmentation": {"fbp": 0.25}}}
    del older["augmentation"]
    assert plugins.method_settings(older)["augmentation"] == {"fbp": 0.25}
