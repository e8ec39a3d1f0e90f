"""Trains a network, resumably: an interrupted run, started again, gives the weights of an uninterrupted one.

Exactly those with one thread; with more, floating-point sums depend on how the work was shared out.
"""

import csv
import hashlib
import io
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import hotcoco
import torch
from torch import nn

from damoserve_compress.datasets import Dataset, fingerprint
from damoserve_compress.datasets.cache import CachedDataset
from damoserve_compress.measure.evaluate import Metrics, average_precision, ground_truth, predict, torch_detector
from damoserve_compress.network import Network, RawPredictions
from damoserve_compress.network.checkpoint import Description, save_checkpoint
from damoserve_compress.training.checkpoint import (
    Diverged,
    ResumeMismatch,
    load_state,
    save_json,
    save_state,
)
from damoserve_compress.training.config import TrainConfig, learning_rate_factor
from damoserve_compress.training.ema import ModelEma
from damoserve_compress.training.loader import Batch, BatchLoader
from damoserve_compress.training.losses import Losses
from damoserve_compress.training.objective import DetectionObjective, ForwardPass
from damoserve_compress.training.optimiser import build_optimiser
from damoserve_compress.training.progress import EpochRecord, Reporter
from damoserve_compress.training.rendered import rendered_extra
from damoserve_profiles.files import replace_text

CHECKPOINT = "checkpoint.pt"
MODEL = "model.safetensors"
BEST_MODEL = "best.safetensors"
SUMMARY = "training.json"
LOG = "log.csv"


@dataclass(frozen=True)
class TrainResult:
    """`metrics` is the last evaluation, of the averaged weights at the end: not the luckiest one."""

    network: Network
    metrics: Metrics
    history: tuple[EpochRecord, ...]


class Trainer:
    """Trains `network` in place; one that was pruned will do. `data` are the training and the validation set.

    `out_dir` gets, after every epoch, `checkpoint.pt` and `log.csv`; after every evaluation `model.safetensors` (the
    averaged weights, float32) and `training.json`; and `best.safetensors` whenever the AP on `val_set` is the best yet.
    """

    def __init__(
        self,
        network: Network,
        config: TrainConfig,
        data: tuple[Dataset, Dataset],
        out_dir: Path,
        objective: nn.Module | None = None,
    ) -> None:
        train_set, val_set = (CachedDataset(dataset) for dataset in data)
        if train_set.labels != val_set.labels:
            raise ValueError(f"training labels {train_set.labels} differ from validation labels {val_set.labels}")
        self.network = network.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = (objective or DetectionObjective(config.loss)).to(config.device)
        self.config = config
        self.ema = ModelEma(self.network, config.ema_decay, config.ema_tau)
        self.optimiser = build_optimiser([self.network, self.objective], config)
        self._out = out_dir
        self._val_set = val_set
        self.batches = BatchLoader(train_set, config, rendered_extra(config) if config.rendered else None)
        self._origin = {"data": fingerprint(train_set), "weights": _digest(self.network, self.objective)}
        self._step = 0
        self._history: list[EpochRecord] = []
        self._metrics: Metrics | None = None

    def run(self, resume: bool = True, epochs: int | None = None) -> TrainResult:
        """Trains to the end, or for the first `epochs` epochs of the schedule only.

        With `resume`, goes on from the checkpoint in the output folder, if there is one. Raises ResumeMismatch where
        that is of another configuration.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        # The batches have one thread, beside torch's: OpenCV must not start a pool of its own.
        cv2.setNumThreads(1)
        if resume and (self._out / CHECKPOINT).exists():
            self._restore()
        last = min(epochs or self.config.epochs, self.config.epochs)
        with Reporter(self.config.epochs, len(self.batches), len(self._history)) as reporter:
            for epoch in range(len(self._history), last):
                self._run_epoch(epoch, last, reporter)
        if self._metrics is None:
            self._metrics = self.evaluate()
        return TrainResult(self.ema.network, self._metrics, tuple(self._history))

    def evaluate(self) -> Metrics:
        """AP of the averaged weights on the validation set."""
        detector = torch_detector(self.ema.network)
        thresholds = self.network.structure.evaluation
        detections = predict(detector, self._val_set, self.config.input, thresholds, self.config.batch_size)
        return average_precision(self._truth, detections)

    @cached_property
    def _truth(self) -> hotcoco.COCO:
        return ground_truth(self._val_set)

    def train_step(self, batch: Batch) -> Losses:
        """Takes a step of the optimiser; the losses come back without gradient."""
        rate = self.config.learning_rate * learning_rate_factor(self._step, len(self.batches), self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        losses: Losses = self.objective(self._forward(batch))
        self.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.config.grad_clip or math.inf)
        # Checked together, and only here: each look at a value waits for the GPU.
        if not torch.isfinite(losses.total + norm):
            raise Diverged(f"step {self._step}: loss or gradient is not finite; start again with a lower learning rate")
        self.optimiser.step()
        self.ema.update(self.network)
        self._step += 1
        return Losses(*(value.detach() for value in losses))

    def _forward(self, batch: Batch) -> ForwardPass:
        images, targets = batch.tensors(self.config.device)
        with self._autocast():
            features = self.network.features(images)
            raw = self.network.head(features)
        predictions = RawPredictions(*(tensor.float() for tensor in raw))
        progress = self._step / (self.config.epochs * len(self.batches))
        return ForwardPass(images, features, predictions, targets, progress, self._autocast)

    def _autocast(self) -> torch.autocast:
        device = torch.device(self.config.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _run_epoch(self, epoch: int, last: int, reporter: Reporter) -> None:
        started = time.perf_counter()
        self.network.train()
        sums = torch.zeros(len(Losses._fields))
        for batch in self.batches.epoch(epoch):
            losses = torch.stack(list(self.train_step(batch))).cpu()
            sums += losses
            reporter.step(float(losses[0]))
        means = dict(zip(Losses._fields, (sums / len(self.batches)).tolist(), strict=True))
        evaluated = self.config.is_evaluated(epoch) or epoch + 1 == last
        self._metrics = self.evaluate() if evaluated else None
        record = EpochRecord(
            epoch=epoch,
            learning_rate=float(self.optimiser.param_groups[0]["lr"]),
            loss=means.pop("total"),
            ap=self._metrics.ap if self._metrics else None,
            ap50=self._metrics.ap50 if self._metrics else None,
            seconds=time.perf_counter() - started,
            **means,
        )
        self._history.append(record)
        self._save()
        reporter.epoch(record)

    def _save(self) -> None:
        write_log(self._out / LOG, self._history)
        if self._metrics is not None:
            size, labels = self.config.input.size, tuple(self._val_set.labels)
            variant, mode = self.network.variant, self.config.resize
            what = Description(self.config.model, variant, labels, size.width, size.height, mode)
            save_checkpoint(self._out / MODEL, self.ema.network, what)
            if self._metrics.ap >= max(record.ap for record in self._history if record.ap is not None):
                save_checkpoint(self._out / BEST_MODEL, self.ema.network, what)
            save_json(self._out / SUMMARY, self._summary(self._metrics))
        # Last: whatever a crash leaves behind, the epoch counts as done only once all its files are there.
        save_state(self._out / CHECKPOINT, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "curve": self.config.curve() | self._origin,
            "network": self.network.state_dict(),
            "ema": self.ema.network.state_dict(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self._step,
            "history": [asdict(record) for record in self._history],
            "random": torch.get_rng_state(),
        }

    def _restore(self) -> None:
        state = load_state(self._out / CHECKPOINT, self._state())
        wanted = self.config.curve() | self._origin
        different = sorted(name for name in wanted if wanted[name] != state["curve"].get(name))
        if different:
            raise ResumeMismatch(
                f"{self._out / CHECKPOINT} was made with another {', '.join(different)}: choose another output folder,"
                " or the values in its training.json, or do not resume"
            )
        self.network.load_state_dict(state["network"])
        self.ema.network.load_state_dict(state["ema"])
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._step = self.ema.steps = state["step"]
        self._history = [EpochRecord(**record) for record in state["history"]]
        torch.set_rng_state(state["random"])

    def _summary(self, metrics: Metrics) -> dict[str, object]:
        return {
            "config": self.config.curve(),
            "labels": list(self._val_set.labels),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "epochs_done": len(self._history),
            "seconds": round(sum(record.seconds for record in self._history), 1),
            "metrics": asdict(metrics),
            "history": [asdict(record) for record in self._history],
        }


def write_log(path: Path, history: Iterable[EpochRecord]) -> None:
    """Writes all epochs anew, so that a resumed run's log has each of them once."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in fields(EpochRecord)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in history)
    replace_text(path, text.getvalue())


def _digest(*modules: nn.Module) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
