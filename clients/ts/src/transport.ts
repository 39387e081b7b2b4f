/** Calls over the daemon's UNIX socket. */

import { type Client, ConnectError, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { codeFromString } from "@connectrpc/connect/protocol-connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  type GrpcTransportOptions,
} from "@connectrpc/connect-node";
import { Connection } from "./connection.js";
import { RunedError } from "./errors.js";
import { RunedService } from "./gen/runed/v1/runed_pb.js";
import { Places } from "./places.js";
import { CONNECTIONS } from "./policy.js";
import { type Place, Target } from "./target.js";
import { Deadline } from "./waiting.js";

/** The protocols that the daemon speaks. All can do the same. */
export type Protocol = "connect" | "grpc" | "grpcweb";

/** The daemon's methods, as `@connectrpc/connect` makes them of the contract. */
export type Rpc = Client<typeof RunedService>;

/** The origin of requests. HTTP demands one; nothing looks it up. */
const ORIGIN = "http://localhost";

const TRANSPORTS: Record<Protocol, (options: GrpcTransportOptions) => Transport> = {
  connect: (options) => createConnectTransport({ ...options, httpVersion: "2" }),
  grpc: createGrpcTransport,
  grpcweb: (options) => createGrpcWebTransport({ ...options, httpVersion: "2" }),
};

/** @throws TypeError There is no such protocol. */
function transportOver(connection: Connection, protocol: Protocol, interceptors: Interceptor[]): Transport {
  if (!Object.hasOwn(TRANSPORTS, protocol)) {
    throw new TypeError(`protocol is none of ${Object.keys(TRANSPORTS).join(", ")}`);
  }
  // Compression costs time and saves nothing between two processes of one machine.
  return TRANSPORTS[protocol]({ baseUrl: ORIGIN, sessionManager: connection, acceptCompression: [], interceptors });
}

/** The calls of one client, and their two connections. */
export class Link {
  /** Single calls. */
  readonly rpc: Rpc;
  /** Streams. A connection carries a bounded number of them, and those that last must not keep single calls waiting. */
  readonly streams: Rpc;
  /** The places of single calls. */
  readonly places = new Places(CONNECTIONS);
  readonly #connections: Connection[] = [];
  #closed = false;

  /** @throws TypeError There is no such protocol. */
  constructor(target: Target, protocol: Protocol, interceptors: Interceptor[]) {
    const open = (): Rpc => {
      const connection = new Connection(ORIGIN, (signal) => target.dial(signal));
      this.#connections.push(connection);
      return createClient(RunedService, transportOver(connection, protocol, interceptors));
    };
    this.rpc = open();
    this.streams = open();
  }

  /** Whether `close` was called. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Closes the connections, and breaks off the calls that are under way. */
  close(): void {
    this.#closed = true;
    for (const connection of this.#connections) {
      connection.close();
    }
  }
}

/** The options of `createRunedTransport`. */
export interface RunedTransportOptions extends Place {
  /** The protocol on the socket; "connect" by default. */
  protocol?: Protocol | undefined;
  /** Interceptors of Connect for all calls, the first one outermost. */
  interceptors?: Interceptor[] | undefined;
}

/**
 * Makes a Connect `Transport` over the daemon's socket, for the generated client of the contract.
 *
 * When it opens a connection, it starts the daemon if none runs. It does not keep the process alive, and need not be closed. It
 * sends each call once: it waits for no bootstrap and no busy daemon.
 *
 * @throws TypeError There is no such protocol, or both `home` and `socketPath` are given.
 */
export function createRunedTransport({
  protocol = "connect",
  interceptors = [],
  ...place
}: RunedTransportOptions = {}): Transport {
  const target = new Target(place);
  const dial = async (signal: AbortSignal) => {
    try {
      await target.ensure(new Deadline(undefined, signal));
      return await target.dial(signal);
    } catch (error) {
      throw error instanceof RunedError ? connectError(error) : error;
    }
  };
  return transportOver(new Connection(ORIGIN, dial), protocol, interceptors);
}

function connectError(error: RunedError): ConnectError {
  return new ConnectError(error.message, codeFromString(error.code.toLowerCase()), undefined, undefined, error);
}
