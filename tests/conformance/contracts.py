"""The contracts of clients of other versions: without our fields, or with fields that do not exist yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from runed_proto.runed.v1.runed_pb2 import DESCRIPTOR

_FIRST_OF_OURS = 16
"""Lowest field number that the Go program of the same name does not know."""

_OLD_METHODS = {"Embed", "EmbedBatch", "Info", "Health", "Shutdown", "SetCentroids"}
"""Methods that the Go program of the same name knows."""


def older() -> FileDescriptor:
    """Return the contract of the Go program: the fields 1 to 15 and the methods that go with them."""
    file = _copy()
    for message in _messages(file.message_type):
        old = [field for field in message.field if field.number < _FIRST_OF_OURS]
        del message.field[:]
        message.field.extend(old)
    methods = [method for method in file.service[0].method if method.name in _OLD_METHODS]
    del file.service[0].method[:]
    file.service[0].method.extend(methods)
    return _built(file)


def newer() -> FileDescriptor:
    """Return a contract of the future. Each message has three more fields, each enum one more value, the service one more
    method."""
    file = _copy()
    tomorrow = file.message_type.add(name="Tomorrow")
    tomorrow.field.add(name="text", number=1, type=FieldDescriptorProto.TYPE_STRING, label=FieldDescriptorProto.LABEL_OPTIONAL)
    for message in list(_messages(file.message_type)):
        if message.name != "Tomorrow" and not message.options.map_entry:
            message.field.add(
                name="later", number=1000, type_name=".runed.v1.Tomorrow", type=FieldDescriptorProto.TYPE_MESSAGE, label=1
            )
            message.field.add(name="later_numbers", number=1001, type=FieldDescriptorProto.TYPE_DOUBLE, label=3)
            message.field.add(name="later_text", number=1002, type=FieldDescriptorProto.TYPE_STRING, label=1)
    for enum in file.enum_type:
        enum.value.add(name=f"{enum.name.upper()}_LATER", number=99)
    method = file.service[0].method.add(name="Foretell")
    method.input_type = method.output_type = ".runed.v1.Tomorrow"
    return _built(file)


def class_of(contract: FileDescriptor, name: str) -> type[Message]:
    """Return the class of one of a contract's messages."""
    cls: type[Message] = GetMessageClass(contract.message_types_by_name[name])
    return cls


def _copy() -> FileDescriptorProto:
    file = FileDescriptorProto()
    DESCRIPTOR.CopyToProto(file)
    return file


def _messages(messages: Iterable[DescriptorProto]) -> Iterator[DescriptorProto]:
    for message in messages:
        yield message
        yield from _messages(message.nested_type)


def _built(file: FileDescriptorProto) -> FileDescriptor:
    pool = DescriptorPool()
    pool.Add(file)
    built: FileDescriptor = pool.FindFileByName(file.name)
    return built
