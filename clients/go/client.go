package runed

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	runedv1 "runed.dev/gen/go/runed/v1"
	"runed.dev/gen/go/runed/v1/runedv1connect"
)

// Info describes the daemon and a model.
type Info = runedv1.InfoResponse

// Health tells what the daemon is doing at this moment.
type Health = runedv1.HealthResponse

// Client is a connection to the daemon. Any number of goroutines may use it. [Connect] makes it.
//
// Every method fails with an [*Error], whose message says what to do. If the daemon has gone away since the last call, the client
// starts it again, unless it was told not to, and sends the call again, three times at most. If the daemon or its engine is too
// busy for the moment, the client sends the call again in growing pauses until the call's context ends. Without a deadline it does
// so for a minute. The error is then the daemon's own.
type Client struct {
	daemon    *daemon
	timeout   time.Duration
	progress  func(*Health)
	transport *transport
	unary     runedv1connect.RunedServiceClient
	streams   runedv1connect.RunedServiceClient
	service   runedv1connect.RunedServiceClient
	limits    atomic.Pointer[limits] // asked for once for each daemon
	watched   sync.Map               // the models of this daemon whose start has been watched
	closed    atomic.Bool
}

// Connect connects to the daemon. If none runs, it starts one by the command "runed": the runed_binary of config.json, else the
// "runed" on the PATH, else bin/runed in the home. A daemon that is older than this client is replaced, after it has finished what
// is in flight, if the installed "runed" is newer.
//
// Connect returns as soon as the daemon listens. Embeddings then wait while the daemon fetches its engine and model. The context
// limits the connecting alone.
func Connect(ctx context.Context, options ...Option) (*Client, error) {
	var c config
	for _, option := range options {
		option(&c)
	}
	daemon, err := newDaemon(&c)
	if err != nil {
		return nil, err
	}
	client := &Client{daemon: daemon, timeout: c.timeout, progress: c.progress}
	client.transport = newTransport(daemon.dial, client.dialService, c.protocol)
	if client.unary, client.streams, client.service, err = client.transport.clients(&c); err != nil {
		return nil, err
	}
	ctx, cancel := client.limit(ctx)
	defer cancel()
	if err := daemon.ensure(ctx); err != nil {
		return nil, err
	}
	return client, nil
}

// Service returns the generated client of the contract, for programs that prefer its messages to this package's methods. It
// speaks the client's protocol over the daemon's socket. When it opens a connection, it starts the daemon if none runs, as
// [Connect] does.
//
// Its errors are those of connectrpc.com/connect. It sends each call once: it waits for no bootstrap and no busy daemon.
// [Client.Close] ends it too.
func (c *Client) Service() runedv1connect.RunedServiceClient { return c.service }

// Close closes the connections. The daemon goes on for others. Calls in flight are finished, later ones fail with ErrClosed.
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

// Info describes the daemon and its default model, or the model of WithModel. Other options do not matter. It waits while the daemon
// prepares an engine and a model that are already there, and fails with ErrBootstrapping while the daemon downloads one of them. A
// model that was not fetched fails with ErrModelNotInstalled.
func (c *Client) Info(ctx context.Context, options ...EmbedOption) (*Info, error) {
	return c.readyInfo(ctx, options, true)
}

// WaitReady waits while the daemon fetches its engine and model, and then describes both as Info does.
func (c *Client) WaitReady(ctx context.Context, options ...EmbedOption) (*Info, error) {
	return c.readyInfo(ctx, options, false)
}

// readyInfo asks for Info until the daemon knows the model.
func (c *Client) readyInfo(ctx context.Context, options []EmbedOption, refuseDownload bool) (*Info, error) {
	o, err := resolve(options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	request := &runedv1.InfoRequest{Model: o.model}
	for {
		info, err := callWhenReady(ctx, tries{client: c, refuseDownload: refuseDownload}, c.unary.Info, request)
		if err != nil {
			return nil, err
		}
		if info.GetVectorDim() != 0 {
			if err := checkNamed(o.model, info); err != nil {
				return nil, err
			}
			return info, nil
		}
		if err := c.waitOutBootstrap(ctx, o.model, refuseDownload, true); err != nil {
			return nil, err
		}
	}
}

// WarmUp starts the engine ahead of the first text, and returns when an embedding would be computed at once. It is the engine of the
// default model, or of the model of WithModel, which may be a reranker. Other options do not matter. It waits while the daemon fetches
// its engine and model. The engine is suspended again after the idle time, as after an embedding. A daemon that is too old fails with
// ErrUnimplemented. Embed a text instead then.
func (c *Client) WarmUp(ctx context.Context, options ...EmbedOption) error {
	o, err := resolve(options)
	if err != nil {
		return err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if o.model == "" {
		_, err = callWhenReady(ctx, tries{client: c}, c.unary.WarmUp, &runedv1.WarmUpRequest{})
	} else { // a daemon with one model knows WarmUp, but not this
		_, err = callWhenReady(ctx, tries{client: c}, c.unary.LoadModel, &runedv1.LoadModelRequest{Model: o.model})
	}
	return err
}

// Health tells what the daemon is doing at this moment, at any stage. It never wakes a suspended engine. The state is that of the
// default model, or of the model of WithModel. Other options do not matter.
func (c *Client) Health(ctx context.Context, options ...EmbedOption) (*Health, error) {
	o, err := resolve(options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.health(ctx, o.model)
}

// health asks for the state of a model; "" means the default one.
func (c *Client) health(ctx context.Context, model string) (*Health, error) {
	health, err := call(ctx, tries{client: c}, c.unary.Health, &runedv1.HealthRequest{Model: model})
	if err == nil {
		err = checkNamed(model, health)
	}
	if err != nil {
		return nil, err
	}
	return health, nil
}

// Shutdown asks the daemon to finish what is in flight and to exit. It returns before the daemon has ended, and never starts one.
//
// The grace is the time that calls in flight may take, in whole seconds, 5 minutes at most. 0 means the daemon's own 10 seconds.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	seconds := int32(min(grace, 5*time.Minute).Round(time.Second) / time.Second)
	if _, err := send(ctx, c, c.unary.Shutdown, &runedv1.ShutdownRequest{GraceSeconds: seconds}); err != nil {
		return err
	}
	return nil
}
