"""Every option of the server, defined once; `settings_sources` reads and checks them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "SHOAL_"

MIB = 1024 * 1024
UNSET = "unset"

Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")]
Port = Annotated[int, Field(ge=0, le=65535)]
# What messages can say: GetServerInfo tells these.
_MOST = 2**31 - 1
_MOST_BYTES = 2**63 - 1
Count = Annotated[int, Field(le=_MOST)]


def _split(value: object) -> object:
    """Lists come as one string from the environment and the command line."""
    if not isinstance(value, str):
        return value
    return () if value.strip() == "none" else tuple(part.strip() for part in value.split(","))


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
CallerNames = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^.+=[^=]+$")], ...],
    NoDecode,
    BeforeValidator(_split),
]
_PER_MIN = r"(-|[1-9][0-9]{0,9})"
CallerLimits = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=rf"^.+={_PER_MIN}/{_PER_MIN}$")], ...],
    NoDecode,
    BeforeValidator(_split),
]


def _option(default: Any, group: str, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


class Settings(BaseSettings):
    """Effective settings, checked. Units are in the names."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load_settings` merges, so that it knows the origins."""
        return (init_settings,)

    # -- preset --------------------------------------------------------------
    preset: Literal["none", "throughput", "latency", "low-memory"] = _option(
        "none", "Preset", "Sets the settings listed under Presets, except those that are set "
        "themselves, by whatever source."
    )  # fmt: skip

    # -- network -------------------------------------------------------------
    grpc_host: str = _option("127.0.0.1", "Network", "Address that gRPC listens on.")
    grpc_port: Port = _option(50051, "Network", "Port of gRPC; 0 takes a free one.")
    http_host: str = _option("127.0.0.1", "Network", "Address of /metrics, /livez, /readyz.")
    http_port: Port = _option(8080, "Network", "Port of HTTP; 0 takes a free one.")
    tls_cert_file: Path | None = _option(
        None, "Network", "PEM certificate chain; turns TLS on, together with the key."
    )
    tls_key_file: Path | None = _option(None, "Network", "PEM private key of the certificate.")
    tls_client_ca_file: Path | None = _option(
        None, "Network", "PEM roots; when set, clients must show a certificate signed by one."
    )
    keepalive_s: float = _option(
        60.0, "Network", "Silence after which the server pings a connection.", ge=1
    )
    keepalive_timeout_s: float = _option(
        20.0, "Network", "Time a ping may stay unanswered before the connection is closed.", gt=0
    )
    max_connection_age_s: float | None = _option(
        None, "Network", "Age at which a connection is asked to reconnect, so that load "
        "balancers can rebalance; unset: never.", gt=0
    )  # fmt: skip
    max_connection_age_grace_s: float = _option(
        60.0, "Network", "Time that RPCs get to finish on a connection that is too old.", gt=0
    )
    drain_s: float = _option(
        30.0, "Network", "Time that requests in flight get to finish at shutdown.", ge=0
    )

    # -- models --------------------------------------------------------------
    model_dir: Path | None = _option(
        None, "Models", "Model repository; unset: ./models where there is one, else the folder "
        "for the user's data."
    )  # fmt: skip
    state_file: Path | None = _option(
        None, "Models", "Where aliases, pins, tags, deprecations and what was counted are kept "
        "over restarts; unset: .shoal.db in the model repository."
    )  # fmt: skip
    default_model: str = _option(
        "all-minilm-l6-v2", "Models", "Model of a request that names none."
    )
    preload: Names = _option(
        ("",), "Models", "Models to load at start, comma-separated; an empty name is the default "
        "model; `none` loads nothing."
    )  # fmt: skip
    restore_models: bool = _option(
        True, "Models", "Load at start what was in memory when the server ended, the most used "
        "first, after it is ready, and as long as there is free memory."
    )  # fmt: skip
    device: Device = _option(
        "auto", "Models", "Device of models that name none: auto, cpu, cuda, cuda:N."
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = _option(
        "auto", "Models", "Precision of models that ask for none: that variant where a model has "
        "it, else the graph that was prepared; auto: fp16 on a GPU, else fp32."
    )  # fmt: skip
    verify_files: bool = _option(
        True, "Models", "Compare the SHA-256 of a model's files with its manifest at a load."
    )
    trust_file_times: bool = _option(
        True, "Models", "Do not read a file again at a load that was checked before, and whose "
        "inode, size and times say that nobody has written to it since; off: read and check "
        "every file at every load, packed graphs too."
    )  # fmt: skip

    packed_cache_dir: Path | None = _option(
        None,
        "Models",
        "Where graphs are kept packed for this CPU, so that they load faster and sessions share "
        "memory; unset: .packed in the model repository.",
    )
    packed_cache_bytes: int = _option(
        20 * 1024 * MIB,
        "Models",
        "Size of that cache; the least recently used entries go; 0 does without it.",
        ge=0,
    )

    # -- threads -------------------------------------------------------------
    cpu_slots: int = _option(
        0, "Threads", "Runs on the CPU at once; 0: the CPUs that the cgroup's quota and the "
        "affinity mask allow, divided by the threads of a run.", ge=0
    )  # fmt: skip
    intra_op_threads: int = _option(1, "Threads", "Threads of one run on the CPU.", ge=1)
    cuda_slots: int = _option(2, "Threads", "Runs on one GPU at once.", ge=1)
    load_threads: int = _option(2, "Threads", "Models loaded or closed at once.", ge=1)
    tokenize_threads: int = _option(
        0, "Threads", "Threads for requests too large to tokenize on the event loop; 0: as many "
        "as CPUs.", ge=0
    )  # fmt: skip
    inline_tokenize_bytes: int = _option(
        4096, "Threads", "Requests up to this size are tokenized on the event loop.", ge=0
    )

    # -- CUDA ----------------------------------------------------------------
    cuda_memory_limit_bytes: int | None = _option(
        None, "CUDA", "Arena limit of one session on a GPU; unset: ONNX Runtime's (all).", ge=1
    )
    cuda_arena_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"] = _option(
        "kSameAsRequested", "CUDA", "How a GPU arena grows."
    )
    cuda_cudnn_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"] = _option(
        "HEURISTIC", "CUDA", "How cuDNN picks convolution algorithms."
    )
    cuda_tf32: bool = _option(
        False, "CUDA", "Let matrix products of float32 round their inputs to TF32."
    )
    cuda_cudnn_attention: bool = _option(
        False, "CUDA", "Let fp16 use cuDNN's attention on Hopper and later: faster for long texts, "
        "but the first batches of each shape wait for its planning."
    )  # fmt: skip

    # -- batching ------------------------------------------------------------
    max_wait_ms: float = _option(
        5.0, "Batching", "Window: the longest the oldest item waits for batch mates while a slot "
        "is free.", ge=0, le=10_000
    )  # fmt: skip
    max_batch_items: Count = _option(32, "Batching", "Items in one batch on the CPU.", ge=1)
    max_batch_tokens: Count = _option(
        8192, "Batching", "Tokens in one batch on the CPU, padding included; an item that is "
        "longer runs alone.", ge=1
    )  # fmt: skip
    cuda_max_batch_items: Count = _option(128, "Batching", "Items in one batch on a GPU.", ge=1)
    cuda_max_batch_tokens: Count = _option(
        16_384, "Batching", "Tokens in one batch on a GPU, padding included.", ge=1
    )
    max_padding_waste: float = _option(
        0.1,
        "Batching",
        "Share of a batch's tokens that may be padding, where padding is computed.",
        ge=0,
        lt=1,
    )
    priority_head_start_ms: float = _option(
        500.0, "Batching", "How much earlier an item of high priority counts as arrived, and how "
        "much later one of low priority.", ge=0
    )  # fmt: skip

    # -- limits --------------------------------------------------------------
    max_texts_per_request: Count = _option(2048, "Limits", "Texts in one request.", ge=1)
    max_text_bytes: Count = _option(1 * MIB, "Limits", "UTF-8 bytes of one text.", ge=1)
    max_request_bytes: Count = _option(16 * MIB, "Limits", "Bytes of one request.", ge=1)
    max_message_bytes: Count = _option(
        64 * MIB, "Limits", "Bytes of one gRPC message, either way; gRPC itself refuses larger "
        "ones with RESOURCE_EXHAUSTED.", ge=1024
    )  # fmt: skip
    max_waiting_items: Count = _option(
        20_000, "Limits", "Items admitted and not yet answered, over all models.", ge=1
    )
    max_waiting_items_per_model: Count = _option(
        20_000, "Limits", "Items admitted and not yet answered, for one model.", ge=1
    )
    max_queue_s: float = _option(
        30.0, "Limits", "A request that would wait longer before it runs, as far as can be told, "
        "is refused with RESOURCE_EXHAUSTED; one of high priority never.", gt=0
    )  # fmt: skip
    max_inflight_bytes: int = _option(
        256 * MIB,
        "Limits",
        "Bytes of requests admitted and not yet answered.",
        ge=1,
        le=_MOST_BYTES,
    )
    max_concurrent_streams: int = _option(1000, "Limits", "RPCs at once on one connection.", ge=1)
    max_concurrent_rpcs: int = _option(
        10_000,
        "Limits",
        "RPCs at once over all connections; gRPC itself refuses more with RESOURCE_EXHAUSTED.",
        ge=1,
    )
    max_stream_requests: Count = _option(
        32, "Limits", "Requests in flight on one EmbedStream.", ge=1
    )

    # -- usage ---------------------------------------------------------------
    callers_by: Literal["key", "peer"] = _option(
        "key", "Usage", "What tells callers apart, for usage and rate limits. key: the API key "
        "in `authorization: Bearer …`, which the server does not check, else the peer; peer: the "
        "host that the connection comes from."
    )  # fmt: skip
    caller_names: CallerNames = _option(
        (), "Usage", "Names for callers, comma-separated, as CALLER=NAME; CALLER as the "
        "statistics show it: key:… or a host."
    )  # fmt: skip
    max_callers: int = _option(
        1000, "Usage", "Callers with statistics of their own; later ones are counted together, "
        "as (others).", ge=1
    )  # fmt: skip
    rate_limit_requests_per_min: int | None = _option(
        None, "Usage", "Requests a minute of one caller; above it they are refused with "
        "RESOURCE_EXHAUSTED and RetryInfo; unset: no limit.", ge=1, le=_MOST
    )  # fmt: skip
    rate_limit_tokens_per_min: int | None = _option(
        None, "Usage", "Tokens a minute of one caller; unset: no limit.", ge=1, le=_MOST
    )
    rate_limit_overrides: CallerLimits = _option(
        (), "Usage", "Limits of single callers, comma-separated, as CALLER=REQUESTS/TOKENS a "
        "minute; - for no limit; CALLER by its name where it has one."
    )  # fmt: skip
    statistics_window_s: float = _option(
        60.0, "Usage", "How far back the recent statistics reach.", ge=1, le=86_400
    )
    statistics_write_s: float = _option(
        30.0, "Usage", "How often totals, usage and patterns of use are written to disk, and how "
        "much of them a server loses at most that is killed.", ge=0.1, le=86_400
    )  # fmt: skip

    # -- memory --------------------------------------------------------------
    max_resident_models: int | None = _option(
        None, "Memory", "Models in memory on the CPU; unset: no limit.", ge=1, le=_MOST
    )
    memory_budget_bytes: int | None = _option(
        None, "Memory", "Bytes that models may take on the CPU; unset: 80% of the memory that the "
        "cgroup, or the machine, allows.", ge=1, le=_MOST_BYTES
    )  # fmt: skip
    cuda_max_resident_models: int | None = _option(
        None, "Memory", "Models in memory on each GPU; unset: no limit.", ge=1, le=_MOST
    )
    cuda_memory_budget_bytes: int | None = _option(
        None,
        "Memory",
        "Bytes that models may take on each GPU; unset: 80% of its memory.",
        ge=1,
        le=_MOST_BYTES,
    )
    eviction_wait_s: float = _option(
        10.0, "Memory", "The longest a request waits for room when every resident model is in "
        "use.", ge=0
    )  # fmt: skip
    ram_idle_s: float = _option(
        1800.0, "Memory", "A model on the CPU, or warm in RAM, that nobody used for so long "
        "leaves memory; 0: never. A model's own `ram_idle_s` and a request's `keep_alive_s` come "
        "before it.", ge=0
    )  # fmt: skip
    gpu_idle_s: float = _option(
        600.0, "Memory", "A model on a GPU that nobody used for so long leaves it and stays warm "
        "in RAM until `ram_idle_s`; 0: never. Its own time-out is `gpu_idle_s`.", ge=0
    )  # fmt: skip
    adaptive_idle: bool = _option(
        False, "Memory", "Let these time-outs follow how often a model is asked for, within a "
        "quarter and four times of them."
    )  # fmt: skip
    pressure_interval_s: float = _option(
        1.0, "Memory", "How often the memory of the machine, the cgroup and the GPUs is looked at; "
        "0: never.", ge=0
    )  # fmt: skip
    pressure_threshold: float = _option(
        0.8, "Memory", "Share of a device's memory in use above which models that nobody uses are "
        "released, the least recently used first.", gt=0, lt=1
    )  # fmt: skip
    pressure_lower_threshold: float = _option(
        0.7, "Memory", "Share below which that ends; where tasks stall for memory, it begins there "
        "too.", gt=0, lt=1
    )  # fmt: skip
    pressure_critical_threshold: float = _option(
        0.95, "Memory", "Share above which, at once, no model is loaded either.", gt=0, le=1
    )
    pressure_hold_s: float = _option(
        10.0, "Memory", "How long use must stay above the threshold before models go, and how long "
        "a model must have been unused to go for that.", ge=0
    )  # fmt: skip
    preload_ahead: bool = _option(
        False, "Memory", "Load models before they are asked for that were usually wanted at this "
        "hour of the week, when nothing goes on and into free memory only."
    )  # fmt: skip
    preload_horizon_s: float = _option(
        900.0, "Memory", "How far ahead, and for how long such a model waits for its first request "
        "before it may be released for being idle.", ge=60, le=14_400
    )  # fmt: skip
    preload_threshold: float = _option(
        0.5, "Memory", "Least probability that a model is asked for within that time.", gt=0, lt=1
    )
    preload_max_models: int = _option(
        2, "Memory", "Models loaded ahead that nobody has asked for yet, at once.", ge=1
    )
    load_backoff_s: float = _option(
        5.0, "Memory", "How long a failed load is remembered; doubles with each failure.", gt=0
    )
    load_backoff_max_s: float = _option(
        300.0, "Memory", "The longest a failed load is remembered.", gt=0
    )

    # -- events --------------------------------------------------------------
    event_history: int = _option(
        10_000, "Events", "Events that are kept for those who watch, to look back or to go on "
        "after a break; about 500 bytes each.", ge=1, le=1_000_000
    )  # fmt: skip

    # -- profiles ------------------------------------------------------------
    profile_max_share: float = _option(
        0.2, "Profiles", "Share of one slot's time that profiling a model takes at most, also "
        "where a caller asks for more; after each run it rests.", gt=0, le=1
    )  # fmt: skip
    profile_max_s: float = _option(
        300.0, "Profiles", "The longest that profiling a model takes; what was not measured by "
        "then is left out.", gt=0
    )  # fmt: skip

    # -- upkeep --------------------------------------------------------------
    verify_interval_s: float = _option(
        0.0, "Upkeep", "Seconds between two verifications of a model in memory, in idle moments; "
        "0: only when somebody asks.", ge=0
    )  # fmt: skip
    verify_drop_threshold: float = _option(
        0.001, "Upkeep", "How far the least cosine to the vectors that are kept with a model may "
        "be below what it was when the model was prepared.", ge=0, le=2
    )  # fmt: skip
    auto_update: Literal["off", "repository", "hub"] = _option(
        "off", "Upkeep", "Let the bare names of models in memory go over to newer versions that "
        "are found to be good: of the repository, or also of the hub, where newer revisions are "
        "then prepared."
    )  # fmt: skip
    auto_update_interval_s: float = _option(
        3600.0, "Upkeep", "Seconds between two looks for newer versions.", gt=0
    )  # fmt: skip
    update_timeout_s: float = _option(
        3600.0, "Upkeep", "The longest that preparing a newer version takes.", gt=0
    )  # fmt: skip

    # -- logs ----------------------------------------------------------------
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "info", "Logs", "Least level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = _option(
        "auto", "Logs", "auto: for people on a terminal, JSON elsewhere."
    )
    log_requests: bool = _option(
        False, "Logs", "Log every request, not only the failed and the slow ones."
    )
    slow_request_ms: float = _option(
        1000.0, "Logs", "Requests that take longer are logged as slow.", gt=0
    )


def show(value: object) -> str:
    """A setting's value in words."""
    if value is None:
        return UNSET
    if isinstance(value, tuple):
        return (",".join(map(str, value)) or '""') if value else "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
