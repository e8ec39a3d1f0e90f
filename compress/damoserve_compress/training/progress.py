"""The progress of a training run: a bar on a terminal, one line an epoch anywhere else."""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True)
class EpochRecord:
    """A line of the log; losses are means over the epoch's steps, `seconds` counts its evaluation too."""

    epoch: int
    learning_rate: float
    loss: float
    quality: float
    giou: float
    distribution: float
    feature: float
    ap: float | None
    ap50: float | None
    seconds: float

    def line(self, epochs: int) -> str:
        accuracy = "" if self.ap is None or self.ap50 is None else f"  AP {self.ap:.4f}  AP50 {self.ap50:.4f}"
        feature = f", feature {self.feature:.4f}" if self.feature else ""
        return (
            f"epoch {self.epoch + 1}/{epochs}  loss {self.loss:.4f} (quality {self.quality:.4f}, giou {self.giou:.4f},"
            f" distribution {self.distribution:.4f}{feature})"
            f"  lr {self.learning_rate:.2e}  {self.seconds:.1f} s{accuracy}"
        )


class Reporter:
    """Use as a context manager around the run; `first` is the epoch a resumed run starts with."""

    def __init__(self, epochs: int, steps_per_epoch: int, first: int = 0, console: Console | None = None) -> None:
        self._console = console or Console()
        self._epochs = epochs
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}  AP {task.fields[ap]}"),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        total, done = epochs * steps_per_epoch, first * steps_per_epoch
        self._task = self._progress.add_task("training", total=total, completed=done, loss="-", ap="-")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, loss: float) -> None:
        self._progress.update(self._task, advance=1, loss=f"{loss:.3f}")

    def epoch(self, record: EpochRecord) -> None:
        if record.ap is not None:
            self._progress.update(self._task, ap=f"{record.ap:.4f}")
        if not self._console.is_terminal:
            # Not through rich, which would wrap the line; flushed, so that a log file can be followed.
            print(record.line(self._epochs), file=self._console.file, flush=True)
