from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EmbedRequest(_message.Message):
    __slots__ = ("text", "with_route")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WITH_ROUTE_FIELD_NUMBER: _ClassVar[int]
    text: str
    with_route: bool
    def __init__(self, text: _Optional[str] = ..., with_route: _Optional[bool] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("vector", "cluster_id", "centroid_set_version")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CENTROID_SET_VERSION_FIELD_NUMBER: _ClassVar[int]
    vector: _containers.RepeatedScalarFieldContainer[float]
    cluster_id: int
    centroid_set_version: str
    def __init__(self, vector: _Optional[_Iterable[float]] = ..., cluster_id: _Optional[int] = ..., centroid_set_version: _Optional[str] = ...) -> None: ...

class EmbedBatchRequest(_message.Message):
    __slots__ = ("texts", "with_route")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    WITH_ROUTE_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    with_route: bool
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., with_route: _Optional[bool] = ...) -> None: ...

class EmbedBatchResponse(_message.Message):
    __slots__ = ("embeddings",)
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[EmbedResponse]
    def __init__(self, embeddings: _Optional[_Iterable[_Union[EmbedResponse, _Mapping]]] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("daemon_version", "model_identity", "vector_dim", "max_text_length", "max_batch_size", "centroid_set_version", "model_name", "model_variant", "pooling", "engine_version", "max_request_bytes", "socket_path")
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
    def __init__(self, daemon_version: _Optional[str] = ..., model_identity: _Optional[str] = ..., vector_dim: _Optional[int] = ..., max_text_length: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., centroid_set_version: _Optional[str] = ..., model_name: _Optional[str] = ..., model_variant: _Optional[str] = ..., pooling: _Optional[str] = ..., engine_version: _Optional[str] = ..., max_request_bytes: _Optional[int] = ..., socket_path: _Optional[str] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealthResponse(_message.Message):
    __slots__ = ("status", "uptime_seconds", "total_requests", "phase", "bytes_done", "bytes_total", "message", "pid", "engine_pid", "engine_restarts", "in_flight_requests")
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
    def __init__(self, status: _Optional[_Union[HealthResponse.Status, str]] = ..., uptime_seconds: _Optional[int] = ..., total_requests: _Optional[int] = ..., phase: _Optional[_Union[HealthResponse.Phase, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., message: _Optional[str] = ..., pid: _Optional[int] = ..., engine_pid: _Optional[int] = ..., engine_restarts: _Optional[int] = ..., in_flight_requests: _Optional[int] = ...) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ("grace_seconds",)
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    grace_seconds: int
    def __init__(self, grace_seconds: _Optional[int] = ...) -> None: ...

class ShutdownResponse(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    def __init__(self, accepted: _Optional[bool] = ...) -> None: ...

class SetCentroidsRequest(_message.Message):
    __slots__ = ("header", "batch")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    header: CentroidSetHeader
    batch: CentroidBatch
    def __init__(self, header: _Optional[_Union[CentroidSetHeader, _Mapping]] = ..., batch: _Optional[_Union[CentroidBatch, _Mapping]] = ...) -> None: ...

class CentroidSetHeader(_message.Message):
    __slots__ = ("version", "dim", "nlist", "preset")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    version: str
    dim: int
    nlist: int
    preset: str
    def __init__(self, version: _Optional[str] = ..., dim: _Optional[int] = ..., nlist: _Optional[int] = ..., preset: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("version", "nlist")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NLIST_FIELD_NUMBER: _ClassVar[int]
    version: str
    nlist: int
    def __init__(self, version: _Optional[str] = ..., nlist: _Optional[int] = ...) -> None: ...
