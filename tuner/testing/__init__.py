"""Checks that every searcher and every policy must pass, for those who write their own.

Each check is a function that takes a searcher or a policy by its name (a key, or an import path)
and raises an `AssertionError` that says what is wrong. They need no pytest, no Ray and no data.

Example:
    >>> import pytest
    >>> @pytest.mark.parametrize("check", SEARCHER_CHECKS)
    ... def test_my_searcher(check):
    ...     check("my_search:propose")
    >>> @pytest.mark.parametrize("check", POLICY_CHECKS)
    ... def test_my_policy(check):
    ...     check({"name": "my_search:keep_half", "fraction": 0.5})
"""

from __future__ import annotations

from tuner.testing.policies import (
    POLICY_CHECKS,
    check_a_resumed_study_decides_alike,
    check_a_study_comes_to_its_end,
    check_no_worker_waits,
    check_undefined_scores_win_nothing,
)
from tuner.testing.searchers import (
    SEARCHER_CHECKS,
    check_proposals_depend_on_the_record_alone,
    check_proposals_lie_in_the_space,
    check_seeds_share_no_trial,
    check_undefined_scores_are_no_harm,
)

__all__ = [
    "POLICY_CHECKS",
    "SEARCHER_CHECKS",
    "check_a_resumed_study_decides_alike",
    "check_a_study_comes_to_its_end",
    "check_no_worker_waits",
    "check_proposals_depend_on_the_record_alone",
    "check_proposals_lie_in_the_space",
    "check_seeds_share_no_trial",
    "check_undefined_scores_are_no_harm",
    "check_undefined_scores_win_nothing",
]
