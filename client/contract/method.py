"""The contract of a method: a paper's algorithm as local training at a site.

A method never sees the network, the coordinator or another site. It is given its site's data, its
named sub-networks with the federation's current weights, what other sites published (the bank),
and a budget; it trains in place and reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from fedshift import UserError
from fedshift.client.contract.illustrations import Illustration
from fedshift.client.contract.step import Step
from fedshift.client.contract.task import Task
from fedshift.protocol.messages import Adam
from fedshift.protocol.settings import suggest
from fedshift.sites.types import SiteData

Networks = dict[str, nn.Module]
StatisticsBank = Mapping[str, Mapping[str, np.ndarray]]
"""What the sites published last: site name -> statistic's name -> array. Never an image."""
OF_RULES = "rule."
"""How the names begin of what a strategy's local rules publish beside the method."""


def of_method(bank: StatisticsBank) -> StatisticsBank:
    """Of ``bank`` what the sites' methods published."""
    own = {
        site: {name: array for name, array in found.items() if not name.startswith(OF_RULES)}
        for site, found in bank.items()
    }
    return {site: found for site, found in own.items() if found}


class Participation(Enum):
    """Which sites a method trains at, besides those held out as unseen."""

    LABELLED = "labelled"
    """Those with labelled training images."""
    ALL = "all"
    """Those without labels too, if there are any."""
    BOTH = "both"
    """It needs at least one site with labels and one without."""


@dataclass(frozen=True)
class Sharing:
    """What happens to a sub-network's tensors between sites.

    * ``averaged``: every site that trained it sends its weights; the strategy combines them.
    * ``broadcast``: averaged over the sites that trained it, and used by others that did not: all
      its tensors travel, and no strategy keeps any at a site.
    * ``balanced``: as broadcast, but each of ``domains`` counts alike: the mean over the domains
      of the mean over a domain's sites.
    * ``summed``: sites send gradients. The means over each of ``domains``' sites are added, with
      weight 1, and the coordinator takes one step of ``adam``.
    * ``kept``: it never leaves its site, not for the comparison of finished models either;
      elsewhere its initial weights stand in its place, so neither predictions nor features may
      use it.

    A balanced or summed sub-network stays as it was in a round that lacks one of ``domains``.
    """

    kind: Literal["averaged", "broadcast", "balanced", "summed", "kept"]
    domains: tuple[str, ...] = ()
    adam: Adam | None = None

    def __post_init__(self) -> None:
        """Raises :class:`fedshift.UserError` for an unknown kind, and for one with more or less
        than it takes."""
        taken: dict[str, tuple[str, ...]] = dict.fromkeys(("averaged", "broadcast", "kept"), ())
        taken |= {"balanced": ("domains",), "summed": ("domains", "adam")}
        if self.kind not in taken:
            raise UserError(f"Sharing({self.kind!r}) is not known{suggest(self.kind, taken)}")
        if tuple(key for key in ("domains", "adam") if getattr(self, key)) != taken[self.kind]:
            takes = " and ".join(taken[self.kind]) or "neither domains nor adam"
            raise UserError(f"Sharing({self.kind!r}) takes {takes}; give it that and no more")


AVERAGED = Sharing("averaged")
BROADCAST = Sharing("broadcast")
KEPT = Sharing("kept")


@dataclass(frozen=True)
class Budget:
    """What one round of local training is for and how much of it there may be, and the run's seed
    for this site and round."""

    task: Task
    steps: int
    seed: int
    device: torch.device
    amp: bool = False
    """Mixed precision; only ever true on a CUDA device."""
    step: Step = field(default_factory=Step)
    """What the strategy changes in the steps of training."""
    round: int = 1
    """The current round, from 1."""
    rounds: int = 1
    """How many rounds the run has."""
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    """What the method noted at this site in the last round it trained in, such as an optimiser's
    moments, and may change in place. It stays at the site and is part of an exact resume."""


@dataclass
class FitReport:
    """What local training reports.

    ``trained`` maps each sub-network it trained to the number of examples: the weight that the
    site has in it. ``metrics`` are scalars (averages over the steps). ``domain`` is the domain
    whose mean the site's balanced and summed sub-networks enter.

    ``statistics`` are published to the other sites' bank; ``summarised`` says of how many images,
    and they are withheld when these are fewer than the site's policy allows. Never an image.
    """

    trained: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    domain: str = ""
    statistics: dict[str, np.ndarray] = field(default_factory=dict)
    summarised: int = 0


@dataclass(frozen=True)
class Scene:
    """What a prediction is for, where and how it is made.

    ``site`` is the name of the site whose images they are. ``seed`` is for what a method draws or
    trains at prediction; it depends on the run alone, not on the order of the images. ``stage`` is
    one of the method's :attr:`Method.stages`, or empty for the finished method.
    """

    task: Task
    site: str
    device: torch.device
    seed: int = 0
    bank: StatisticsBank = field(default_factory=dict)
    stage: str = ""


class Method(ABC):
    """A paper's algorithm as local training; one subclass a paper."""

    tasks: ClassVar[frozenset[type[Task]]]
    """The tasks that it serves, and their kinds; :class:`Task` itself for any."""
    participation: ClassVar[Participation] = Participation.LABELLED
    stages: ClassVar[tuple[str, ...]] = ()
    """Plainer predictions of the same networks, scored beside the finished one as models of their
    own; the plainest, and quickest, first: it is also what is validated after each round."""

    stepped: ClassVar[tuple[str, ...]] = ()
    """The sub-networks that train in loops in which the budget's step changes the images and says
    how the gradients come about, such as :func:`fedshift.client.training.train`; its penalty is
    added in every loop."""

    complete_labels: ClassVar[bool] = False
    """Whether it needs training labels that tell of every structure and pixel. Others take what
    :class:`fedshift.client.training.LabelledSlices` says of each slice to the loss."""

    adapts: ClassVar[bool] = False
    """Whether it does something about sites whose images differ, such as adapting to the images of
    other sites or taking on their styles: advice then counts it as harmonising."""

    own: ClassVar[frozenset[str]] = frozenset()
    """Settings that are each site's own, such as a file of weights: no message brings them."""

    def drawn(self, steps: int) -> int:
        """How many training images, at least, an update of so many ``steps`` is of, all different
        as long as the site has more: a policy may want them to be of several subjects. One, unless
        the method says otherwise."""
        return 1

    @classmethod
    def serves(cls, task: type[Task]) -> bool:
        """Whether it trains for tasks of that kind."""
        return issubclass(task, tuple(cls.tasks))

    @classmethod
    def check_serves(cls, task: type[Task]) -> None:
        """Raise :class:`fedshift.UserError` for a task that it does not serve, or if none is."""
        if not cls.tasks:
            raise UserError(
                f"the method {cls.__name__} serves no task; name one in its tasks, such as "
                "frozenset({DenseTask})"
            )
        if not cls.serves(task):
            known = " or ".join(sorted(kind.title for kind in cls.tasks))
            raise UserError(
                f"the method {cls.__name__} is for {known}, and the task is {task.title}; choose a "
                "method that serves it (`fedshift methods`), or another task"
            )

    @abstractmethod
    def networks(self, task: Task) -> Networks:
        """Build the named sub-networks on the CPU. Initialisation draws from torch's default
        generator, which the caller has seeded."""

    @abstractmethod
    def sharing(self, task: Task) -> dict[str, Sharing]:
        """Say for each sub-network how its tensors travel."""

    @abstractmethod
    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        """Train ``nets`` in place on the site's training split. Of a summed sub-network the
        gradients are left in its parameters' ``grad`` and the weights as they were.

        Raises :class:`fedshift.Tellable` when training diverged or collapsed: the site's update
        is then kept out of the round, and the sentence is shown."""

    @abstractmethod
    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
    ) -> np.ndarray:
        """What the task's networks predict, such as class probabilities (S, K, H, W) float32, of
        images (S, C, H, W) float32. ``nets`` lie on the scene's device. A method may train here
        (test-time adaptation), but leaves ``nets`` with the weights they had."""

    @abstractmethod
    def features(self, nets: Networks, images: torch.Tensor) -> torch.Tensor:
        """The task encoder's features (B, D) of images (B, C, H, W): shift is measured in them."""

    def bound_to_rounds(self, rounds: int) -> str:
        """What in a run of so many rounds would be otherwise in a longer one, as a predicate of the
        method; empty if nothing, so that the run may be made longer."""
        return ""

    def illustrate(self, site: SiteData, nets: Networks, scene: Scene) -> list[Illustration]:
        """Pictures of what the method does with a site's test images, drawn where these are and
        shown on the method's page of the report; none by default."""
        return []
