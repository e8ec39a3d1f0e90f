from damoserve_server.latency import MAX_AGE_SECONDS, WINDOW, LatencyEstimate


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_an_outlier_does_not_move_the_estimate():
    estimate = LatencyEstimate(1.0, Clock())
    for seconds in (2.0, 2.0, 100.0):
        estimate.observe(seconds)
    assert estimate.expected() == 2.0


def test_it_follows_a_lasting_change():
    estimate = LatencyEstimate(1.0, Clock())
    for seconds in [2.0] * WINDOW + [3.0] * WINDOW:
        estimate.observe(seconds)
    assert estimate.expected() == 3.0


def test_it_returns_to_the_baseline_when_nothing_is_measured():
    clock = Clock()
    estimate = LatencyEstimate(1.0, clock)
    estimate.observe(50.0)
    clock.now = MAX_AGE_SECONDS
    assert estimate.expected() == 50.0
    clock.now += 0.1
    assert estimate.expected() == 1.0


def test_batches_are_learned_by_their_size():
    estimate = LatencyEstimate(1.0, Clock())
    assert estimate.expected(4) == 4.0
    estimate.observe(2.5, batch_size=4)
    assert (estimate.expected(4), estimate.expected(2), estimate.expected()) == (2.5, 2.0, 1.0)
