"""A step that is not finite leaves no trace but a count, and too many end the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm_lightning.callbacks.finite import SkipNonFinite
from ldm_lightning.errors import UserError


class Module(pl.LightningModule):
    """A weight that moves by one at every step; the loss of ``broken`` steps is replaced."""

    def __init__(self, broken: dict[int, float], finite_gradient: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.broken, self.finite_gradient = broken, finite_gradient
        self.path: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0, momentum=0.0, weight_decay=0.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.path.append(self.weight.item())
        loss = -self.weight
        if batch_idx in self.broken:
            value = self.broken[batch_idx]
            loss = loss + value if self.finite_gradient else loss * value
        return loss


def fit(module: Module, tmp_path: Path, limit: int = 20, **options: Any) -> SkipNonFinite:
    callback = SkipNonFinite(limit)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(8)))
    module.steps = trainer.global_step
    module.logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return callback


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("finite_gradient", [False, True])
def test_a_broken_step_is_skipped_counted_and_logged(tmp_path: Path, value: float, finite_gradient: bool) -> None:
    module = Module({2: value, 5: value}, finite_gradient)
    callback = fit(module, tmp_path)
    assert module.path == [0, 1, 2, 2, 3, 4, 4, 5]
    assert module.steps == 8  # a skipped step is a step: all ranks and schedules go on
    assert (callback.skipped, module.logged["train/skipped"]) == (2, 2.0)


def test_clipping_does_not_stumble_over_a_skipped_step(tmp_path: Path) -> None:
    module = Module({1: float("nan")})
    fit(module, tmp_path, gradient_clip_val=0.5)
    assert module.path[:4] == pytest.approx([0, 0.5, 0.5, 1], rel=1e-5)


def test_an_accumulated_step_is_skipped_whole(tmp_path: Path) -> None:
    module = Module({2: float("nan")})
    fit(module, tmp_path, accumulate_grad_batches=2)
    assert module.path == [0, 0, 1, 1, 1, 1, 2, 2]


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    module = Module(dict.fromkeys([0, 1, 3, 4, 5], float("nan")))
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row, up to step 5: lower optim\.lr") as error:
        fit(module, tmp_path, limit=3)
    assert "\n" not in str(error.value)
    assert len(module.path) == 6


def test_the_count_is_part_of_a_checkpoint() -> None:
    before, after = SkipNonFinite(), SkipNonFinite()
    before.skipped, before.in_a_row = 7, 2
    after.load_state_dict(before.state_dict())
    assert (after.skipped, after.in_a_row) == (7, 2)


def test_an_impossible_limit_is_refused() -> None:
    with pytest.raises(UserError, match="limit=0 must be at least 1"):
        SkipNonFinite(0)
