/** Calls over the daemon's UNIX socket. */

import { type Client, createClient, type Transport } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  type GrpcTransportOptions,
} from "@connectrpc/connect-node";
import { Connection } from "./connection.js";
import { RunedService } from "./gen/runed/v1/runed_pb.js";
import type { Target } from "./target.js";

/** The protocols that the daemon speaks; they differ in nothing that a caller would see. */
export type Protocol = "connect" | "grpc" | "grpcweb";

/** The daemon's methods, as `@connectrpc/connect` makes them of the contract. */
export type Rpc = Client<typeof RunedService>;

/** A name has to be there for HTTP, but nobody looks it up. */
const ORIGIN = "http://localhost";

const TRANSPORTS: Record<Protocol, (options: GrpcTransportOptions) => Transport> = {
  connect: (options) => createConnectTransport({ ...options, httpVersion: "2" }),
  grpc: createGrpcTransport,
  grpcweb: (options) => createGrpcWebTransport({ ...options, httpVersion: "2" }),
};

/** What a client calls the daemon by. */
export class Link {
  readonly rpc: Rpc;
  readonly #connection: Connection;
  #closed = false;

  /** @throws TypeError There is no such protocol. */
  constructor(target: Target, protocol: Protocol) {
    if (!Object.hasOwn(TRANSPORTS, protocol)) {
      throw new TypeError(`protocol is none of ${Object.keys(TRANSPORTS).join(", ")}`);
    }
    this.#connection = new Connection(ORIGIN, () => target.dial());
    const transport = TRANSPORTS[protocol]({
      baseUrl: ORIGIN,
      sessionManager: this.#connection,
      // Compression costs time and saves nothing between two processes of one machine.
      acceptCompression: [],
    });
    this.rpc = createClient(RunedService, transport);
  }

  /** Whether `close` was called. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Closes the connection, and breaks off the calls that are under way. */
  close(): void {
    this.#closed = true;
    this.#connection.close();
  }
}
