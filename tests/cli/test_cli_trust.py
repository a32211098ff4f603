"""A run, an artifact or a cache from somebody else: whatever it names is refused before it is imported or built."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ldm_lightning.artifact import copy_artifact
from ldm_lightning.data.latent_files import read_manifest
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.compose import conf_dir
from ldm_lightning.experiment.trust import trusting, vetted
from tests.conftest import TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION, Result, refused

# A module in the current folder: importing it leaves a mark, and so does what is in it.
MISCHIEF = """
from pathlib import Path
Path("imported").touch()
def run(*args, **kwargs):
    Path("ran").touch()
"""
MINE = """
import shutil
from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.diffusion.sampler import Euler
class MyEuler(Euler):
    pass
class MyFolder(ImageFolder):
    pass
"""


@dataclass(frozen=True)
class Strange:
    """Copies of real runs, which a test may edit, and the current folder, which is empty."""

    first: Path
    second: Path
    latents: Path
    pictures: Path
    here: Path

    def edit(self, file: Path, key: str, value: Any) -> None:
        """Set a value of a saved configuration, whatever kind of file it is in; a cache gets its checksum right."""
        if file.name == "config.yaml":
            content = yaml.safe_load(file.read_text())
            _set(content, key, value)
            file.write_text(yaml.safe_dump(content))
        elif file.parent == self.latents:
            manifest = read_manifest(self.latents)
            file.write_bytes(replace(manifest, config={**manifest.config, key: value}).encode())
        else:
            content = json.loads(file.read_text())
            _set(content["config"], key, value)
            file.write_text(json.dumps(content))

    def files(self) -> set[Path]:
        return {path for folder in (self.first.parent, self.here) for path in folder.rglob("*")}

    def train(self, *more: str) -> list[str]:
        """A second stage on these pictures."""
        data = ["data=image_folder", f"data.root={self.pictures}", f"first_stage.run={self.first}"]
        return ["train", *data, *TINY_LATENT_DIFFUSION, "name=new", *more]


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        node = node[name]
    node[last] = value


@pytest.fixture
def strange(
    first_stage_run: Path,
    latent_diffusion_run: Path,
    latents: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Strange]:
    """See `Strange`."""
    copies = [tmp_path / "copies" / name for name in ("first", "second", "latents")]
    for source, copy in zip((first_stage_run, latent_diffusion_run, latents), copies, strict=True):
        shutil.copytree(source, copy)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "mischief.py").write_text(MISCHIEF)
    (tmp_path / "here" / "mine.py").write_text(MINE)
    yield Strange(*copies, pictures, tmp_path / "here")
    for name in ("mischief", "mine"):
        sys.modules.pop(name, None)


def cached(strange: Strange) -> list[str]:
    tiny = [text for text in TINY_LATENT_DIFFUSION if not text.startswith(("data.size", "data.validation"))]
    return ["train", "data=latents", f"data.root={strange.latents}", *tiny, "name=new"]


def further(strange: Strange) -> list[str]:
    tiny = [text for text in TINY_FIRST_STAGE if not text.startswith("first_stage")]
    first = ["stage=first_stage", "first_stage=trained", f"first_stage.run={strange.first}"]
    return ["train", "data=image_folder", f"data.root={strange.pictures}", *first, *tiny, "name=new"]


def resumed(strange: Strange) -> list[str]:
    """A run whose first stage is gone, so that its own copy is read."""
    (strange.here / "runs" / "new").mkdir(parents=True)
    copy_artifact(strange.first, strange.here / "runs" / "new" / "first_stage")
    return strange.train("first_stage.run=gone")


def guided(strange: Strange) -> list[str]:
    """A good run, guided by the edited one."""
    shutil.copytree(strange.second, strange.here / "good")
    return ["sample", "run=good", "n=2", "guidance=autoguidance", f"guidance.run={strange.second}"]


# Every file that is read, with a node that is built from it, by every verb that reads it.
BOTTLENECK = "first_stage.autoencoder.bottleneck"
READERS: dict[str, tuple[str, str, Callable[[Strange], list[str]]]] = {
    "sample": ("second/export/manifest.json", "sampler", lambda s: ["sample", f"run={s.second}", "n=2"]),
    "sample, first stage": (
        "second/export/first_stage/manifest.json",
        BOTTLENECK,
        lambda s: ["sample", f"run={s.second}", "n=2"],
    ),
    "sample, guide": ("second/export/manifest.json", "denoiser", guided),
    "evaluate": ("second/export/manifest.json", "data.source", lambda s: ["evaluate", f"run={s.second}", "n=4"]),
    "evaluate, first stage": ("first/export/manifest.json", BOTTLENECK, lambda s: ["evaluate", f"run={s.first}"]),
    "reconstruct": ("first/export/manifest.json", BOTTLENECK, lambda s: ["reconstruct", f"run={s.first}"]),
    "encode": ("first/export/manifest.json", "data.source", lambda s: ["encode", f"run={s.first}"]),
    "export": ("first/export/manifest.json", BOTTLENECK, lambda s: ["export", f"run={s.first}", "output=out"]),
    "finish": ("first/config.yaml", "data.source", lambda s: ["finish", f"run={s.first}"]),
    "doctor": ("first/config.yaml", "optim", lambda s: ["doctor", f"run={s.first}"]),
    "doctor, manifest": ("first/export/manifest.json", "optim", lambda s: ["doctor", f"run={s.first}"]),
    "train": ("first/export/manifest.json", BOTTLENECK, lambda s: s.train()),
    "train, further": ("first/export/manifest.json", BOTTLENECK, further),
    "train, copied": ("first/export/manifest.json", BOTTLENECK, resumed),
    "train, cache": ("latents/manifest.json", "source", cached),
    "train, cached first stage": ("latents/first_stage/manifest.json", BOTTLENECK, cached),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_verb_builds_what_a_stranger_wrote(reader: str, strange: Strange, ldm: Callable[..., Result]) -> None:
    file, key, command = READERS[reader]
    place = strange.first.parent / file
    strange.edit(place, key, {"_target_": "mischief.run"})
    arguments = command(strange)
    before = strange.files()
    mend = ["add trust=mischief"] if arguments[0] == "train" else ["add trust=mischief", "PYTHONPATH=."]
    refused(ldm(*arguments), str(place.name), f"{key} names mischief.run", *mend)
    assert strange.files() == before
    assert "mischief" not in sys.modules


TOUCH = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["ran"]}]}
EULER = "ldm_lightning.diffusion.sampler.Euler"
ATTACKS: dict[str, Any] = {
    "method": TOUCH,
    "copy": {"_target_": "shutil.copyfile", "src": "mine.py", "dst": "ran"},
    "torch": {"_target_": "torch.save", "obj": 1, "f": "ran"},
    "shell": {"_target_": "os.system", "command": "touch ran"},
    "module here": {"_target_": "mischief.run"},
    "builtin": {"_target_": "builtins.eval", "_args_": ["open('ran', 'w')"]},
    "torch through ours": {"_target_": "ldm_lightning.nn.count.torch.save", "obj": 1, "f": "ran"},
    "torch through torch": {"_target_": "torch.nn.modules.module.torch.save", "obj": 1, "f": "ran"},
    "path through ours": {**TOUCH, "_target_": "ldm_lightning.data.folder.Path.touch"},
    "ours that writes": {"_target_": "ldm_lightning.artifact.write_artifact", "folder": "ran", "kind": "x"},
    "ours that deletes": {"_target_": "ldm_lightning.data.latent_files.Writer", "root": ".", "manifest": None},
    "method of ours": {"_target_": "ldm_lightning.nn.unet.UNet.load_state_dict"},
    "what only training builds": {"_target_": "ldm_lightning.callbacks.checkpoints.Checkpoints", "folder": "ran"},
    "weights of another library": {"_target_": "ldm_lightning.metrics.extractor.InceptionExtractor", "weights": "x"},
    "looked up": {"_target_": "hydra.utils.get_method", "path": "mischief.run"},
    "looked up by place": {"_target_": "hydra.utils.get_object", "_args_": ["mischief.run"], "path": EULER},
    "built by Hydra": {"_target_": "hydra.utils.instantiate", "config": TOUCH},
    "argument": {"_target_": EULER, "steps": TOUCH},
    "in lists": {"_target_": EULER, "steps": [[1, [TOUCH]]]},
    "in places": {"_target_": EULER, "_args_": [[TOUCH]]},
    "not recursive": {"_target_": EULER, "_recursive_": False, "_partial_": True, "_convert_": "all", "steps": TOUCH},
    "without a target above": {"a": {"b": TOUCH}},
    "interpolated name": {"_target_": "${oc.env:ATTACK}"},
    "interpolated node": "${derived.attack}",
    "interpolated value": {"_target_": EULER, "steps": "${oc.decode:${oc.env:ATTACK}}"},
    "no name": {"_target_": ["mischief.run"]},
    "name that is a node": {"_target_": {"_target_": "mischief.run"}},
    "no module": {"_target_": ".mischief.run"},
    "two lines": {"_target_": "mischief\n.run"},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_slips_past_the_check(
    attack: str, strange: Strange, ldm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTACK", "mischief.run")
    strange.edit(strange.second / "export" / "manifest.json", "sampler", ATTACKS[attack])
    before = strange.files()
    result = ldm("sample", f"run={strange.second}", "n=2")
    refused(result, "manifest.json: config.sampler")
    assert result.err.count("\n") == 1
    assert strange.files() == before
    assert "mischief" not in sys.modules


@pytest.mark.parametrize("key", ["derived.class_names", "sha256"])
def test_nothing_is_filled_in_from_the_environment(key: str, strange: Strange, ldm: Callable[..., Result]) -> None:
    """Neither is what a run on top of it would record."""
    file = strange.first / "export" / "manifest.json"
    if key == "sha256":
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, key: "${oc.env:HOME}"}))
    else:
        strange.edit(file, key, ["${oc.env:HOME}"])
    refused(ldm(*strange.train()), key, "${oc.env:HOME}")
    assert not (strange.here / "runs").exists()


def test_a_class_cannot_read_the_environment(strange: Strange, ldm: Callable[..., Result]) -> None:
    shutil.copytree(strange.pictures, strange.here / "pictures")
    (strange.here / "pictures" / "zero").rename(strange.here / "pictures" / "${oc.env:HOME}")
    data = ["data=image_folder", "data.root=pictures", *TINY_FIRST_STAGE, "name=new"]
    refused(ldm("train", *data), "class '${oc.env:HOME}'")
    assert not (strange.here / "runs").exists()


@pytest.mark.parametrize("verb", ["reconstruct", "train"])
def test_weights_lie_beside_their_manifest(verb: str, strange: Strange, ldm: Callable[..., Result]) -> None:
    """Else a run would take along a private file, such as a key, when its first stage is copied."""
    (strange.here / "private").write_text("key")
    file = strange.first / "export" / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "weights": str(strange.here / "private")}))
    command = strange.train() if verb == "train" else [verb, f"run={strange.first}"]
    refused(ldm(*command), f"weights={strange.here / 'private'}")
    assert not list(strange.here.glob("runs/**/private"))


class _Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_a_checkpoint_runs_nothing(strange: Strange, ldm: Callable[..., Result]) -> None:
    torch.save(_Touch(), strange.first / "checkpoints" / "best.ckpt")
    with suppress(Exception):
        assert ldm("finish", f"run={strange.first}").code != 0
    assert not (strange.here / "ran").exists()


def test_an_imported_configuration_builds_nothing(strange: Strange, ldm: Callable[..., Result], tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, mid_block_add_attention=False)
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latents_mean": TOUCH}))
    data = ["data=image_folder", f"data.root={strange.pictures}", "data.size=16", "data.num_workers=0"]
    refused(ldm("import", f"source={tmp_path / 'model'}", *data), "latents_mean names pathlib.Path.touch")
    assert not (strange.here / "ran").exists()


# --- what is trusted --------------------------------------------------------------------------------------------------


def test_own_parts_are_let_in_by_name(
    strange: Strange, latent_diffusion_run: Path, ldm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    ldm("sample", f"run={strange.second}", "n=2", "output=shipped")
    file = strange.second / "export" / "manifest.json"
    strange.edit(file, "sampler._target_", "mine.MyEuler")
    refused(ldm("sample", f"run={strange.second}", "n=2"), "mine.MyEuler", "trust=mine", "PYTHONPATH=.")
    # The current folder is no place to import from, neither of what is trusted nor of what the command line names.
    Path("conf/sampler").mkdir(parents=True)
    Path("conf/sampler/own.yaml").write_text("_target_: mine.MyEuler\nsteps: 2")
    named = ldm("sample", f"run={latent_diffusion_run}", "--config-dir", "conf", "sampler=own")
    refused(named, "mine.MyEuler cannot be imported", "PYTHONPATH=.")
    refused(ldm("sample", f"run={strange.second}", "n=2", "trust=mine"), "cannot be imported", "PYTHONPATH=.")
    monkeypatch.syspath_prepend(strange.here)
    for trust in ("trust=mine", "trust=[other,mine]", "trust=mine.MyEuler"):
        result = ldm("sample", f"run={strange.second}", "n=2", "output=own", trust)
        assert result.code == 0, result.err
    assert Path("own/000001.png").read_bytes() == Path("shipped/000001.png").read_bytes()
    refused(ldm("sample", f"run={strange.second}", "n=2", "trust=mine.MyFolder"), "mine.MyEuler")
    # What a trusted package has imported is not trusted by that; what is known anyway is.
    strange.edit(file, "sampler", {"_target_": "mine.shutil.copyfile", "src": "mine.py", "dst": "ran"})
    refused(ldm("sample", f"run={strange.second}", "n=2", "trust=mine"), "shutil.copyfile")
    assert not Path("ran").exists()
    strange.edit(file, "sampler", {"_target_": "mine.Euler", "steps": 2})
    assert ldm("sample", f"run={strange.second}", "n=2", "trust=mine").code == 0


@pytest.mark.parametrize("trust", ["trust=3", "trust=a-b", "trust=[mine,.]", "trust='my package'"])
def test_no_package_of_such_a_name(trust: str, strange: Strange, ldm: Callable[..., Result]) -> None:
    refused(ldm("sample", f"run={strange.second}", trust), "trust=", "names no package")


def test_train_takes_own_parts_from_here_and_records_no_trust(strange: Strange, ldm: Callable[..., Result]) -> None:
    """What its own command line names needs no trust; what it reads does."""
    strange.edit(strange.first / "export" / "manifest.json", "data.source._target_", "mine.MyFolder")
    command = strange.train("runs=runs", "sampler._target_=mine.MyEuler", "trainer.max_steps=1")
    refused(ldm(*command), "data.source names mine.MyFolder")
    result = ldm(*command, "trust=mine.MyFolder")
    assert result.code == 0, result.err
    assert "" not in sys.path
    config = yaml.safe_load(Path("runs/new/config.yaml").read_text())
    assert "trust" not in config
    assert config["sampler"]["_target_"] == "mine.MyEuler"
    assert "is finished" in ldm(*command, "trust=mine.MyFolder").err  # the run itself is its own


def test_lookups_are_judged_by_what_they_look_up() -> None:
    vetted({"_target_": "hydra.utils.get_class", "path": "ldm_lightning.nn.unet.UNet"}, Path("file"))
    with pytest.raises(UserError, match=r"pathlib\.Path"):
        vetted({"_target_": "hydra.utils.get_class", "path": "pathlib.Path"}, Path("file"))


def test_trust_ends_with_its_block() -> None:
    node = {"_target_": "fractions.Fraction", "numerator": 1}
    with trusting("fractions"):
        vetted(node, Path("file"))
    with pytest.raises(UserError, match=r"trust=fractions\.Fraction"):
        vetted(node, Path("file"))


# --- what is known ----------------------------------------------------------------------------------------------------


TARGETS = {
    target for file in conf_dir().rglob("*.yaml") for target in re.findall(r"_target_: *([^\s#}]+)", file.read_text())
}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_all_that_the_shipped_configuration_names_is_known(target: str) -> None:
    """That each stands where it may is checked for every option in ``test_cli_config.py``."""
    vetted({"callbacks": {"any": {"_target_": target}}}, Path("config.yaml"))


def test_modules_and_optimizers_of_torch_are_known() -> None:
    for target in ("torch.nn.SmoothL1Loss", "torch.nn.SiLU", "torch.optim.SGD", "ldm_lightning.nn.Conditioners"):
        vetted({"_target_": target}, Path("file"))
    for target in ("torch.nn.functional.relu", "torch.optim.lr_scheduler.LambdaLR", "torch.nn.Parameter", "torch.nn"):
        with pytest.raises(UserError, match=target):
            vetted({"_target_": target}, Path("file"))


# --- where modules are looked for -------------------------------------------------------------------------------------


def test_python_m_leaves_the_current_folder_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ldm", "--version"])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(SystemExit):
        runpy.run_module("ldm_lightning", run_name="__main__")
    assert str(tmp_path) not in sys.path


@pytest.mark.slow
def test_hydra_takes_no_plugins_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "mischief.py").write_text(MISCHIEF)
    code = "import sys; sys.argv = ['ldm', 'train', '--help']; from ldm_lightning.cli import main; main()"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists()
