"""The local rules by name. A rule's module is imported when the rule is built, not before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from fedshift.client.contract.method import Scene, of_method
from fedshift.client.contract.task import Predict
from fedshift.client.model import Model
from fedshift.client.rules.base import Images, LocalRule, Visit

RULES = {
    "alternating": "fedshift.client.rules.alternating:Alternating",
    "amplitude_exchange": "fedshift.client.rules.amplitude_exchange:AmplitudeExchange",
    "apfl": "fedshift.client.rules.apfl:APFL",
    "contrast": "fedshift.client.rules.contrast:Contrast",
    "control_variate": "fedshift.client.rules.control_variate:ControlVariate",
    "ditto": "fedshift.client.rules.ditto:Ditto",
    "dynamic": "fedshift.client.rules.dynamic:Dynamic",
    "harmonised": "fedshift.client.rules.harmonised:Harmonised",
    "leave_one_out": "fedshift.client.rules.leave_one_out:LeaveOneOut",
    "proximal": "fedshift.client.rules.proximal:Proximal",
    "risk": "fedshift.client.rules.risk:Risk",
    "sharpness": "fedshift.client.rules.sharpness:Sharpness",
}
"""Rule's name -> ``module:class``."""


def build(visit: Visit) -> list[LocalRule]:
    """The rules that the instruction of ``visit`` asks for, in its order.

    Raises ``ValueError`` for a rule this site does not know.
    """
    return [_named(name)(visit, **given) for name, given in visit.instruction.rules.items()]


def predictor(model: Model, scene: Scene, asked: Mapping[str, Mapping[str, Any]]) -> Predict:
    """What ``model``, with the weights it holds, predicts in ``scene`` of images (S, C, H, W): as
    its method's :meth:`~fedshift.client.contract.method.Method.predict`, of images changed as the
    rules ``asked`` for, with their settings, have it, in their order.

    Raises ``ValueError`` for a rule this site does not know.
    """
    changes = [_named(name).at_prediction(scene, **given) for name, given in asked.items()]
    own = replace(scene, bank=of_method(scene.bank))

    def predict(images: Images) -> np.ndarray:
        for change in changes:
            images = images if change is None else change(images)
        return model.method.predict(model.nets, images, own)

    return predict


def _named(name: str) -> type[LocalRule]:
    if name not in RULES:
        raise ValueError(f"the strategy asks for the local rule '{name}', unknown here")
    module, _, attribute = RULES[name].partition(":")
    rule: type[LocalRule] = getattr(import_module(module), attribute)
    return rule
