"""ldm_lightning: an experiment framework for latent diffusion.

From Python, five lines from a run folder to pictures::

    import ldm_lightning as ldm

    model = ldm.load("runs/mnist5k-latent_diffusion")
    samples = model.sample(16, classes=[0, 1], seed=1, scale=2.0)
    samples.grid(columns=8).save("zeros_and_ones.png")

and training with the objects of the command line::

    config = ldm.compose("train", ["experiment=mnist5k_first_stage", "name=mine"])
    config.trainer.max_steps = 500
    model = ldm.load(ldm.fit(config))
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# By name, where it is defined: imported when asked for, since the command line's first answers need no torch.
_API = {
    "Reconstructions": "experiment.results",
    "Samples": "experiment.results",
    "TrainedFirstStage": "experiment.load",
    "TrainedLatentDiffusion": "experiment.load",
    "UserError": "errors",
    "compose": "experiment.compose",
    "evaluate": "experiment.evaluate",
    "fit": "experiment.train",
    "load": "experiment.load",
}

__all__ = [  # found by __getattr__
    "Reconstructions",
    "Samples",
    "TrainedFirstStage",
    "TrainedLatentDiffusion",
    "UserError",
    "__version__",
    "compose",
    "evaluate",
    "fit",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_API[name]}"), name)
