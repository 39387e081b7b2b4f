package runed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"runed.dev/gen/go/runed/v1/runedv1connect"
)

const (
	// baseURL has the host that requests name. On a UNIX socket it means nothing.
	baseURL = "http://runed"
	// maxIdle is the number of connections that are kept for later calls. A burst of goroutines must not hold more for good.
	maxIdle = 16
	// idleTimeout is shorter than the daemon's own, so that a call hardly ever meets a connection that is just being closed.
	idleTimeout = 50 * time.Second
)

// errLost marks an error of a connection, as opposed to an answer.
var errLost = errors.New("the connection broke")

type dialFunc = func(context.Context) (net.Conn, error)

// transport carries calls to one socket.
type transport struct {
	unary   *http.Transport
	streams *http.Transport
	service *http.Transport
}

// newTransport prepares the connections and opens none.
//
// Unary calls go over HTTP/1.1 where the protocol allows it: that is as fast as HTTP/2, for a third less processor time of both
// sides.
func newTransport(dial, dialService dialFunc, protocol Protocol) *transport {
	result := &transport{
		streams: newHTTP(dial, (*http.Protocols).SetUnencryptedHTTP2),
		service: newHTTP(dialService, (*http.Protocols).SetUnencryptedHTTP2),
	}
	if result.unary = result.streams; protocol != ProtocolGRPC {
		result.unary = newHTTP(dial, (*http.Protocols).SetHTTP1)
		result.unary.MaxConnsPerHost = connections
	}
	return result
}

func newHTTP(dial dialFunc, choose func(*http.Protocols, bool)) *http.Transport {
	protocols := new(http.Protocols)
	choose(protocols, true)
	return &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		Protocols:           protocols,
		DisableCompression:  true,
		MaxIdleConns:        maxIdle,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     idleTimeout,
	}
}

// clients returns the generated clients: for this package's unary calls and streams, and for [Client.Service].
func (t *transport) clients(c *config) (unary, streams, service runedv1connect.RunedServiceClient, err error) {
	// Compression costs time and saves nothing between two processes of one machine.
	options := []connect.ClientOption{connect.WithAcceptCompression("gzip", nil, nil), connect.WithInterceptors(c.interceptors...)}
	switch c.protocol {
	case "", ProtocolConnect:
	case ProtocolGRPC:
		options = append(options, connect.WithGRPC())
	case ProtocolGRPCWeb:
		options = append(options, connect.WithGRPCWeb())
	default:
		return nil, nil, nil, newError(ErrBadSetting, nil, `protocol is %q, but must be one of "connect", "grpc", "grpcweb"`, c.protocol)
	}
	over := func(carrier http.RoundTripper) runedv1connect.RunedServiceClient {
		return runedv1connect.NewRunedServiceClient(&http.Client{Transport: carrier}, baseURL, options...)
	}
	return over(marking{t.unary}), over(marking{t.streams}), over(t.service), nil
}

// dialService opens a connection for [Client.Service], to a daemon that it starts if none runs.
func (c *Client) dialService(ctx context.Context) (net.Conn, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	if err := c.daemon.ensure(ctx); err != nil {
		return nil, err
	}
	return c.daemon.dial(ctx)
}

// closeIdle closes the connections that carry no call.
func (t *transport) closeIdle() {
	t.unary.CloseIdleConnections()
	t.streams.CloseIdleConnections()
	t.service.CloseIdleConnections()
}

// marking marks errors of the connection with errLost.
type marking struct{ next http.RoundTripper }

func (m marking) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := m.next.RoundTrip(request)
	if err != nil {
		return nil, lost(err)
	}
	response.Body = markingBody{response.Body}
	return response, nil
}

type markingBody struct{ io.ReadCloser }

func (b markingBody) Read(buffer []byte) (int, error) {
	n, err := b.ReadCloser.Read(buffer)
	if err != nil && err != io.EOF {
		err = lost(err)
	}
	return n, err
}

// lost marks an error. It replaces io.EOF, which connect takes for the end of a stream, dropping the mark.
func lost(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", errLost, err)
}
