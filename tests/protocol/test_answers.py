"""What a coordinator takes of a site's answer, kind by kind (:mod:`fedshift.protocol.answers`)."""

from __future__ import annotations

import pytest

from fedshift.protocol.answers import Unfit, read_name
from fedshift.protocol.messages import answer

ODD = ["", ".", "..", "a/b", "a\\b", "a\0b", "a::b", "é" * 101, "\ud800"]


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_no_folder_can_have_is_nobodys(name: str) -> None:
    with pytest.raises(Unfit, match=r"^sent a name that (is no|is longer|cannot be read)"):
        read_name(answer(name))
