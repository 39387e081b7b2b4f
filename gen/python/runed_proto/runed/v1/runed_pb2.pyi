from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Lane(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LANE_UNSPECIFIED: _ClassVar[Lane]
    LANE_INTERACTIVE: _ClassVar[Lane]
    LANE_BULK: _ClassVar[Lane]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_QUERY: _ClassVar[Role]
    ROLE_DOCUMENT: _ClassVar[Role]

class Truncate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATE_UNSPECIFIED: _ClassVar[Truncate]
    TRUNCATE_NONE: _ClassVar[Truncate]
    TRUNCATE_END: _ClassVar[Truncate]
    TRUNCATE_START: _ClassVar[Truncate]
LANE_UNSPECIFIED: Lane
LANE_INTERACTIVE: Lane
LANE_BULK: Lane
ROLE_UNSPECIFIED: Role
ROLE_QUERY: Role
ROLE_DOCUMENT: Role
TRUNCATE_UNSPECIFIED: Truncate
TRUNCATE_NONE: Truncate
TRUNCATE_END: Truncate
TRUNCATE_START: Truncate

class EmbedRequest(_message.Message):
    __slots__ = ("text", "with_route", "lane", "role", "instruction", "dimensions", "truncate", "model")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WITH_ROUTE_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    text: str
    with_route: bool
    lane: Lane
    role: Role
    instruction: str
    dimensions: int
    truncate: Truncate
    model: str
    def __init__(self, text: _Optional[str] = ..., with_route: bool = ..., lane: _Optional[_Union[Lane, str]] = ..., role: _Optional[_Union[Role, str]] = ..., instruction: _Optional[str] = ..., dimensions: _Optional[int] = ..., truncate: _Optional[_Union[Truncate, str]] = ..., model: _Optional[str] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("vector", "cluster_id", "centroid_set_version", "token_count", "total_token_count", "truncated", "fingerprint", "prompt", "cached", "error", "model")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CENTROID_SET_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    vector: _containers.RepeatedScalarFieldContainer[float]
    cluster_id: int
    centroid_set_version: str
    token_count: int
    total_token_count: int
    truncated: bool
    fingerprint: str
    prompt: str
    cached: bool
    error: ItemError
    model: str
    def __init__(self, vector: _Optional[_Iterable[float]] = ..., cluster_id: _Optional[int] = ..., centroid_set_version: _Optional[str] = ..., token_count: _Optional[int] = ..., total_token_count: _Optional[int] = ..., truncated: bool = ..., fingerprint: _Optional[str] = ..., prompt: _Optional[str] = ..., cached: bool = ..., error: _Optional[_Union[ItemError, _Mapping]] = ..., model: _Optional[str] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("reason", "message", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class EmbedBatchRequest(_message.Message):
    __slots__ = ("texts", "with_route", "lane", "role", "instruction", "dimensions", "truncate", "per_item_errors", "model")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    WITH_ROUTE_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    PER_ITEM_ERRORS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    with_route: bool
    lane: Lane
    role: Role
    instruction: str
    dimensions: int
    truncate: Truncate
    per_item_errors: bool
    model: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., with_route: bool = ..., lane: _Optional[_Union[Lane, str]] = ..., role: _Optional[_Union[Role, str]] = ..., instruction: _Optional[str] = ..., dimensions: _Optional[int] = ..., truncate: _Optional[_Union[Truncate, str]] = ..., per_item_errors: bool = ..., model: _Optional[str] = ...) -> None: ...

class EmbedBatchResponse(_message.Message):
    __slots__ = ("embeddings", "fingerprint", "prompt", "model")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[EmbedResponse]
    fingerprint: str
    prompt: str
    model: str
    def __init__(self, embeddings: _Optional[_Iterable[_Union[EmbedResponse, _Mapping]]] = ..., fingerprint: _Optional[str] = ..., prompt: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("items", "lane", "role", "instruction", "dimensions", "truncate", "model")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[EmbedStreamItem]
    lane: Lane
    role: Role
    instruction: str
    dimensions: int
    truncate: Truncate
    model: str
    def __init__(self, items: _Optional[_Iterable[_Union[EmbedStreamItem, _Mapping]]] = ..., lane: _Optional[_Union[Lane, str]] = ..., role: _Optional[_Union[Role, str]] = ..., instruction: _Optional[str] = ..., dimensions: _Optional[int] = ..., truncate: _Optional[_Union[Truncate, str]] = ..., model: _Optional[str] = ...) -> None: ...

class EmbedStreamItem(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class EmbedStreamResponse(_message.Message):
    __slots__ = ("results", "fingerprint", "prompt", "model")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[EmbedStreamResult]
    fingerprint: str
    prompt: str
    model: str
    def __init__(self, results: _Optional[_Iterable[_Union[EmbedStreamResult, _Mapping]]] = ..., fingerprint: _Optional[str] = ..., prompt: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class EmbedStreamResult(_message.Message):
    __slots__ = ("id", "embedding")
    ID_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    id: str
    embedding: EmbedResponse
    def __init__(self, id: _Optional[str] = ..., embedding: _Optional[_Union[EmbedResponse, _Mapping]] = ...) -> None: ...

class CountTokensRequest(_message.Message):
    __slots__ = ("texts", "role", "instruction", "model")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    role: Role
    instruction: str
    model: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., role: _Optional[_Union[Role, str]] = ..., instruction: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class CountTokensResponse(_message.Message):
    __slots__ = ("token_counts", "max_text_length", "model")
    TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    token_counts: _containers.RepeatedScalarFieldContainer[int]
    max_text_length: int
    model: str
    def __init__(self, token_counts: _Optional[_Iterable[int]] = ..., max_text_length: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("query", "documents", "top_n", "return_documents", "lane", "truncate", "model")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    RETURN_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    query: str
    documents: _containers.RepeatedScalarFieldContainer[str]
    top_n: int
    return_documents: bool
    lane: Lane
    truncate: Truncate
    model: str
    def __init__(self, query: _Optional[str] = ..., documents: _Optional[_Iterable[str]] = ..., top_n: _Optional[int] = ..., return_documents: bool = ..., lane: _Optional[_Union[Lane, str]] = ..., truncate: _Optional[_Union[Truncate, str]] = ..., model: _Optional[str] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("results", "token_count", "fingerprint", "model")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RerankResult]
    token_count: int
    fingerprint: str
    model: str
    def __init__(self, results: _Optional[_Iterable[_Union[RerankResult, _Mapping]]] = ..., token_count: _Optional[int] = ..., fingerprint: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class RerankResult(_message.Message):
    __slots__ = ("index", "score", "document", "token_count", "total_token_count", "truncated", "cached")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    index: int
    score: float
    document: str
    token_count: int
    total_token_count: int
    truncated: bool
    cached: bool
    def __init__(self, index: _Optional[int] = ..., score: _Optional[float] = ..., document: _Optional[str] = ..., token_count: _Optional[int] = ..., total_token_count: _Optional[int] = ..., truncated: bool = ..., cached: bool = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "default_model", "default_rerank_model", "memory_limit", "memory_bytes", "max_loaded_models")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODEL_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_RERANK_MODEL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LOADED_MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    default_model: str
    default_rerank_model: str
    memory_limit: int
    memory_bytes: int
    max_loaded_models: int
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., default_model: _Optional[str] = ..., default_rerank_model: _Optional[str] = ..., memory_limit: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., max_loaded_models: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "family", "variants", "aliases", "kind", "licence", "size_bytes", "installed", "loaded", "memory_bytes", "last_used_at", "keep_alive_seconds", "vector_dim", "min_dimensions", "max_text_length", "context_length", "pooling", "query_prompt", "document_prompt", "default_instruction", "fingerprint", "model_identity")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Model.Kind]
        KIND_EMBEDDING: _ClassVar[Model.Kind]
        KIND_RERANK: _ClassVar[Model.Kind]
    KIND_UNSPECIFIED: Model.Kind
    KIND_EMBEDDING: Model.Kind
    KIND_RERANK: Model.Kind
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    INSTALLED_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_DIM_FIELD_NUMBER: _ClassVar[int]
    MIN_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    QUERY_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    variants: _containers.RepeatedScalarFieldContainer[str]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    kind: Model.Kind
    licence: str
    size_bytes: int
    installed: bool
    loaded: bool
    memory_bytes: int
    last_used_at: int
    keep_alive_seconds: float
    vector_dim: int
    min_dimensions: int
    max_text_length: int
    context_length: int
    pooling: str
    query_prompt: str
    document_prompt: str
    default_instruction: str
    fingerprint: str
    model_identity: str
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., variants: _Optional[_Iterable[str]] = ..., aliases: _Optional[_Iterable[str]] = ..., kind: _Optional[_Union[Model.Kind, str]] = ..., licence: _Optional[str] = ..., size_bytes: _Optional[int] = ..., installed: bool = ..., loaded: bool = ..., memory_bytes: _Optional[int] = ..., last_used_at: _Optional[int] = ..., keep_alive_seconds: _Optional[float] = ..., vector_dim: _Optional[int] = ..., min_dimensions: _Optional[int] = ..., max_text_length: _Optional[int] = ..., context_length: _Optional[int] = ..., pooling: _Optional[str] = ..., query_prompt: _Optional[str] = ..., document_prompt: _Optional[str] = ..., default_instruction: _Optional[str] = ..., fingerprint: _Optional[str] = ..., model_identity: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("daemon_version", "model_identity", "vector_dim", "max_text_length", "max_batch_size", "centroid_set_version", "model_name", "model_variant", "pooling", "engine_version", "max_request_bytes", "socket_path", "fingerprint", "min_dimensions", "query_prompt", "document_prompt", "default_instruction", "profile", "max_queued_texts", "max_queued_bytes", "restrictions", "accelerator", "device", "device_tuned_at", "company_cosine", "tuned_at", "model", "settings", "prompts_unknown")
    DAEMON_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    VECTOR_DIM_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    CENTROID_SET_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VARIANT_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOCKET_PATH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MIN_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    QUERY_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_TEXTS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESTRICTIONS_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TUNED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPANY_COSINE_FIELD_NUMBER: _ClassVar[int]
    TUNED_AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    daemon_version: str
    model_identity: str
    vector_dim: int
    max_text_length: int
    max_batch_size: int
    centroid_set_version: str
    model_name: str
    model_variant: str
    pooling: str
    engine_version: str
    max_request_bytes: int
    socket_path: str
    fingerprint: str
    min_dimensions: int
    query_prompt: str
    document_prompt: str
    default_instruction: str
    profile: str
    max_queued_texts: int
    max_queued_bytes: int
    restrictions: _containers.RepeatedScalarFieldContainer[str]
    accelerator: str
    device: str
    device_tuned_at: str
    company_cosine: float
    tuned_at: str
    model: str
    settings: _containers.RepeatedCompositeFieldContainer[SettingInForce]
    prompts_unknown: bool
    def __init__(self, daemon_version: _Optional[str] = ..., model_identity: _Optional[str] = ..., vector_dim: _Optional[int] = ..., max_text_length: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., centroid_set_version: _Optional[str] = ..., model_name: _Optional[str] = ..., model_variant: _Optional[str] = ..., pooling: _Optional[str] = ..., engine_version: _Optional[str] = ..., max_request_bytes: _Optional[int] = ..., socket_path: _Optional[str] = ..., fingerprint: _Optional[str] = ..., min_dimensions: _Optional[int] = ..., query_prompt: _Optional[str] = ..., document_prompt: _Optional[str] = ..., default_instruction: _Optional[str] = ..., profile: _Optional[str] = ..., max_queued_texts: _Optional[int] = ..., max_queued_bytes: _Optional[int] = ..., restrictions: _Optional[_Iterable[str]] = ..., accelerator: _Optional[str] = ..., device: _Optional[str] = ..., device_tuned_at: _Optional[str] = ..., company_cosine: _Optional[float] = ..., tuned_at: _Optional[str] = ..., model: _Optional[str] = ..., settings: _Optional[_Iterable[_Union[SettingInForce, _Mapping]]] = ..., prompts_unknown: bool = ...) -> None: ...

class SettingInForce(_message.Message):
    __slots__ = ("name", "variable", "value", "origin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VARIABLE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    variable: str
    value: str
    origin: str
    def __init__(self, name: _Optional[str] = ..., variable: _Optional[str] = ..., value: _Optional[str] = ..., origin: _Optional[str] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ("model", "detailed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DETAILED_FIELD_NUMBER: _ClassVar[int]
    model: str
    detailed: bool
    def __init__(self, model: _Optional[str] = ..., detailed: bool = ...) -> None: ...

class HealthResponse(_message.Message):
    __slots__ = ("status", "uptime_seconds", "total_requests", "phase", "bytes_done", "bytes_total", "message", "pid", "engine_pid", "engine_restarts", "in_flight_requests", "interactive", "bulk", "total_texts", "total_tokens", "tokens_per_second", "total_batches", "mean_batch_texts", "cache_hits", "shared_texts", "cache_entries", "cache_bytes", "refused_requests", "disk_cache_bytes", "model", "loaded_models", "models", "clients")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[HealthResponse.Status]
        STATUS_OK: _ClassVar[HealthResponse.Status]
        STATUS_LOADING: _ClassVar[HealthResponse.Status]
        STATUS_DEGRADED: _ClassVar[HealthResponse.Status]
        STATUS_SHUTTING_DOWN: _ClassVar[HealthResponse.Status]
        STATUS_IDLE: _ClassVar[HealthResponse.Status]
    STATUS_UNSPECIFIED: HealthResponse.Status
    STATUS_OK: HealthResponse.Status
    STATUS_LOADING: HealthResponse.Status
    STATUS_DEGRADED: HealthResponse.Status
    STATUS_SHUTTING_DOWN: HealthResponse.Status
    STATUS_IDLE: HealthResponse.Status
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[HealthResponse.Phase]
        PHASE_FETCHING_LLAMA_SERVER: _ClassVar[HealthResponse.Phase]
        PHASE_FETCHING_MODEL: _ClassVar[HealthResponse.Phase]
        PHASE_STARTING_LLAMA_SERVER: _ClassVar[HealthResponse.Phase]
    PHASE_UNSPECIFIED: HealthResponse.Phase
    PHASE_FETCHING_LLAMA_SERVER: HealthResponse.Phase
    PHASE_FETCHING_MODEL: HealthResponse.Phase
    PHASE_STARTING_LLAMA_SERVER: HealthResponse.Phase
    STATUS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    INTERACTIVE_FIELD_NUMBER: _ClassVar[int]
    BULK_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TEXTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BATCHES_FIELD_NUMBER: _ClassVar[int]
    MEAN_BATCH_TEXTS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    SHARED_TEXTS_FIELD_NUMBER: _ClassVar[int]
    CACHE_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DISK_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOADED_MODELS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    status: HealthResponse.Status
    uptime_seconds: int
    total_requests: int
    phase: HealthResponse.Phase
    bytes_done: int
    bytes_total: int
    message: str
    pid: int
    engine_pid: int
    engine_restarts: int
    in_flight_requests: int
    interactive: LaneHealth
    bulk: LaneHealth
    total_texts: int
    total_tokens: int
    tokens_per_second: float
    total_batches: int
    mean_batch_texts: float
    cache_hits: int
    shared_texts: int
    cache_entries: int
    cache_bytes: int
    refused_requests: int
    disk_cache_bytes: int
    model: str
    loaded_models: int
    models: _containers.RepeatedCompositeFieldContainer[ModelHealth]
    clients: _containers.RepeatedCompositeFieldContainer[ConnectedClient]
    def __init__(self, status: _Optional[_Union[HealthResponse.Status, str]] = ..., uptime_seconds: _Optional[int] = ..., total_requests: _Optional[int] = ..., phase: _Optional[_Union[HealthResponse.Phase, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., message: _Optional[str] = ..., pid: _Optional[int] = ..., engine_pid: _Optional[int] = ..., engine_restarts: _Optional[int] = ..., in_flight_requests: _Optional[int] = ..., interactive: _Optional[_Union[LaneHealth, _Mapping]] = ..., bulk: _Optional[_Union[LaneHealth, _Mapping]] = ..., total_texts: _Optional[int] = ..., total_tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., total_batches: _Optional[int] = ..., mean_batch_texts: _Optional[float] = ..., cache_hits: _Optional[int] = ..., shared_texts: _Optional[int] = ..., cache_entries: _Optional[int] = ..., cache_bytes: _Optional[int] = ..., refused_requests: _Optional[int] = ..., disk_cache_bytes: _Optional[int] = ..., model: _Optional[str] = ..., loaded_models: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelHealth, _Mapping]]] = ..., clients: _Optional[_Iterable[_Union[ConnectedClient, _Mapping]]] = ...) -> None: ...

class ModelHealth(_message.Message):
    __slots__ = ("name", "status", "phase", "message", "variant", "file", "engine_version", "engine_path", "engine_pid", "accelerator", "device", "slots", "context", "tuned_at", "device_tuned_at", "memory_bytes", "keep_alive_seconds", "seconds_until_sleep", "engine_reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PATH_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PID_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TUNED_AT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TUNED_AT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_UNTIL_SLEEP_FIELD_NUMBER: _ClassVar[int]
    ENGINE_REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: HealthResponse.Status
    phase: HealthResponse.Phase
    message: str
    variant: str
    file: str
    engine_version: str
    engine_path: str
    engine_pid: int
    accelerator: str
    device: str
    slots: int
    context: int
    tuned_at: str
    device_tuned_at: str
    memory_bytes: int
    keep_alive_seconds: float
    seconds_until_sleep: float
    engine_reason: str
    def __init__(self, name: _Optional[str] = ..., status: _Optional[_Union[HealthResponse.Status, str]] = ..., phase: _Optional[_Union[HealthResponse.Phase, str]] = ..., message: _Optional[str] = ..., variant: _Optional[str] = ..., file: _Optional[str] = ..., engine_version: _Optional[str] = ..., engine_path: _Optional[str] = ..., engine_pid: _Optional[int] = ..., accelerator: _Optional[str] = ..., device: _Optional[str] = ..., slots: _Optional[int] = ..., context: _Optional[int] = ..., tuned_at: _Optional[str] = ..., device_tuned_at: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., keep_alive_seconds: _Optional[float] = ..., seconds_until_sleep: _Optional[float] = ..., engine_reason: _Optional[str] = ...) -> None: ...

class ConnectedClient(_message.Message):
    __slots__ = ("pid", "name", "connections")
    PID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    name: str
    connections: int
    def __init__(self, pid: _Optional[int] = ..., name: _Optional[str] = ..., connections: _Optional[int] = ...) -> None: ...

class LaneHealth(_message.Message):
    __slots__ = ("queued_texts", "queued_bytes", "total_texts", "wait_p50_seconds", "wait_p99_seconds")
    QUEUED_TEXTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TEXTS_FIELD_NUMBER: _ClassVar[int]
    WAIT_P50_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAIT_P99_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queued_texts: int
    queued_bytes: int
    total_texts: int
    wait_p50_seconds: float
    wait_p99_seconds: float
    def __init__(self, queued_texts: _Optional[int] = ..., queued_bytes: _Optional[int] = ..., total_texts: _Optional[int] = ..., wait_p50_seconds: _Optional[float] = ..., wait_p99_seconds: _Optional[float] = ...) -> None: ...

class WarmUpRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class WarmUpResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ("grace_seconds",)
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    grace_seconds: int
    def __init__(self, grace_seconds: _Optional[int] = ...) -> None: ...

class ShutdownResponse(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    def __init__(self, accepted: bool = ...) -> None: ...

class SetCentroidsRequest(_message.Message):
    __slots__ = ("header", "batch")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    header: CentroidSetHeader
    batch: CentroidBatch
    def __init__(self, header: _Optional[_Union[CentroidSetHeader, _Mapping]] = ..., batch: _Optional[_Union[CentroidBatch, _Mapping]] = ...) -> None: ...

class CentroidSetHeader(_message.Message):
    __slots__ = ("version", "dim", "nlist", "preset", "model")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    version: str
    dim: int
    nlist: int
    preset: str
    model: str
    def __init__(self, version: _Optional[str] = ..., dim: _Optional[int] = ..., nlist: _Optional[int] = ..., preset: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class CentroidBatch(_message.Message):
    __slots__ = ("centroids",)
    CENTROIDS_FIELD_NUMBER: _ClassVar[int]
    centroids: _containers.RepeatedCompositeFieldContainer[Centroid]
    def __init__(self, centroids: _Optional[_Iterable[_Union[Centroid, _Mapping]]] = ...) -> None: ...

class Centroid(_message.Message):
    __slots__ = ("id", "vec")
    ID_FIELD_NUMBER: _ClassVar[int]
    VEC_FIELD_NUMBER: _ClassVar[int]
    id: int
    vec: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, id: _Optional[int] = ..., vec: _Optional[_Iterable[float]] = ...) -> None: ...

class SetCentroidsResponse(_message.Message):
    __slots__ = ("version", "nlist", "model")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    version: str
    nlist: int
    model: str
    def __init__(self, version: _Optional[str] = ..., nlist: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...
