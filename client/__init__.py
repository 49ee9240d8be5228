"""What a site runs: the worker that guards its images, the methods, the networks, the metrics."""
