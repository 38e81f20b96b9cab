from sluice.v1 import decision_pb2 as _decision_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SettleAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SETTLE_ACTION_UNSPECIFIED: _ClassVar[SettleAction]
    SETTLE_ACTION_APPROVE: _ClassVar[SettleAction]
    SETTLE_ACTION_DECLINE: _ClassVar[SettleAction]
    SETTLE_ACTION_CANCEL: _ClassVar[SettleAction]
SETTLE_ACTION_UNSPECIFIED: SettleAction
SETTLE_ACTION_APPROVE: SettleAction
SETTLE_ACTION_DECLINE: SettleAction
SETTLE_ACTION_CANCEL: SettleAction

class SettleRequest(_message.Message):
    __slots__ = ("event_id", "account_id", "action", "reason")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    account_id: str
    action: SettleAction
    reason: str
    def __init__(self, event_id: _Optional[str] = ..., account_id: _Optional[str] = ..., action: _Optional[_Union[SettleAction, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: _decision_pb2.Position
    def __init__(self, position: _Optional[_Union[_decision_pb2.Position, _Mapping]] = ...) -> None: ...
