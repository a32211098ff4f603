"""The adversary of a first stage: a discriminator in training, and what it adds to the autoencoder's loss.

Both players learn from the same reconstruction of the same batch in one backward pass of one loss: the generator's
terms are differentiated through the discriminator with its weights held constant, the discriminator's terms see the
reconstruction without its graph. So each gets exactly its own gradient, one optimizer holds both, in two parameter
groups, and a step is a step: whatever counts steps, accumulates, synchronizes or saves needs to know nothing of it.

The game begins in three acts. Up to ``start`` there is no discriminator. From ``start`` on it learns, unheeded: it must
know pictures from reconstructions before its opinion counts. From ``join`` on the autoencoder listens, and ``ramp``
steps later fully. Listening to an untrained discriminator ruins reconstructions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ldm_lightning.errors import UserError
from ldm_lightning.latent.adversarial import AdaptiveWeight, Game, feature_matching, gradient_penalty, lecam
from ldm_lightning.loss import Term, total
from ldm_lightning.precision import KeepsPrecision
from ldm_lightning.ranks import mean_over_ranks

__all__ = ["Adversary", "Judgement"]

log = logging.getLogger(__name__)


class Judgement(NamedTuple):
    """What a discriminator makes of one batch.

    Attributes:
        heard: terms of the autoencoder's loss, with weights that follow ramp and balance; none before ``join``.
        own: terms of the discriminator's loss; before ``start`` their weight is zero.
        said: mean logits of pictures ("real") and reconstructions ("fake"), and "accuracy"; nothing before ``start``.
    """

    heard: dict[str, Term]
    own: dict[str, Term]
    said: dict[str, Tensor]


class Adversary(KeepsPrecision):
    """A discriminator and the rules of its game. All steps are optimizer steps.

    Args:
        discriminator: pictures (B, C, H, W) -> logits and a list of features; each picture is judged by itself.
        game: the losses of both players.
        weight: of the adversarial term, after the ramp; on top of ``balance``.
        balance: makes the weight follow the gradients; None leaves it constant.
        start: step at which the discriminator begins to learn.
        join: later step at which the autoencoder begins to listen.
        ramp: steps over which the weight then grows linearly.
        r1: weight of the gradient penalty on pictures; 0 for none. It about doubles the discriminator's cost.
        r2: weight of the gradient penalty on reconstructions, at the same cost; 0 for none.
        lecam: weight of LeCam regularization; 0 for none.
        matching: weight of the matched features beside the verdict, as a share of the adversarial weight; 0 for none.
        optimizer: options of the discriminator's parameter group that differ from the autoencoder's, such as ``lr``.
    """

    anchors: Tensor
    age: Tensor

    def __init__(
        self,
        discriminator: nn.Module,
        game: Game,
        *,
        weight: float = 0.5,
        balance: AdaptiveWeight | None = None,
        start: int = 20000,
        join: int = 22000,
        ramp: int = 5000,
        r1: float = 0.0,
        r2: float = 0.0,
        lecam: float = 0.0,
        matching: float = 0.0,
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= start < join:
            raise UserError(
                f"first_stage.adversary: start={start} must not be negative and lie before join={join}; an autoencoder "
                "that listens to an untrained discriminator is ruined"
            )
        if ramp < 1 or weight <= 0 or min(r1, r2, lecam, matching) < 0:
            raise UserError(
                f"first_stage.adversary: ramp={ramp} must be at least 1, weight={weight} above 0, r1={r1}, r2={r2}, "
                f"lecam={lecam} and matching={matching} not below 0"
            )
        self.discriminator = discriminator
        self.game = game
        self.weight, self.balance = weight, balance
        self.start, self.join, self.ramp = start, join, ramp
        self.r1, self.r2, self.lecam, self.matching = r1, r2, lecam, matching
        self.optimizer = dict(optimizer or {})
        self.register_buffer("anchors", torch.zeros(2))  # moving averages of the mean logits, real and fake
        self.register_buffer("age", torch.zeros(()))

    def announce(self, max_steps: int) -> None:
        """Warn of a run that ends before the game begins."""
        if 0 < max_steps <= self.join:
            log.warning(
                "no adversarial training: trainer.max_steps=%d ends before first_stage.adversary.join=%d; set "
                "first_stage.adversary.start and join",
                max_steps,
                self.join,
            )

    def judge(self, step: int, x: Tensor, reconstruction: Tensor, fidelity: Tensor, last_layer: Tensor) -> Judgement:
        """Let the discriminator compare pictures and their reconstructions.

        Args:
            step: optimizer steps done.
            x: pictures (B, C, H, W).
            reconstruction: likewise, with its graph.
            fidelity: loss of the reconstruction, a scalar.
            last_layer: weight of the decoder's last layer.
        """
        if step < self.start:
            # Gradients of zero, without any computation: DDP waits for one of every parameter.
            idle = torch.stack([parameter.flatten()[0] * 0 for parameter in self.discriminator.parameters()]).sum()
            return Judgement({}, {"loss": Term(idle, 0.0)}, {})
        fake_pictures = reconstruction.detach().to(x.dtype)
        logits, features = self.discriminator(torch.cat([x, fake_pictures]))
        real, fake = logits.float().chunk(2)
        own = {"loss": Term(self.game.discriminator(real, fake), 1.0)}
        heard: dict[str, Term] = {}
        if step >= self.join:
            heard = self._pulls(real.detach(), [feature[: len(x)].detach() for feature in features], reconstruction)
            weight: float | Tensor = self.weight * min(1.0, (step - self.join + 1) / self.ramp)
            if self.balance is not None and torch.is_grad_enabled():
                weight = weight * self.balance(fidelity, total(heard), last_layer)
            heard = {name: Term(term.value, term.weight * weight) for name, term in heard.items()}
        if self.r1:
            own["r1"] = Term(gradient_penalty(self._logits, x), self.r1)
        if self.r2:
            own["r2"] = Term(gradient_penalty(self._logits, fake_pictures), self.r2)
        if self.lecam:
            self._move_anchors(real, fake)
            own["lecam"] = Term(lecam(real, fake, self.anchors.clone()), self.lecam)
        real, fake = real.detach(), fake.detach()
        said = {"real": real.mean(), "fake": fake.mean(), "accuracy": self.game.accuracy(real, fake)}
        return Judgement(heard, own, said)

    def _pulls(self, real: Tensor, originals: list[Tensor], reconstruction: Tensor) -> dict[str, Term]:
        """What pulls at the autoencoder, weighed against each other, given logits and features of the pictures."""
        constant = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        training = self.discriminator.training
        self.discriminator.eval()  # spectral normalization as it judged the originals, not a power iteration later
        logits, features = functional_call(self.discriminator, constant, (reconstruction,))
        self.discriminator.train(training)
        terms = {"adversarial": Term(self.game.generator(real, logits.float()), 1.0)}
        if self.matching:
            terms["matching"] = Term(feature_matching(originals, features), self.matching)
        return terms

    def _logits(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.discriminator(pictures)[0]
        return logits

    def rest(self, step: int) -> None:
        """Drop the discriminator's gradients while it is not learning, so that its optimizer state stays untouched."""
        if step < self.start:
            self.discriminator.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _move_anchors(self, real: Tensor, fake: Tensor) -> None:
        means = mean_over_ranks(torch.stack([real.mean(), fake.mean()]))
        decay = (self.age / (self.age + 1)).clamp(max=0.99)  # the first values are a plain mean
        moved = torch.lerp(means, self.anchors, decay)
        finite = moved.isfinite().all()  # a step that will be skipped leaves no trace
        self.anchors.copy_(torch.where(finite, moved, self.anchors))
        self.age += finite
