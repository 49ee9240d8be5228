"""The report of a run folder: figures, one self-contained HTML page, a terminal summary."""

from fedshift.server.report.page import build
from fedshift.server.report.terminal import summary

__all__ = ["build", "summary"]
