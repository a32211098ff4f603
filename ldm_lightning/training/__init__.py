"""The two LightningModules, one a stage, and their optimizers."""
