"""Where the numbers, pictures and folders of a run go: a CSV file always, wandb and TensorBoard on request."""
