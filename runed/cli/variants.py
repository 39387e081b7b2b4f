"""The part of `runed bench --variants` that is more than flags: variants of the model are fetched, measured and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar

from runed.backends.llama.variants import Closeness, VariantMeasurement, closeness, measure_variant, most_exact
from runed.backends.samples import LONG_TEXT_WORDS, SOME_TEXTS, sample_texts
from runed.bootstrap import Installation
from runed.cli.boundary import complain, tell
from runed.cli.install import install_shown
from runed.cli.tables import milliseconds, print_table, table
from runed.cli.workbench import Workbench, program_of
from runed.errors import BootstrapError, RunedError, SettingsError

T = TypeVar("T")


def install_variants(bench: Workbench, names: Sequence[str]) -> dict[str, Installation]:
    """Install variants of the model. Those that cannot be installed are left out, and the user is told.

    Args:
        bench: The place of the measurements.
        names: The names of the variants; none for all that the manifest lists.

    Returns:
        At least one variant, each by its name.

    Raises:
        SettingsError: The model is a file of the user's own, which has no variants.
        RunedError: No variant could be installed.
    """
    if bench.settings.model:
        raise SettingsError(
            f"--variants compares variants of the manifest, but RUNED_MODEL={bench.settings.model} is a file; unset it"
        )
    wanted = names or install_shown(bench.settings, bench.paths, bench.display).variants
    return _successes(dict.fromkeys(wanted), partial(_install, bench))


def measure_variants(
    bench: Workbench, variants: Mapping[str, Installation], engine: Installation | None
) -> list[VariantMeasurement]:
    """Measure variants of the model. Those that cannot be measured are left out, and the user is told.

    Args:
        bench: The place of the measurements.
        variants: The variants that `install_variants` returned.
        engine: The engine and the device to measure with; None for those that serve the variants.

    Raises:
        RunedError: No variant could be measured.
    """
    texts = sample_texts(SOME_TEXTS, LONG_TEXT_WORDS)

    def measure(name: str) -> VariantMeasurement:
        number = list(variants).index(name)
        bench.display.update("measuring variants", number, len(variants), unit="variants", detail=f"measuring {name}")
        return _measure(bench, engine or variants[name], variants[name], texts)

    return list(_successes(variants, measure).values())


def _successes(names: Collection[str], work: Callable[[str], T]) -> dict[str, T]:
    """Do some work for each variant, and tell the user of those that fail. Raise the last failure if all do."""
    done: dict[str, T] = {}
    for number, name in enumerate(names, start=1):
        try:
            done[name] = work(name)
        except RunedError as error:
            if number == len(names) and not done:
                raise
            complain(f"{name} is left out: {error.message}")
    return done


def variants_as_dicts(variants: Sequence[VariantMeasurement]) -> list[dict[str, object]]:
    """Return a comparison for programs. A cosine that does not exist is None."""
    best = most_exact(variants)
    return [
        {name: value for name, value in asdict(each).items() if name != "vectors"}
        | {f"{name}_cosine": None if math.isnan(value) else value for name, value in asdict(closeness(each, best)).items()}
        | {"compared_with": best.name}
        for each in variants
    ]


def show_variants(variants: Sequence[VariantMeasurement], bench: Workbench) -> None:
    """Print a comparison for people."""
    best = most_exact(variants)
    result = table("variant", "file", "memory", "alone", "texts/s", "cosine", "least")
    for each in variants:
        result.add_row(
            each.name,
            f"{each.file_bytes / 1e6:,.0f} MB",
            f"{each.memory_bytes / 1e6:,.0f} MB",
            milliseconds(each.lone_seconds),
            f"{each.texts_per_second:,.1f}",
            *_cosines(closeness(each, best)),
        )
    print_table(result)
    tell(f"cosines, the mean and the least, are those to {best.name}, of {len(best.vectors)} texts")
    tell("nothing was switched: RUNED_MODEL_VARIANT chooses")
    tell(f"all variants stay in {bench.paths.models}; remove the files that you do not use")


def _cosines(near: Closeness) -> list[str]:
    """Return the cosines for people, not rounded up to a 1 that they are not."""
    return ["-" if math.isnan(value) else f"{math.floor(value * 1e5) / 1e5:.5f}" for value in (near.mean, near.least)]


def _install(bench: Workbench, name: str) -> Installation:
    # Without `keep_source`, a variant that was measured would be removed when another one is made of it.
    settings = replace(bench.settings, default_model="", model_variant=name, keep_source=True)
    variant = install_shown(settings, bench.paths, bench.display)
    if variant.variant != name:
        raise BootstrapError("; ".join(variant.warnings))
    return variant


def _measure(bench: Workbench, engine: Installation, variant: Installation, texts: Sequence[str]) -> VariantMeasurement:
    return measure_variant(
        variant.variant,
        executable=program_of(engine),
        model=variant.model,
        model_sha256=variant.model_sha256,
        paths=bench.paths,
        ctx_size=bench.settings.ctx_size,
        profile=bench.settings.profile,
        texts=texts,
        seconds=bench.seconds,
        device=engine.device,
    )
