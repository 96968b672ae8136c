from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SettingsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SettingsResponse(_message.Message):
    __slots__ = ("spiffe_id", "settings")
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    spiffe_id: str
    settings: Settings
    def __init__(self, spiffe_id: _Optional[str] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("trust_domain", "issuer", "public_url", "mtls_url", "server", "tls_ca", "resources", "max_stale", "heartbeat")
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_URL_FIELD_NUMBER: _ClassVar[int]
    MTLS_URL_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    TLS_CA_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    MAX_STALE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    trust_domain: str
    issuer: str
    public_url: str
    mtls_url: str
    server: str
    tls_ca: str
    resources: _containers.RepeatedCompositeFieldContainer[Resource]
    max_stale: float
    heartbeat: float
    def __init__(self, trust_domain: _Optional[str] = ..., issuer: _Optional[str] = ..., public_url: _Optional[str] = ..., mtls_url: _Optional[str] = ..., server: _Optional[str] = ..., tls_ca: _Optional[str] = ..., resources: _Optional[_Iterable[_Union[Resource, _Mapping]]] = ..., max_stale: _Optional[float] = ..., heartbeat: _Optional[float] = ...) -> None: ...

class Resource(_message.Message):
    __slots__ = ("url", "id", "spiffe_id", "profile", "audiences", "max_stale")
    URL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SPIFFE_ID_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    AUDIENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_STALE_FIELD_NUMBER: _ClassVar[int]
    url: str
    id: str
    spiffe_id: str
    profile: str
    audiences: _containers.RepeatedScalarFieldContainer[str]
    max_stale: float
    def __init__(self, url: _Optional[str] = ..., id: _Optional[str] = ..., spiffe_id: _Optional[str] = ..., profile: _Optional[str] = ..., audiences: _Optional[_Iterable[str]] = ..., max_stale: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("after", "seq", "age_ms", "state", "stop", "heartbeat", "bundles")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    after: int
    seq: int
    age_ms: int
    state: State
    stop: Stop
    heartbeat: Heartbeat
    bundles: Bundles
    def __init__(self, after: _Optional[int] = ..., seq: _Optional[int] = ..., age_ms: _Optional[int] = ..., state: _Optional[_Union[State, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., bundles: _Optional[_Union[Bundles, _Mapping]] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("stops", "more", "settings", "bundles")
    STOPS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    stops: _containers.RepeatedCompositeFieldContainer[Stop]
    more: bool
    settings: Settings
    bundles: Bundles
    def __init__(self, stops: _Optional[_Iterable[_Union[Stop, _Mapping]]] = ..., more: bool = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., bundles: _Optional[_Union[Bundles, _Mapping]] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("kind", "id", "seq", "blocked")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    id: str
    seq: int
    blocked: bool
    def __init__(self, kind: _Optional[str] = ..., id: _Optional[str] = ..., seq: _Optional[int] = ..., blocked: bool = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Bundles(_message.Message):
    __slots__ = ("sequences",)
    class SequencesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.ScalarMap[str, int]
    def __init__(self, sequences: _Optional[_Mapping[str, int]] = ...) -> None: ...

class ClaimRequest(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    def __init__(self, ids: _Optional[bytes] = ...) -> None: ...

class ClaimResponse(_message.Message):
    __slots__ = ("fresh", "complete_since", "unavailable")
    FRESH_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_SINCE_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    fresh: bytes
    complete_since: float
    unavailable: bool
    def __init__(self, fresh: _Optional[bytes] = ..., complete_since: _Optional[float] = ..., unavailable: bool = ...) -> None: ...
