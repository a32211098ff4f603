"""Every verb on a run whose files were edited, cut or belong to other code: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ldm_lightning.callbacks.checkpoint_files import AtomicCheckpointIO
from tests.conftest import Result, refused

Ldm = Callable[..., Result]

READERS = {
    "first_stage": ("evaluate", "reconstruct", "encode", "export"),
    "latent_diffusion": ("evaluate", "sample"),
}


@pytest.fixture(params=["first_stage", "latent_diffusion"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a trained run of either stage, to be damaged."""
    trained: Path = request.getfixturevalue(f"{request.param}_run")
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def stage_of(run: Path) -> str:
    return str(OmegaConf.load(run / "config.yaml").stage)


def each_reader_refuses(run: Path, ldm: Ldm, *fragments: str) -> None:
    """All verbs that read the model, those that write elsewhere into a folder that they must not make."""
    for verb in READERS[stage_of(run)]:
        output = [f"output={run.parent / 'output'}"] if verb == "export" else []
        refused(ldm(verb, f"run={run}", *output), *fragments)
        assert not (run.parent / "output").exists()


def edited(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a json file in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no weights": (lambda m: m.pop("weights"), "manifest.json is damaged (weights missing)"),
    "no checksum": (lambda m: m.pop("sha256"), "sha256 missing"),
    "unknown kind": (lambda m: m.update(kind="third_stage"), "third_stage"),
    "format of text": (lambda m: m.update(format="new"), "has format new"),
    "config of text": (lambda m: m.update(config="none"), "config.derived"),
    "no derived": (lambda m: m["config"].pop("derived"), "config.derived missing"),
    "no stage": (lambda m: m["config"].pop("stage"), "config.stage missing"),
    "no first stage": (lambda m: m["config"].pop("first_stage"), "config.first_stage missing"),
    "no size": (lambda m: m["config"]["derived"].pop("height"), "derived.height"),
    "other weights": (lambda m: m.update(weights="gone.safetensors"), "half written"),
    "a list": (lambda m: None, "manifest.json is damaged"),
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_an_edited_manifest_is_named(damage: str, run: Path, ldm: Ldm) -> None:
    change, said = MANIFESTS[damage]
    if damage == "no size" and stage_of(run) == "first_stage":
        pytest.skip("a first stage does not read the size of its pictures from there")
    file = run / "export" / "manifest.json"
    edited(file, change)
    if damage == "a list":
        file.write_text("[]")
    each_reader_refuses(run, ldm, said)


def test_a_cut_manifest_and_cut_weights_are_named(run: Path, ldm: Ldm) -> None:
    file = run / "export" / "manifest.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    each_reader_refuses(run, ldm, "manifest.json is damaged")
    refused(ldm("doctor", f"run={run}"), "manifest.json is damaged")
    refused(ldm("finish", f"run={run}", "checkpoint=last"), "manifest.json is damaged")
    file.write_bytes(whole)
    weights = next((run / "export").glob("weights-*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    each_reader_refuses(run, ldm, "wrong checksum")
    weights.unlink()
    each_reader_refuses(run, ldm, "half written")


@pytest.mark.parametrize("key", ["stage", "derived", "first_stage", "data", "trainer"])
def test_a_config_without_a_key_is_named(key: str, run: Path, ldm: Ldm) -> None:
    file = run / "config.yaml"
    config = OmegaConf.load(file)
    del config[key]
    OmegaConf.save(config, file)
    for verb in ("finish", "doctor"):
        refused(ldm(verb, f"run={run}"), str(file), "not the configuration of a run" if key == "stage" else key)
    assert not (run / "best").exists()


def test_a_config_without_a_part_of_a_key_is_named(run: Path, ldm: Ldm) -> None:
    config = OmegaConf.load(run / "config.yaml")
    del config.callbacks
    OmegaConf.save(config, run / "config.yaml")
    refused(ldm("finish", f"run={run}"), "the configuration has no callbacks", "config.yaml")


CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any], str], object], str]] = {
    "another width": (lambda c, name: c["state_dict"].update({name: torch.zeros(3)}), "do not fit the network"),
    "a weight too few": (lambda c, name: c["state_dict"].pop(name), "do not fit the network"),
    "no weights": (lambda c, _: c.pop("state_dict"), "state_dict missing"),
    "no step": (lambda c, _: c.pop("global_step"), "global_step missing"),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_checkpoint_of_other_code_is_not_finished(damage: str, run: Path, ldm: Ldm) -> None:
    change, said = CHECKPOINTS[damage]
    file = run / "checkpoints" / "best.ckpt"
    state = torch.load(file, weights_only=True)
    learned = "autoencoder." if stage_of(run) == "first_stage" else "denoiser.network."
    name = next(name for name in state["state_dict"] if name.startswith(learned))
    averages = state["callbacks"].get("Ema", {"average": {}})["average"]
    averages.pop(name.removeprefix("denoiser."), None)
    change(state, name)
    AtomicCheckpointIO().save_checkpoint(state, file)
    refused(ldm("finish", f"run={run}"), "best.ckpt", said)
    assert not (run / "best" / "export" / "manifest.json").exists()


def test_a_best_model_that_was_overtaken_is_announced(run: Path, ldm: Ldm) -> None:
    """By every reader, in a line that says what to do, and no longer once that is done."""
    assert ldm("finish", f"run={run}").code == 0
    said = f"ldm finish run={run} takes it"
    verb = {"first_stage": ["reconstruct"], "latent_diffusion": ["sample", "n=2", "steps=2"]}[stage_of(run)]
    readers = ([*verb, f"run={run / 'best'}"], ["doctor", f"run={run}"])
    for words in readers:
        assert said not in ldm(*words).err
    best = run / "checkpoints" / "best.ckpt"
    state = torch.load(best, weights_only=True)
    name = next(name for name, value in state["state_dict"].items() if value.is_floating_point())
    state["state_dict"][name] += 1.0
    AtomicCheckpointIO().save_checkpoint(state, best)
    for words in readers:
        done = ldm(*words)
        assert done.code == 0, done.err
        assert done.err.count(said) == 1
    assert ldm("finish", f"run={run}").code == 0
    for words in readers:
        assert said not in ldm(*words).err


def test_hydras_own_settings_are_not_resolved_alone(ldm: Ldm) -> None:
    for verb, place in (("train", []), ("finish", ["run=runs/x"])):
        refused(ldm(verb, *place, "--cfg", "hydra", "--resolve"), "use --cfg all --resolve")
        assert ldm(verb, *place, "--cfg", "all", "--resolve").code == 0
