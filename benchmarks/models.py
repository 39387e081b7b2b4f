"""The models that are measured, their texts, and the amount of work of each measurement."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from tools.engine import programs_folder
from tools.qwen3 import QWEN3_0_6B, write

BUILD = Path(__file__).resolve().parent.parent / "build"

WORDS = (  # noqa: SIM905 # a list would take a line a word
    "a about after agent all always and answer any because before book build can city color day early every family find first "
    "garden give good green hand house how idea inside just keep kind large last learn letter light like long machine many "
    "memory model morning music name never new night number of often old open other paper part people place point question "
    "quick rain read river road room same school sea search second see share short small some start story street summer table "
    "tea text that the them time train tree turn under until use very voice wait walk warm water way we what where which white "
    "wind window winter with without word work world write year young"
).split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """The amount of work to measure a model.

    Attributes:
        slices: Number of slices of runed, and of the yardstick in turn with them.
        slice_seconds: Seconds of a slice of clients that send one text after the other.
        trial_seconds: Seconds of one trial of single texts, while the yardstick's best settings are searched.
        trial_texts: Texts of one trial of lists.
        slot_counts: Slot counts that are tried with the yardstick.
        list_sizes: Texts of a request that are tried with the yardstick.
        bulk_texts: Texts of a bulk job that is measured against the yardstick. Each slice has one job.
        beside_texts: Texts of the bulk job during which an interactive client is measured.
        probe_pause: Seconds between the starts of two texts of that client.
        lone_probes: Texts that the interactive client sends without any other load.
        single_calls: Calls of a single client that sends one text after the other.
        long_texts: Long texts of a bulk job that is measured against the yardstick. Each slice has one job.
    """

    slices: int
    slice_seconds: float
    trial_seconds: float
    trial_texts: int
    slot_counts: tuple[int, ...]
    list_sizes: tuple[int, ...]
    bulk_texts: int
    beside_texts: int
    probe_pause: float
    lone_probes: int
    single_calls: int
    long_texts: int

    def quick(self) -> Effort:
        """Return about a tenth of this effort: enough to see that everything works, too little to judge by."""
        return replace(
            self,
            slices=2,
            slice_seconds=self.slice_seconds / 2,
            trial_seconds=self.trial_seconds / 4,
            trial_texts=self.trial_texts // 4,
            slot_counts=self.slot_counts[1:3],
            list_sizes=self.list_sizes[1:3],
            bulk_texts=self.bulk_texts // 5,
            beside_texts=self.beside_texts // 10,
            lone_probes=8,
            single_calls=self.single_calls // 2,
            long_texts=self.long_texts // 4,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """The goals against a raw `llama-server`.

    Attributes:
        clients: Throughput of many clients, in multiples of that of raw with its best number of slots.
        bulk: Speed of a bulk job, in multiples of that of raw at its best.
        single_ms: Time of a single text beyond that of raw, in milliseconds.
        company: Cosine of the vectors of a text alone and in company.
    """

    clients: float = 1.0
    bulk: float = 0.98
    single_ms: float = 4.0
    company: float = 0.9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to measure.

    Attributes:
        key: Its short name, as in `--model`.
        title: Its name, for people.
        file: The GGUF.
        texts: A description of its short texts, for people.
        words: Whether a text is made of words; otherwise it is made of letters.
        lengths: The smallest and the largest number of words or letters of a short text.
        long_text: The number of words or letters of a long text: about 500 tokens.
        long: The numbers of words or letters of the texts in `benchmarks.company`.
        effort: The amount of work to measure it.
        engine: The engine of the daemon, as in RUNED_ENGINE.
        bars: The goals.
    """

    key: str
    title: str
    file: Path
    texts: str
    words: bool
    lengths: tuple[int, int]
    long_text: int
    long: tuple[int, ...]
    effort: Effort
    engine: str = "cpu"
    bars: Bars = Bars()

    def text(self, number: int) -> str:
        """Return the short text of a number. Different numbers have different texts."""
        random = Random(number)
        return self.text_of(random.randint(*self.lengths), random)

    def with_long_texts(self) -> Model:
        """Return this model with long texts in place of the short ones."""
        return replace(self, lengths=(self.long_text, self.long_text))

    def text_of(self, length: int, random: Random) -> str:
        """Return a text of a given number of words or letters."""
        return (" " if self.words else "").join(random.choices(WORDS if self.words else LETTERS, k=length))


MINILM = Model(
    key="minilm",
    title="all-MiniLM-L6-v2, f16",
    file=BUILD / "all-minilm-l6-v2.f16.gguf",
    texts="9 to 13 random words",
    words=True,
    lengths=(9, 13),
    long_text=480,
    long=(1, 1, 2, 2, 3, 4, 5, 7, 10, 14, 20, 29, 41, 58, 83, 118, 168, 239, 340, 450),
    effort=Effort(
        slices=5,
        slice_seconds=4,
        trial_seconds=3,
        trial_texts=512,
        slot_counts=(4, 8, 16, 32),
        list_sizes=(8, 16, 32, 64),
        bulk_texts=1200,
        beside_texts=10_000,
        probe_pause=0.25,
        lone_probes=60,
        single_calls=300,
        long_texts=40,
    ),
)

QWEN3 = Model(
    key="qwen3",
    title="Random weights in the shape of Qwen3-Embedding-0.6B, q6_K",
    file=BUILD / "qwen3-0.6b-shape.q6_K.gguf",
    texts="8 to 24 random letters, nearly each a token",
    words=False,
    lengths=(8, 24),
    long_text=500,
    long=(1, 2, 3, 4, 6, 7, 8, 11, 16, 23, 33, 47, 58, 59, 60, 61, 90, 130, 260, 420),
    effort=Effort(
        slices=3,
        slice_seconds=12,
        trial_seconds=8,
        trial_texts=48,
        slot_counts=(4, 8, 16, 32),
        list_sizes=(2, 3, 4, 8),
        bulk_texts=100,
        beside_texts=300,
        probe_pause=1.0,
        lone_probes=24,
        single_calls=40,
        long_texts=8,
    ),
)

MINILM_ONNX = replace(
    MINILM,
    key="minilm-onnx",
    title="all-MiniLM-L6-v2, f16, by ONNX Runtime",
    engine="onnx",
    bars=Bars(clients=1.5, bulk=1.7, single_ms=0.0, company=0.9999999),
)
"""The same file as `MINILM`, served by the other engine. The yardstick stays `llama-server`."""

MODELS = (MINILM, MINILM_ONNX, QWEN3)

RERANKER = BUILD / "minilm-reranker.f32.gguf"
"""A small cross-encoder, which `make setup` makes."""

TINY = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "tiny-qwen3.f32.gguf"
"""A model of random weights that loads at once."""


def ensure(model: Model) -> None:
    """Make the file of a model, unless `make setup` makes it.

    Raises:
        FileNotFoundError: The file is missing, and `make setup` makes it.
        CalledProcessError: The model cannot be quantized.
    """
    if model.file.exists():
        return
    if model.file != QWEN3.file:
        raise FileNotFoundError(f"{model.file} is missing: run `make setup`")
    print(f"making {model.file.name}; this takes a minute, once", flush=True)
    whole, unfinished = model.file.with_suffix(".f16"), model.file.with_suffix(".part")
    try:
        write(whole, QWEN3_0_6B)
        quantize = [str(programs_folder() / "llama-quantize"), str(whole), str(unfinished), "Q6_K", "2"]
        subprocess.run(quantize, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        unfinished.rename(model.file)
    finally:
        whole.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
