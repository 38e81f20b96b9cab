import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from sluice.v1 import decision_pb2 as _decision_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExpiredPosition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPIRED_POSITION_UNSPECIFIED: _ClassVar[ExpiredPosition]
    EXPIRED_POSITION_REFUSE: _ClassVar[ExpiredPosition]
    EXPIRED_POSITION_EARLIEST: _ClassVar[ExpiredPosition]
    EXPIRED_POSITION_LATEST: _ClassVar[ExpiredPosition]
EXPIRED_POSITION_UNSPECIFIED: ExpiredPosition
EXPIRED_POSITION_REFUSE: ExpiredPosition
EXPIRED_POSITION_EARLIEST: ExpiredPosition
EXPIRED_POSITION_LATEST: ExpiredPosition

class SubscribeRequest(_message.Message):
    __slots__ = ("open", "credit", "commit", "refresh")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    open: SubscribeOpen
    credit: SubscribeCredit
    commit: SubscribeCommit
    refresh: SubscribeRefresh
    def __init__(self, open: _Optional[_Union[SubscribeOpen, _Mapping]] = ..., credit: _Optional[_Union[SubscribeCredit, _Mapping]] = ..., commit: _Optional[_Union[SubscribeCommit, _Mapping]] = ..., refresh: _Optional[_Union[SubscribeRefresh, _Mapping]] = ...) -> None: ...

class SubscribeRefresh(_message.Message):
    __slots__ = ("credentials",)
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    credentials: str
    def __init__(self, credentials: _Optional[str] = ...) -> None: ...

class SubscribeOpen(_message.Message):
    __slots__ = ("latest", "earliest", "since", "token", "filter", "cursor", "credit", "on_expired")
    LATEST_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    ON_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    latest: Latest
    earliest: Earliest
    since: _timestamp_pb2.Timestamp
    token: bytes
    filter: DecisionFilter
    cursor: str
    credit: int
    on_expired: ExpiredPosition
    def __init__(self, latest: _Optional[_Union[Latest, _Mapping]] = ..., earliest: _Optional[_Union[Earliest, _Mapping]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., token: _Optional[bytes] = ..., filter: _Optional[_Union[DecisionFilter, _Mapping]] = ..., cursor: _Optional[str] = ..., credit: _Optional[int] = ..., on_expired: _Optional[_Union[ExpiredPosition, str]] = ...) -> None: ...

class Latest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Earliest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DecisionFilter(_message.Message):
    __slots__ = ("account_ids", "outcomes", "min_score", "rule_ids")
    ACCOUNT_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    RULE_IDS_FIELD_NUMBER: _ClassVar[int]
    account_ids: _containers.RepeatedScalarFieldContainer[str]
    outcomes: _containers.RepeatedScalarFieldContainer[_decision_pb2.Outcome]
    min_score: float
    rule_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, account_ids: _Optional[_Iterable[str]] = ..., outcomes: _Optional[_Iterable[_Union[_decision_pb2.Outcome, str]]] = ..., min_score: _Optional[float] = ..., rule_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SubscribeCredit(_message.Message):
    __slots__ = ("decisions",)
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    decisions: int
    def __init__(self, decisions: _Optional[int] = ...) -> None: ...

class SubscribeCommit(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    def __init__(self, token: _Optional[bytes] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("ready", "batch", "progress", "drain", "committed")
    READY_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ready: SubscribeReady
    batch: DecisionBatch
    progress: Progress
    drain: SubscribeDrain
    committed: SubscribeCommitted
    def __init__(self, ready: _Optional[_Union[SubscribeReady, _Mapping]] = ..., batch: _Optional[_Union[DecisionBatch, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., drain: _Optional[_Union[SubscribeDrain, _Mapping]] = ..., committed: _Optional[_Union[SubscribeCommitted, _Mapping]] = ...) -> None: ...

class SubscribeReady(_message.Message):
    __slots__ = ("token", "fell_back")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FELL_BACK_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    fell_back: bool
    def __init__(self, token: _Optional[bytes] = ..., fell_back: _Optional[bool] = ...) -> None: ...

class SubscribeCommitted(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    def __init__(self, token: _Optional[bytes] = ...) -> None: ...

class DecisionBatch(_message.Message):
    __slots__ = ("decisions", "token")
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[_decision_pb2.FraudDecision]
    token: bytes
    def __init__(self, decisions: _Optional[_Iterable[_Union[_decision_pb2.FraudDecision, _Mapping]]] = ..., token: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    def __init__(self, token: _Optional[bytes] = ...) -> None: ...

class SubscribeDrain(_message.Message):
    __slots__ = ("deadline", "token")
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    deadline: _duration_pb2.Duration
    token: bytes
    def __init__(self, deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., token: _Optional[bytes] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("filter", "token", "earliest", "since", "on_expired")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    ON_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    filter: DecisionFilter
    token: bytes
    earliest: bool
    since: _timestamp_pb2.Timestamp
    on_expired: ExpiredPosition
    def __init__(self, filter: _Optional[_Union[DecisionFilter, _Mapping]] = ..., token: _Optional[bytes] = ..., earliest: _Optional[bool] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., on_expired: _Optional[_Union[ExpiredPosition, str]] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("decisions", "token")
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[_decision_pb2.FraudDecision]
    token: bytes
    def __init__(self, decisions: _Optional[_Iterable[_Union[_decision_pb2.FraudDecision, _Mapping]]] = ..., token: _Optional[bytes] = ...) -> None: ...
