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
	// baseURL has the host that requests name; on a UNIX socket it means nothing.
	baseURL = "http://runed"
	// maxIdle is the number of connections that are kept for later calls; a burst of goroutines must not hold more for good.
	maxIdle = 16
	// idleTimeout is less than the daemon's own, so that a call hardly ever meets a connection that is just being closed.
	idleTimeout = 50 * time.Second
)

// errLost marks an error of a connection, and not of an answer.
var errLost = errors.New("the connection broke")

// transport carries calls to one socket.
type transport struct {
	unary   *http.Transport
	streams *http.Transport
}

// newTransport makes the connections ready; none is opened.
//
// Unary calls go over HTTP/1.1 where the protocol can: as fast as over HTTP/2, for a third less processor time of both sides.
func newTransport(dial func(context.Context) (net.Conn, error), protocol Protocol) *transport {
	streams := newHTTP(dial, (*http.Protocols).SetUnencryptedHTTP2)
	if protocol == ProtocolGRPC {
		return &transport{unary: streams, streams: streams}
	}
	return &transport{unary: newHTTP(dial, (*http.Protocols).SetHTTP1), streams: streams}
}

func newHTTP(dial func(context.Context) (net.Conn, error), choose func(*http.Protocols, bool)) *http.Transport {
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

// clients gives the generated clients for unary calls and for streams.
func (t *transport) clients(protocol Protocol) (unary, streams runedv1connect.RunedServiceClient, err error) {
	// Compression costs time and saves nothing between two processes of one machine.
	options := []connect.ClientOption{connect.WithAcceptCompression("gzip", nil, nil)}
	switch protocol {
	case "", ProtocolConnect:
	case ProtocolGRPC:
		options = append(options, connect.WithGRPC())
	case ProtocolGRPCWeb:
		options = append(options, connect.WithGRPCWeb())
	default:
		return nil, nil, newError(ErrBadSetting, nil, `protocol is %q, but must be one of "connect", "grpc", "grpcweb"`, protocol)
	}
	unary = runedv1connect.NewRunedServiceClient(&http.Client{Transport: marking{t.unary}}, baseURL, options...)
	streams = runedv1connect.NewRunedServiceClient(&http.Client{Transport: marking{t.streams}}, baseURL, options...)
	return unary, streams, nil
}

// closeIdle closes the connections that carry no call.
func (t *transport) closeIdle() {
	t.unary.CloseIdleConnections()
	t.streams.CloseIdleConnections()
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

// lost marks an error. io.EOF must not be among its causes: connect takes that for something else, and drops the mark.
func lost(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", errLost, err)
}
