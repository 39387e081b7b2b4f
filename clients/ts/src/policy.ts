/** The values that the clients of all languages share. tests/conformance/policy.json has them too, and a test compares. */

/** Milliseconds for which a call without a deadline is tried again, counted from the first refusal. */
export const RETRY_PATIENCE_MS = 60_000;

/** The factor by which each pause is longer than the one before, on average. */
export const RETRY_GROWTH = 1.5;

/** Milliseconds of the shortest pause, before the jitter. */
export const RETRY_SHORTEST_MS = 50;

/** Milliseconds of the longest pause, before the jitter. A longer time that the daemon tells is kept. */
export const RETRY_LONGEST_MS = 10_000;

/**
 * How often a call is sent again whose connection broke.
 *
 * One try is not enough: a dying daemon closes its connections a moment before its listening socket, so that it seems to live on.
 */
export const LOST_TRIES = 3;

/** Milliseconds between a broken connection and the next try. */
export const LOST_PAUSE_MS = 50;

/** Milliseconds between two looks for the successor of a daemon that shuts down. */
export const DRAIN_POLL_MS = 200;

/** Milliseconds that these pauses add up to at most. */
export const DRAIN_PATIENCE_MS = 30_000;

/** Milliseconds between the first two looks at Health during a bootstrap. */
export const BOOTSTRAP_FIRST_POLL_MS = 100;

/** Milliseconds between two looks at Health later on. */
export const BOOTSTRAP_LONGEST_POLL_MS = 250;

/** Milliseconds between two tries to connect to a daemon whose queue of connections is full. */
export const DIAL_PAUSE_MS = 20;

/** Milliseconds for which this is tried where the caller sets no limit. */
export const DIAL_PATIENCE_MS = 60_000;

/** The most single calls of a client at a time. Further ones wait until one ends. */
export const CONNECTIONS = 64;

/** Milliseconds that the start of a daemon may take where the caller sets no limit. */
export const START_PATIENCE_MS = 60_000;

/** The longest path of a socket in bytes: macOS holds 104 with the closing NUL, Linux 108. */
export const MAX_SOCKET_PATH = 103;

/**
 * The most texts that a stream has taken from its caller and that are not answered yet.
 *
 * Enough for the daemon to put texts of like length together, and few enough to be computed again if a daemon dies.
 */
export const STREAM_TEXTS = 512;

/** The most bytes of these texts. */
export const STREAM_BYTES = 4 * 1024 * 1024;

/** The most texts of one message of a stream. */
export const MESSAGE_TEXTS = 64;

/** The most bytes of the texts of one message. A longer text goes alone. */
export const MESSAGE_BYTES = 64 * 1024;

/** Bytes at most that a text takes of a stream's message besides itself: tags, lengths and its number. */
export const ITEM_OVERHEAD = 40;

/** Bytes at most that a text takes of a batch besides itself: the tag and the length. */
export const TEXT_OVERHEAD = 6;

/** UTF-8 bytes above which a single text is compared with the daemon's limit before it is sent. */
export const LARGE_TEXT = 1024 * 1024;

/** The most texts of one request where the daemon tells no limit. */
export const FALLBACK_TEXTS = 32;

/** The most bytes of one request where the daemon tells no limit. */
export const FALLBACK_BYTES = 4 * 1024 * 1024;

/** Bytes of the centroids of one message, about. */
export const CENTROID_BYTES = 1024 * 1024;
