"""Dashboard of batches: their sizes, why they were closed, what they cost."""

from deploy.observability.dashboards import parts
from deploy.observability.dashboards.parts import Board, Panel, Row, graph, query
from deploy.observability.dashboards.promql import MODEL, PROFILE, increase, mean, rate

SIZE = "damoserve_batch_size"
STAGE = "damoserve_stage_seconds"
BATCHES = "damoserve_batches_total"


def sizes() -> tuple[Panel, ...]:
    return (
        graph(
            "Mean batch size",
            "Batches form only where they need less time for each image: 1 on a processor without a gain is right.",
            "short",
            query(mean(SIZE, MODEL, PROFILE, by="profile"), "{{profile}}"),
        ),
        parts.heat(
            "Batches by size",
            "All at the largest size: try a larger DAMOSERVE_MAX_BATCH_SIZE.",
            "short",
            query(increase(f"{SIZE}_bucket", MODEL, PROFILE, by="le")),
        ),
    )


def reasons() -> tuple[Panel, ...]:
    return (
        parts.stacked(
            "Batches by why they were closed",
            "docs/metrics.md explains the reasons.",
            "ops",
            query(rate(BATCHES, MODEL, PROFILE, by="reason"), "{{reason}}"),
        ),
        parts.stacked(
            "Batches by profile",
            "Times the mean size that is the number of images.",
            "ops",
            query(rate(BATCHES, MODEL, PROFILE, by="profile"), "{{profile}}"),
        ),
    )


def costs() -> tuple[Panel, ...]:
    worker = f"{rate('damoserve_worker_busy_seconds_total')} / scalar({rate(f'{SIZE}_sum')})"
    unused = rate("damoserve_unused_answers_total", MODEL, PROFILE, by="profile")
    return (
        graph(
            "Mean wait to fill a batch",
            "A free worker waited so long for others to come. It should be small beside the network's time.",
            "s",
            query(mean(STAGE, MODEL, PROFILE, 'stage="batch_wait"', by="profile"), "{{profile}}"),
        ),
        graph(
            "Mean time of the batch a request was in",
            "What a profile costs. A jump: the machine has other work, or a profile was replaced.",
            "s",
            query(mean(STAGE, MODEL, PROFILE, 'stage="inference"', by="profile"), "{{profile}}"),
        ),
        graph(
            "Worker time for an image",
            "Over all profiles; what batching and quicker profiles bring down.",
            "s",
            query(worker, "an image"),
        ),
        graph(
            "Answers computed for nobody",
            "The caller had left, or the deadline had passed, while the batch ran. Many: deadlines are too near to "
            "what the profiles take.",
            "reqps",
            query(unused, "{{profile}}"),
        ),
    )


def board() -> Board:
    return Board(
        "batching",
        "damoserve / Batching",
        "Batch sizes, why batches were closed, what they cost.",
        ("instance", "model", "profile"),
        (Row("Sizes", sizes(), 9), Row("Why", reasons()), Row("Cost", costs())),
    )
