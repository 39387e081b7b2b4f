"""Clients of other versions against the daemon: nothing that both sides know is lost."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor
from runed_proto.runed.v1 import runed_pb2 as pb

from tests.conformance.contracts import class_of, newer, older
from tests.support import GRPC_OPTIONS, PROTOCOLS, Answer, RunningDaemon, call

OLD, NEW = older(), newer()
CONTRACTS = {"older": OLD, "newer": NEW}
SERVICE = "/runed.v1.RunedService"


def ask(  # a message of any contract
    daemon: RunningDaemon, protocol: str, contract: FileDescriptor, method: str, **fields: object
) -> Any:  # noqa: ANN401 # its class is made at run time
    answer = answer_of(daemon, protocol, contract, method, **fields)
    assert answer.message is not None, answer.refusal
    return answer.message


def answer_of(daemon: RunningDaemon, protocol: str, contract: FileDescriptor, method: str, **fields: object) -> Answer:
    request = class_of(contract, f"{method}Request")(**fields)
    return call(protocol, daemon.socket, method, request, contract=contract)


def test_contracts_are_those_of_another_version() -> None:
    assert {field.number for field in OLD.message_types_by_name["EmbedRequest"].fields} == {1, 2}
    assert {field.name for field in OLD.message_types_by_name["EmbedResponse"].fields} == {
        *("vector", "cluster_id", "centroid_set_version")
    }
    assert "EmbedStream" not in OLD.services_by_name["RunedService"].methods_by_name
    assert {1000, 1001, 1002} <= {field.number for field in NEW.message_types_by_name["EmbedRequest"].fields}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", CONTRACTS)
def test_client_of_another_version_gets_all_that_it_knows(version: str, protocol: str, qwen_daemon: RunningDaemon) -> None:
    contract = CONTRACTS[version]
    ours = ask(qwen_daemon, protocol, pb.DESCRIPTOR, "EmbedBatch", texts=["one", "two"])
    single = ask(qwen_daemon, protocol, contract, "Embed", text="two")
    batch = ask(qwen_daemon, protocol, contract, "EmbedBatch", texts=["one", "two"])
    assert [list(item.vector) for item in batch.embeddings] == [list(item.vector) for item in ours.embeddings]
    assert list(single.vector) == list(ours.embeddings[1].vector)
    info, our_info = (ask(qwen_daemon, protocol, which, "Info") for which in (contract, pb.DESCRIPTOR))
    for field in OLD.message_types_by_name["InfoResponse"].fields:
        assert getattr(info, field.name) == getattr(our_info, field.name)
    health = ask(qwen_daemon, protocol, contract, "Health")
    assert health.status == pb.HealthResponse.STATUS_OK
    assert health.total_requests > 0


@pytest.mark.parametrize("protocol", ["connect+proto", "grpc", "grpc-web"])
def test_older_client_hands_on_what_it_does_not_know(protocol: str, qwen_daemon: RunningDaemon) -> None:
    ours = ask(qwen_daemon, protocol, pb.DESCRIPTOR, "Embed", text="handed on")
    old = ask(qwen_daemon, protocol, OLD, "Embed", text="handed on")
    handed_on = pb.EmbedResponse.FromString(old.SerializeToString())
    assert (handed_on.fingerprint, handed_on.token_count) == (ours.fingerprint, ours.token_count)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_older_client_gets_errors_as_ever(protocol: str, qwen_daemon: RunningDaemon) -> None:
    refusal = answer_of(qwen_daemon, protocol, OLD, "EmbedBatch", texts=["fine", ""]).refusal
    assert refusal is not None
    assert (refusal.code, refusal.reason, refusal.metadata["index"]) == ("invalid_argument", "EMPTY_TEXT", "1")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fields_of_a_newer_client_are_ignored(protocol: str, qwen_daemon: RunningDaemon) -> None:
    plain = ask(qwen_daemon, protocol, pb.DESCRIPTOR, "Embed", text="of tomorrow", dimensions=32)
    more: dict[str, Any] = {"later": {"text": "x"}, "later_numbers": [1.5, 2.5], "later_text": "y"}
    answer = ask(qwen_daemon, protocol, NEW, "Embed", text="of tomorrow", dimensions=32, **more)
    assert list(answer.vector) == list(plain.vector)
    assert not answer.HasField("later")
    assert ask(qwen_daemon, protocol, NEW, "Health", **more).status == pb.HealthResponse.STATUS_OK


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_of_a_newer_client_are_refused_and_not_taken_for_others(protocol: str, qwen_daemon: RunningDaemon) -> None:
    refusal = answer_of(qwen_daemon, protocol, NEW, "Embed", text="x", role="ROLE_LATER").refusal
    assert refusal is not None
    reason = "MALFORMED_REQUEST" if protocol == "connect+json" else "INVALID_REQUEST"  # JSON has a name, others a number
    assert (refusal.code, refusal.reason) == ("invalid_argument", reason)
    assert "ROLE_QUERY" in refusal.message


@pytest.mark.parametrize("protocol", ["connect+proto", "connect+json"])
def test_method_of_a_newer_client_is_told_to_be_unknown(protocol: str, qwen_daemon: RunningDaemon) -> None:
    refusal = call(protocol, qwen_daemon.socket, "Foretell", class_of(NEW, "Tomorrow")(text="x"), contract=NEW).refusal
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("unimplemented", "UNIMPLEMENTED")
    assert "EmbedBatch" in refusal.message


def test_items_of_a_newer_stream_are_embedded(qwen_daemon: RunningDaemon) -> None:
    item = class_of(NEW, "EmbedStreamItem")(id="a", text="of tomorrow", later_text="y")
    request = class_of(NEW, "EmbedStreamRequest")(items=[item], later={"text": "x"})
    with grpc.insecure_channel(f"unix:{qwen_daemon.socket}", options=GRPC_OPTIONS) as channel:
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"{SERVICE}/EmbedStream")
        [answer] = [pb.EmbedStreamResponse.FromString(data) for data in stream(iter([request.SerializeToString()]), timeout=10)]
    assert [(result.id, len(result.embedding.vector)) for result in answer.results] == [("a", 64)]
