from __future__ import annotations

import pytest

from ldm_lightning.errors import UserError, nearest, needs_extra


def test_user_error_is_a_value_error():
    with pytest.raises(ValueError, match=r"^set x$"):
        raise UserError("set x")


@pytest.mark.parametrize(
    ("word", "hint"), [("cosin", "; did you mean 'cosine'?"), ("linaer", "; did you mean 'linear'?"), ("zzz", "")]
)
def test_nearest_names_the_closest_candidate_or_none(word, hint):
    assert nearest(word, iter(["cosine", "linear"])) == hint


def test_nearest_of_nothing_is_silent():
    assert nearest("cosine", []) == ""


def test_needs_extra_is_one_line_naming_package_and_command():
    error = needs_extra("mlxtend", "demo")
    assert isinstance(error, UserError)
    assert str(error) == "mlxtend is not installed; install it with: pip install 'ldm_lightning[demo]'"
