"""`runed add`: serve a model file of the user's own."""

from __future__ import annotations

import argparse

from runed.bootstrap.shelf import add_entry
from runed.cli.boundary import ExitCode, tell, tell_json
from runed.cli.catalog import kind_of, open_catalog, pooling_of, quoted, tell_of_daemon, tell_of_use
from runed.cli.install import open_home
from runed.cli.options import add_json, whole_number
from runed.cli.own_onnx import read_onnx
from runed.domain.model import RANK, ModelInfo, OwnTraits
from runed.domain.names import name_of_file
from runed.domain.traits import traits_of
from runed.errors import SettingsError
from runed.onnx_files import is_onnx
from runed.own_models import Entry
from runed.setting_values import duration
from runed.settings import full_path

DESCRIPTION = """\
Serve a GGUF of your own: write its entry into config.json, and leave all else
there as it is. The file stays where it is. It tells whether the model embeds or
reranks. Prompts and dimensions are those of the model's family, if its metadata
tells it; options go before them. A reranker has neither.

An ONNX file is served by ONNX Runtime, which the extra runed[onnx] installs.
The tokenizer.json of the model lies beside it, or one folder above.
"""

EPILOG = """\
examples:
  runed add ~/models/e5-base-v2.f16.gguf --name e5
  runed add mine.gguf --name mine --query-prompt "query: "
  runed use mine

with --json, standard output is one JSON object: name, path, kind, architecture,
file_type, dimensions (0 for a reranker), pooling, query_prompt, document_prompt
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    add = parser.add_argument
    add("path", metavar="PATH", help="the GGUF, or the ONNX file")
    add("--name", help="what to call the model (default: as the file, in small letters)")
    add("--alias", action="append", default=[], metavar="NAME", help="a further name; may be repeated")
    add("--pooling", choices=("mean", "cls", "last"), help="the pooling, if the file does not tell it")
    add("--query-prompt", metavar="TEXT", help='the text in front of a query; "{instruction}" stands for the instruction')
    add("--document-prompt", metavar="TEXT", help="the text in front of a document")
    add("--default-instruction", metavar="TEXT", help="the instruction of a query that names none")
    add("--min-dimensions", type=whole_number, metavar="N", help="the fewest values of a shortened vector (Matryoshka)")
    add_json(parser)
    add("--keep-alive", metavar="TIME", help='when its engine is stopped, such as "30m"; 0 for never')


def run(arguments: argparse.Namespace) -> int:
    """Check the file, write the entry, and print what is known of the model."""
    from runed.backends.model_info import read_model_info  # noqa: PLC0415 # NumPy, which `runed add --help` does not need

    settings, paths = open_home()
    path = full_path(arguments.path)
    if arguments.keep_alive is not None:
        duration(arguments.keep_alive, "--keep-alive")
    pooling = arguments.pooling or ""
    info = read_onnx(paths, path, pooling=pooling) if is_onnx(path) else read_model_info(path, pooling=pooling)
    name = arguments.name or name_of_file(path)
    entry = Entry(
        path=str(path),
        pooling=arguments.pooling,
        query_prompt=arguments.query_prompt,
        document_prompt=arguments.document_prompt,
        default_instruction=arguments.default_instruction,
        min_dimensions=arguments.min_dimensions,
        keep_alive=arguments.keep_alive,
        aliases=arguments.alias,
    )
    own = OwnTraits(
        query_prompt=entry.query_prompt,
        document_prompt=entry.document_prompt,
        default_instruction=entry.default_instruction,
        min_dimensions=entry.min_dimensions,
    )
    if info.pooling == RANK and own != OwnTraits():
        raise SettingsError(f"the model {path} is a reranker, which has no prompts and no dimensions; leave their options out")
    add_entry(settings, paths, open_catalog(settings, paths), name, entry)
    if arguments.json:
        traits = traits_of(info, None, own)
        tell_json(
            {
                "name": name,
                "path": str(path),
                "kind": kind_of(info),
                "architecture": info.architecture,
                "file_type": info.file_type,
                "dimensions": 0 if info.pooling == RANK else info.dim,
                "pooling": info.pooling,
                "query_prompt": traits.query_prompt,
                "document_prompt": traits.document_prompt,
            }
        )
        return ExitCode.OK
    told = f"added     {name}: {info.name}, {info.architecture}, {info.file_type}"
    if info.pooling == RANK:
        tell(f"{told}, reranks documents")
    else:
        _tell_traits(told, info, own)
    tell_of_use(name, kind_of(info))
    tell_of_daemon(paths, name)
    return ExitCode.OK


def _tell_traits(told: str, info: ModelInfo, own: OwnTraits) -> None:
    traits = traits_of(info, None, own)
    tell(f"{told}, vectors of {info.dim:,} dimensions")
    tell(f"pooling   {pooling_of(info)}")
    tell(f"query     {quoted(traits.query_prompt)}")
    tell(f"document  {quoted(traits.document_prompt)}")
    if traits.prompts_unknown:
        tell(
            "note      the family of the model is not known, so roles put no prompt in front of a text; "
            "if it was trained with prompts, name them in config.json (query_prompt, document_prompt); an empty query_prompt "
            "says that it has none"
        )
