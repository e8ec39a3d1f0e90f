"""A training process killed at random moments, started again each time, ends where an undisturbed one does."""

import random
import subprocess
import sys
from pathlib import Path

import torch

from damoserve_compress.network.checkpoint import load_checkpoint
from damoserve_compress.training.checkpoint import load_state

ROOT = Path(__file__).parents[3]
EPOCHS = 12
SCRIPT = f"""
import sys
from dataclasses import replace
from pathlib import Path
from damoserve_compress.training.trainer import Trainer
from tests.support.compress.toy_training import CONFIG, Squares, tiny_network

config = replace(CONFIG, epochs={EPOCHS}, eval_every=3, threads=1)
Trainer(tiny_network(), config, (Squares(24), Squares(4, first=100)), Path(sys.argv[1])).run()
"""


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def test_sigkill_changes_nothing(tmp_path: Path) -> None:
    with start(tmp_path / "whole") as process:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    interrupted, chance = tmp_path / "interrupted", random.Random(7)
    for kill_at in (1, 3, 5):  # epoch lines after which, at some moment of the next epoch, the process dies
        with start(interrupted) as process:
            assert process.stdout is not None
            while f"epoch {kill_at}/{EPOCHS}" not in (line := process.stdout.readline()):
                assert line, "ended early"
            try:
                process.wait(timeout=chance.uniform(0, 0.15))
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()
            assert process.returncode == -9
        assert len(load_state(interrupted / "checkpoint.pt")["history"]) >= kill_at
        load_checkpoint(interrupted / "model.safetensors")
    with start(interrupted) as process:
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert "epoch 1/" not in output
    pair = [load_state(folder / "checkpoint.pt") for folder in (tmp_path / "whole", interrupted)]
    for part in ("network", "ema"):
        for name, tensor in pair[0][part].items():
            assert torch.equal(tensor, pair[1][part][name]), name
