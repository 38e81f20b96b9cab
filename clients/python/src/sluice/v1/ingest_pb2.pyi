import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from sluice.v1 import decision_pb2 as _decision_pb2
from sluice.v1 import event_pb2 as _event_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AckStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_STATUS_UNSPECIFIED: _ClassVar[AckStatus]
    ACK_STATUS_STORED: _ClassVar[AckStatus]
    ACK_STATUS_DUPLICATE: _ClassVar[AckStatus]
    ACK_STATUS_ERROR: _ClassVar[AckStatus]

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_EVENT_INVALID: _ClassVar[ErrorCode]
    ERROR_CODE_EVENT_UNREADABLE: _ClassVar[ErrorCode]
    ERROR_CODE_EVENT_TOO_LARGE: _ClassVar[ErrorCode]
    ERROR_CODE_UNAUTHENTICATED: _ClassVar[ErrorCode]
    ERROR_CODE_SESSION_NOT_OPEN: _ClassVar[ErrorCode]
    ERROR_CODE_REQUEST_INVALID: _ClassVar[ErrorCode]
    ERROR_CODE_SEQUENCE_GAP: _ClassVar[ErrorCode]
    ERROR_CODE_QUOTA_EXCEEDED: _ClassVar[ErrorCode]
    ERROR_CODE_BROKER_UNAVAILABLE: _ClassVar[ErrorCode]
    ERROR_CODE_DELIVERY_UNCERTAIN: _ClassVar[ErrorCode]
    ERROR_CODE_DRAINING: _ClassVar[ErrorCode]
    ERROR_CODE_FENCED: _ClassVar[ErrorCode]
    ERROR_CODE_TOKEN_INVALID: _ClassVar[ErrorCode]
    ERROR_CODE_UNIMPLEMENTED: _ClassVar[ErrorCode]
    ERROR_CODE_INTERNAL: _ClassVar[ErrorCode]
    ERROR_CODE_DECISION_PENDING: _ClassVar[ErrorCode]
    ERROR_CODE_PERMISSION_DENIED: _ClassVar[ErrorCode]
    ERROR_CODE_EVENT_ID_USED: _ClassVar[ErrorCode]
ACK_STATUS_UNSPECIFIED: AckStatus
ACK_STATUS_STORED: AckStatus
ACK_STATUS_DUPLICATE: AckStatus
ACK_STATUS_ERROR: AckStatus
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_EVENT_INVALID: ErrorCode
ERROR_CODE_EVENT_UNREADABLE: ErrorCode
ERROR_CODE_EVENT_TOO_LARGE: ErrorCode
ERROR_CODE_UNAUTHENTICATED: ErrorCode
ERROR_CODE_SESSION_NOT_OPEN: ErrorCode
ERROR_CODE_REQUEST_INVALID: ErrorCode
ERROR_CODE_SEQUENCE_GAP: ErrorCode
ERROR_CODE_QUOTA_EXCEEDED: ErrorCode
ERROR_CODE_BROKER_UNAVAILABLE: ErrorCode
ERROR_CODE_DELIVERY_UNCERTAIN: ErrorCode
ERROR_CODE_DRAINING: ErrorCode
ERROR_CODE_FENCED: ErrorCode
ERROR_CODE_TOKEN_INVALID: ErrorCode
ERROR_CODE_UNIMPLEMENTED: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode
ERROR_CODE_DECISION_PENDING: ErrorCode
ERROR_CODE_PERMISSION_DENIED: ErrorCode
ERROR_CODE_EVENT_ID_USED: ErrorCode

class PublishRequest(_message.Message):
    __slots__ = ("open", "batch", "refresh")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    open: PublishOpen
    batch: EventBatch
    refresh: PublishRefresh
    def __init__(self, open: _Optional[_Union[PublishOpen, _Mapping]] = ..., batch: _Optional[_Union[EventBatch, _Mapping]] = ..., refresh: _Optional[_Union[PublishRefresh, _Mapping]] = ...) -> None: ...

class PublishRefresh(_message.Message):
    __slots__ = ("credentials",)
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    credentials: str
    def __init__(self, credentials: _Optional[str] = ...) -> None: ...

class PublishOpen(_message.Message):
    __slots__ = ("producer_id", "epoch", "resume_token", "max_in_flight", "want_positions", "last_sent_sequence")
    PRODUCER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    WANT_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LAST_SENT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    producer_id: str
    epoch: int
    resume_token: bytes
    max_in_flight: int
    want_positions: bool
    last_sent_sequence: int
    def __init__(self, producer_id: _Optional[str] = ..., epoch: _Optional[int] = ..., resume_token: _Optional[bytes] = ..., max_in_flight: _Optional[int] = ..., want_positions: _Optional[bool] = ..., last_sent_sequence: _Optional[int] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("first_sequence", "events")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    def __init__(self, first_sequence: _Optional[int] = ..., events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("ready", "ack", "credit", "throttle", "drain", "ping")
    READY_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    ready: PublishReady
    ack: Ack
    credit: Credit
    throttle: Throttle
    drain: Drain
    ping: Ping
    def __init__(self, ready: _Optional[_Union[PublishReady, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., throttle: _Optional[_Union[Throttle, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ...) -> None: ...

class PublishReady(_message.Message):
    __slots__ = ("next_sequence", "credit", "limits", "settled", "resume_token", "in_doubt")
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    IN_DOUBT_FIELD_NUMBER: _ClassVar[int]
    next_sequence: int
    credit: Credit
    limits: Limits
    settled: _containers.RepeatedCompositeFieldContainer[SequenceRange]
    resume_token: bytes
    in_doubt: bool
    def __init__(self, next_sequence: _Optional[int] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., settled: _Optional[_Iterable[_Union[SequenceRange, _Mapping]]] = ..., resume_token: _Optional[bytes] = ..., in_doubt: _Optional[bool] = ...) -> None: ...

class SequenceRange(_message.Message):
    __slots__ = ("first_sequence", "last_sequence")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    last_sequence: int
    def __init__(self, first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_event_bytes", "max_batch_events", "max_request_bytes", "max_in_flight")
    MAX_EVENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_EVENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    max_event_bytes: int
    max_batch_events: int
    max_request_bytes: int
    max_in_flight: int
    def __init__(self, max_event_bytes: _Optional[int] = ..., max_batch_events: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., max_in_flight: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("first_sequence", "last_sequence", "status", "error", "positions", "resume_token")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    last_sequence: int
    status: AckStatus
    error: EventError
    positions: _containers.RepeatedCompositeFieldContainer[_decision_pb2.Position]
    resume_token: bytes
    def __init__(self, first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ..., status: _Optional[_Union[AckStatus, str]] = ..., error: _Optional[_Union[EventError, _Mapping]] = ..., positions: _Optional[_Iterable[_Union[_decision_pb2.Position, _Mapping]]] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class EventError(_message.Message):
    __slots__ = ("code", "field", "reason", "remedy", "retriable", "certainly_not_stored")
    CODE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    RETRIABLE_FIELD_NUMBER: _ClassVar[int]
    CERTAINLY_NOT_STORED_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    field: str
    reason: str
    remedy: str
    retriable: bool
    certainly_not_stored: bool
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., field: _Optional[str] = ..., reason: _Optional[str] = ..., remedy: _Optional[str] = ..., retriable: _Optional[bool] = ..., certainly_not_stored: _Optional[bool] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("events", "bytes")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    events: int
    bytes: int
    def __init__(self, events: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Throttle(_message.Message):
    __slots__ = ("quota", "retry_after")
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    quota: str
    retry_after: _duration_pb2.Duration
    def __init__(self, quota: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("deadline", "resume_token")
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    deadline: _duration_pb2.Duration
    resume_token: bytes
    def __init__(self, deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PublishOneRequest(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.Event
    def __init__(self, event: _Optional[_Union[_event_pb2.Event, _Mapping]] = ...) -> None: ...

class PublishOneResponse(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: _decision_pb2.Position
    def __init__(self, position: _Optional[_Union[_decision_pb2.Position, _Mapping]] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _event_pb2.Event
    def __init__(self, event: _Optional[_Union[_event_pb2.Event, _Mapping]] = ...) -> None: ...

class DecideResponse(_message.Message):
    __slots__ = ("decision",)
    DECISION_FIELD_NUMBER: _ClassVar[int]
    decision: _decision_pb2.FraudDecision
    def __init__(self, decision: _Optional[_Union[_decision_pb2.FraudDecision, _Mapping]] = ...) -> None: ...
