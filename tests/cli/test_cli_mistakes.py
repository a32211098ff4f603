"""Every mistake a user makes ends in one line with cause and mend, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import TINY_BITS, TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION, Result


@dataclass(frozen=True)
class World:
    """Where a mistake is made: real pictures, trained runs (copies to damage, but for bits) and an empty folder."""

    pictures: Path
    first: Path
    second: Path
    bits: Path
    empty: Path

    def folder(self, name: str) -> Path:
        made = self.empty / name
        made.mkdir()
        return made

    def first_stage(self, *overrides: str, root: Path | None = None) -> list[str]:
        data = ["data=image_folder", f"data.root={root or self.pictures}"]
        return ["train", *data, *TINY_FIRST_STAGE, f"runs={self.empty}/runs", "name=new", *overrides]

    def latent_diffusion(self, *overrides: str, root: Path | None = None) -> list[str]:
        data = ["data=image_folder", f"data.root={root or self.pictures}", f"first_stage.run={self.first}"]
        return ["train", *data, *TINY_LATENT_DIFFUSION, f"runs={self.empty}/runs", "name=new", *overrides]

    def bernoulli(self, *overrides: str) -> list[str]:
        return self.latent_diffusion(f"first_stage.run={self.bits / 'first'}", *TINY_BITS, *overrides)


@pytest.fixture
def world(
    pictures: Path,
    first_stage_run: Path,
    latent_diffusion_run: Path,
    bernoulli_latent_diffusion_run: Path,
    tmp_path: Path,
) -> World:
    first, second, empty = tmp_path / "first", tmp_path / "second", tmp_path / "empty"
    shutil.copytree(first_stage_run, first)
    shutil.copytree(latent_diffusion_run, second)
    empty.mkdir()
    return World(pictures, first, second, bernoulli_latent_diffusion_run.parent, empty)


def _no_pictures(world: World) -> list[str]:
    (world.folder("nothing") / "notes.txt").write_text("no picture")
    return world.first_stage(root=world.empty / "nothing")


def _a_file(world: World) -> list[str]:
    return world.first_stage(root=world.pictures / "zero" / "000.png")


def _mostly_corrupt(world: World) -> list[str]:
    root = world.folder("corrupt")
    for number, file in enumerate(sorted((world.pictures / "zero").glob("*.png"))[:20]):
        content = file.read_bytes()
        (root / file.name).write_bytes(content if number % 2 else content[: len(content) // 2])
    return world.first_stage(root=root)


def _half_written_first_stage(world: World) -> list[str]:
    next((world.first / "export").glob("weights-*")).unlink()
    return world.latent_diffusion()


def _damaged_first_stage(world: World) -> list[str]:
    weights = next((world.first / "export").glob("weights-*"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return world.latent_diffusion()


def _torn_manifest(world: World) -> list[str]:
    manifest = world.first / "export" / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    return world.latent_diffusion()


def _other_network(world: World) -> list[str]:
    manifest = world.first / "export" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["config"]["first_stage"]["autoencoder"]["encoder"]["channels"] = [16, 16, 16]
    content["config"]["first_stage"]["autoencoder"]["decoder"]["channels"] = [16, 16, 16]
    manifest.write_text(json.dumps(content))
    return world.latent_diffusion()


def _unfinished(world: World) -> list[str]:
    shutil.rmtree(world.second / "export")
    return ["sample", f"run={world.second}"]


def _unlabelled(world: World) -> list[str]:
    root = world.folder("flat")
    for file in (world.pictures / "zero").glob("*.png"):
        shutil.copy(file, root)
    return world.latent_diffusion(root=root)


def _own_run(world: World) -> list[str]:
    return [
        *["train", "data=image_folder", f"data.root={world.pictures}", *TINY_FIRST_STAGE],
        *[f"runs={world.first.parent}", "name=first", "optim.lr=0.5"],
    ]


def _changed_data(world: World) -> list[str]:
    root = world.folder("changed")
    shutil.copytree(world.pictures, root, dirs_exist_ok=True)
    manifest = world.second / "export" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["config"]["data"]["source"]["root"] = content["config"]["data"]["root"] = str(root)
    manifest.write_text(json.dumps(content))
    Image.new("RGB", (16, 16), "red").save(root / "zero" / "another.png")
    return ["evaluate", f"run={world.second}"]


def _no_dropout(world: World) -> list[str]:
    _edit_config(world.second, "objective", condition_dropout=0.0)
    return ["sample", f"run={world.second}", "scale=2"]


def _edit_config(run: Path, node: str, **changes: object) -> None:
    manifest = run / "export" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["config"][node] |= changes
    manifest.write_text(json.dumps(content))


def _guided_by(world: World, node: str, **changes: object) -> list[str]:
    shutil.copytree(world.second, world.empty / "other")
    _edit_config(world.empty / "other", node, **changes)
    return ["sample", f"run={world.second}", "guidance=autoguidance", f"guidance.run={world.empty}/other"]


MISTAKES: dict[str, tuple[Callable[[World], list[str]], list[str]]] = {
    "no such verb": (lambda w: ["trian"], ["trian", "did you mean 'train'"]),
    "no such group option": (lambda w: ["train", "data=mnsit5k"], ["data=mnsit5k", "did you mean 'mnist5k'"]),
    "no such key": (lambda w: w.first_stage("trainer.max_step=3"), ["trainer.max_step", "'trainer.max_steps'"]),
    "no such group": (lambda w: w.first_stage("samplr=heun"), ["samplr"]),
    "no such key in a group": (lambda w: w.first_stage("data.btch_size=3"), ["data.btch_size", "'data.batch_size'"]),
    "no such argument": (lambda w: w.first_stage("+data.transform.blur=3"), ["data.transform.blur", "ImageTransform"]),
    "no number": (lambda w: w.first_stage("data.batch_size=many"), ["data.batch_size=many", "int"]),
    "no number, by a shortcut": (lambda w: w.first_stage("data.size="), ["data.transform.size=", "int"]),
    "no truth value": (lambda w: w.first_stage("data.transform.flip=3"), ["data.transform.flip=3", "bool"]),
    "no syntax": (lambda w: w.first_stage("optim.lr"), ["optim.lr", "key=value"]),
    "no root": (lambda w: ["train", "data=image_folder"], ["data.root"]),
    "no run": (lambda w: ["sample"], ["run="]),
    "root missing": (lambda w: w.first_stage(root=w.empty / "nowhere"), ["nowhere", "does not exist"]),
    "root empty": (_no_pictures, ["nothing", "no picture"]),
    "root is a file": (_a_file, ["000.png", "folder"]),
    "corrupt pictures": (_mostly_corrupt, ["10 of 20", "000.png", "max_bad_fraction"]),
    "pictures too small": (lambda w: w.first_stage("data.size=64"), ["16", "data.transform.upscale=true"]),
    "fewer pictures than a batch": (lambda w: w.first_stage("data.batch_size=640"), ["640", "set data.batch_size<="]),
    "size does not divide": (lambda w: w.first_stage("data.size=15"), ["15", "factor 4"]),
    "two or four channels": (lambda w: w.first_stage("data.transform.channels=2"), ["channels"]),
    "fractions above one": (lambda w: w.first_stage("data.validation=0.8", "data.test=0.4"), ["validation", "test"]),
    "first stage missing": (lambda w: w.latent_diffusion(f"first_stage.run={w.empty}/no"), ["no does not exist"]),
    "first stage not given": (
        lambda w: [a for a in w.latent_diffusion() if not a.startswith("first_stage.run")],
        ["first_stage.run"],
    ),
    "first stage unfinished": (lambda w: w.latent_diffusion(f"first_stage.run={w.empty}"), ["no finished model"]),
    "first stage half written": (_half_written_first_stage, ["half written"]),
    "first stage damaged": (_damaged_first_stage, ["damaged", "checksum"]),
    "first stage manifest torn": (_torn_manifest, ["damaged"]),
    "first stage of another network": (_other_network, ["do not fit"]),
    "first stage of other channels": (lambda w: w.latent_diffusion("data.transform.channels=1"), ["3 channels", "=3"]),
    "first stage is a second stage": (lambda w: w.latent_diffusion(f"first_stage.run={w.second}"), ["first_stage"]),
    "no classes": (_unlabelled, ["no classes", "condition=none"]),
    "no captions": (lambda w: w.latent_diffusion("condition=caption"), ["no captions", "data.captions"]),
    "patch does not divide": (lambda w: w.latent_diffusion("denoiser.patch=3"), ["3x3", "patch=1"]),
    "eps on pure noise": (lambda w: w.latent_diffusion("prediction=epsilon"), ["epsilon", "prediction=velocity"]),
    "not a probability": (lambda w: w.latent_diffusion("objective.condition_dropout=2"), ["condition_dropout=2"]),
    "run of another configuration": (_own_run, ["another configuration", "optim.lr: 0.0001 -> 0.5", "name="]),
    "sample of an unfinished run": (_unfinished, ["no finished model", "repeat"]),
    "sample of a first stage": (lambda w: ["sample", f"run={w.first}"], ["first_stage", "latent_diffusion"]),
    "sample of no steps": (lambda w: ["sample", f"run={w.second}", "steps=0"], ["steps=0"]),
    "sample of nothing": (lambda w: ["sample", f"run={w.second}", "n=0"], ["n=0"]),
    "sample of no class": (lambda w: ["sample", f"run={w.second}", "classes=[oen]"], ["'oen'", "did you mean 'one'"]),
    "sample with no sampler": (lambda w: ["sample", f"run={w.second}", "sampler=hoin"], ["hoin", "heun"]),
    "guidance without dropout": (
        lambda w: w.latent_diffusion("objective.condition_dropout=0", "guidance.scale=2"),
        ["guidance.scale=2", "train with objective.condition_dropout=0.1"],
    ),
    "guidance without dropout by sample": (_no_dropout, ["guidance.scale=2", "condition_dropout=0.1", "negative"]),
    "no negative class": (
        lambda w: ["sample", f"run={w.second}", "guidance=negative", "guidance.condition.class=oen"],
        ["'oen'", "did you mean 'one'"],
    ),
    "negative caption of a model of classes": (
        lambda w: ["sample", f"run={w.second}", "guidance=negative", "guidance.condition.caption=dark"],
        ["guidance.condition.caption", "reads class"],
    ),
    "guidance by no run": (lambda w: ["sample", f"run={w.second}", "guidance=autoguidance"], ["guidance.run"]),
    "guidance by a first stage": (
        lambda w: ["sample", f"run={w.second}", "guidance=autoguidance", f"guidance.run={w.first}"],
        ["first_stage model"],
    ),
    "guidance by another latent shape": (lambda w: _guided_by(w, "derived", height=32), ["another latent shape"]),
    "guidance by another first stage": (lambda w: _guided_by(w, "derived", first_stage="0"), ["another first stage"]),
    "guidance by another path": (lambda w: _guided_by(w, "path", schedule={}), ["another path"]),
    "guidance by other classes": (lambda w: _guided_by(w, "derived", class_names=["a", "b"]), ["other classes"]),
    "guidance interval reversed": (
        lambda w: ["sample", f"run={w.second}", "guidance=limited", "guidance.interval.low=0.9"],
        ["low=0.9"],
    ),
    "guidance of no number": (lambda w: ["sample", f"run={w.second}", "scale=much"], ["scale=much", "float"]),
    "a Gaussian sampler of bits": (
        lambda w: w.bernoulli("sampler=heun"),
        ["sampler: Heun", "GaussianPath", "sampler=bernoulli_ancestral"],
    ),
    "a Gaussian sampler of a run of bits": (
        lambda w: ["sample", f"run={w.bits}/second", "sampler=heun"],
        ["sampler: Heun", "sampler=bernoulli_ancestral"],
    ),
    "a sampler of bits on a Gaussian path": (
        lambda w: w.latent_diffusion("sampler=bernoulli_ancestral"),
        ["sampler: BernoulliAncestral", "BernoulliPath", "sampler=euler"],
    ),
    "a sampler of bits of a Gaussian run": (
        lambda w: ["evaluate", f"run={w.second}", "sampler=bernoulli_ancestral"],
        ["sampler: BernoulliAncestral", "sampler=euler"],
    ),
    "a Gaussian prediction of bits": (
        lambda w: w.bernoulli("prediction=velocity"),
        ["prediction: Velocity", "prediction=bits"],
    ),
    "eps of bits": (lambda w: w.bernoulli("prediction=epsilon"), ["prediction: Epsilon", "prediction=bits"]),
    "a prediction of bits on a Gaussian path": (
        lambda w: w.latent_diffusion("prediction=bits"),
        ["prediction: Bits", "prediction=flow"],
    ),
    "bits weighted by SNR": (lambda w: w.bernoulli("objective=min_snr"), ["signal-to-noise", "objective=uniform"]),
    "bits at times by log-SNR": (
        lambda w: w.bernoulli(
            "objective=uniform", "objective.time_law._target_=ldm_lightning.diffusion.objective.LogNormal"
        ),
        ["signal-to-noise", "objective=uniform"],
    ),
    "bits guided by log-SNR": (
        lambda w: w.bernoulli("guidance=limited", "guidance.interval.of=log_snr"),
        ["guidance.interval.of=log_snr", "time"],
    ),
    "bits in a direction": (lambda w: w.bernoulli("objective=uniform", "+objective/term=direction"), ["term", "bits"]),
    "bits with estimates": (
        lambda w: w.bernoulli("objective=uniform", "objective.self_conditioning=0.5"),
        ["objective.self_conditioning", "bits"],
    ),
    "a learned variance that nobody trains": (
        lambda w: w.latent_diffusion("path=cosine", "prediction=learned_variance"),
        ["prediction=learned_variance", "objective=hybrid"],
    ),
    "a variance trained that nobody predicts": (
        lambda w: w.latent_diffusion("path=cosine", "prediction=velocity", "objective=hybrid"),
        ["prediction=learned_variance", "objective=hybrid"],
    ),
    "a sampler of learned variance without one": (
        lambda w: w.latent_diffusion("sampler=ddpm_learned"),
        ["sampler=ddpm", "prediction=learned_variance"],
    ),
    "sample by a variance that was not learned": (
        lambda w: ["sample", f"run={w.second}", "sampler=ddpm_learned"],
        ["sampler=ddpm", "prediction=learned_variance"],
    ),
    "logits rescaled": (lambda w: w.bernoulli("guidance=rescaled"), ["guidance.rescale=0.7", "logits"]),
    "sample of a run of bits, rescaled": (
        lambda w: ["sample", f"run={w.bits}/second", "guidance=rescaled"],
        ["guidance.rescale=0.7", "logits"],
    ),
    "bits of a continuous first stage": (
        lambda w: w.bernoulli(f"first_stage.run={w.first}"),
        ["continuous latents", "first_stage=bernoulli_f4"],
    ),
    "exact likelihood of bits": (
        lambda w: ["evaluate", f"run={w.bits}/second", "likelihood=ode"],
        ["likelihood: ProbabilityFlow", "likelihood=bound"],
    ),
    "evaluate other data": (_changed_data, ["fingerprint"]),
    "likelihood of a first stage": (lambda w: ["evaluate", f"run={w.first}", "likelihood=ode"], ["second stage"]),
    "likelihood of no probe": (
        lambda w: ["evaluate", f"run={w.second}", "likelihood=ode", "likelihood.probes=0"],
        ["likelihood.probes=0", "null"],
    ),
    "evaluate no split": (lambda w: ["evaluate", f"run={w.second}", "reference=test"], ["reference=test"]),
    "sample of half a picture": (lambda w: ["sample", f"run={w.second}", "n=1.5"], ["n=1.5", "int"]),
    "sample of a word": (lambda w: ["sample", f"run={w.second}", "scale=abc"], ["scale=abc", "float"]),
    "sample with no columns": (lambda w: ["sample", f"run={w.second}", "columns=0"], ["columns=0"]),
    "evaluate all for the judge": (lambda w: ["evaluate", f"run={w.second}", "judge_share=1"], ["judge_share=1"]),
    "reconstruct nothing": (lambda w: ["reconstruct", f"run={w.first}", "pictures=no"], ["pictures=no"]),
    "another split than the first stage": (
        lambda w: w.latent_diffusion("data.validation=0.3"),
        ["data.validation=0.2"],
    ),
    "an empty root": (lambda w: w.first_stage("data.root="), ["data.root is empty"]),
    "empty runs": (lambda w: w.first_stage("runs="), ["runs="]),
    "a run elsewhere": (lambda w: w.first_stage("name=../up"), ["name=../up"]),
    "no seed": (lambda w: w.first_stage("seed=-1"), ["seed=-1"]),
    "no GPU": (lambda w: w.first_stage("trainer.accelerator=gpu"), ["trainer", "gpu"]),
    "no precision": (lambda w: w.first_stage("trainer.precision=bf17"), ["trainer", "bf17"]),
    "true half precision": (lambda w: w.first_stage("trainer.precision=bf16-true"), ["bf16-true", "bf16-mixed"]),
    "no accumulation": (lambda w: w.first_stage("trainer.accumulate_grad_batches=0"), ["accumulate_grad_batches"]),
    "validation amid accumulation": (
        lambda w: w.first_stage("trainer.accumulate_grad_batches=2", "trainer.max_steps=60"),
        ["multiple", "accumulate_grad_batches=2"],
    ),
    "no learning rate": (lambda w: w.first_stage("optim.lr=abc"), ["optim"]),
    "a negative learning rate": (lambda w: w.first_stage("optim.lr=-1"), ["optim", "-1"]),
    "no such mode": (lambda w: w.first_stage("callbacks.checkpoints.mode=lowest"), ["mode=lowest"]),
    "never saved": (lambda w: w.first_stage("callbacks.checkpoints.every_n_steps=0"), ["every_n_steps=0"]),
    "monitor what is not logged": (lambda w: w.first_stage("callbacks.checkpoints.monitor=val/los"), ["'val/loss'"]),
    "no columns": (lambda w: w.first_stage("callbacks.gallery.columns=0"), ["columns=0"]),
    "average forever": (lambda w: w.latent_diffusion("callbacks.ema.decay=2"), ["decay=2"]),
    "average nothing": (lambda w: w.latent_diffusion("callbacks.ema.module=denoisr"), ["denoisr", "denoiser"]),
    "no heads": (lambda w: w.latent_diffusion("denoiser.heads=0"), ["heads"]),
    "no levels": (lambda w: w.first_stage("first_stage.autoencoder.encoder.channels=[]"), ["channels"]),
    "identity is not trained": (
        lambda w: [a for a in w.first_stage("first_stage=identity") if not a.startswith("first_stage.")],
        ["nothing to train", "stage=latent_diffusion first_stage=identity"],
    ),
    "trained is not trained again": (
        lambda w: [a for a in w.first_stage("first_stage=trained") if not a.startswith("first_stage.")],
        ["first_stage=trained", "first_stage=kl_f4"],
    ),
    "a second stage on an untrained first": (
        lambda w: [a for a in w.latent_diffusion("first_stage=vq_f4_tiny") if not a.startswith("first_stage.")],
        ["must be trained before", "first_stage.run"],
    ),
    "a book of one code": (
        lambda w: w.first_stage("first_stage=vq_f4_tiny", "first_stage.autoencoder.bottleneck.codes=1"),
        ["codes=1"],
    ),
    "a level of one value": (
        lambda w: w.first_stage("first_stage=fsq_f4_tiny", "first_stage.autoencoder.bottleneck.levels=[8,1]"),
        ["levels=[8, 1]"],
    ),
    "deep widths that cannot be averaged": (
        lambda w: w.first_stage(
            "first_stage=dc_f32_tiny",
            "first_stage.autoencoder.encoder.channels=[8,12]",
            "first_stage.autoencoder.encoder.blocks=[1,1]",
        ),
        ["averages channels", "8 to 12"],
    ),
    "inception without weights": (lambda w: ["evaluate", f"run={w.first}", "extractor=inception"], ["fid"]),
    "several devices in a sweep": (
        lambda w: w.first_stage("trainer.devices=2", "optim.lr=0.1,0.2", "--multirun"),
        ["launcher"],
    ),
}


def _files(world: World) -> dict[Path, bytes]:
    kept = (world.first, world.second, world.bits, world.pictures)
    return {path: path.read_bytes() for root in kept for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake: str, world: World, ldm: Callable[..., Result]) -> None:
    command, fragments = MISTAKES[mistake]
    args = command(world)
    before = _files(world)
    result = ldm(*args)
    lines = [line for line in result.err.splitlines() if line.startswith("ldm")]
    assert result.code == 2, result.err
    assert len(lines) == 1
    assert "Traceback" not in result.err
    for fragment in fragments:
        assert fragment in lines[0]
    assert _files(world) == before
    assert not list(world.empty.glob("runs/new/export"))
