"""What to try next in a federation, from what a run measured."""
