package runed_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"

	connectrpc "connectrpc.com/connect"
	"runed.dev/clients/go"
	"runed.dev/gen/go/runed/v1/runedv1connect"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// tracing names a span in all calls, as otelconnect does.
type tracing struct{}

func (tracing) WrapUnary(next connectrpc.UnaryFunc) connectrpc.UnaryFunc {
	return func(ctx context.Context, request connectrpc.AnyRequest) (connectrpc.AnyResponse, error) {
		request.Header().Set("traceparent", parent)
		return next(ctx, request)
	}
}

func (tracing) WrapStreamingClient(next connectrpc.StreamingClientFunc) connectrpc.StreamingClientFunc {
	return func(ctx context.Context, spec connectrpc.Spec) connectrpc.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set("traceparent", parent)
		return conn
	}
}

func (tracing) WrapStreamingHandler(next connectrpc.StreamingHandlerFunc) connectrpc.StreamingHandlerFunc {
	return next
}

func TestInterceptorsNameTheSpanOfTheApplication(t *testing.T) {
	for _, protocol := range []runed.Protocol{runed.ProtocolConnect, runed.ProtocolGRPC} {
		var named, others atomic.Int32
		_, handler := runedv1connect.NewRunedServiceHandler(&fakeDaemon{})
		socket := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("traceparent") == parent {
				named.Add(1)
			} else {
				others.Add(1)
			}
			handler.ServeHTTP(w, r)
		}))
		client := connect(t, runed.WithSocket(socket), runed.WithProtocol(protocol), runed.WithInterceptors(tracing{}))
		must(client.Embed(t.Context(), "green tea"))(t)
		must(client.EmbedBatch(t.Context(), []string{"one", "two"}))(t)
		for range client.EmbedStream(t.Context(), func(func(string, string) bool) {}) {
		}
		if named.Load() < 2 || others.Load() > 0 {
			t.Errorf("%s: %d calls named the span, %d did not", protocol, named.Load(), others.Load())
		}
	}
}
