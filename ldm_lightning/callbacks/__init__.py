"""Callbacks: averages, pictures, distances, checkpoints, exports and orderly stops during training."""
