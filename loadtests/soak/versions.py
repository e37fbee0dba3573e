"""A repository of real graphs, each of which says by its vectors which version it is.

A version has the weights of the model that was prepared, but for the gain of its last
LayerNorm: there the signs of half of the dimensions are turned, each time of others. So
versions share 90 MB on the disk, cost as much to load and to run as the model does, and no
vector of one can be taken for another's. What each must answer is computed here, by ONNX
Runtime alone, one text at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import tomli_w
from onnx import numpy_helper

from loadtests.bare import BareModel, Float32

_GRAPH_FILE, _VERSION_FILE = "model.onnx", "version.toml"
_KEPT_FILE = "reference.npz"
DEFAULT_MODEL = "north"
VERSIONS: Mapping[str, Sequence[str]] = {
    "north": ("1", "2", "3"),
    "south": ("1", "2"),
    "east": ("1",),
}
# Two versions must be told apart for certain, and one must be recognised for certain.
_UNLIKE_COSINE = 0.9


def keys() -> list[str]:
    """Every version, as `name@version`."""
    return [f"{name}@{version}" for name, versions in VERSIONS.items() for version in versions]


def make_repository(source: Path, root: Path, texts: Sequence[str]) -> None:
    """Make the versions out of one that is prepared.

    Args:
        source: The folder of a prepared version.
        root: The repository.
        texts: Of which each version keeps its vectors, to be verified by.
    """
    for number, key in enumerate(keys()):
        name, version = key.split("@")
        folder = root / name / version
        folder.mkdir(parents=True)
        manifest = tomllib.loads((source / _VERSION_FILE).read_text(encoding="utf-8"))
        graph = _turned(source / _GRAPH_FILE, seed=number)
        (folder / _GRAPH_FILE).write_bytes(graph)
        for path in manifest["files"]:
            if path not in (_GRAPH_FILE, _KEPT_FILE):
                _link(source / path, folder / path)
        manifest["files"][_GRAPH_FILE] = hashlib.sha256(graph).hexdigest()
        manifest.pop("reference", None)  # to which it is not close
        (folder / _VERSION_FILE).write_text(tomli_w.dumps(manifest), encoding="utf-8")
        manifest["files"][_KEPT_FILE] = _keep_vectors(folder, texts)
        (folder / _VERSION_FILE).write_text(tomli_w.dumps(manifest), encoding="utf-8")


def read_vectors(root: Path, texts: Sequence[str]) -> dict[str, Float32]:
    """Vectors of unit length by version, float32[texts, D], each text run alone.

    Raises:
        AssertionError: Two versions give vectors too much alike to be told apart.
    """
    vectors = {}
    for key in keys():
        rows = BareModel(root / key.replace("@", "/")).vectors(texts)
        vectors[key] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    for one, other in combinations(vectors, 2):
        alike = float((vectors[one] * vectors[other]).sum(axis=1).max())
        assert alike < _UNLIKE_COSINE, f"{one} and {other} can not be told apart: {alike:.3f}"
    return vectors


def _keep_vectors(folder: Path, texts: Sequence[str]) -> str:
    """Write what ONNX Runtime alone gives, as `shoal models pull` does; the file's SHA-256."""
    path, vectors = folder / _KEPT_FILE, BareModel(folder).vectors(texts)
    about = json.dumps({"runtime": "ONNX Runtime alone", "texts": list(texts)})
    np.savez(path, about=np.frombuffer(about.encode(), np.uint8), vectors=vectors)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _turned(graph: Path, seed: int) -> bytes:
    """The graph with signs of its last LayerNorm's gain turned; of seed 0: as it is."""
    model = onnx.load(graph, load_external_data=False)
    if seed == 0:
        return model.SerializeToString()
    last = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    gain = next(each for each in model.graph.initializer if each.name == last.input[1])
    values = _values(gain, graph.parent)
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), values.shape)
    gain.CopyFrom(numpy_helper.from_array(values * signs, gain.name))
    return model.SerializeToString()


def _values(tensor: onnx.TensorProto, folder: Path) -> Float32:
    """Of a tensor that may lie beside its graph, in a file that onnx would not read: a link."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    size, at = int(where["length"]), int(where["offset"])
    values: Float32 = np.fromfile(folder / where["location"], "<f4", size // 4, offset=at)
    return values.reshape(tuple(tensor.dims))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
