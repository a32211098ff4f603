"""Diffusion: schedule, path, prediction, denoiser, objective, guidance and samplers, independent of any network."""
