"""The local rules by name. A rule's module is imported when the rule is built, not before."""

from __future__ import annotations

from importlib import import_module

from fedshift.client.rules.base import LocalRule, Visit

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
    asked = visit.instruction.rules
    unknown = sorted(set(asked) - RULES.keys())
    if unknown:
        raise ValueError(f"the strategy asks for the local rule '{unknown[0]}', unknown here")
    return [_named(name)(visit, **settings) for name, settings in asked.items()]


def _named(name: str) -> type[LocalRule]:
    module, _, attribute = RULES[name].partition(":")
    rule: type[LocalRule] = getattr(import_module(module), attribute)
    return rule
