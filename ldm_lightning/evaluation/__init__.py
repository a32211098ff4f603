"""Figures of trained models, each with its protocol."""
