"""The options of an embedding, and the facts that the daemon returns besides the vector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pytest

import runed
from runed import errors
from runed.client.calls.patience import Deadline
from runed.client.calls.ranking import RerankOptions
from runed.client.options import EmbedOptions, Options
from tests.client.conftest import Arrange, events


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e308, 1e10])
def test_a_time_that_no_clock_counts_is_refused(timeout: float) -> None:
    with pytest.raises(errors.InvalidRequestError, match=r"timeout is .*; give at most 1,000,000,000 seconds, or None for no"):
        Deadline(timeout)
    assert Deadline(1e9).remaining() is not None


@pytest.mark.parametrize("top_n", [0, -1, 2**32])
def test_a_number_of_results_that_no_request_holds_is_refused(top_n: int) -> None:
    with pytest.raises(errors.InvalidRequestError, match=rf"top_n is {top_n}; give a number from 1 to 4294967295, or None"):
        RerankOptions(top_n=top_n)


class TestChecks:
    """A bad value is refused before anything is sent, and the error names the good values."""

    @pytest.mark.parametrize(
        ("options", "cls", "message"),
        [
            (
                {"role": "passage"},
                errors.InvalidRequestError,
                """role is 'passage', but must be one of None, "query", "document"$""",
            ),
            ({"role": 1}, errors.InvalidRequestError, "role is 1, but must be one of"),
            ({"role": ["query"]}, errors.InvalidRequestError, "role is .*'query'.*, but must be one of"),
            (
                {"truncate": None},
                errors.InvalidRequestError,
                """truncate is None, but must be one of "none", "end", "start"$""",
            ),
            ({"lane": "fast"}, errors.InvalidRequestError, """lane is 'fast'.* None, "interactive", "bulk"$"""),
            ({"dimensions": 0}, errors.BadDimensionsError, "dimensions is 0; give a number from Info.min_dimensions"),
            ({"dimensions": -1}, errors.BadDimensionsError, "dimensions is -1"),
            ({"dimensions": 2**32}, errors.BadDimensionsError, "dimensions is 4294967296"),
            ({"dimensions": "64"}, TypeError, "dimensions is a str, but must be an int"),
            ({"dimensions": 64.0}, TypeError, "dimensions is a float, but must be an int"),
            ({"instruction": "find it"}, errors.BadInstructionError, 'give role="query" too'),
            ({"instruction": "find it", "role": "document"}, errors.BadInstructionError, 'give role="query" too'),
            ({"instruction": "\ud800", "role": "query"}, errors.BadInstructionError, "not valid Unicode"),
            ({"instruction": b"find", "role": "query"}, TypeError, "instruction is a bytes"),
            ({"size": 3}, TypeError, r"\(\) got an unexpected keyword argument 'size'"),
        ],
    )
    def test_of_every_method_and_both_clients(
        self, shared: Path, options: dict[str, Any], cls: type[Exception], message: str
    ) -> None:
        def calls(client: runed.Client) -> list[Callable[[], object]]:
            return [
                lambda: client.embed("a", **options),
                lambda: client.embed_batch(["a"], **options),
                lambda: client.embed_items(["a"], **options),
                lambda: client.embed_stream([("a", "a")], **options),
            ]

        with runed.connect(home=shared) as client:
            for call in calls(client):
                with pytest.raises(cls, match=message):
                    call()
        with pytest.raises(cls, match=message):
            Options(**options)

    def test_numbers_of_numpy_are_numbers(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            dimensions: Any = np.int64(2)
            assert client.embed("four", dimensions=dimensions).shape == (2,)


class TestOptions:
    """Options arrive at the daemon."""

    def test_dimensions(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            assert client.embed("four", dimensions=3).tolist()[0] == 4
            assert client.embed("four", dimensions=3).shape == (3,)
            assert client.embed_batch(["a", "bb"], dimensions=2).shape == (2, 2)
            assert client.embed_batch([], dimensions=2).shape == (0, 2)

    def test_prompts(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            (plain,) = self.embeddings(client, ["a"])
            (document,) = self.embeddings(client, ["a"], role="document")
            (query,) = self.embeddings(client, ["a"], role="query")
            (instructed,) = self.embeddings(client, ["a"], role="query", instruction="name the tea")
        assert plain.prompt == ""
        assert document.prompt == "passage: "
        assert query.prompt == "Instruct: find it\nQuery:"
        assert instructed.prompt == "Instruct: name the tea\nQuery:"

    def test_truncation_and_lane(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            (plain,) = self.embeddings(client, ["a" * 9])
            (cut,) = self.embeddings(client, ["a" * 9], truncate="end", lane="bulk")
        assert (plain.truncated, plain.cached) == (False, False)
        assert (cut.truncated, cut.cached) == (True, True)  # the fake service tells both in this way

    def test_a_long_instruction_leaves_less_room_for_texts(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_request_bytes=200)) as client:
            vectors = client.embed_batch(["a" * 44] * 4, role="query", instruction="i" * 90)
            assert vectors[:, 3].tolist() == [2] * 4
            assert client.embed_batch(["a" * 44] * 4)[:, 3].tolist() == [4] * 4

    def embeddings(self, client: runed.Client, texts: list[str], **options: Unpack[EmbedOptions]) -> list[runed.Embedding]:
        outcomes = client.embed_items(texts, **options)
        embeddings = [outcome for outcome in outcomes if isinstance(outcome, runed.Embedding)]
        assert len(embeddings) == len(outcomes)
        return embeddings


class TestOldDaemon:
    """An older daemon ignores options. The client must not return its vectors."""

    def test_options_that_it_ignores_are_an_error_and_no_wrong_vector(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(old=True)) as client:
            assert client.embed("four")[0] == 4
            assert client.embed_batch(["four"], lane="bulk", truncate="none")[0, 0] == 4
            with pytest.raises(
                errors.UnimplementedError, match="does not know role and instruction; stop it with `runed stop`"
            ):
                client.embed("a", role="query", instruction="find it")
            with pytest.raises(errors.UnimplementedError, match="does not know dimensions"):
                client.embed_batch(["a"], dimensions=2)
            with pytest.raises(errors.UnimplementedError, match="does not know truncate"):
                client.embed("a", truncate="end")

    def test_what_it_has_not(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(old=True)) as client:
            with pytest.raises(errors.UnimplementedError, match="gives no details"):
                client.embed_items(["a"])
            with pytest.raises(errors.UnimplementedError, match="no such method"):
                list(client.embed_stream([("a", "a")]))


class TestItems:
    """Each text has its own details, or its own error."""

    def test_details(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_batch_size=2)) as client:
            outcomes = client.embed_items(["seven77", "ok", "threee"])
        first = outcomes[0]
        assert isinstance(first, runed.Embedding)
        assert first.vector.dtype == np.float32
        assert first.vector.shape == (4,)
        assert (first.token_count, first.total_token_count) == (4, 7)
        assert first.fingerprint == "space-0"
        assert [outcome.vector[0] for outcome in outcomes if isinstance(outcome, runed.Embedding)] == [7, 2, 6]

    def test_errors_stand_in_their_places(self, arrange: Arrange) -> None:
        with runed.connect(home=arrange(max_batch_size=2, max_request_bytes=100)) as client:
            outcomes = client.embed_items(["a", "\ud800", "x" * 200, "b", "fail:TEXT_TOO_LONG", "fail:FROM_THE_FUTURE"])
        assert [type(outcome) for outcome in outcomes] == [
            runed.Embedding,
            errors.InvalidTextError,
            errors.RequestTooLargeError,
            runed.Embedding,
            errors.TextTooLongError,
            errors.RunedError,
        ]
        too_long = outcomes[4]
        assert isinstance(too_long, errors.TextTooLongError)
        assert too_long.message == "fake: TEXT_TOO_LONG"
        assert too_long.metadata == {"index": "4", "limit": "7"}

    def test_none_and_none_that_can_be_sent(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            assert client.embed_items([]) == []
            (outcome,) = client.embed_items(["\ud800"])
            assert isinstance(outcome, errors.InvalidTextError)
            with pytest.raises(TypeError, match="not one str"):
                client.embed_items("text")

    def test_a_model_that_changes_between_two_requests_is_an_error(self, arrange: Arrange) -> None:
        message = r"changed its model or engine.*space-\d.*space-\d.*cannot be compared"
        with runed.connect(home=arrange(new_model=True, max_batch_size=1)) as client:
            with pytest.raises(errors.RunedError, match=message):
                client.embed_batch(["a", "drain", "b"])
            with pytest.raises(errors.RunedError, match=message):
                client.embed_items(["a", "drain", "b"])


class TestCountTokens:
    """Tokens are counted without embedding."""

    def test_in_as_many_requests_as_needed(self, arrange: Arrange) -> None:
        home = arrange(max_batch_size=2)
        with runed.connect(home=home) as client:
            assert client.count_tokens(["a b c", "a", "a b"]) == [3, 1, 2]
            assert client.count_tokens(["a b"], role="query", instruction="one two") == [6]
            assert client.count_tokens([]) == []
            with pytest.raises(errors.BadInstructionError):
                client.count_tokens(["a"], instruction="find it")
        assert events(home).count("count") == 3


class TestDaemon:
    """The daemon's facts about itself."""

    def test_info(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            info = client.info()
        assert info.fingerprint == "space-0"
        assert info.min_dimensions == 2
        assert info.query_prompt == "Instruct: {instruction}\nQuery:"
        assert info.document_prompt == "passage: "
        assert info.default_instruction == "find it"
        assert (info.profile, info.tuned_at) == ("balanced", "2026-11-28T12:00:00+00:00")
        assert (info.max_queued_texts, info.max_queued_bytes) == (1000, 2000)
        assert info.restrictions == ("nice 3", "1 of 8 processors")
        assert (info.accelerator, info.device, info.company_cosine) == ("vulkan", "fake device", 0.75)
        assert info.device_tuned_at == "2026-11-27T12:00:00+00:00"

    def test_health(self, shared: Path) -> None:
        with runed.connect(home=shared) as client:
            health = client.health()
        assert health.interactive == runed.LaneHealth(
            queued_texts=1, queued_bytes=2, total_texts=3, wait_p50_seconds=0.25, wait_p99_seconds=0.5
        )
        assert health.bulk.queued_texts == 6
        assert (health.total_texts, health.total_tokens, health.tokens_per_second) == (7, 8, 9.5)
        assert (health.total_batches, health.mean_batch_texts) == (10, 11.5)
        assert (health.cache_hits, health.shared_texts, health.cache_entries, health.cache_bytes) == (12, 13, 14, 15)
        assert (health.refused_requests, health.disk_cache_bytes) == (16, 17)


async def test_the_client_for_asyncio_does_the_same(shared: Path) -> None:
    async with await runed.connect_async(home=shared) as client:
        assert (await client.embed("four", dimensions=2, role="query")).shape == (2,)
        assert (await client.embed_batch(["four"], dimensions=3, lane="interactive")).shape == (1, 3)
        outcome, error = await client.embed_items(["four", "fail:EMPTY_TEXT"], role="document", truncate="start")
        assert isinstance(outcome, runed.Embedding)
        assert (outcome.prompt, outcome.truncated) == ("passage: ", True)
        assert isinstance(error, errors.EmptyTextError)
        assert await client.count_tokens(["a b"], role="document") == [3]
        with pytest.raises(errors.InvalidRequestError):
            await client.embed("a", lane="fast")  # type: ignore[arg-type] # on purpose
        assert (await client.info()).profile == "balanced"
        assert (await client.health()).bulk.queued_texts == 6
