"""Each finding on made-up logs: it is found, it is not found beside its threshold, and missing data are named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from ldm_lightning.diagnosis import CHECKS, Run, Trial, diagnose
from ldm_lightning.diagnosis import adversary as game
from ldm_lightning.diagnosis.codes import dead_codes
from ldm_lightning.diagnosis.course import (
    blank_pictures,
    diverging,
    not_falling,
    not_finished,
    not_finite,
    not_validated,
    overfitting,
    warming_up,
)
from ldm_lightning.diagnosis.latents import collapsed_channels, exploding_scale, fine_detail, not_standardized

STEPS = 100


def config(bottleneck: str = "Gaussian", adversary: Mapping[str, Any] | None = None, **node: Any) -> dict[str, Any]:
    return {
        "stage": "first_stage",
        "first_stage": {
            "autoencoder": {"bottleneck": {"_target_": f"ldm_lightning.latent.bottleneck.{bottleneck}", **node}},
            "loss": {"kl_weight": 1e-2},
            "adversary": adversary,
        },
        "optim": {"lr": 1e-3},
        "trainer": {"max_steps": STEPS, "val_check_interval": 25},
    }


STAGE_TWO = {**config(), "stage": "latent_diffusion", "first_stage": {"run": "runs/first"}, "denoiser": {}}
GAME = {
    "start": 20,
    "join": 40,
    "ramp": 10,
    "weight": 0.5,
    "r1": 0.0,
    "balance": {"cap": 100.0},
    "optimizer": {"lr": 1e-3},
    "discriminator": {"width": 64},
}


def curve(*values: float, every: int = 1, start: int = 0) -> list[tuple[int, float]]:
    return [(start + every * (index + 1) - 1, value) for index, value in enumerate(values)]


def falling(first: float = 1.0, last: float = 0.1, points: int = STEPS) -> list[tuple[int, float]]:
    return curve(*(first + (last - first) * index / (points - 1) for index in range(points)))


def channels(std: Sequence[float], sigma: Sequence[float] = (), mean: Sequence[float] = ()) -> dict[str, Any]:
    named = {"std": std, "sigma": sigma, "mean": mean or [0.0] * len(std)}
    return {f"val/latent/{name}/{c}@50": curve(v) for name, values in named.items() for c, v in enumerate(values)}


HEALTHY = Run(
    config(),
    {
        "train/reconstruction": falling(),
        "train/skipped": curve(*[0.0] * STEPS),
        "val/reconstruction": curve(0.8, 0.6, 0.3, 0.12, every=25),
        "val/kl": curve(2.0, 2.1, every=50),
        "val/latent/places@50": curve(64),
        "val/latent/spectrum/2@50": curve(0.45),
        "val/latent/picture_spectrum/2@50": curve(0.35),
        **channels([1.0, 0.7], [0.1, 0.2]),
    },
    finished=True,
    resumable=True,
    trial=Trial(400, torch.linspace(0.5, 1.5, 200)),
)


def with_(curves: Mapping[str, Any] | None = None, setting: Mapping[str, Any] | None = None, **changes: Any) -> Run:
    values = {"config": setting or HEALTHY.config, "curves": {**HEALTHY.curves, **(curves or {})}}
    return Run(**{"finished": True, "resumable": True, **values, **changes})


def found(run: Run) -> list[str]:
    return [verdict.subject for verdict in diagnose(run) if verdict.state == "wrong"]


def test_a_healthy_run_has_no_finding_and_says_what_was_looked_at() -> None:
    verdicts = diagnose(HEALTHY)
    assert {verdict.state for verdict in verdicts} == {"fine"}
    assert len(verdicts) == 10
    assert any("2 of 2 channels are active @50" in verdict.seen for verdict in verdicts)


def test_nothing_is_concluded_from_nothing() -> None:
    """A run that has just begun: no finding but that it stands still, and no crash in any check."""
    for bottleneck in ("Gaussian", "VectorQuantizer", "FiniteScalar", "BinarySpherical"):
        begun = Run(config(bottleneck, GAME, codes=8), running=True)
        assert found(begun) == []
    assert found(Run(STAGE_TWO, running=True)) == []
    assert found(Run(config(), resumable=False)) == ["not finished"]


def test_every_finding_names_figures_and_a_change() -> None:
    broken = with_(
        {
            "train/reconstruction": curve(*[1.0] * 50, *[9.0] * 50),
            "train/skipped": curve(*range(100)),
            "train/discriminator/accuracy": curve(*[1.0] * STEPS),
            "val/reconstruction": curve(0.3, 0.9, 0.9, 0.9, every=25),
            **channels([40.0, 1.0], [0.1, 1.0]),
        },
        config(adversary=GAME),
        finished=False,
    )
    wrong = [verdict for verdict in diagnose(broken) if verdict.state == "wrong"]
    assert len(wrong) >= 6
    for verdict in wrong:
        assert any(character.isdigit() for character in verdict.seen)
        assert verdict.why
        assert verdict.change
        assert "\n" not in verdict.seen + verdict.why + "".join(verdict.change)


# --- latents ---------------------------------------------------------------------------------------------------------


def test_collapsed_channels_are_named_and_the_kl_is_blamed() -> None:
    verdict = collapsed_channels(with_(channels([1.0, 1.0, 0.9], [0.2, 0.999, 0.3])))
    assert verdict is not None
    assert (verdict.subject, verdict.state) == ("collapsed channels", "wrong")
    assert "2 of 3 channels are active @50 (step 1)" in verdict.seen
    assert "channel 1 " in verdict.seen
    assert verdict.change[0].startswith("first_stage.loss.kl_weight=1e-04: now 0.01")


def test_a_channel_near_the_threshold_is_judged_on_the_right_side() -> None:
    for told, state in ((0.02, "fine"), (0.005, "wrong")):
        verdict = collapsed_channels(with_(channels([1.0, 1.0], [0.2, math.sqrt(1 - told)])))
        assert verdict is not None
        assert verdict.state == state


def test_constant_codes_have_collapsed_but_no_kl_is_to_blame() -> None:
    run = Run(config("FiniteScalar", levels=[8, 5]), channels([0.7, 0.0], mean=[0.0, 0.25]))
    verdict = collapsed_channels(run)
    assert verdict is not None
    assert verdict.state == "wrong"
    assert not any("kl_weight" in change for change in verdict.change)


def test_older_artifacts_are_judged_by_what_they_hold() -> None:
    statistics = {"mean": [0.0, 0.0], "std": [1.0, 0.8], "n": 100}
    verdict = collapsed_channels(Run(config(), statistics=statistics))
    assert verdict is not None
    assert verdict.state == "unknown"
    verdict = collapsed_channels(Run(config(), statistics={**statistics, "std": [1.0, 0.0]}))
    assert verdict is not None
    assert "@100 (export)" in verdict.seen
    assert verdict.state == "wrong"


def test_a_scale_beyond_all_published_ones_explodes() -> None:
    for std, state in ((8.0, "fine"), (60.0, "wrong")):
        verdict = exploding_scale(with_(channels([std, 1.0], [0.1, 0.1])))
        assert verdict is not None
        assert verdict.state == state
    assert verdict.subject == "exploding scale"
    assert verdict.change[0].startswith("first_stage.loss.kl_weight=1e-01: now 0.01")


def test_a_posterior_without_noise_is_held_by_nothing() -> None:
    assert found(with_(channels([5.0, 4.0], [1e-5, 1e-6]))) == ["nothing holds the scale"]
    assert found(with_(channels([5.0, 4.0], [1e-5, 0.1]))) == []
    free = config()
    free["first_stage"]["loss"]["kl_weight"] = 0
    assert found(with_({"val/kl": curve(2.0, 3.0)}, free)) == ["nothing holds the scale"]
    assert found(with_({"val/kl": curve(3.0, 2.0)}, free)) == []


def test_fine_detail_is_judged_between_pictures_and_white_noise() -> None:
    """On 8x8 places, white noise has 51 of 63 components in the finest octave."""
    for share, state in ((0.7, "fine"), (0.75, "wrong")):
        verdict = fine_detail(with_({"val/latent/spectrum/2@50": curve(share)}))
        assert verdict is not None
        assert verdict.state == state
        assert "white noise 81%" in verdict.seen
    assert verdict.change[0] == "regularizer=equivariance"
    early = {"val/latent/spectrum/2@50": curve(0.9), "val/latent/picture_spectrum/2@50": curve(0.3)}
    verdict = fine_detail(Run(config(), early))
    assert verdict is not None
    assert verdict.state == "unknown"
    assert fine_detail(with_({"val/latent/spectrum/2@50": curve(0.9)}, config("VectorQuantizer", codes=8))) is None


def test_latents_of_a_second_stage_should_be_standardized() -> None:
    for mean, std, state in ((0.05, 1.1, "fine"), (0.5, 1.0, "wrong"), (0.0, 0.5, "wrong"), (0.0, 2.0, "wrong")):
        verdict = not_standardized(Run(STAGE_TWO, channels([1.0, std], mean=[0.0, mean])))
        assert verdict is not None
        assert verdict.state == state
    pixels = {**STAGE_TWO, "first_stage": {"autoencoder": {}}}
    assert not_standardized(Run(pixels, channels([3.0]))) is None
    bits = {"std": [math.sqrt(1 - 0.7**2), math.sqrt(1 - 0.5**2)], "mean": [0.7, -0.5]}
    assert not_standardized(Run(STAGE_TWO, channels(**bits))) is None


# --- codes -----------------------------------------------------------------------------------------------------------


def used(share: float, perplexity: float, places: int = 64) -> dict[str, Any]:
    return {
        "val/code_usage@50": curve(share),
        "val/code_perplexity@50": curve(perplexity),
        "val/latent/places@50": curve(places),
    }


def test_dead_codes_are_found_and_revived() -> None:
    run = Run(config("VectorQuantizer", codes=512, dead=0.0, restart_every=100), used(0.05, 20))
    verdict = dead_codes(run)
    assert verdict is not None
    assert (verdict.subject, verdict.state) == ("dead codes", "wrong")
    assert "5.0% of 512 codes" in verdict.seen
    assert verdict.change[0].startswith("first_stage.autoencoder.bottleneck.dead=0.03")
    assert verdict.change[1].startswith("first_stage.autoencoder.bottleneck.codes=64")
    run = Run(config("VectorQuantizer", codes=512, dead=0.03, restart_every=100), used(0.05, 20))
    verdict = dead_codes(run)
    assert verdict is not None
    assert verdict.change[0].startswith("first_stage.autoencoder.bottleneck.restart_every=25")


def test_a_book_is_not_blamed_for_few_pictures() -> None:
    book = config("VectorQuantizer", codes=512, dead=0.03)
    for run, state in ((used(0.9, 300), "fine"), (used(0.3, 100, places=1), "unknown")):
        verdict = dead_codes(Run(book, run))
        assert verdict is not None
        assert verdict.state == state
    assert dead_codes(Run(config("BinarySpherical", latent_channels=16), used(0.01, 9))) is None
    verdict = dead_codes(Run(config("FiniteScalar", levels=[8, 8, 8]), used(0.1, 9)))
    assert verdict is not None
    assert "512 codes" in verdict.seen
    assert "levels" in verdict.change[0]


# --- the game --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.99, ["discriminator winning"]), (0.8, []), (0.5, ["discriminator losing"])],
)
def test_the_game_is_judged_by_accuracy_since_it_is_heard(accuracy: float, expected: list[str]) -> None:
    before = 1.0 if accuracy < 0.9 else 0.5  # while unheard, which must not count
    said = curve(*[before] * 40, *[accuracy] * 60)
    run = with_({"train/discriminator/accuracy": said, "train/adversarial": falling(-1, 2)}, config(adversary=GAME))
    assert found(run) == expected
    if expected == ["discriminator winning"]:
        verdict = game.discriminator_winning(run)
        assert verdict is not None
        assert "train/adversarial went from" in verdict.seen
        assert verdict.change[0].startswith("first_stage.adversary.optimizer.lr=2.5e-04")
        assert verdict.change[1].startswith("first_stage.adversary.matching=10")


def test_a_winner_whose_features_are_matched_still_teaches() -> None:
    said = {"train/discriminator/accuracy": curve(*[0.99] * 100)}
    verdict = game.discriminator_winning(Run(config(adversary={**GAME, "matching": 10.0}), said))
    assert verdict is not None
    assert verdict.state == "fine"
    assert "its features are matched" in verdict.seen


def test_a_game_that_has_just_begun_is_not_judged() -> None:
    said = curve(*[0.999] * 43)
    verdict = game.discriminator_winning(Run(config(adversary=GAME), {"train/discriminator/accuracy": said}))
    assert verdict is not None
    assert verdict.state == "unknown"


def test_a_weight_at_its_cap_is_found() -> None:
    for weight, state in ((50.0, "wrong"), (3.0, "fine")):
        points = curve(*[weight] * 60, start=40)
        verdict = game.weight_at_cap(Run(config(adversary=GAME), {"train/weight/adversarial": points}))
        assert verdict is not None
        assert verdict.state == state


def test_reconstructions_may_get_a_little_worse_for_sharpness() -> None:
    for last, expected in ((0.35, []), (0.45, ["reconstructions worse since the adversary is heard"])):
        said = {"train/discriminator/accuracy": curve(*[0.8] * STEPS), "train/weight/adversarial": curve(*[1.0] * 99)}
        errors = {
            "train/reconstruction": falling(1.0, 0.2, 40) + curve(*[last] * 60, start=40),
            "val/reconstruction": curve(0.5, 0.3, 0.3, last, every=20),
        }
        run = with_({**said, **errors}, config(adversary=GAME))
        assert found(run) == expected


def test_a_run_that_ends_before_the_game_says_so() -> None:
    verdict = game.adversary_silent(Run(config(adversary={**GAME, "start": 90, "join": 100})))
    assert verdict is not None
    assert verdict.state == "wrong"
    assert "first_stage.adversary.start=25 first_stage.adversary.join=33" in verdict.change[0]
    assert game.adversary_silent(Run(config())) is None


# --- course ----------------------------------------------------------------------------------------------------------


def test_skipped_steps_and_spoilt_values() -> None:
    for skipped, state in ((1, "fine"), (5, "wrong")):
        assert not_finite(with_({"train/skipped": curve(*[0.0] * 99, skipped)})).state == state
    verdict = not_finite(with_({"train/kl": curve(1.0, math.nan)}))
    assert verdict.state == "wrong"
    assert "train/kl" in verdict.seen


def test_a_loss_that_rises_diverges_and_one_that_is_heard_does_not() -> None:
    rising = falling() + curve(*[0.8] * 60, start=STEPS)
    verdict = diverging(with_({"train/reconstruction": rising}))
    assert verdict is not None
    assert verdict.state == "wrong"
    assert verdict.change[0].startswith("optim.lr=3e-04: now 1e-03")
    assert diverging(with_({"train/reconstruction": rising, "train/weight/adversarial": curve(1.0)})) is None


def test_a_flat_loss_is_found_a_slow_one_is_not() -> None:
    assert not_falling(with_({"train/reconstruction": curve(*[0.5, 0.51, 0.49, 0.5] * 25)})).state == "wrong"
    assert not_falling(with_({"train/reconstruction": falling(1.0, 0.9)})).state == "fine"
    assert not_falling(with_({"train/reconstruction": falling(points=5)})).state == "unknown"


def test_a_rate_that_only_rises_is_found() -> None:
    for warmup, state in ((STEPS // 2, "fine"), (STEPS // 2 + 1, "wrong"), (1000, "wrong")):
        verdict = warming_up(with_(setting={**config(), "learning_rate": {"warmup": warmup}}))
        assert verdict is not None
        assert verdict.state == state
    assert "1000 of 100 steps" in verdict.seen
    assert warming_up(HEALTHY) is None


def test_what_was_trained_before_need_not_fall() -> None:
    flat = {"train/reconstruction": curve(*[0.5, 0.51, 0.49, 0.5] * 25)}
    further = {**config(), "first_stage": {**config()["first_stage"], "run": "runs/before"}}
    assert not_falling(Run(further, flat)).state == "unknown"


def test_an_import_is_not_asked_to_be_trained() -> None:
    run = Run({**config("Identity"), "source": "owner/name"}, statistics={"mean": [0.0], "std": [2.0], "n": 9})
    assert found(run) == []
    assert not_finished(run).state == "fine"
    assert collapsed_channels(run).state == "fine"  # points have no sigma to be missed


def test_blank_reconstructions_are_found() -> None:
    fast = {**config(), "optim": {"lr": 1.0}}
    for psnr, state in ((24.0, "fine"), (11.0, "wrong")):
        verdict = blank_pictures(with_({"val/psnr@50": curve(psnr, every=100)}, fast))
        assert verdict is not None
        assert verdict.state == state
    assert "optim.lr=1e-03: now 1e+00" in verdict.change
    assert blank_pictures(with_({"val/psnr@50": curve(11.0, every=50)})) is None


@pytest.mark.parametrize("stage", [config(), STAGE_TWO])
def test_overfitting_needs_a_training_that_still_gets_better(stage: dict[str, Any]) -> None:
    name = "reconstruction" if stage["stage"] == "first_stage" else "loss"
    rising = {f"val/{name}": curve(0.5, 0.3, 0.35, 0.4, every=25)}
    verdict = overfitting(Run(stage, {f"train/{name}": falling(), **rising}))
    assert verdict.state == "wrong"
    assert "its best was 0.3 at step 50" in verdict.seen
    assert "trainer.max_steps=50: stop earlier" in verdict.change
    assert overfitting(Run(stage, {f"train/{name}": falling(0.1, 1.0), **rising})).state == "fine"
    assert overfitting(Run(stage, {f"train/{name}": falling(), f"val/{name}": curve(0.5, 0.3, 0.31)})).state == "fine"


def test_a_validation_that_never_comes_is_told_from_one_that_is_to_come() -> None:
    never = config()
    never["trainer"] = {"max_steps": STEPS, "val_check_interval": 2000}
    training = {"train/reconstruction": falling(points=20)}
    assert not_validated(Run(never, training)).state == "wrong"
    assert not_validated(Run(config(), training)).state == "unknown"
    assert not_validated(HEALTHY).state == "fine"


def test_a_run_that_stands_still_is_told_from_one_in_training() -> None:
    assert not_finished(HEALTHY).state == "fine"
    assert not_finished(with_(finished=False, running=True)).state == "fine"
    stopped = not_finished(with_(finished=False))
    assert stopped.state == "wrong"
    assert "step 100 of 100" in stopped.seen
    assert "the same command" in stopped.change[0]


def test_the_last_figure_is_the_one_logged_last_over_whatever_number() -> None:
    run = Run(config(), {"val/psnr@10": curve(1.0, 2.0), "val/psnr@5": curve(0, 0, 3.0)})
    figure = run.last("val/psnr")
    assert figure is not None
    assert (figure.value, figure.n, figure.step, str(figure)) == (3.0, 5, 3, "3 @5 (step 3)")


def test_all_checks_are_listed() -> None:
    from ldm_lightning import diagnosis

    modules = (diagnosis.adversary, diagnosis.codes, diagnosis.course, diagnosis.latents, diagnosis.samples)
    assert {check.__name__ for check in CHECKS} == {name for module in modules for name in module.__all__}
