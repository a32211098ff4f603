"""The wheel works outside any checkout, configuration included."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation of the wheel beside the environment's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "ldm_lightning", *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_wheel_holds_the_configuration_and_no_tests(site: Path) -> None:
    shipped = {
        path.relative_to(site / "ldm_lightning" / "conf") for path in (site / "ldm_lightning" / "conf").rglob("*.yaml")
    }
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert (site / "ldm_lightning" / "py.typed").is_file()
    assert not (site / "tests").exists()


@pytest.mark.slow
def test_the_wheel_trains_outside_a_checkout(site: Path, tmp_path: Path) -> None:
    where = "import ldm_lightning, ldm_lightning.experiment.compose as h; print(ldm_lightning.__file__, h.conf_dir())"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    shown = subprocess.run(
        [sys.executable, "-P", "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(site)) for path in shown.stdout.split())
    small = ["debug=fast", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.devices=1", "name=outside"]
    done = run(site, tmp_path, "train", "experiment=mnist5k_first_stage", *small, "statistics_pictures=64")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "outside" / "export" / "manifest.json").is_file()


def test_versions_and_usage(site: Path, tmp_path: Path) -> None:
    assert run(site, tmp_path, "--version").stdout.strip() == "0.1.0"
    assert run(site, tmp_path).returncode == 2
    assert "train" in run(site, tmp_path, "--help").stdout
