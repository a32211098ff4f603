"""Every mistake a user makes ends in one line with cause and mend, exit code 2, and nothing lost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import safetensors.torch
from PIL import Image

from ldm_lightning.artifact import read_artifact, write_artifact
from tests.conftest import TINY_BITS, TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION, Result, refused


@dataclass(frozen=True)
class World:
    """Where a mistake is made: real pictures, trained runs (copies, but for those of bits) and a free folder."""

    pictures: Path
    first: Path
    second: Path
    bits: Path
    latents: Path
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

    def diffusers_stage(self, *overrides: str) -> list[str]:
        ours = [text for text in self.first_stage() if not text.startswith("first_stage")]
        return [*ours, "first_stage=diffusers_kl_tiny", *overrides]

    def pixels(self, *overrides: str) -> list[str]:
        no_run = [text for text in self.latent_diffusion() if not text.startswith("first_stage.run")]
        return [*no_run, "first_stage=identity", *overrides]

    def bernoulli(self, *overrides: str) -> list[str]:
        return self.latent_diffusion(f"first_stage.run={self.bits / 'first'}", *TINY_BITS, *overrides)

    def cached(self, *overrides: str) -> list[str]:
        tiny = [text for text in TINY_LATENT_DIFFUSION if not text.startswith(("data.size", "data.validation"))]
        data = ["data=latents", f"data.root={self.latents}"]
        return ["train", *data, *tiny, f"runs={self.empty}/runs", "name=new", *overrides]

    def import_(self, *overrides: str, **config: object) -> list[str]:
        model = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, mid_block_add_attention=False)
        model.save_pretrained(self.empty / "model" / "vae")
        file = self.empty / "model" / "vae" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        data = ["data=image_folder", f"data.root={self.pictures}", "data.size=16", "data.num_workers=0"]
        data += ["data.validation=0.2", "trainer.accelerator=cpu"]
        return ["import", f"source={self.empty}/model/vae", *data, f"runs={self.empty}/runs", "name=new", *overrides]

    def encode(self, *overrides: str) -> list[str]:
        return ["encode", f"run={self.first}", f"output={self.empty}/cache", "batch_size=16", *overrides]


@pytest.fixture
def world(
    pictures: Path,
    first_stage_run: Path,
    latent_diffusion_run: Path,
    bernoulli_latent_diffusion_run: Path,
    latents: Path,
    tmp_path: Path,
) -> World:
    first, second, cache, empty = (tmp_path / name for name in ("first", "second", "cache", "empty"))
    shutil.copytree(first_stage_run, first)
    shutil.copytree(latent_diffusion_run, second)
    shutil.copytree(latents, cache)
    empty.mkdir()
    return World(pictures, first, second, bernoulli_latent_diffusion_run.parent, cache, empty)


def _no_pictures(world: World) -> list[str]:
    (world.folder("nothing") / "notes.txt").write_text("no picture")
    return world.first_stage(root=world.empty / "nothing")


def _a_file(world: World) -> list[str]:
    return world.first_stage(root=world.pictures / "zero" / "000.png")


def _captions(world: World, *rows: str) -> list[str]:
    table = world.empty / "c.csv"
    table.write_text("\n".join(["file,caption", *rows]))
    return world.latent_diffusion("condition=caption", f"data.captions={table}")


def _compressed(world: World) -> list[str]:
    (world.empty / "pictures.tar.gz").touch()
    return world.first_stage(root=world.empty / "pictures.tar.gz")


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


def _broken_yaml(world: World) -> list[str]:
    (world.folder("data") / "broken.yaml").write_text("a: [1\n")
    return ["train", "data=broken", "--config-dir", str(world.empty)]


def _few(world: World, *overrides: str) -> list[str]:
    root = world.folder("few")
    for file in sorted((world.pictures / "zero").glob("*.png"))[:5]:
        shutil.copy(file, root)
    return world.first_stage("data.batch_size=64", "data.validation=0.05", *overrides, root=root)


def _on_a_file(world: World, place: str) -> str:
    (world.empty / "file").touch()
    return f"{place}={world.empty}/file/below"


def _later_format(world: World) -> list[str]:
    manifest = world.first / "export" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    return world.latent_diffusion()


def _retrained_first_stage(world: World) -> list[str]:
    manifest = world.first / "export" / "manifest.json"
    content = json.loads(manifest.read_text())
    weights = safetensors.torch.load_file(world.first / "export" / content["weights"])
    weights = {name: weight + 1 for name, weight in weights.items()}
    details = {key: value for key, value in content.items() if key in ("config", "statistics", "step", "metrics")}
    write_artifact(world.first / "export", "first_stage", weights, details)
    return [*world.latent_diffusion(), f"runs={world.second.parent}", "name=second"]


def _unconditional(world: World, *args: str) -> list[str]:
    manifest = world.second / "export" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["config"]["condition"] = {"_target_": "ldm_lightning.nn.conditioner.NoCondition"}
    manifest.write_text(json.dumps(content))
    return ["sample", f"run={world.second}", *args]


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


def _not_square(world: World) -> list[str]:
    root = world.folder("wide")
    for number in range(4):
        Image.new("RGB", (24, 16), (60 * number, 0, 0)).save(root / f"{number}.png")
    return world.encode("data=image_folder", f"data.root={root}", "data.size=16", "data.num_workers=0")


def _damaged_latents(world: World) -> list[str]:
    shard = next(world.latents.glob("latents-00001-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    return world.cached()


def _run_of_latents(world: World) -> list[str]:
    shutil.copytree(world.latents, world.first / "latents")
    return world.cached(f"data.root={world.first}")


def _two_levels(world: World) -> Path:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.VQModel(block_out_channels=(4, 4), norm_num_groups=1, **blocks).save_pretrained(world.empty / "two")
    return world.empty / "two"


def _without_codec(command: list[str]) -> list[str]:
    return [text for text in command if not text.startswith("first_stage")]


def _other_model_weights(world: World, content: bytes | None = None) -> list[str]:
    command = world.import_()
    weights = world.empty / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink() if content is None else weights.write_bytes(content)
    return command


def _other_weights(world: World) -> list[str]:
    artifact = read_artifact(world.first)
    changed = {name: weight + 1 for name, weight in artifact.weights.items()}
    write_artifact(world.first / "export", "first_stage", changed, {"config": artifact.manifest["config"]})
    return world.cached(f"first_stage.run={world.first}")


def _no_metrics(world: World) -> list[str]:
    (world.first / "metrics.csv").write_text("a,b\n1,2\n")
    return ["doctor", f"run={world.first}"]


def _damaged_metrics(world: World) -> list[str]:
    with (world.first / "metrics.csv").open("a") as file:
        file.write("1,2\n")
    return ["doctor", f"run={world.first}"]


def _binary_configuration(world: World) -> list[str]:
    (world.first / "config.yaml").write_bytes(b"\xff\xfe\x00")
    return ["doctor", f"run={world.first}"]


def _no_configuration(world: World) -> list[str]:
    (world.first / "config.yaml").write_text("- a\n")
    return ["doctor", f"run={world.first}"]


MISTAKES: dict[str, tuple[Callable[[World], list[str]], list[str]]] = {
    "no such verb": (lambda w: ["trian"], ["trian", "did you mean 'train'"]),
    "group by half its name": (
        lambda w: w.first_stage("loss=gan", "adversary=relativistic"),
        ["'adversary'", "write adversary@first_stage.adversary=..."],
    ),
    "group without a place": (lambda w: w.first_stage("adversary=relativistic"), ["'adversary'", "configuration.md"]),
    "run named by a number": (lambda w: ["evaluate", "run=5"], ["run=5", "write run=./5"]),
    "no such group option": (lambda w: ["train", "data=mnsit5k"], ["data=mnsit5k", "did you mean 'mnist5k'"]),
    "no such key": (lambda w: w.first_stage("trainer.max_step=3"), ["trainer.max_step", "'trainer.max_steps'"]),
    "no such group": (lambda w: w.first_stage("samplr=heun"), ["samplr"]),
    "no such key in a group": (lambda w: w.first_stage("data.btch_size=3"), ["data.btch_size", "'data.batch_size'"]),
    "no such argument": (lambda w: w.first_stage("+data.transform.blur=3"), ["data.transform.blur", "ImageTransform"]),
    "no number": (lambda w: w.first_stage("data.batch_size=many"), ["data.batch_size=many", "int"]),
    "no number, by a shortcut": (lambda w: w.first_stage("data.size="), ["data.transform.size=", "int"]),
    "no truth value": (lambda w: w.first_stage("data.transform.flip=3"), ["data.transform.flip=3", "bool"]),
    "no key": (lambda w: w.first_stage("=3"), ["'=3'", "key=value"]),
    "no such flag": (lambda w: w.first_stage("--confg-dir", "x"), ["--confg-dir", "--help"]),
    "no yaml": (_broken_yaml, ["broken.yaml", "line 1", "mend it there"]),
    "an equals sign": (lambda w: w.first_stage("name=a=b"), ["""write 'name="a=b"'"""]),
    "a parenthesis": (lambda w: w.first_stage("name=a(b)"), ["""write 'name="a(b)"'"""]),
    "an umlaut": (lambda w: w.first_stage("name=größe"), ["""write 'name="größe"'"""]),
    "a comma": (lambda w: w.first_stage("name=a,b"), ["""write 'name="a,b"'""", "--multirun"]),
    "an apostrophe": (lambda w: w.first_stage("name=a'b"), ["a'\"'\"'b"]),
    "a group of stage two": (lambda w: w.first_stage("denoiser=unet"), ["'denoiser'", "add stage=latent_diffusion"]),
    "a key of stage two": (lambda w: w.first_stage("sampler.steps=3"), ["add stage=latent_diffusion"]),
    "a first stage beside a trained one": (
        lambda w: w.latent_diffusion("first_stage=kl_f4"),
        ["first_stage.run", "does not go with first_stage=kl_f4"],
    ),
    "a first stage that is not trained": (
        lambda w: [text for text in w.latent_diffusion("first_stage=kl_f4") if "first_stage.run" not in text],
        ["must be trained before", "first_stage.run=FOLDER"],
    ),
    "a group of stage one": (lambda w: w.latent_diffusion("loss=gan"), ["add stage=first_stage"]),
    "no syntax": (lambda w: w.first_stage("optim.lr"), ["optim.lr", "key=value"]),
    "no root": (lambda w: ["train", "data=image_folder"], ["data.root"]),
    "no run": (lambda w: ["sample"], ["run="]),
    "root missing": (lambda w: w.first_stage(root=w.empty / "nowhere"), ["nowhere", "does not exist"]),
    "root empty": (_no_pictures, ["nothing", "no picture"]),
    "root is a file": (_a_file, ["000.png", "folder"]),
    "corrupt pictures": (_mostly_corrupt, ["10 of 20", "000.png", "max_bad_fraction"]),
    "pictures too small": (lambda w: w.first_stage("data.size=64"), ["16", "data.transform.upscale=true"]),
    "fewer pictures than a batch": (lambda w: w.first_stage("data.batch_size=640"), ["640", "data.batch_size=67"]),
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
    "captions nowhere": (
        lambda w: w.latent_diffusion("condition=caption", "data.captions=no.csv"),
        ["neither below data.root", "nor in the current folder", "no.csv"],
    ),
    "a caption with a comma": (lambda w: _captions(w, "zero/000.png,red, green"), ["c.csv:2", "in quotes"]),
    "captions of few pictures": (lambda w: _captions(w, "zero/000.png,red"), ["79 of 80", "max_uncaptioned"]),
    "pictures compressed as a whole": (_compressed, ["compressed as a whole", ".zip"]),
    "patch does not divide": (lambda w: w.latent_diffusion("denoiser.patch=3"), ["3x3", "patch=1"]),
    "eps on pure noise": (lambda w: w.latent_diffusion("prediction=epsilon"), ["epsilon", "prediction=velocity"]),
    "not a probability": (lambda w: w.latent_diffusion("objective.condition_dropout=2"), ["condition_dropout=2"]),
    "always self-conditioned": (
        lambda w: w.latent_diffusion("objective.self_conditioning=1"),
        ["objective.self_conditioning=1", "0.5"],
    ),
    "self-conditioned and adaptive": (
        lambda w: w.latent_diffusion("objective.self_conditioning=0.5", "sampler=adaptive"),
        ["sampler=adaptive", "heun"],
    ),
    "importance without bins": (
        lambda w: w.latent_diffusion("+objective/importance=second_moment", "objective.importance.bins=0"),
        ["bins=0", "at least 1"],
    ),
    "importance without a uniform share": (
        lambda w: w.latent_diffusion("+objective/importance=second_moment", "objective.importance.uniform_share=0"),
        ["uniform_share=0", "above 0"],
    ),
    "annealed by lists of other lengths": (
        lambda w: w.latent_diffusion("objective=flow_annealed", "objective.time_law.mean=[0.0]"),
        ["2, 1 and 2 entries"],
    ),
    "contrast without a minimum": (
        lambda w: w.latent_diffusion("+objective/term=contrastive", "objective.terms.contrastive.strength=1"),
        ["strength=1", "below 1"],
    ),
    "a term of no name": (
        lambda w: w.latent_diffusion("+objective/term=directoin"),
        ["directoin", "direction"],
    ),
    "doctor of nothing": (lambda w: ["doctor"], ["run="]),
    "doctor of no run": (lambda w: ["doctor", f"run={w.empty}/no"], ["no does not exist", "runs/NAME"]),
    "doctor of a folder without a run": (lambda w: ["doctor", f"run={w.empty}"], ["config.yaml is missing"]),
    "doctor of other metrics": (_no_metrics, ["metrics.csv is not a metrics file"]),
    "doctor of no configuration": (_no_configuration, ["config.yaml is not the configuration of a run"]),
    "doctor of damaged metrics": (_damaged_metrics, ["metrics.csv is damaged", "'1,2'"]),
    "doctor of a binary configuration": (_binary_configuration, ["config.yaml is not the configuration of a run"]),
    "doctor of null": (lambda w: ["doctor", "run=null"], ["run=null"]),
    "doctor writes into a file": (
        lambda w: ["doctor", f"run={w.first}", f"output={w.empty}/verdict.json"],
        ["verdict.json looks like a file", "/empty/verdict"],
    ),
    "doctor writes nowhere": (
        lambda w: ["doctor", f"run={w.first}", _on_a_file(w, "output")],
        ["nothing can be written", "output="],
    ),
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
    "perception of a second stage": (
        lambda w: ["evaluate", f"run={w.second}", "perceptual=shift_tolerant"],
        ["perceptual=", "first stage"],
    ),
    "no perceptual network": (
        lambda w: ["evaluate", f"run={w.first}", "perceptual=shift_tolerant", "perceptual.network=alx"],
        ["perceptual.network=alx", "alex"],
    ),
    "no emoji": (
        lambda w: ["train", "data=emoji", f"runs={w.empty}/runs"],
        ["npm pack emoji-datasource-google", "data.root"],
    ),
    "emoji of another folder": (
        lambda w: ["train", "data=emoji", f"data.root={w.pictures}", f"runs={w.empty}/runs"],
        ["emoji.json", "npm pack"],
    ),
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
    "nowhere to train": (lambda w: w.first_stage(_on_a_file(w, "runs")), ["Not a directory", "runs="]),
    "nowhere to sample": (lambda w: ["sample", f"run={w.second}", _on_a_file(w, "output")], ["Not a dir", "output="]),
    "nowhere to reconstruct": (
        lambda w: ["reconstruct", f"run={w.first}", _on_a_file(w, "output")],
        ["Not a directory", "output="],
    ),
    "reconstruct into a picture": (
        lambda w: ["reconstruct", f"run={w.first}", f"output={w.empty}/sheet.png"],
        ["sheet.png looks like a file", "write output=", "/empty/sheet"],
    ),
    "evaluate elsewhere": (lambda w: ["evaluate", f"run={w.second}", "name=../x"], ["name=../x"]),
    "a judge of no kind": (lambda w: ["evaluate", f"run={w.second}", "judge=maybe"], ["judge=maybe", "true nor false"]),
    "a grid that is not taken": (
        lambda w: ["sample", f"run={w.second}", "sampler=adaptive", "+sampler/grid=karras"],
        ["sampler.grid"],
    ),
    "captions for a model of classes": (lambda w: ["sample", f"run={w.second}", "captions=a"], ["reads class"]),
    "guidance of a model of none": (lambda w: _unconditional(w, "scale=3"), ["guidance.scale=3", "no condition"]),
    "a later format": (_later_format, ["format 2", "newer ldm_lightning"]),
    "a first stage trained again": (_retrained_first_stage, ["trained again", "second/first_stage", "name="]),
    "few pictures": (_few, ["data.validation=0.38 data.test=0 data.batch_size=3"]),
    "few pictures to test with": (lambda w: _few(w, "data.test=0.5"), ["data.validation=0.38 data.test=0 data.b"]),
    "a large seed": (lambda w: w.first_stage("seed=99999999999"), ["seed=99999999999", "4294967295"]),
    "never logged": (lambda w: w.first_stage("trainer.log_every_n_steps=0"), ["log_every_n_steps=0"]),
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
    "encode by a second stage": (lambda w: ["encode", f"run={w.second}"], ["first_stage model is needed"]),
    "encode in no precision": (lambda w: w.encode("dtype=flaot32"), ["dtype=flaot32", "did you mean 'float32'"]),
    "encode nothing at once": (lambda w: w.encode("batch_size=0"), ["batch_size=0"]),
    "encode over something else": (lambda w: w.encode(f"output={w.pictures}/zero"), ["something else"]),
    "encode into a file": (lambda w: w.encode(f"output={w.pictures}/zero/000.png"), ["something else"]),
    "encode into a model": (lambda w: w.encode(f"output={w.second}/export"), ["something else"]),
    "encode random crops": (_not_square, ["24x16", "+data.transform.crop=center"]),
    "encode latents": (lambda w: w.encode("data=latents", f"data.root={w.latents}"), ["no pictures to encode"]),
    "encode another split": (lambda w: w.encode("+data.validation=0.3"), ["another split", "data.validation=0.2"]),
    "encode other channels": (lambda w: w.encode("+data.transform.channels=1"), ["3 channels"]),
    "encode no setting": (lambda w: w.encode("+data.transform.flipp=1"), ["data.transform.flipp", "'flip'"]),
    "encode another transform into a cache": (
        lambda w: w.encode(f"output={w.latents}", "shard_size=30", "+data.transform.flip=false"),
        ["another origin", "flip=True", "flip=False", "output="],
    ),
    "encode other pictures into a cache": (
        lambda w: w.encode(f"output={w.latents}", "shard_size=30", f"root={w.pictures}/zero"),
        ["another origin", "data: ", "count: 80 -> 40"],
    ),
    "latents without a root": (lambda w: ["train", "stage=latent_diffusion", "data=latents"], ["data.root"]),
    "no latents": (lambda w: w.cached(f"data.root={w.pictures}"), ["no latents", "ldm encode"]),
    "latents of a run": (_run_of_latents, ["did you mean", "first/latents?"]),
    "latents of a model": (lambda w: w.cached(f"data.root={w.first}/export"), ["no latents but a first_stage model"]),
    "latents for a first stage": (
        lambda w: ["train", "data=latents", f"data.root={w.latents}"],
        ["no pictures for stage=first_stage"],
    ),
    "latents damaged": (_damaged_latents, ["latents-00001", "damaged (wrong checksum)", "ldm encode"]),
    "latents of another first stage": (_other_weights, ["is not the first stage that encoded", "leave it out"]),
    "latents of another split": (lambda w: w.cached("data.validation=0.3"), ["data.validation=0.3", "made with 0.2"]),
    "latents beside no pictures": (
        lambda w: w.cached(
            *["callbacks=latent_diffusion_fd", "extractor@callbacks.frechet.extractor=tiny"],
            f"data.pictures={w.empty}/nowhere",
        ),
        ["real pictures are needed", "data.pictures=FOLDER"],
    ),
    "export to null": (lambda w: ["export", f"run={w.first}", "output=null"], ["output=null"]),
    "export to the root": (lambda w: ["export", f"run={w.first}", "output=/"], ["output=/ is no folder"]),
    "a diffusers codec of one level": (
        lambda w: w.diffusers_stage("first_stage.autoencoder.encoder.config.block_out_channels=[8]"),
        ["AutoencoderKL"],
    ),
    "a diffusers codec without groups": (
        lambda w: w.diffusers_stage("first_stage.autoencoder.encoder.config.norm_num_groups=0"),
        ["AutoencoderKL"],
    ),
    "pixels measured by nothing": (
        lambda w: w.pixels("first_stage.autoencoder.bottleneck.std=null"),
        ["std=null", "std=0.5"],
    ),
    "import of nothing": (lambda w: w.import_(f"source={w.empty}/no"), ["source=", "neither a folder nor"]),
    "import of no source": (lambda w: ["import", f"data.root={w.pictures}"], ["source="]),
    "import of a whole pipeline": (lambda w: w.import_(f"source={w.empty}/model"), ["config.json", "subfolder=vae"]),
    "import of another class": (
        lambda w: w.import_(_class_name="AutoencoderTiny"),
        ["AutoencoderTiny", "AutoencoderKL, VQModel, AutoencoderDC"],
    ),
    "import of another architecture": (lambda w: w.import_(norm_num_groups=3), ["no readable weights", "num_groups"]),
    "import of other widths": (lambda w: w.import_(block_out_channels=[8]), ["no readable weights", "AutoencoderKL"]),
    "import without weights": (_other_model_weights, ["no readable weights", "AutoencoderKL"]),
    "import of damaged weights": (lambda w: _other_model_weights(w, content=b"torn"), ["no readable weights"]),
    "import for grey pictures": (
        lambda w: w.import_("data.transform.channels=1"),
        ["3 channels", "these have 1", "data.transform.channels=3"],
    ),
    "import for pictures that do not divide": (
        lambda w: w.import_(f"source={_two_levels(w)}", "data.size=15"),
        ["15x15", "factor 2", "14x14 or 16x16"],
    ),
    "import into another run": (
        lambda w: w.import_(f"runs={w.first.parent}", "name=first"),
        ["another configuration", "name="],
    ),
    "import for latents": (lambda w: [*w.import_(), "data=latents", f"data.root={w.latents}"], ["data=latents"]),
    "import measured on nothing": (lambda w: w.import_("statistics_pictures=0"), ["statistics_pictures=0"]),
    "export of another codec": (
        lambda w: ["export", f"run={w.first}", f"output={w.empty}/out"],
        ["ConvEncoder", "first_stage=diffusers_kl"],
    ),
    "export of a second stage": (
        lambda w: ["export", f"run={w.second}", f"output={w.empty}/out"],
        ["latent_diffusion", "first_stage"],
    ),
    "export to nowhere": (lambda w: ["export", f"run={w.first}"], ["output="]),
    "export onto a file": (lambda w: ["export", f"run={w.first}", _on_a_file(w, "output")], ["Not a dir", "output="]),
    "nothing to train further": (
        lambda w: [*_without_codec(w.first_stage()), "first_stage=trained"],
        ["first_stage.run"],
    ),
    "another codec to train further": (
        lambda w: [
            *[*_without_codec(w.first_stage()), "first_stage=trained", f"first_stage.run={w.first}"],
            "+first_stage.autoencoder.bottleneck.codes=8",
        ],
        ["first_stage.autoencoder", "first_stage.run", "leave"],
    ),
    "a codec to stand on beside a run": (
        lambda w: w.latent_diffusion("+first_stage.autoencoder.bottleneck.codes=8"),
        ["first_stage.autoencoder", "first_stage.run", "leave"],
    ),
    "a second stage to train further": (
        lambda w: [*_without_codec(w.first_stage()), "first_stage=trained", f"first_stage.run={w.second}"],
        ["latent_diffusion", "first_stage"],
    ),
    "a long name": (lambda w: w.first_stage(f"name={'n' * 256}"), ["name=nnn", "256 bytes", "shorter"]),
    "a long name beyond ASCII": (
        lambda w: w.first_stage("name='" + "猫" * 90 + "'"),
        ["name=", "270 bytes", "shorter"],
    ),
    "a long name of an import": (lambda w: w.import_(f"name={'n' * 300}"), ["name=nnn", "300 bytes", "shorter"]),
    "a long name of figures": (
        lambda w: ["evaluate", f"run={w.first}", f"name={'n' * 250}"],
        ["name=nnn", "250 bytes", "shorter"],
    ),
    "a long name of a run": (lambda w: ["sample", f"run={w.empty}/{'n' * 256}"], ["nnn", "256 bytes", "shorter"]),
    "a long name of an output": (lambda w: w.encode(f"output={w.empty}/{'n' * 256}"), ["nnn", "256 bytes", "shorter"]),
    "several devices in a sweep": (
        lambda w: w.first_stage("trainer.devices=2", "optim.lr=0.1,0.2", "--multirun"),
        ["launcher"],
    ),
}


def _files(world: World) -> dict[Path, bytes]:
    kept = (world.first, world.second, world.bits, world.latents, world.pictures)
    return {path: path.read_bytes() for root in kept for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake: str, world: World, ldm: Callable[..., Result]) -> None:
    command, fragments = MISTAKES[mistake]
    args = command(world)
    before = _files(world)
    refused(ldm(*args), *fragments)
    assert _files(world) == before
    assert not list(world.empty.glob("runs/new/export"))


def test_few_pictures_train_as_the_message_says(world: World, ldm: Callable[..., Result]) -> None:
    command = _few(world)
    mend = re.search(r": set (.*)$", ldm(*command).err, re.MULTILINE)
    assert ldm(*command, *mend.group(1).split(), "trainer.max_steps=1").code == 0


def test_flags_may_stand_anywhere(world: World, ldm: Callable[..., Result]) -> None:
    orders = (
        ["--cfg", "job", "seed=3", "name=x"],
        ["seed=3", "--cfg", "job", "name=x", "--resolve"],
        ["seed=3", "name=x", "--resolve", "--config-dir", str(world.empty), "--cfg=job"],
    )
    for order in orders:
        result = ldm("train", "data=mnist5k", *order)
        assert result.code == 0, result.err
        assert "seed: 3" in result.out


def test_a_run_may_be_renamed(world: World, ldm: Callable[..., Result]) -> None:
    shutil.copytree(world.second, world.empty / "runs" / "new")
    resumed = ldm(*world.latent_diffusion("trainer.max_steps=7"))
    assert resumed.code == 0, resumed.err
    assert "resuming" in resumed.err


def test_a_short_run_reports_what_there_is(world: World, ldm: Callable[..., Result]) -> None:
    short = ["trainer.max_steps=1", "trainer.limit_val_batches=0", "trainer.log_every_n_steps=50"]
    result = ldm(*world.first_stage(*short, "trainer.max_time=00:01:00:00"))
    assert result.code == 0, result.err
    for word in ("metrics.csv", "curves", "matplotlib", "samples"):
        assert word not in result.err.partition("model: ")[2]


def test_fewer_pictures_than_asked_for_are_reported(world: World, ldm: Callable[..., Result]) -> None:
    result = ldm("evaluate", f"run={world.second}", "n=40", "judge=false", "extractor=tiny", "name=more")
    assert result.code == 0, result.err
    assert "40 samples beside 13 real pictures" in result.err
    measured = json.loads((world.second / "evaluation" / "more.json").read_text())
    assert "fd_tiny@40_too_few" in measured["figures"]
    assert (measured["protocol"]["n"], measured["protocol"]["real"]) == (40, 13)
    result = ldm("evaluate", f"run={world.first}", "n=5000", "name=more")
    assert "measured on n=13 pictures, not on 5000" in result.err
