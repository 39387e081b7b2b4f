"""A model and its use: prompts by role, dimensions, and the name of the space that its vectors lie in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Annotated

import msgspec

from runed.domain.device import CPU, Device
from runed.domain.requests import EmbedOptions, Role
from runed.errors import BadDimensionsError, BadInstructionError

RANK = "rank"
"""The pooling of a reranker, which scores pairs of texts instead of making vectors."""

_CAUSAL_RERANKERS = ("qwen3", "qwen3vl")
"""Architectures whose rerankers read from left to right. llama.cpp knows no others."""


def reads_last(pooling: str, architecture: str) -> bool:
    """Return whether a model reads a text from left to right, and answers with its last token."""
    return pooling == "last" or (pooling == RANK and architecture in _CAUSAL_RERANKERS)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a backend serves.

    Attributes:
        identity: "sha256:" and the first 16 hexadecimal digits of the file's SHA-256.
        name: The name in the file, for people.
        architecture: The GGUF architecture, such as "qwen3" or "bert".
        dim: The number of values of a vector; 1 for a reranker, whose value is a score.
        max_tokens: The largest number of tokens of one text, or of one pair of texts, that the backend takes, including special
            tokens.
        pooling: "last", "mean" or "cls"; `RANK` for a reranker.
        file_type: The quantization, such as "Q6_K" or "F16".
        sha256: The SHA-256 of the file, in hexadecimal.
        unknown_token: The token in place of a word that the vocabulary lacks, or None.
        special_tokens: Number and text of each special token, such as (102, "[SEP]").
        origins: Further names in the file, and the addresses of what it was made from.
        file_pooling: The pooling that the file tells, which is another one if the user has named one; "" if it tells none.
    """

    identity: str
    name: str
    architecture: str
    dim: int
    max_tokens: int
    pooling: str
    file_type: str
    sha256: str
    unknown_token: int | None = None
    special_tokens: tuple[tuple[int, str], ...] = ()
    origins: tuple[str, ...] = ()
    file_pooling: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTraits:
    """The correct use of a model, which its file does not tell.

    Attributes:
        query_prompt: The text in front of a query; "{instruction}" stands for the instruction, if the model takes one.
        document_prompt: The text in front of a document.
        default_instruction: The instruction of a query that names none.
        min_dimensions: The fewest leading values that can be used as a vector (Matryoshka); 0 means that only whole vectors
            can.
        prompts_unknown: Whether nobody has told the prompts, so that the model may have been trained with some.
    """

    query_prompt: str = ""
    document_prompt: str = ""
    default_instruction: str = ""
    min_dimensions: Annotated[int, msgspec.Meta(ge=0)] = 0
    prompts_unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTraits:
    """The traits that the user has set. None leaves a trait as it is; "" and 0 take it away."""

    query_prompt: str | None = None
    document_prompt: str | None = None
    default_instruction: str | None = None
    min_dimensions: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def over(self, traits: ModelTraits) -> ModelTraits:
        """Return traits with those of the user in their places."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        told = {name: value for name, value in own.items() if value is not None}
        unknown = traits.prompts_unknown and not {"query_prompt", "document_prompt"} & told.keys()
        return replace(traits, **told, prompts_unknown=unknown)


PROMPTS_VERSION = 1
"""Version of the construction of prompts. Raise it with each change, since a change of prompts changes vectors."""

MAX_INSTRUCTION = 4096
"""The most characters of an instruction. It stands in front of each text of a call, so a long one takes much memory."""

_COMPUTATIONS = {"last": 2}
"""Version of the computation of vectors, by pooling; 1 if it is not listed. Raise it if kept vectors are less exact than new
ones.

2: The first versions computed long texts in half precision, with cosines down to 0.9997."""

INSTRUCTION_PLACE = "{instruction}"
"""Where the instruction stands in the prompt of a query."""


def prompt_for(options: EmbedOptions, traits: ModelTraits) -> str:
    """Build the prompt, which goes in front of each text of a call.

    Args:
        options: The caller's options.
        traits: The traits of the model.

    Raises:
        BadInstructionError: There is an instruction that cannot be used.
    """
    template = {Role.NONE: "", Role.QUERY: traits.query_prompt, Role.DOCUMENT: traits.document_prompt}[options.role]
    if options.instruction:
        if options.role is not Role.QUERY:
            raise BadInstructionError("an instruction is for queries; set the role to query, or leave the instruction out")
        if INSTRUCTION_PLACE not in template:
            raise BadInstructionError("this model takes no instruction (Info.query_prompt has no place for it); leave it out")
        if len(options.instruction) > MAX_INSTRUCTION:
            raise BadInstructionError(
                f"the instruction has {len(options.instruction)} characters, the limit is {MAX_INSTRUCTION}; shorten it",
                metadata={"characters": str(len(options.instruction)), "limit": str(MAX_INSTRUCTION)},
            )
        if options.instruction.isspace() or "\0" in options.instruction:
            raise BadInstructionError("the instruction is only white space or has a NUL; write one sentence, or leave it out")
    return template.replace(INSTRUCTION_PLACE, options.instruction or traits.default_instruction)


def dimensions_for(options: EmbedOptions, model: ModelInfo, traits: ModelTraits) -> int:
    """Return the number of values of each vector of a call.

    Args:
        options: The caller's options.
        model: The model.
        traits: Its traits.

    Raises:
        BadDimensionsError: The model has no vectors with this number of values.
    """
    wanted, least = options.dimensions or model.dim, min_dimensions(model, traits)
    if least <= wanted <= model.dim:
        return wanted
    facts = {"dimensions": str(wanted), "min": str(least), "max": str(model.dim)}
    if least == model.dim:
        message = f"this model gives vectors of {model.dim} values and no others, not of {wanted}; leave dimensions out"
    else:
        message = f"this model gives vectors of {least} to {model.dim} values, not of {wanted}"
    raise BadDimensionsError(message, metadata=facts)


def min_dimensions(model: ModelInfo, traits: ModelTraits) -> int:
    """Return the fewest values of a vector of this model."""
    return min(traits.min_dimensions or model.dim, model.dim)


def fingerprint(model: ModelInfo, traits: ModelTraits, *, engine_version: str, dimensions: int, device: Device = CPU) -> str:
    """Return the name of the space of vectors. Vectors can be compared if their names are equal.

    Args:
        model: The model.
        traits: Its traits.
        engine_version: The version that the engine tells.
        dimensions: The number of values of a vector.
        device: The device that computes. Other devices round differently.

    Returns:
        "fp1-" and 24 hexadecimal digits.
    """
    parts = (
        *(model.sha256, model.file_type, model.pooling, str(dimensions), engine_version),
        *(str(PROMPTS_VERSION), traits.query_prompt, traits.document_prompt),
        # Nothing for the processors, so that the fingerprints of earlier versions stay.
        *(() if device.is_cpu else (device.accelerator, device.description)),
    )
    return f"fp1-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}"


def cache_space(model: ModelInfo, fingerprint: str) -> str:
    """Return the name of the space of cached vectors. It also covers how exactly they were computed.

    Args:
        model: The model.
        fingerprint: The name of the space of vectors.
    """
    version = _COMPUTATIONS.get(model.pooling, 1)
    return fingerprint if version == 1 else f"{fingerprint} {version}"
