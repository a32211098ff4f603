"""Latents: posterior, autoencoder, reconstruction losses, standardization and the frozen first stage."""
