"""The daemon with the interface of sentence-transformers. Neither that package nor PyTorch is needed, except for tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runed.client.client import Client
from runed.client.options import EmbedOptions, Lane, Truncate
from runed.client.types import Info, Vectors
from runed.errors import RunedError, UnimplementedError, UnknownModelError, quoted
from runed.integrations.lazy_client import LazyClient
from runed.suggesting import did_you_mean

PromptName: TypeAlias = Literal["query", "document"]
Sentences: TypeAlias = str | Sequence[str] | NDArray[np.str_]


class EncodeOptions(TypedDict, total=False):
    """The keyword arguments of `SentenceTransformer.encode` that `encode_query` and `encode_document` take as well."""

    batch_size: int
    show_progress_bar: bool | None
    output_value: Literal["sentence_embedding"]
    precision: Literal["float32"]
    convert_to_numpy: bool
    convert_to_tensor: bool
    device: object
    normalize_embeddings: bool
    truncate_dim: int | None


class SentenceTransformer:
    """Replaces `sentence_transformers.SentenceTransformer` by the daemon, which is started if none runs.

        from runed.integrations.sentence_transformers import SentenceTransformer

        model = SentenceTransformer("all-MiniLM-L6-v2")
        similarities = model.similarity(model.encode_query(question), model.encode_document(passages))

    Three things differ. The daemon runs the model, which has to be one of its own. Vectors always have length 1, also those of
    fewer dimensions. A text that is longer than the model reads is refused; with `truncate="end"` it is cut, as
    sentence-transformers does silently. An argument that cannot be followed is refused, so that no vector differs from the
    request. An object may be used by any number of threads and forked processes, and copied and pickled; it connects when the
    first text comes. Errors are those of `runed.Client`.

    Args:
        model_name_or_path: The name of one of the daemon's models, such as "BAAI/bge-m3"; the organisation does not count. None
            means the daemon's default model. No path.
        device: Without effect.
        trust_remote_code: Without effect.
        truncate_dim: The number of values of a vector; None means all.
        instruction: The task of queries, in one English sentence; empty: the model's default.
        truncate: The treatment of a text that is longer than the model reads: "none" refuses it, "end" and "start" cut off that
            side of it.
        lane: The queue to wait in, "interactive" or "bulk"; None: by the number of texts.
        home: The directory of the daemon, instead of `RUNED_HOME` or `~/.runed`.
        socket_path: The socket of a daemon that is managed elsewhere; it is never started.
        timeout: Seconds that a call may take, including waiting; None: no limit.

    Raises:
        ValueError: The name of the model is a path.
        RunedError: An argument has a value that is not accepted.
    """

    similarity_fn_name = "cosine"

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: object = None,  # noqa: ARG002 # see the docstring
        trust_remote_code: bool = False,  # noqa: ARG002 # as above
        truncate_dim: int | None = None,
        instruction: str = "",
        truncate: Truncate = "none",
        lane: Lane | None = None,
        home: str | os.PathLike[str] | None = None,
        socket_path: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        if model_name_or_path is not None and Path(model_name_or_path).exists():
            raise ValueError(
                f"{model_name_or_path} is a path, but the daemon has models of its own; name one of these. `runed add` gives "
                "it a GGUF of yours, and sentence-transformers itself reads a directory"
            )
        self._name = model_name_or_path
        self._model: str | None = None
        self.truncate_dim = truncate_dim
        self._instruction = instruction
        self._client = LazyClient(
            dimensions=truncate_dim,
            instruction=instruction,
            truncate=truncate,
            lane=lane,
            home=home,
            socket_path=socket_path,
            timeout=timeout,
        )

    def encode(
        self,
        sentences: Sentences,
        *,
        prompt_name: PromptName | None = None,
        prompt: str | None = None,
        batch_size: int = 32,  # noqa: ARG002 # see the docstring
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        precision: Literal["float32"] = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,  # noqa: ARG002 # as above
        normalize_embeddings: bool = True,  # noqa: ARG002 # as above
        truncate_dim: int | None = None,
    ) -> Any:  # noqa: ANN401 # sentence-transformers' own type is a union of all of these, too
        """Embed one text or many.

        `batch_size`, `device` and `normalize_embeddings` are accepted for existing programs, and change nothing. The daemon
        makes its own batches, and its vectors always have length 1.

        Args:
            sentences: A text, or a sequence of texts.
            prompt_name: The role of the texts, "query" or "document"; None for the texts as they are.
            prompt: The text to put in front of each text, instead of the prompt that the model was trained with.
            batch_size: Without effect.
            show_progress_bar: Whether to show the progress on standard error. None means no.
            output_value: "sentence_embedding"; there are no others.
            precision: "float32"; there are no others.
            convert_to_numpy: Whether to return arrays. Otherwise a list of tensors is returned; it needs PyTorch.
            convert_to_tensor: Whether to return one tensor, in the memory of the processors; it needs PyTorch.
            device: Without effect.
            normalize_embeddings: Without effect.
            truncate_dim: The number of values of a vector, instead of the object's own.

        Returns:
            Vectors of length 1, float32: shape (dim,) for a text, shape (n, dim) for a sequence, in its order.

        Raises:
            ModuleNotFoundError: Tensors were asked for, and PyTorch is not installed.
            UnknownModelError: The daemon has no model of the name.
            ValueError: An argument asks for something that the daemon does not have.
            RunedError: As for `runed.Client.embed_batch`. `metadata["index"]` tells the text at fault.
        """
        _refuse_unless("output_value", output_value, "sentence_embedding", "the daemon gives no vectors of tokens")
        _refuse_unless("precision", precision, "float32", "quantize the result of encode")
        as_tensor = _tensor_maker() if convert_to_tensor or not convert_to_numpy else None
        if prompt_name is not None and prompt is not None:
            raise ValueError("give prompt_name or prompt, not both")
        if prompt_name not in {None, "query", "document"}:
            raise ValueError(f'prompt_name is {quoted(prompt_name)}, but must be "query", "document" or None')
        options = self._client.options(prompt_name)
        if truncate_dim is not None:
            options["dimensions"] = truncate_dim
        options["model"] = self._served_model()
        vectors = self._encode(sentences, prompt or "", options, visibly=bool(show_progress_bar))
        if as_tensor is None:
            return vectors
        tensor = as_tensor(vectors)
        return tensor if convert_to_tensor or isinstance(sentences, str) else list(tensor)

    def _encode(self, sentences: Sentences, prefix: str, options: EmbedOptions, *, visibly: bool) -> Vectors:
        client = self._client.client()
        if isinstance(sentences, str):
            return client.embed(prefix + sentences, **options)
        texts = [prefix + text if prefix else text for text in sentences]
        if not visibly or not texts:
            return client.embed_batch(texts, **options)
        return _encode_visibly(client, texts, options)

    def _served_model(self) -> str | None:
        """Return the daemon's name of the model; None for the default model. The first call asks the daemon."""
        if self._name is not None and self._model is None:
            self._model = _find_model(self._client.client(), self._name)
        return self._model

    def encode_query(
        self,
        sentences: Sentences,
        *,
        prompt_name: PromptName | None = None,
        prompt: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Any:  # noqa: ANN401 # as `encode`
        """Embed one query or many: `encode` with the prompt for queries, unless another one is given."""
        if prompt is None:
            prompt_name = prompt_name or "query"
        return self.encode(sentences, prompt_name=prompt_name, prompt=prompt, **options)

    def encode_document(
        self,
        sentences: Sentences,
        *,
        prompt_name: PromptName | None = None,
        prompt: str | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Any:  # noqa: ANN401 # as `encode`
        """Embed one document or many: `encode` with the prompt for documents, unless another one is given."""
        if prompt is None:
            prompt_name = prompt_name or "document"
        return self.encode(sentences, prompt_name=prompt_name, prompt=prompt, **options)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Vectors:
        """Return the cosine of each vector of one side with each of the other, shape (n, m); a lone vector is one row."""
        return _unit_rows(embeddings1) @ _unit_rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Vectors:
        """Return the cosine of each vector of one side with its counterpart on the other, shape (n,)."""
        cosines: Vectors = np.sum(_unit_rows(embeddings1) * _unit_rows(embeddings2), axis=1)
        return cosines

    def get_embedding_dimension(self) -> int:
        """Return the number of values of a vector. Wait while the daemon fetches its model."""
        return self.truncate_dim or self._info().vector_dim

    def get_sentence_embedding_dimension(self) -> int:
        """Return the result of `get_embedding_dimension`, which is the name in newer versions."""
        return self.get_embedding_dimension()

    def get_max_seq_length(self) -> int:
        """Return the largest number of tokens of one text. Wait while the daemon fetches its model."""
        return self._info().max_text_length

    @property
    def max_seq_length(self) -> int:
        """The largest number of tokens of one text; waits while the daemon fetches its model."""
        return self.get_max_seq_length()

    @property
    def prompts(self) -> dict[str, str]:
        """The texts that the daemon puts in front of queries and documents; waits while it fetches its model."""
        info = self._info()
        query = info.query_prompt.replace("{instruction}", self._instruction or info.default_instruction)
        return {"query": query, "document": info.document_prompt}

    def _info(self) -> Info:
        model = self._served_model()
        return self._client.client().wait_until_ready(model=model)

    def close(self) -> None:
        """Close the connections. A later call makes new ones. This happens by itself when the object goes."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _tensor_maker() -> Callable[[Vectors], Any]:
    import torch  # noqa: PLC0415 # only tensors need it

    maker: Callable[[Vectors], Any] = torch.from_numpy
    return maker


def _find_model(client: Client, name: str) -> str | None:
    """Return the daemon's name of a model, or None for its default model.

    Args:
        client: The client.
        name: The name on a model hub. Its last part is compared with the names and aliases of the models, and with the name in
            the file of the default model.

    Raises:
        UnknownModelError: The daemon has no such model.
    """
    wanted = _plain(name)
    names: list[str] = []
    with suppress(UnimplementedError):  # an older daemon has one model
        for model in client.list_models():
            if wanted in {_plain(known) for known in (model.name, model.family, *model.aliases)}:
                return model.name
            names.append(model.name)
    default = client.wait_until_ready()
    if wanted in {_plain(default.model_name), _plain(default.model_variant)}:
        return None
    names = names or [default.model_variant or default.model_name]
    known = ", ".join(names)
    told = f"the daemon has no model {quoted(name)}{did_you_mean(wanted, names, most=3) or ';'} it has {known}"
    raise UnknownModelError(told, metadata={"models": known})


def _plain(name: str) -> str:
    """Return the last part of a name in small letters, with dashes between its words."""
    return re.sub("[^a-z0-9.]+", "-", name.rstrip("/").rpartition("/")[2].lower())


def _refuse_unless(name: str, value: object, only: object, hint: str) -> None:
    if value != only:
        raise ValueError(f"{name} is {quoted(value)}, but can only be {only!r} here: {hint}")


def _encode_visibly(client: Client, texts: list[str], options: EmbedOptions) -> Vectors:
    """Embed by a stream, and show its progress on standard error."""
    # Imported here: few programs ask for a bar, and rich takes long to import.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    vectors: dict[int, Vectors] = {}
    with closing(client.embed_stream(enumerate(texts), **options)) as results:
        for index, outcome in track(results, "Embedding", total=len(texts), console=Console(stderr=True)):
            if isinstance(outcome, RunedError):
                raise type(outcome)(
                    f"text {index} of the batch cannot be embedded: {outcome.message}",
                    metadata=outcome.metadata | {"index": str(index)},
                    retry_after=outcome.retry_after,
                )
            vectors[index] = outcome.vector
    return np.stack([vectors[index] for index in range(len(texts))])


def _unit_rows(embeddings: ArrayLike) -> Vectors:
    rows = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return unit
