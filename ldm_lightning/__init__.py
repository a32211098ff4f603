"""ldm_lightning: an experiment framework for latent diffusion."""

__version__ = "0.1.0"
