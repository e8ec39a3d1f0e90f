"""Dashboard of resources: workers, queue, buffers and the process, and how much of them is in use."""

from deploy.observability.dashboards import parts
from deploy.observability.dashboards.parts import Board, Panel, Row, graph, query
from deploy.observability.dashboards.promql import increase, rate, series, total

POOL = "damoserve_pool_slots"
SHED = 'outcome=~"refused|expired|cancelled"'


def workers() -> tuple[Panel, ...]:
    utilisation = (
        f"{rate('damoserve_worker_busy_seconds_total', by='instance')} / {total('damoserve_workers', by='instance')}"
    )
    return (
        graph(
            "Workers",
            "able: not lost; busy: compute now. Fewer able ones than there were: one hung or died, see restarts.",
            "short",
            query(total("damoserve_workers", by="instance"), "{{instance}} able"),
            query(total("damoserve_workers_busy", by="instance"), "{{instance}} busy"),
            query(total("damoserve_worker_threads", by="instance", aggregation="max"), "{{instance}} threads each"),
        ),
        parts.lined(
            graph(
                "Utilisation of the workers",
                "Share of their time spent in batches. Above the line for long, queues and downgrades grow: add cores.",
                "percentunit",
                query(utilisation, "{{instance}}"),
            ).max(1),
            (0.8, parts.RED),
        ),
        parts.lined(
            graph(
                "Workers replaced",
                "A worker hung or died. Any is worth a look at the log, which says what it was doing.",
                "short",
                query(increase("damoserve_worker_restarts_total", by="instance"), "{{instance}}"),
            ),
            (1, parts.RED),
        ),
    )


def queues() -> tuple[Panel, ...]:
    slots = total(POOL, by="state")
    return (
        parts.stacked(
            "Requests that wait",
            "decoding: their image is being read; ready: no worker is free. Growing: more arrives than is done.",
            "short",
            query(total("damoserve_queued_requests", by="state"), "{{state}}"),
        ),
        parts.dashed(
            parts.stacked(
                "Input buffers",
                "None free: the next request is refused with QUEUE_FULL. Dashed: the most that were leased at once "
                "since the start. Near all: raise DAMOSERVE_MAX_QUEUE if there is memory and time to wait.",
                "short",
                query(slots, "{{state}}"),
                query(total("damoserve_pool_slots_high_water"), "high water"),
            ),
            "^high water",
        ),
        parts.stacked(
            "Shed load",
            "Refused at arrival, or expired before the end; and callers that gave up. Each is work that was not done.",
            "reqps",
            query(rate("damoserve_requests_total", SHED, by="outcome"), "{{outcome}}"),
        ),
        graph(
            "Images that could not be decoded",
            "By kind. Callers send something else than images, or ones that are too large.",
            "reqps",
            query(rate("damoserve_decode_failures_total", by="kind"), "{{kind}}"),
        ),
    )


def process() -> tuple[Panel, ...]:
    return (
        graph(
            "Processor",
            "Cores in use. Far above workers times threads: decoding takes the rest.",
            "short",
            query(rate("process_cpu_seconds_total", by="instance"), "{{instance}}"),
        ),
        graph(
            "Memory",
            "Resident, and the input buffers in it once they were filled. It climbs while a version changes and "
            "comes back.",
            "bytes",
            query(total("process_resident_memory_bytes", by="instance"), "{{instance}} resident"),
            query(total("damoserve_pool_bytes", by="instance"), "{{instance}} input buffers"),
        ),
        graph(
            "Address space",
            "Reserved, not used: only its growth over days says something.",
            "bytes",
            query(total("process_virtual_memory_bytes", by="instance"), "{{instance}}"),
        ),
        graph(
            "Open files",
            "Share of the limit of the process; connections, mostly. At 1, new callers are not let in.",
            "percentunit",
            query(f"{series('process_open_fds')} / {series('process_max_fds')}", "{{instance}}"),
        ),
    )


def life() -> tuple[Panel, ...]:
    return (
        graph(
            "Time since the start",
            "A fall to zero: the process was restarted.",
            "s",
            query(f"time() - {series('process_start_time_seconds')}", "{{instance}}"),
        ),
        parts.states(
            "Reachable",
            "Whether Prometheus could read the metrics; of all instances, as one that is down for long is not among "
            "those to choose from. The job has to be named damoserve.",
            (("down", parts.RED), ("up", parts.GREEN)),
            query('min by (instance) (up{job="damoserve"})', "{{instance}}"),
        ),
    )


def board() -> Board:
    return Board(
        "resources",
        "damoserve / Resources",
        "Utilisation, saturation and faults of workers, queue, buffers and process.",
        ("instance",),
        (
            Row("Workers", workers()),
            Row("Queue and buffers", queues()),
            Row("Process", process()),
            Row("Life", life(), 6),
        ),
    )
