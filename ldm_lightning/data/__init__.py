"""Data: sources of pictures, one transform, one dataset, one order, one DataModule."""
