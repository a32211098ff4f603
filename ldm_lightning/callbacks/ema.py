"""Exponential moving average of the denoiser's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm_lightning.errors import UserError

__all__ = ["Ema"]


class Ema(pl.Callback):
    """Averages the parameters of one submodule; validation, samples and exports use the average.

    The average warms up as TensorFlow's does: after n optimizer steps the decay is min(decay, (1 + n) / (10 + n)), so
    early averages do not remember the initialization.

    Where it stands among the callbacks makes no difference: whoever asks for the average gets it, by :meth:`averaged`,
    also within a validation, and checkpoints hold live weights and average each in its place, whenever they are saved.

    Args:
        module: name of the submodule of the LightningModule, such as ``"denoiser"``.
        decay: largest decay per optimizer step, in [0, 1).
    """

    def __init__(self, module: str = "denoiser", decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay}: set it from 0 to below 1")
        self.module = module
        self.decay = decay
        self.step = 0
        self.average: dict[str, Tensor] = {}
        self._users = 0  # of the average in the module's place; meanwhile self.average holds the live parameters

    def _parameters(self, pl_module: pl.LightningModule) -> dict[str, nn.Parameter]:
        try:
            return dict(pl_module.get_submodule(self.module).named_parameters())
        except AttributeError:
            names = [name for name, _ in pl_module.named_children()]
            raise UserError(f"callbacks.ema.module={self.module} is no part of the model (parts: {names})") from None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the initial weights, or move a restored average to the device of the weights."""
        parameters = self._parameters(pl_module)
        source = self.average or parameters
        self.average = {n: source[n].detach().to(p.device, torch.float32, copy=True) for n, p in parameters.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Update after an optimizer step; batches that only accumulate gradients change nothing."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        parameters = [p.detach().float() for p in self._parameters(pl_module).values()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    def _enter(self, pl_module: pl.LightningModule) -> None:
        self._users += 1
        if self._users == 1:
            self._swap(pl_module)

    def _leave(self, pl_module: pl.LightningModule) -> None:
        self._users -= 1
        if self._users == 0:
            self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        for name, parameter in self._parameters(pl_module).items():
            live = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(live)

    @contextmanager
    def averaged(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Within the context, ``pl_module`` carries the averaged parameters; contexts may lie in one another."""
        self._enter(pl_module)
        try:
            yield
        finally:
            self._leave(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        self._enter(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on training the live parameters."""
        self._leave(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put live parameters and average each in its own place, where they are exchanged just now."""
        if not self._users:
            return
        weights = checkpoint["state_dict"]
        names = {name: f"{self.module}.{name}" for name in self.average}
        average = {name: weights[full].float() for name, full in names.items()}
        weights.update({full: self.average[name].to(weights[full].dtype) for name, full in names.items()})
        checkpoint["callbacks"][self.state_key] = {"step": self.step, "average": average}

    def state_dict(self) -> dict[str, Any]:
        """The average and its age."""
        return {"step": self.step, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the average and its age."""
        self.step, self.average = state_dict["step"], state_dict["average"]
