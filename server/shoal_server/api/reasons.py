"""Why models come and go, and how short memory is, as the protos name it."""

from __future__ import annotations

from shoal.v1 import model_control_pb2 as pb
from shoal_server.lifecycle import LoadReason, PressureLevel, UnloadReason

# The protos' names are ours with the enum's in front; a test says that none is missing.
LOAD_REASONS = {each: pb.LoadReason.Value(f"LOAD_REASON_{each.name}") for each in LoadReason}
UNLOAD_REASONS = {
    each: pb.UnloadReason.Value(f"UNLOAD_REASON_{each.name}") for each in UnloadReason
}
PRESSURE_LEVELS = {
    each: pb.PressureLevel.Value(f"PRESSURE_LEVEL_{each.name}") for each in PressureLevel
}
