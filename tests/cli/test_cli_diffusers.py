"""Autoencoders of diffusers: what they compute here is what they compute there, and both formats hold the same."""

from __future__ import annotations

import http.server
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ldm_lightning.artifact import read_artifact
from ldm_lightning.experiment import build
from ldm_lightning.experiment.load import load_first_stage, load_latent_diffusion
from ldm_lightning.interop.diffusers_format import autoencoder_node, export_weights, import_weights, model_of
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.bottleneck import Gaussian, VectorQuantizer
from ldm_lightning.rng import Streams
from tests.conftest import TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION, Result, refused

Ldm = Callable[..., Result]


def blocks(down: str, up: str) -> dict[str, Any]:
    return {"down_block_types": (down, down), "up_block_types": (up, up), "norm_num_groups": 4}


PLAIN = {"block_out_channels": (8, 16), **blocks("DownEncoderBlock2D", "UpDecoderBlock2D")}
ATTENTIVE = {"block_out_channels": (8, 16), **blocks("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")}
DEEP = {
    **{f"{half}_block_out_channels": (8, 16, 16) for half in ("encoder", "decoder")},
    **{f"{half}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock") for half in ("encoder", "decoder")},
    **{f"{half}_layers_per_block": (1, 1, 1) for half in ("encoder", "decoder")},
    **{f"{half}_qkv_multiscales": ((), (), (5,)) for half in ("encoder", "decoder")},
    "latent_channels": 4,
    "attention_head_dim": 8,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "kl": ("AutoencoderKL", PLAIN),
    "kl_attentive": ("AutoencoderKL", {**ATTENTIVE, "layers_per_block": 2, "latent_channels": 3}),
    "kl_without_quant_conv": (
        "AutoencoderKL",
        {**PLAIN, "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
    ),
    "vq": ("VQModel", {**PLAIN, "num_vq_embeddings": 16}),
    "vq_narrow": ("VQModel", {**PLAIN, "num_vq_embeddings": 16, "latent_channels": 4, "vq_embed_dim": 2}),
    "vq_spatial": (
        "VQModel",
        {**PLAIN, "num_vq_embeddings": 16, "block_out_channels": (32, 32), "norm_type": "spatial"},
    ),
    "dc": ("AutoencoderDC", DEEP),
    "dc_folding_first": (
        "AutoencoderDC",
        {**DEEP, **{f"{half}_layers_per_block": (0, 1, 1) for half in ("encoder", "decoder")}},
    ),
}
FACTORS = {"dc": 4, "dc_folding_first": 4}


def make(name: str) -> Any:
    kind, config = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, kind)(**config).eval()
        for parameter in model.parameters():  # norms as well must not be where they began
            parameter.data += 0.1 * torch.randn_like(parameter)
        if kind == "VQModel":  # a book that is used
            model.quantize.embedding.weight.data.normal_(std=0.3)
    return model


def save(name: str, folder: Path, **options: Any) -> Path:
    make(name).save_pretrained(folder, **options)
    return folder


def taken_over(model: Any) -> Autoencoder:
    node = OmegaConf.create({"derived": {"channels": 3}, "autoencoder": autoencoder_node(model)})
    autoencoder: Autoencoder = instantiate(node.autoencoder)
    autoencoder.load_state_dict(import_weights(model.state_dict()))
    return autoencoder.eval()


def data(pictures: Path) -> list[str]:
    kept = ("data.size", "data.batch_size", "data.num_workers", "data.validation", "statistics_pictures")
    tiny = [text for text in TINY_FIRST_STAGE if text.startswith(kept)]
    return ["data=image_folder", f"data.root={pictures}", "trainer.accelerator=cpu", *tiny]


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    every = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in every}


def assert_equal_models(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    for name in ("config", "state"):
        one, other = (
            {key: value for key, value in model.config.items() if not key.startswith("_")}
            if name == "config"
            else model.state_dict()
            for model in (ours, theirs)
        )
        assert one.keys() == other.keys()
        for key, value in one.items():
            if name == "config":
                assert json.dumps(value) == json.dumps(other[key]), key
            else:
                assert torch.equal(value, other[key]), key


# --- what is computed -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_it_encodes_and_decodes_as_in_diffusers(name: str) -> None:
    model = make(name)
    autoencoder = taken_over(model)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = autoencoder.encode(x)
    assert autoencoder.encoder.factor == FACTORS.get(name, 2)
    assert posterior.mode().shape == (2, autoencoder.latent_channels, *[16 // autoencoder.encoder.factor] * 2)
    if name.startswith("kl"):
        theirs = model.encode(x).latent_dist
        torch.testing.assert_close(posterior.mean, theirs.mean)
        torch.testing.assert_close(posterior.log_var, theirs.logvar)
        pictures = model.decode(theirs.mode()).sample
    elif name.startswith("vq"):
        features = model.encode(x).latents
        quantized, _, (_, _, numbers) = model.quantize(features)
        torch.testing.assert_close(posterior.mode(), quantized)
        assert posterior.numbers().flatten().tolist() == numbers.flatten().tolist()
        assert len(set(numbers.flatten().tolist())) > 2
        pictures = model.decode(features).sample
    else:
        latents = model.encode(x).latent
        torch.testing.assert_close(posterior.mode(), latents)
        pictures = model.decode(latents).sample
    torch.testing.assert_close(autoencoder.decoder(posterior.mode()), pictures, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_both_formats_hold_the_same(name: str) -> None:
    model = make(name)
    weights = taken_over(model).state_dict()
    assert export_weights(weights).keys() == model.state_dict().keys()
    assert_equal_models(model_of(taken_over(model), {}), model)


def test_gradients_reach_all_of_an_autoencoder() -> None:
    autoencoder = taken_over(make("kl"))
    autoencoder.decode(autoencoder.encode(torch.rand(1, 3, 8, 8)).mode()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in autoencoder.parameters())
    assert autoencoder.last_layer is autoencoder.decoder.decoder.conv_out.weight


# --- the verbs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl_attentive", "vq_narrow", "dc"])
def test_an_import_is_a_first_stage_and_exported_as_it_was(name: str, pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    source = save(name, tmp_path / "model" / "vae")
    command = ["import", f"source={source.parent}", "subfolder=vae", f"runs={tmp_path}/runs", *data(pictures)]
    done = ldm(*command)
    assert done.code == 0, done.err
    assert "scaling_factor" in done.out
    run = tmp_path / "runs" / "import-model-vae"
    before = files(run / "export")
    assert read_artifact(run).manifest["statistics"]["n"] == 64
    again = ldm(*command)  # is harmless
    assert again.code == 0, again.err
    assert "already" in again.out
    assert files(run / "export") == before
    model = make(name)
    shutil.rmtree(source)  # the run does not need it any more
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(load_first_stage(run).module.autoencoder.encode(x).mode(), expected_mode(model, x))
    for verb in (["reconstruct", "n=4"], ["evaluate", "n=4"], ["encode"]):
        done = ldm(*verb, f"run={run}")
        assert done.code == 0, done.err
    for _ in range(2):  # repeated, it is harmless
        done = ldm("export", f"run={run}", f"output={tmp_path}/out")
        assert done.code == 0, done.err
    whole = files(tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()  # the last that a killed writer would have written
    assert ldm("export", f"run={run}", f"output={tmp_path}/out").code == 0
    (tmp_path / "out" / "README.md").write_text("the user's")
    assert ldm("export", f"run={run}", f"output={tmp_path}/out").code == 0
    after = files(tmp_path / "out")
    assert after.keys() - whole.keys() == {"README.md"}
    assert all(after[name][0] == content for name, (content, _) in whole.items())
    assert_equal_models(type(model).from_pretrained(tmp_path / "out"), model)


@torch.no_grad()
def expected_mode(model: Any, x: torch.Tensor) -> torch.Tensor:
    encoded = model.encode(x)
    if isinstance(model, diffusers.AutoencoderKL):
        return encoded.latent_dist.mode()
    return model.quantize(encoded.latents)[0] if isinstance(model, diffusers.VQModel) else encoded.latent


def test_latents_are_standardized_by_what_is_measured(pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    """Of an autoencoder without noise, too."""
    done = ldm("import", f"source={save('dc', tmp_path / 'dc')}", f"runs={tmp_path}", "name=run", *data(pictures))
    assert done.code == 0, done.err
    trained = load_first_stage(tmp_path / "run")
    x = build.data_module(trained.config).pictures("train", 64).x
    z = build.frozen_first_stage(trained.artifact).encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl", "vq", "dc"])
def test_a_second_stage_stands_on_an_import(name: str, pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    done = ldm("import", f"source={save(name, tmp_path / name)}", f"runs={tmp_path}", "name=first", *data(pictures))
    assert done.code == 0, done.err
    stands = ["data=image_folder", f"data.root={pictures}", f"first_stage.run={tmp_path}/first"]
    done = ldm("train", *stands, *TINY_LATENT_DIFFUSION, f"runs={tmp_path}", "name=second", "trainer.max_steps=3")
    assert done.code == 0, done.err
    assert ldm("sample", f"run={tmp_path}/second", "n=2").code == 0
    first_stage = load_latent_diffusion(tmp_path / "second").module.first_stage
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(first_stage.scale.unstandardize(first_stage.encode(x)), expected_mode(make(name), x))


OWN = {
    "diffusers_kl_tiny": [],
    "diffusers_vq_tiny": ["first_stage.autoencoder.bottleneck.codes=32"],
    "diffusers_dc_tiny": [
        "first_stage.autoencoder.bottleneck.latent_channels=4",
        *[
            f"first_stage.autoencoder.encoder.config.{text}"
            for text in (
                "encoder_block_out_channels=[8,16,16]",
                "encoder_block_types=[ResBlock,ResBlock,EfficientViTBlock]",
                "encoder_layers_per_block=[1,1,1]",
            )
        ],
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_what_was_trained_here_goes_there_and_back(name: str, pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    tiny = [text for text in TINY_FIRST_STAGE if not text.startswith("first_stage")]
    where = ["data=image_folder", f"data.root={pictures}", f"runs={tmp_path}"]
    done = ldm("train", *where, *tiny, f"first_stage={name}", *OWN[name], "name=own")
    assert done.code == 0, done.err
    done = ldm("export", f"run={tmp_path}/own", f"output={tmp_path}/exported")
    assert done.code == 0, done.err
    said = done.out
    done = ldm("import", f"source={tmp_path}/exported", f"runs={tmp_path}", "name=back", *data(pictures))
    assert done.code == 0, done.err
    own, back = (build.frozen_first_stage(read_artifact(tmp_path / run)) for run in ("own", "back"))
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    ours, theirs = (stage.autoencoder.encode(x) for stage in (own, back))
    for one, other in zip(ours.moments(), theirs.moments(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.decode(own.encode(x)), back.decode(back.encode(x)), rtol=1e-5, atol=1e-5)

    model = getattr(diffusers, json.loads((tmp_path / "exported/config.json").read_text())["_class_name"])
    config, statistics = model.from_pretrained(tmp_path / "exported").config, read_artifact(tmp_path / "own").manifest
    mean, std = (torch.tensor(statistics["statistics"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    if name.startswith("diffusers_kl"):  # by diffusers' convention, the standardization itself
        there = (ours.mode() - torch.tensor(config.latents_mean).view_as(mean)) * config.scaling_factor
        torch.testing.assert_close(there / torch.tensor(config.latents_std).view_as(std), own.encode(x))
        assert "latents_std" in said
        assert config.sample_size == 16
    else:
        assert config.scaling_factor == pytest.approx(1 / std.mean().item())
        assert f"{std.flatten()[0].item():.5g}" in said  # what the format cannot hold is not lost silently


@pytest.mark.slow
def test_an_import_is_trained_further(pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    save("kl", tmp_path / "kl")
    settings = tmp_path / "kl" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "shift_factor": 0.06}))
    assert ldm("import", f"source={tmp_path}/kl", f"runs={tmp_path}", "name=first", *data(pictures)).code == 0
    tiny = [text for text in TINY_FIRST_STAGE if not text.startswith("first_stage")]
    start = ["data=image_folder", f"data.root={pictures}", "first_stage=trained", f"first_stage.run={tmp_path}/first"]
    still = ["train", *start, *tiny, f"runs={tmp_path}", "name=still", "optim.lr=0", "trainer.max_steps=3"]
    done = ldm(*still)
    assert done.code == 0, done.err
    before = read_artifact(tmp_path / "first")
    after = read_artifact(tmp_path / "still")
    assert all(torch.equal(value, after.weights[name]) for name, value in before.weights.items())
    assert after.manifest["config"]["derived"]["first_stage"] == before.manifest["sha256"]
    shutil.rmtree(tmp_path / "first")  # the run keeps a copy
    done = ldm(*still, "trainer.max_steps=6")
    assert done.code == 0, done.err
    assert "resuming" in done.err
    done = ldm("export", f"run={tmp_path}/still", f"output={tmp_path}/out")
    assert done.code == 0, done.err
    written = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out").config
    assert (written.scaling_factor, written.shift_factor) == (1, None)  # those of the source mean nothing any more
    figures = ldm("evaluate", f"run={tmp_path}/still", "name=figures")
    assert figures.code == 0, figures.err
    protocol = json.loads((tmp_path / "still" / "evaluation" / "figures.json").read_text())["protocol"]
    assert protocol["first_stage"] == "itself"


def test_a_trained_book_is_not_filled_anew() -> None:
    quantizer = taken_over(make("vq")).bottleneck
    assert isinstance(quantizer, VectorQuantizer)
    book = quantizer.book.clone()
    features = book[:4].T.reshape(1, -1, 2, 2)
    streams = Streams(0, torch.zeros(1, dtype=torch.int64))
    quantizer.observe(quantizer(features), streams, 0)
    quantizer.advance(0)
    torch.testing.assert_close(quantizer.book, book)


@pytest.mark.parametrize(
    "options", [{"max_shard_size": "20KB"}, {"safe_serialization": False}], ids=["sharded", "pickled"]
)
def test_other_kinds_of_weight_files(options: dict[str, Any], pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    save("kl", tmp_path / "kl", **options)
    done = ldm("import", f"source={tmp_path}/kl", f"runs={tmp_path}", "name=run", *data(pictures))
    assert done.code == 0, done.err
    weights = read_artifact(tmp_path / "run").weights
    for name, value in import_weights(make("kl").state_dict()).items():
        assert torch.equal(value, weights[name]), name


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_without_network_the_hub_is_one_line(
    pictures: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = ldm("import", "source=nobody/nothing", f"runs={tmp_path}", *data(pictures))
    refused(result, "nobody/nothing", "network", "subfolder=vae")
    assert not list(tmp_path.iterdir())


def test_an_unreachable_hub_is_asked_once_and_its_cache_read(
    pictures: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    command = ["import", "source=nobody/model", f"runs={tmp_path}/runs", "name=run", *data(pictures)]
    refused(ldm(*command), "nobody/model", "network")
    cached = tmp_path / "hub" / "models--nobody--model"
    save("kl", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    done = ldm(*command)
    assert done.code == 0, done.err
    assert not waited


def test_a_hub_that_refuses_is_quoted(
    pictures: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        done = ldm("import", "source=nobody/model", f"runs={tmp_path}/runs", "name=run", *data(pictures))
        server.shutdown()
    refused(done, "nobody/model", "access", "not a valid model identifier")


def test_without_the_package_the_extra_is_named(
    pictures: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("kl", tmp_path / "kl")
    assert ldm("import", f"source={tmp_path}/kl", f"runs={tmp_path}", "name=run", *data(pictures)).code == 0
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for command in (
        ["import", f"source={tmp_path}/kl", f"runs={tmp_path}", "name=other", *data(pictures)],
        ["reconstruct", f"run={tmp_path}/run"],
    ):
        refused(ldm(*command), "ldm_lightning[diffusers]")


@pytest.mark.slow
def test_nothing_else_is_overwritten(pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    command = ["import", f"runs={tmp_path}", "name=run", *data(pictures)]
    assert ldm(*command, f"source={save('kl', tmp_path / 'kl')}").code == 0
    before = files(tmp_path / "run" / "export")
    model = make("kl")
    model.decoder.conv_out.bias.data += 1
    model.save_pretrained(tmp_path / "other")
    refused(ldm(*command, f"source={tmp_path}/other"), "other weights", "name=")
    refused(ldm(*command, f"source={save('vq', tmp_path / 'vq')}"), "another configuration", "name=")
    refused(ldm(*command, f"source={tmp_path}/kl", "data.validation=0.3"), "data.validation", "name=")
    refused(ldm("export", f"run={tmp_path}/run", f"output={tmp_path}/other"), "something else", "another folder")
    refused(ldm("export", f"run={tmp_path}/run", f"output={pictures}"), "something else")
    refused(ldm("export", f"run={tmp_path}/run", f"output={pictures}/zero/000.png"), "is no folder")
    assert files(tmp_path / "run" / "export") == before
    moved = ldm(*command, f"source={shutil.copytree(tmp_path / 'kl', tmp_path / 'moved')}")
    assert moved.code == 0, moved.err


def test_a_bottleneck_that_diffusers_does_not_have(tmp_path: Path) -> None:
    autoencoder = taken_over(make("vq"))
    autoencoder.bottleneck = Gaussian(3)
    with pytest.raises(ValueError, match="no VQModel with the bottleneck Gaussian"):
        model_of(autoencoder, {})


def test_incomplete_weights_are_not_made_up(pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    file = save("kl", tmp_path / "kl") / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["decoder.conv_out.bias"]
    save_file(weights, file)
    refused(
        ldm("import", f"source={tmp_path}/kl", f"runs={tmp_path}", "name=run", *data(pictures)),
        "incomplete: decoder.conv_out.bias",
    )
    assert not (tmp_path / "run").exists()
