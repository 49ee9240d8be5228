"""Matrices of graphs: .npy, .npz, and tables of numbers (.csv, .tsv, .txt).

An .npz holds one array, or ``edges``: a square matrix, or its upper triangle without the diagonal,
row by row, as :func:`numpy.triu_indices` counts.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from fedshift.sites.findings import FileFault

SUFFIXES = (".npy", ".npz")
"""Matrices that can also be an image."""
EDGES = "edges"
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
        upper = np.zeros((nodes, nodes), np.float32)
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
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise FileFault(
            "not-finite", path, "holds NaN or infinite values", "export it again without them"
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
            text = data.decode("utf-8-sig")
            rows = [line.replace(",", " ").replace(";", " ").split() for line in text.splitlines()]
            found = np.array([[float(cell) for cell in row] for row in rows if row])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FileFault(
            "damaged",
            path,
            f"is no readable matrix of numbers ({error})",
            "save it as .npy, .npz or .csv",
        ) from None
    if found.dtype.kind not in "fiub":
        raise FileFault(
            "values", path, f"holds {found.dtype} in place of numbers", "save it as numbers"
        )
    return np.asarray(found)
