from damoserve_server.latency import MAX_AGE_SECONDS, WINDOW, DecodeEstimate, LatencyEstimate


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_an_outlier_does_not_move_the_estimate():
    estimate = LatencyEstimate({1: 1.0}, Clock())
    for seconds in (2.0, 2.0, 100.0):
        estimate.observe(seconds)
    assert estimate.expected() == 2.0


def test_it_follows_a_lasting_change():
    estimate = LatencyEstimate({1: 1.0}, Clock())
    for seconds in [2.0] * WINDOW + [3.0] * WINDOW:
        estimate.observe(seconds)
    assert estimate.expected() == 3.0


def test_it_returns_to_the_baseline_when_nothing_is_measured():
    clock = Clock()
    estimate = LatencyEstimate({1: 1.0}, clock)
    estimate.observe(50.0)
    clock.now = MAX_AGE_SECONDS
    assert estimate.expected() == 50.0
    clock.now += 0.1
    assert estimate.expected() == 1.0


def test_batches_are_learned_by_their_size():
    estimate = LatencyEstimate({1: 1.0, 2: 2.0, 4: 2.5}, Clock())
    estimate.observe(1.0)
    estimate.observe(3.0, batch_size=4)
    estimate.observe(5.0, batch_size=4)
    assert (estimate.expected(4), estimate.expected(1)) == (4.0, 1.0)


def test_before_the_first_measurement_the_baselines_count():
    estimate = LatencyEstimate({1: 1.0, 4: 2.5}, Clock())
    assert [estimate.expected(size) for size in (1, 3, 4)] == [1.0, 3.0, 2.5]


def test_a_slow_batch_tells_of_all_sizes():
    estimate = LatencyEstimate({1: 20.0, 2: 30.0, 4: 40.0}, Clock())
    estimate.observe(400.0, batch_size=4)
    assert [estimate.expected(size) for size in (1, 2, 4)] == [200.0, 300.0, 400.0]


def test_decoding_a_large_image_tells_nothing_of_small_ones():
    estimate = DecodeEstimate(Clock())
    for _ in range(40):
        estimate.observe(0.5, 9_000_000)
    assert estimate.expected(10_000_000) == 0.5
    assert estimate.expected(20_000) == 0
    estimate.observe(0.001, 20_000)
    assert (estimate.expected(10_000_000), estimate.expected(20_000)) == (0.5, 0.001)


def test_decoding_is_forgotten_too():
    clock = Clock()
    estimate = DecodeEstimate(clock)
    estimate.observe(50.0, 1000)
    clock.now = MAX_AGE_SECONDS + 0.1
    assert estimate.expected(1000) == 0
