/** The client of runed, the shared embedding daemon. */

export type { Embedding, Health, Info, Outcome, Phase, Status } from "./answers.js";
export type { CentroidNames } from "./centroids.js";
export { type Client, type ConnectOptions, connect } from "./client.js";
export { type ErrorCode, type ErrorDetails, type Reason, RunedError } from "./errors.js";
export type { CallOptions, EmbedOptions, ItemOptions, Lane, ModelOptions, PromptOptions, Role, Truncate } from "./options.js";
export type { RankedDocument, RerankOptions } from "./ranking.js";
export type { Place } from "./target.js";
export { createRunedTransport, type Protocol, type RunedTransportOptions } from "./transport.js";
