/** The HTTP/2 connection of a client. */

import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants, type OutgoingHttpHeaders } from "node:http2";
import type { Socket } from "node:net";
import type { GrpcTransportOptions } from "@connectrpc/connect-node";

/** Bytes of answers that the daemon may send ahead of us, on one stream and on all of them. */
const WINDOW = 1024 * 1024;

type SessionManager = NonNullable<GrpcTransportOptions["sessionManager"]>;

interface Session {
  readonly http2: ClientHttp2Session;
  streams: number;
}

/**
 * One HTTP/2 connection for all calls. It opens with the first of them, and again where it was lost.
 *
 * While no call is under way it does not keep the process alive. The `Http2SessionManager` of `@connectrpc/connect-node` does the
 * same, but an error of a session that breaks as it opens reaches no listener there, which ends the process.
 */
export class Connection implements SessionManager {
  readonly authority: string;
  readonly #dial: (signal: AbortSignal) => Promise<Socket>;
  readonly #open = new Set<ClientHttp2Session>();
  readonly #life = new AbortController();
  #current: Session | undefined;
  #opening: Promise<Session> | undefined;

  /**
   * @param authority - The origin that requests name.
   * @param dial - Opens a socket; the signal ends its wait.
   */
  constructor(authority: string, dial: (signal: AbortSignal) => Promise<Socket>) {
    this.authority = authority;
    this.#dial = dial;
  }

  /** Begins a request. */
  async request(method: string, path: string, headers: OutgoingHttpHeaders, options: object): Promise<ClientHttp2Stream> {
    const session = await this.#session();
    const stream = session.http2.request({ ...headers, ":method": method, ":path": path }, options);
    session.streams += 1;
    session.http2.ref();
    stream.once("close", () => {
      session.streams -= 1;
      if (session.streams === 0) {
        session.http2.unref();
      }
    });
    return stream;
  }

  /** Does nothing: a socket of the same machine needs no proof that it lives. */
  notifyResponseByteRead(): void {}

  /** Closes the connection, and breaks off the requests that are under way. */
  close(): void {
    this.#life.abort();
    for (const http2 of this.#open) {
      // Without an error, Node.js ends the streams as if they had come to their end.
      http2.destroy(new Error("the client was closed"), constants.NGHTTP2_CANCEL);
    }
  }

  async #session(): Promise<Session> {
    // A daemon that is about to end says so. Its connection is then closed for new requests while it answers the others.
    if (this.#current === undefined || this.#current.http2.closed || this.#current.http2.destroyed) {
      this.#opening ??= this.#connect().finally(() => {
        this.#opening = undefined;
      });
      this.#current = await this.#opening;
    }
    return this.#current;
  }

  async #connect(): Promise<Session> {
    const socket = await this.#dial(this.#life.signal);
    return await new Promise((opened, failed) => {
      const settings = { enablePush: false, initialWindowSize: WINDOW };
      const http2 = connect(this.authority, { createConnection: () => socket, settings });
      this.#open.add(http2);
      // Stays: an error without a listener would end the process. After the opening, each request hears of it by itself.
      http2.on("error", failed);
      http2.once("close", () => {
        this.#open.delete(http2);
        failed(new Error("the connection closed as it opened"));
      });
      http2.once("connect", () => {
        http2.setLocalWindowSize(WINDOW);
        http2.unref();
        opened({ http2, streams: 0 });
      });
    });
  }
}
