"""The local rules: a module is one (:mod:`fedshift.protocol.registry`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshift import UserError
from fedshift.client.methods import METHODS
from fedshift.protocol.registry import Registry

if TYPE_CHECKING:
    from fedshift.client.contract.method import Scene
    from fedshift.client.contract.task import Predict
    from fedshift.client.model import Model
    from fedshift.client.rules.base import Images, LocalRule, Visit

RULES: Registry[LocalRule] = Registry(
    "rule", __name__, "fedshift.rules", "fedshift.client.rules.base:LocalRule"
)


def build(visit: Visit) -> list[LocalRule]:
    """The rules that the instruction of ``visit`` asks for, in its order.

    Raises :class:`fedshift.UserError` for a rule this site does not know.
    """
    return [RULES.named(name)(visit, **given) for name, given in visit.instruction.rules.items()]


def predictor(model: Model, scene: Scene, asked: Mapping[str, Mapping[str, Any]]) -> Predict:
    """What ``model``, with the weights it holds, predicts in ``scene`` of images (S, C, H, W): as
    its method's :meth:`~fedshift.client.contract.method.Method.predict`, of images changed as the
    rules ``asked`` for, with their settings, have it, in their order.

    Raises :class:`fedshift.UserError` for a rule this site does not know, and where the method does
    not predict an array for each image, of a dense task with the shape of its predictions.
    """
    # Here and not above, so that the rules' names are known without torch.
    import torch

    from fedshift.client.contract.method import of_method
    from fedshift.client.contract.task import DenseTask

    changes = [RULES.named(name).at_prediction(scene, **given) for name, given in asked.items()]
    own = replace(scene, bank=of_method(scene.bank))

    def predict(images: Images) -> np.ndarray:
        for change in changes:
            images = images if change is None else change(images)
        found = model.method.predict(model.nets, images, own)
        wanted: tuple[int, ...] = (len(images),)
        if isinstance(model.task, DenseTask):
            raw = torch.zeros(1, model.task.outputs, *np.shape(images[0])[1:])
            wanted += tuple(model.task.predictions(raw).shape[1:])
        if not isinstance(found, np.ndarray) or found.shape[: len(wanted)] != wanted:
            raise UserError(
                f"method={METHODS.name_of(type(model.method))}: predict returns for {len(images)} "
                f"images {type(found).__name__} of shape {tuple(np.shape(found))} and not an array "
                f"of shape {wanted}, as scene.task.predictions of the outputs has"
            )
        return found

    return predict
