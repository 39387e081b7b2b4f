"""The part of `runed bench --variants` that is more than flags: variants of the model are fetched, measured and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from runed.backends.llama.variants import Closeness, VariantMeasurement, closeness, measure_variant, most_exact
from runed.bootstrap import Installation
from runed.cli.boundary import complain, tell
from runed.cli.install import install_shown
from runed.cli.samples import LONG_TEXT_WORDS, SOME_TEXTS, sample_texts
from runed.cli.tables import milliseconds, print_table, table
from runed.cli.workbench import Workbench
from runed.errors import BootstrapError, RunedError, SettingsError


def compare_variants(bench: Workbench, names: Sequence[str], chosen: Installation | None) -> list[VariantMeasurement]:
    """Install and measure variants of the model. Those that cannot be measured are left out, and the user is told.

    Args:
        bench: The place of the measurements.
        names: The names of the variants; none for all that the manifest lists.
        chosen: The engine and the device to measure with; None for those that serve.

    Raises:
        SettingsError: The model is a file of the user's own, which has no variants.
        RunedError: No variant could be measured.
    """
    if bench.settings.model:
        raise SettingsError(
            f"--variants compares variants of the manifest, but RUNED_MODEL={bench.settings.model} is a file; unset it"
        )
    served = chosen or install_shown(bench.settings, bench.paths, bench.display)
    texts = sample_texts(SOME_TEXTS, LONG_TEXT_WORDS)
    measured: list[VariantMeasurement] = []
    wanted = list(dict.fromkeys(names or served.variants))
    for number, name in enumerate(wanted):
        try:
            variant = _install(bench, name)
            bench.display.update("measuring variants", number, len(wanted), unit="variants", detail=f"measuring {name}")
            measured.append(_measure(bench, served, variant, texts))
        except RunedError as error:
            if len(wanted) == 1:
                raise
            complain(f"{name} is left out: {error.message}")
    if not measured:
        raise RunedError("no variant could be measured; the lines above tell why")
    return measured


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
    result = table("variant", "file", "memory", "alone", "texts/s", "tokens/s", "mean cosine", "least cosine")
    for each in variants:
        result.add_row(
            each.name,
            f"{each.file_bytes / 1e6:,.0f} MB",
            f"{each.memory_bytes / 1e6:,.0f} MB",
            milliseconds(each.lone_seconds),
            f"{each.texts_per_second:,.1f}",
            f"{each.tokens_per_second:,.0f}",
            *_cosines(closeness(each, best)),
        )
    print_table(result)
    tell(f"cosines are those to {best.name}, of {len(best.vectors)} texts; nothing was switched: RUNED_MODEL_VARIANT chooses")
    tell(f"all variants stay in {bench.paths.models}; remove the files that you do not use")


def _cosines(near: Closeness) -> list[str]:
    """Return the cosines for people, not rounded up to a 1 that they are not."""
    return ["-" if math.isnan(value) else f"{math.floor(value * 1e5) / 1e5:.5f}" for value in (near.mean, near.least)]


def _install(bench: Workbench, name: str) -> Installation:
    # Without `keep_source`, a variant that was measured would be removed when another one is made of it.
    settings = replace(bench.settings, model_variant=name, keep_source=True)
    variant = install_shown(settings, bench.paths, bench.display)
    if variant.variant != name:
        raise BootstrapError("; ".join(variant.warnings))
    return variant


def _measure(bench: Workbench, served: Installation, variant: Installation, texts: Sequence[str]) -> VariantMeasurement:
    return measure_variant(
        variant.variant,
        executable=served.llama_server,
        model=variant.model,
        model_sha256=variant.model_sha256,
        paths=bench.paths,
        ctx_size=bench.settings.ctx_size,
        profile=bench.settings.profile,
        texts=texts,
        seconds=bench.seconds,
        device=served.device,
    )
