"""The worked example on the page of the deadline policy is what the policy computes."""

import doctest

from damoserve_server.scheduling import deadline


def test_the_example_of_the_page_holds() -> None:
    results = doctest.testmod(deadline, report=True)
    assert results.attempted > 0
    assert results.failed == 0
