"""The forms of labels, one a module: what a task learns from (:mod:`.base` says what a form is)."""

from __future__ import annotations

from fedshift import UserError
from fedshift.sites.labels.base import Form
from fedshift.sites.labels.boxes import Boxes
from fedshift.sites.labels.category import Category
from fedshift.sites.labels.graph import Graph
from fedshift.sites.labels.image import PairedImage
from fedshift.sites.labels.instances import Instances
from fedshift.sites.labels.landmarks import Landmarks
from fedshift.sites.labels.mask import Mask
from fedshift.sites.labels.none import NoLabel
from fedshift.sites.labels.points import Points
from fedshift.sites.settings import DataSettings, nearest

__all__ = ["FORMS", "Form", "form_of"]

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Mask(),
        Landmarks(),
        Points(),
        Boxes(),
        Category(),
        Instances(),
        PairedImage(),
        Graph(),
        NoLabel(),
    )
}


def form_of(data: DataSettings) -> Form:
    """The form of label that ``data`` is opened for; raises :class:`fedshift.UserError` where there
    is none of that name."""
    if data.form not in FORMS:
        raise UserError(f"no form of label {data.form!r}; {nearest('nearest:', data.form, FORMS)}.")
    return FORMS[data.form]
