"""What a federation is asked to learn: the form of labels and predictions of each task."""

from fedshift.client.tasks.segmentation import Segmentation

__all__ = ["Segmentation"]
