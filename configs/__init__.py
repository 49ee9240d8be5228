"""The Hydra tree: one folder a group, ``config.yaml`` at the root."""
