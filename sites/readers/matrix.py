"""Matrices of graphs: .npy, .npz, and tables of numbers (.csv, .tsv, .txt).

An .npz holds one array, or ``edges``: a square matrix, or its upper triangle without the diagonal,
row by row, as :func:`numpy.triu_indices` counts.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from pathlib import Path

import numpy as np

from fedshift import UserError
from fedshift.sites.findings import FileFault
from fedshift.sites.table import text_of

SUFFIXES = (".npy", ".npz")
TABLES = (".csv", ".tsv", ".txt")
"""Tables, which are a matrix only where a cell names them as one."""
EDGES = "edges"
_COMMA = re.compile(r"\d,\d")
_OTHER_MARK = re.compile(r"[;\t] *[-+.\d]|\d +[-+.\d]")
"""Between the numbers of a line."""
ROUNDING = 1e-4
"""How far weights may differ from their mirror image, of the largest."""


def read_matrix(path: Path, data: bytes) -> np.ndarray:
    """The symmetric matrix (N, N) float32 of a graph.

    Raises:
        FileFault: it cannot be read, is not square or not symmetric, or holds no finite numbers.
    """
    array = _array(path, data)
    nodes = (1 + math.isqrt(1 + 8 * array.size)) // 2
    if array.ndim == 1 and array.size and nodes * (nodes - 1) // 2 == array.size:
        upper = np.zeros((nodes, nodes))
        upper[np.triu_indices(nodes, 1)] = array
        array = upper + upper.T
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise FileFault(
            "graph-shape",
            path,
            f"holds an array of the shape {array.shape}, and a graph is a square matrix or its "
            "upper triangle",
            "save the adjacency matrix (an image of another kind as .nii.gz or .png)",
        )
    with np.errstate(over="ignore"):  # What is too large is infinite, which is told.
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise FileFault(
            "not-finite",
            path,
            "holds NaN or infinite values, or too large ones",
            "export it again without them",
        )
    apart = np.abs(array - array.T)
    if apart.max() > ROUNDING * max(float(np.abs(array).max()), 1e-12):
        row, column = np.unravel_index(int(apart.argmax()), apart.shape)
        raise FileFault(
            "graph-asymmetric",
            path,
            f"is not symmetric: {array[row, column]:g} from node {row} to {column}, and "
            f"{array[column, row]:g} back",
            "give an undirected graph, such as the mean of the matrix and its transpose",
        )
    return array


def _array(path: Path, data: bytes) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            found = np.load(io.BytesIO(data), allow_pickle=False)
        elif path.suffix.lower() == ".npz":
            arrays = np.load(io.BytesIO(data), allow_pickle=False)
            names = list(arrays)
            if EDGES not in names and len(names) != 1:
                raise ValueError(f"it holds {', '.join(names) or 'nothing'}, and no {EDGES}")
            found = arrays[EDGES if EDGES in names else names[0]]
        else:
            text = text_of(path, data)
            if _COMMA.search(text) and _OTHER_MARK.search(text):
                raise ValueError("commas may stand between its numbers or within them")
            rows = [line.replace(",", " ").replace(";", " ").split() for line in text.splitlines()]
            found = np.array([[float(cell) for cell in row] for row in rows if row])
            if found.ndim == 2 and 1 in found.shape and found.size > 1:
                found = found.ravel()  # An upper triangle, as a row or as a column.
    except (UserError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FileFault(
            "damaged",
            path,
            f"is no readable matrix of numbers ({error})",
            "save it as .npy, .npz, or as .csv with decimal points",
        ) from None
    if found.dtype.kind not in "fiub":
        raise FileFault(
            "values", path, f"holds {found.dtype} in place of numbers", "save it as numbers"
        )
    return np.asarray(found)
