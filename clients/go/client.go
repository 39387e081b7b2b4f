package runed

import (
	"context"
	"sync/atomic"
	"time"

	runedv1 "runed.dev/gen/go/runed/v1"
	"runed.dev/gen/go/runed/v1/runedv1connect"
)

// Info is what the daemon and its model are; what is not known until the model is installed is empty or 0 before.
type Info = runedv1.InfoResponse

// Health is what the daemon is doing right now.
type Health = runedv1.HealthResponse

// Client is a connection to the daemon, for any number of goroutines; [Connect] makes it.
//
// Every method that fails gives a [*Error], whose message says what to do. If the daemon went away since the last call, it is
// started again, unless the client was told not to, and the call is repeated once. If the daemon or its engine is too busy for
// the moment, the call is repeated in growing pauses until its context ends, without a deadline for a minute; the error is then
// the daemon's own.
type Client struct {
	daemon    *daemon
	timeout   time.Duration
	progress  func(*Health)
	transport *transport
	unary     runedv1connect.RunedServiceClient
	streams   runedv1connect.RunedServiceClient
	limits    atomic.Pointer[limits] // asked for once for each daemon
	closed    atomic.Bool
}

// Connect connects to the daemon, which is started if none runs, by the command "runed": runed_binary of config.json, else the
// one of the PATH, else bin/runed in the home.
//
// It returns as soon as the daemon listens; embeddings then wait while it fetches its engine and model. The context is that of
// the connecting alone.
func Connect(ctx context.Context, options ...Option) (*Client, error) {
	var c config
	for _, option := range options {
		option(&c)
	}
	daemon, err := newDaemon(&c)
	if err != nil {
		return nil, err
	}
	client := &Client{daemon: daemon, timeout: c.timeout, progress: c.progress, transport: newTransport(daemon.dial, c.protocol)}
	if client.unary, client.streams, err = client.transport.clients(c.protocol); err != nil {
		return nil, err
	}
	ctx, cancel := client.limit(ctx)
	defer cancel()
	if _, err := daemon.ensure(ctx); err != nil {
		return nil, err
	}
	return client, nil
}

// Close closes the connections; the daemon goes on for others. Calls in flight are finished, later ones fail with ErrClosed.
func (c *Client) Close() error {
	c.closed.Store(true)
	c.transport.closeIdle()
	return nil
}

// begin refuses a call after Close.
func (c *Client) begin() *Error {
	if c.closed.Load() {
		return newError(ErrClosed, nil, "this client is closed; connect again")
	}
	return nil
}

// end closes the connection of a call that Close did not wait for.
func (c *Client) end() {
	if c.closed.Load() {
		c.transport.closeIdle()
	}
}

// limit applies the client's own time limit.
func (c *Client) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.timeout)
}

// Info asks what the daemon and its model are, at any stage.
func (c *Client) Info(ctx context.Context) (*Info, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return call(ctx, c, c.unary.Info, &runedv1.InfoRequest{})
}

// Health asks what the daemon is doing right now, at any stage; it never wakes a suspended engine.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return call(ctx, c, c.unary.Health, &runedv1.HealthRequest{})
}

// WaitReady waits while the daemon fetches its engine and model, and gives the complete Info.
func (c *Client) WaitReady(ctx context.Context) (*Info, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	for {
		info, err := c.Info(ctx)
		if err != nil || info.GetVectorDim() != 0 {
			return info, err
		}
		if err := c.waitOutBootstrap(ctx); err != nil {
			return nil, err
		}
	}
}

// Shutdown asks the daemon to finish what is in flight and to exit; it returns before it has, and starts none for that.
//
// The grace is how long what is in flight may take, in whole seconds; 0 means the daemon's own 10 seconds, 5 minutes is the most.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	seconds := int32(min(grace, 5*time.Minute).Round(time.Second) / time.Second)
	if _, err := send(ctx, c, c.unary.Shutdown, &runedv1.ShutdownRequest{GraceSeconds: seconds}); err != nil {
		return err
	}
	return nil
}
