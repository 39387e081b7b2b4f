"""Every reason of an error, with what it means and what to do: the table behind `runed explain` and docs/protocol.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason.

    Attributes:
        name: The stable name, as `RunedError.reason`.
        code: The code of Connect and gRPC; "" for an error that no call over the socket gets.
        when: What has happened.
        remedy: What to do now, in one or more sentences.
        metadata: The names of the facts for programs.
        section: The part of docs/protocol.md that tells more, as in its address; "" for the table itself.
    """

    name: str
    code: str
    when: str
    remedy: str
    metadata: str = ""
    section: str = ""


# The formatter would give each argument a line of its own.
# fmt: off
REASONS = (
    Reason("EMPTY_TEXT", "INVALID_ARGUMENT", "a text is empty or blank, or the model reads nothing of it",
        "Leave the text out; `index` tells which one it is. `per_item_errors` lets the other texts of a batch be embedded.",
        "`index`", "texts"),
    Reason("INVALID_TEXT", "INVALID_ARGUMENT", "a text holds a NUL or is not Unicode",
        "Remove the NUL, or decode the file with its real encoding; `index` tells which text it is.", "`index`"),
    Reason("TEXT_TOO_LONG", "INVALID_ARGUMENT",
        "a text has more tokens than the model reads; or it has so many characters that its tokens are not counted",
        "Cut the text into parts, or let its end be cut off: `truncate=end`, or `--truncate end` on the command line. "
        "`runed show` tells the limit of the model, and RUNED_CTX_SIZE may be what lowers it.",
        "`tokens`, `limit`, `index`; or `characters`, `character_limit`, `index`"),
    Reason("EMPTY_BATCH", "INVALID_ARGUMENT", "a batch holds no text", "Send at least one text, or make no call."),
    Reason("BATCH_TOO_LARGE", "INVALID_ARGUMENT", "a batch holds too many texts, or more parts than are counted",
        "Send several smaller batches, or a stream. The clients of Python, Go and TypeScript cut batches by themselves.",
        "`texts`, `limit`; or `parts_limit`", "limits"),
    Reason("BAD_DIMENSIONS", "INVALID_ARGUMENT", "the model has no vectors of that many values",
        "Ask for a number from `min` to `max`, or leave `dimensions` out.", "`dimensions`, `min`, `max`"),
    Reason("BAD_INSTRUCTION", "INVALID_ARGUMENT",
        "an instruction without the role query, or for a model that takes none, or of too many characters",
        "Leave the instruction out, or give the role query. `runed show` tells whether the model takes instructions.",
        "`characters`, `limit`"),
    Reason("BAD_CENTROIDS", "INVALID_ARGUMENT",
        "a centroid set is incomplete, not in order, of another dimension, or not what its version says",
        "Make the set anew with the vectors of this model, and send all of it in the order of the ids.",
        "`dim`, `model_dim`, `nlist`, `limit`, `id`, `expected`, `version`, `computed`, as the case may be", "routing"),
    Reason("INVALID_REQUEST", "INVALID_ARGUMENT", "an option has an unknown value, or changes within a stream",
        "Correct the option that `field` names. A newer client may know an option that this daemon does not: update runed.",
        "`field`, `value`"),
    Reason("MALFORMED_REQUEST", "INVALID_ARGUMENT",
        "the message cannot be decoded, or came by a wrong HTTP version, method, content type or header",
        "Correct the program that sends it; the message says what is wrong. A client of runed never sends one.",
        section="embedding"),
    Reason("MALFORMED_REQUEST", "INTERNAL", "a message has the flag of a compressed one, and no header says how",
        "Name the compression in the header `grpc-encoding` or `connect-content-encoding`, or send the message as it is."),
    Reason("QUEUE_FULL", "RESOURCE_EXHAUSTED", "the queue, or the memory of requests, is full; with `RetryInfo`",
        "Try again after the time of `RetryInfo`, as the clients of Python, Go and TypeScript do. If it comes often, send "
        "fewer texts at once, or raise RUNED_QUEUE_TEXTS, RUNED_QUEUE_BYTES or RUNED_REQUEST_MEMORY. "
        "`runed top` shows who waits.",
        "`limit_texts`, `limit_bytes`; `limit` for the memory", "deadlines-and-retries"),
    Reason("REQUEST_TOO_LARGE", "RESOURCE_EXHAUSTED", "the message has too many bytes or too many parts",
        "Send several smaller messages, or a stream.", "`limit`; or `parts_limit`", "limits"),
    Reason("TOO_MANY_WATCHES", "RESOURCE_EXHAUSTED", "the largest number of `Watch` calls is open",
        "Close some of them, or ask `Check` from time to time.", "`limit`", "side-services"),
    Reason("UNKNOWN_SERVICE", "NOT_FOUND", "`grpc.health.v1` was asked for an unknown service",
        "Ask for `runed.v1.RunedService`, or leave the name of the service empty.", section="side-services"),
    Reason("BOOTSTRAPPING", "FAILED_PRECONDITION",
        "engine or model are being downloaded, or were looked for over 60 seconds (until then, calls wait)",
        "Wait: `runed status` shows how far it is, and `runed ensure --wait` waits for it. If it never ends, `runed doctor` "
        "looks at the network and the disk.", section="waiting-for-the-model"),
    Reason("UNKNOWN_MODEL", "NOT_FOUND", "there is no model of that name",
        "Use a name of `runed models`. `runed add` serves a file of your own under a name.", "`models`", "models"),
    Reason("WRONG_MODEL_KIND", "INVALID_ARGUMENT", "a reranker was asked to embed, or a model that embeds to rerank",
        "Name a model of the other kind; `runed models` tells the kinds.", "`model`", "models"),
    Reason("MODEL_NOT_INSTALLED", "FAILED_PRECONDITION", "the file of the model is not here; `runed pull` gets it",
        "Run `runed pull NAME`. Only the default model is fetched without being asked for.", "`model`", "models"),
    Reason("MODEL_TOO_LARGE", "FAILED_PRECONDITION",
        "the engine of the model takes more memory than all engines may (`RUNED_MEMORY`)",
        "Raise RUNED_MEMORY, or choose a smaller variant: `runed bench --variants` compares them.",
        "`model`, `bytes`, `limit`"),
    Reason("MODEL_BUSY", "FAILED_PRECONDITION", "a model that works was to be unloaded; with `RetryInfo`",
        "Try again when its calls have their answers.", "`model`"),
    Reason("SPACE_CHANGED", "FAILED_PRECONDITION",
        "the engine of a remote model gives vectors of another space than before",
        "Let that engine serve the former model again; or run `runed stop`, and embed all stored texts anew.", "`model`"),
    Reason("NO_CENTROID_SET", "FAILED_PRECONDITION", "`with_route` was asked for, and there is no centroid set",
        "Push a centroid set first, by `SetCentroids` or `set_centroids` of a client.", section="routing"),
    Reason("BACKEND_UNAVAILABLE", "UNAVAILABLE",
        "the engine died and is being restarted; or engine or model could not be installed, without `RetryInfo` if only a "
        "change of settings or files helps",
        "With `RetryInfo`, try again. Otherwise the message says what to change. `runed doctor` tries the engine, and "
        "`runed logs --engine` shows its last words."),
    Reason("SHUTTING_DOWN", "UNAVAILABLE", "the daemon is about to exit; connect again to start a new one",
        "Call again: a client of runed starts the next daemon by itself.", section="finding-or-starting-the-daemon"),
    Reason("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "the time limit of the caller is over",
        "Give the call more time, or send less at once. `runed top` shows whether others use the engine, and a first call "
        "after a pause waits for the start of the engine: `runed ensure --warm` does that ahead.",
        section="deadlines-and-retries"),
    Reason("CANCELED", "CANCELED", "the caller gave up", "Nothing is to do: the work of the call was dropped."),
    Reason("UNIMPLEMENTED", "UNIMPLEMENTED",
        "a method, an option or a compression that this version does not know; in gRPC, another codec or HTTP method, or not "
        "one message where one is wanted",
        "Update runed, and run `runed stop`; the next call starts the new version.", section="compatibility"),
    Reason("BACKEND_FAULT", "INTERNAL",
        "the engine answers something that is not an embedding to this text, or died of it several times",
        "Leave the text out; `index` tells which one it is. If it happens with many texts, `runed doctor` tries the engine.",
        "`index`"),
    Reason("CENTROIDS_NOT_STORED", "INTERNAL", "a centroid set cannot be written to the disk, or does not fit into memory",
        "Make room on the disk of the home, or in memory, and push the set again. `runed doctor` tells both."),
    Reason("INTERNAL", "INTERNAL", "a bug, or the system refuses memory to the daemon; the daemon's log says where",
        "Look at `runed logs`. `runed doctor --bundle` writes an archive without texts and keys for a report."),

    # What the port answers.
    Reason("UNAUTHENTICATED", "", "a request to the port of RUNED_HTTP has no token, or a wrong one",
        "Send the content of `http.token`, in the home, as the API key. A browser needs a new link, by `runed open`."),
    Reason("FOREIGN_HOST", "", "a request to the port of RUNED_HTTP names another host, as that of a web page may",
        "Use 127.0.0.1, localhost or [::1] in the URL. For the outside of a container, set RUNED_HTTP_EXPOSE=yes."),
    Reason("FOREIGN_ORIGIN", "", "a web page of another host asks the port of RUNED_HTTP, which needs no token",
        "Let a program of yours ask in its place. If no such page is yours, unset RUNED_HTTP_TOKEN."),

    # What commands and clients find by themselves.
    Reason("KEPT_STOPPED", "", "`runed stop --for` keeps the daemon stopped",
        "Wait until the time is over, or run `runed ensure --anyway`, which starts it now.", "`seconds`"),
    Reason("DAEMON_UNAVAILABLE", "", "no daemon answers on the socket, and this client may not start one",
        "Run `runed ensure`, or let the client start one. `runed status` and `runed doctor` tell why none answers."),
    Reason("DAEMON_START_FAILED", "", "a daemon that was started ended, or did not listen in time",
        "The message ends with the last lines of its log. `runed doctor` looks for the cause, and `runed serve` shows a start "
        "as it happens.", "`log`"),
    Reason("ALREADY_RUNNING", "", "another daemon serves this home",
        "Use that one, or end it with `runed stop`. Another RUNED_HOME has a daemon of its own."),
    Reason("LIFECYCLE", "", "the daemon could not be found or stopped",
        "`runed stop --force` ends one that hangs. `runed doctor` tells what is wrong."),
    Reason("FOREIGN_PATH", "", "a path of runed belongs to another user or program, or others can write to it",
        "Set RUNED_HOME to a place of your own, or run the command of the message, such as `chmod go-w PATH`. It was left as "
        "it is. `runed doctor` checks all of the home."),
    Reason("BAD_SETTING", "", "an environment variable, config.json or an argument has a value that cannot be used",
        "The message has the accepted values. `runed status --settings` shows what is in force, and docs/configuration.md all "
        "settings."),
    Reason("UNSUPPORTED_PLATFORM", "", "runed does not run on this operating system or processor",
        "Use Linux, macOS or WSL 2 on x86-64 or arm64; or bring a `llama-server` of your own by RUNED_LLAMA_SERVER."),
    Reason("CLOSED", "", "a client was used after it had been closed", "Make a new client, or close it later."),
    Reason("BACKEND_ERROR", "", "the engine failed",
        "`runed logs --engine` shows its last words, and `runed doctor` tries it."),
    Reason("BAD_MODEL_FILE", "", "a model file is no GGUF, is cut short, or is no model that runed can serve",
        "Fetch the file again, or choose another one: a GGUF of a model that embeds or reranks."),
    Reason("BOOTSTRAP_FAILED", "", "engine or model could not be installed",
        "The message says what failed. `runed doctor` checks network, disk and files, and `runed install` tries again."),
    Reason("BAD_MANIFEST", "", "the manifest is not JSON, has another version, or lacks the platform or the variant",
        "Correct the file that RUNED_MANIFEST names, unset the variable, or update runed."),
    Reason("DOWNLOAD_FAILED", "", "a file could not be downloaded, in spite of all tries",
        "Check the network and the proxy with `runed doctor`. A mirror of the hub is named by HF_ENDPOINT, and the next try "
        "goes on where this one ended. Without a network, RUNED_LLAMA_SERVER and RUNED_MODEL name files of your own."),
    Reason("VERIFICATION_FAILED", "", "a downloaded file has another size or SHA-256 than the manifest says",
        "Try again. If it stays so, a proxy or mirror changes the file: use another one."),
    Reason("DISK_FULL", "", "the disk has not enough room for an installation",
        "Make room, or set RUNED_HOME to a larger disk. `runed rm` removes models."),
    Reason("BAD_ARCHIVE", "", "the archive of the engine is broken, or holds a member that would leave its folder",
        "Try again. If it stays so, the mirror has a wrong file: use another one."),
)
# fmt: on
"""All reasons: first those that a daemon sends, in the order of docs/protocol.md, then the others. A test compares them."""


def find(name: str) -> list[Reason]:
    """Return the rows of a reason, by its name in letters of any case; none if it is unknown."""
    return [reason for reason in REASONS if reason.name == name.strip().upper().replace("-", "_")]
