"""From what a model can do to ModelInfo."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.v1 import capabilities_pb2 as pb
from shoal.v1 import model_control_pb2
from shoal_server.catalog import ModelDescription
from shoal_server.registry.capabilities import Graph, InputType

# The protos' names are ours with the enum's in front.
INPUT_TYPES: Mapping[InputType, pb.InputType.ValueType] = {
    each: pb.InputType.Value(f"INPUT_TYPE_{each.name}") for each in InputType
}


def write_capabilities(info: model_control_pb2.ModelInfo, model: ModelDescription) -> None:
    """Add to a model's message what its files say that it can do."""
    capabilities = model.capabilities
    if capabilities is None:
        return
    info.languages.extend(capabilities.languages)
    info.input_types.extend(sorted(INPUT_TYPES[each] for each in capabilities.input_types))
    info.devices.extend(model.devices)
    served = model.chosen.precision if model.chosen else ""
    for graph, devices in model.graphs:
        info.variants.append(_write_graph(graph, devices, served))


def _write_graph(graph: Graph, devices: tuple[str, ...], served: str) -> pb.PrecisionVariant:
    message = pb.PrecisionVariant(
        precision=graph.precision,
        file_bytes=graph.file_bytes,
        prepared=graph.cosine is None,
        served=graph.precision == served,
        devices=devices,
    )
    if graph.cosine is not None:
        message.mean_cosine = graph.cosine.mean
        message.least_cosine = graph.cosine.least
    return message
