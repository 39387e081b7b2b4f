package runed_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	connectrpc "connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	runed "runed.dev/clients/go"
	runedv1 "runed.dev/gen/go/runed/v1"
	"runed.dev/gen/go/runed/v1/runedv1connect"
)

// fakeDaemon speaks the real contract and answers as arranged. It does things that a real daemon cannot be told to do. The vector
// of a text is its length, twice.
type fakeDaemon struct {
	runedv1connect.UnimplementedRunedServiceHandler
	loading  atomic.Int32 // calls of Health that find it loading
	degraded string
	busy     atomic.Int32 // embeddings that are refused for the moment
	wait     time.Duration
	old      bool // from before there were options and fingerprints
	batches  []int
	limits   runedv1.InfoResponse
	models   atomic.Int32 // numbers the answers if not 0, so that each has another fingerprint
}

// serve lets a handler answer on a new socket, and returns the socket.
func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	socket := filepath.Join(ownHome(t), "fake.sock")
	listener := must(net.Listen("unix", socket))(t)
	server := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return socket
}

// start starts a fake daemon, and connects to it.
func (f *fakeDaemon) start(t *testing.T, options ...runed.Option) *runed.Client {
	t.Helper()
	_, handler := runedv1connect.NewRunedServiceHandler(f)
	return connect(t, append(options, runed.WithSocket(serve(t, handler)))...)
}

func (f *fakeDaemon) Info(context.Context, *connectrpc.Request[runedv1.InfoRequest]) (*connectrpc.Response[runedv1.InfoResponse], error) {
	info := proto.CloneOf(&f.limits)
	if f.loading.Load() == 0 {
		info.VectorDim = 2
	}
	return answer(f, info)
}

func (f *fakeDaemon) Health(context.Context, *connectrpc.Request[runedv1.HealthRequest]) (*connectrpc.Response[runedv1.HealthResponse], error) {
	if left := f.loading.Load(); left > 0 {
		f.loading.Add(-1)
		return answer(f, &runedv1.HealthResponse{
			Status: runedv1.HealthResponse_STATUS_LOADING, Phase: runedv1.HealthResponse_PHASE_FETCHING_MODEL,
			BytesDone: int64(100 - left), BytesTotal: 100, Message: fmt.Sprintf("%d of 100", 100-left),
		})
	}
	if f.degraded != "" {
		return answer(f, &runedv1.HealthResponse{Status: runedv1.HealthResponse_STATUS_DEGRADED, Message: f.degraded})
	}
	return answer(f, &runedv1.HealthResponse{Status: 99}) // ready, in a way that only a newer daemon knows
}

func (f *fakeDaemon) Embed(_ context.Context, request *connectrpc.Request[runedv1.EmbedRequest]) (*connectrpc.Response[runedv1.EmbedResponse], error) {
	if err := f.admit(); err != nil {
		return nil, err
	}
	response := f.embedding(request.Msg.GetText())
	response.Fingerprint = f.fingerprint()
	return answer(f, response)
}

func (f *fakeDaemon) EmbedBatch(_ context.Context, request *connectrpc.Request[runedv1.EmbedBatchRequest]) (*connectrpc.Response[runedv1.EmbedBatchResponse], error) {
	if err := f.admit(); err != nil {
		return nil, err
	}
	f.batches = append(f.batches, len(request.Msg.GetTexts()))
	response := &runedv1.EmbedBatchResponse{Fingerprint: f.fingerprint()}
	for i, text := range request.Msg.GetTexts() {
		if text == "fail" {
			return nil, refusal(connectrpc.CodeInvalidArgument, "TEXT_TOO_LONG", map[string]string{"index": fmt.Sprint(i)}, 0)
		}
		if text == "deadly" {
			return nil, refusal(connectrpc.CodeInternal, "BACKEND_FAULT", map[string]string{"index": fmt.Sprint(i)}, 0)
		}
		response.Embeddings = append(response.Embeddings, f.embedding(text))
	}
	return answer(f, response)
}

func (f *fakeDaemon) embedding(text string) *runedv1.EmbedResponse {
	return &runedv1.EmbedResponse{Vector: []float32{float32(len(text)), float32(len(text))}}
}

func (f *fakeDaemon) fingerprint() string {
	switch {
	case f.old:
		return ""
	case f.models.Load() > 0:
		return fmt.Sprintf("space-%d", f.models.Add(1))
	}
	return "space"
}

func (f *fakeDaemon) admit() error {
	switch {
	case f.loading.Load() > 0:
		return refusal(connectrpc.CodeFailedPrecondition, "BOOTSTRAPPING", nil, 0)
	case f.degraded != "":
		return refusal(connectrpc.CodeUnavailable, "BACKEND_UNAVAILABLE", nil, 0)
	case f.busy.Load() > 0:
		f.busy.Add(-1)
		return refusal(connectrpc.CodeResourceExhausted, "QUEUE_FULL", map[string]string{"limit_texts": "7"}, f.wait)
	}
	return nil
}

// answer sends a message with a field that this client does not know.
func answer[T any, M interface {
	*T
	proto.Message
}](f *fakeDaemon, message M) (*connectrpc.Response[T], error) {
	if !f.old {
		message.ProtoReflect().SetUnknown(newerField)
	}
	return connectrpc.NewResponse((*T)(message)), nil
}

// newerField is a field of the number 1000 with four bytes, as an encoded message has it.
var newerField = []byte{0xc2, 0x3e, 4, 'n', 'e', 'w', '!'}

func refusal(code connectrpc.Code, reason string, metadata map[string]string, wait time.Duration) error {
	err := connectrpc.NewError(code, errors.New("fake: "+reason))
	details := []proto.Message{&errdetails.ErrorInfo{Domain: "runed.v1", Reason: reason, Metadata: metadata}}
	if wait > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	}
	for _, message := range details {
		detail, detailErr := connectrpc.NewErrorDetail(message)
		if detailErr != nil {
			panic(detailErr)
		}
		err.AddDetail(detail)
	}
	return err
}

func TestABootstrapIsWaitedOutAndItsProgressTold(t *testing.T) {
	fake := &fakeDaemon{}
	fake.loading.Store(4)
	var told []string
	client := fake.start(t, runed.WithProgress(func(health *runed.Health) {
		told = append(told, fmt.Sprintf("%s %d/%d %s", health.GetPhase(), health.GetBytesDone(), health.GetBytesTotal(), health.GetStatus()))
	}))
	if vector := must(client.Embed(t.Context(), "four"))(t).Vector; !slices.Equal(vector, []float32{4, 4}) {
		t.Error(vector)
	}
	want := []string{}
	for done := 96; done < 100; done++ {
		want = append(want, fmt.Sprintf("PHASE_FETCHING_MODEL %d/100 STATUS_LOADING", done))
	}
	if !slices.Equal(told, append(want, "PHASE_UNSPECIFIED 0/0 99")) {
		t.Errorf("%q", told)
	}
	fake.loading.Store(2)
	if info := must(client.WaitReady(t.Context()))(t); info.GetVectorDim() != 2 {
		t.Error(info)
	}
}

// otherModels has models that are there while the default one is downloaded without an end.
type otherModels struct{ fakeDaemon }

func (o *otherModels) Health(_ context.Context, request *connectrpc.Request[runedv1.HealthRequest]) (*connectrpc.Response[runedv1.HealthResponse], error) {
	if model := request.Msg.GetModel(); model != "" {
		return answer(&o.fakeDaemon, &runedv1.HealthResponse{Status: runedv1.HealthResponse_STATUS_IDLE, Model: model})
	}
	return answer(&o.fakeDaemon, &runedv1.HealthResponse{Status: runedv1.HealthResponse_STATUS_LOADING, Message: "downloading"})
}

func (o *otherModels) Embed(_ context.Context, request *connectrpc.Request[runedv1.EmbedRequest]) (*connectrpc.Response[runedv1.EmbedResponse], error) {
	response := o.embedding(request.Msg.GetText())
	response.Fingerprint, response.Model = o.fingerprint(), request.Msg.GetModel()
	return answer(&o.fakeDaemon, response)
}

func (o *otherModels) EmbedBatch(_ context.Context, request *connectrpc.Request[runedv1.EmbedBatchRequest]) (*connectrpc.Response[runedv1.EmbedBatchResponse], error) {
	response := &runedv1.EmbedBatchResponse{Fingerprint: o.fingerprint(), Model: request.Msg.GetModel()}
	for _, text := range request.Msg.GetTexts() {
		response.Embeddings = append(response.Embeddings, o.embedding(text))
	}
	return answer(&o.fakeDaemon, response)
}

func (o *otherModels) Rerank(context.Context, *connectrpc.Request[runedv1.RerankRequest]) (*connectrpc.Response[runedv1.RerankResponse], error) {
	return answer(&o.fakeDaemon, &runedv1.RerankResponse{Model: "judge", Results: []*runedv1.RerankResult{{Score: 0.5}}})
}

func TestACallForAnotherModelDoesNotWaitForTheDefaultOne(t *testing.T) {
	_, handler := runedv1connect.NewRunedServiceHandler(&otherModels{})
	client := connect(t, runed.WithSocket(serve(t, handler)), runed.WithTimeout(5*time.Second), runed.WithProgress(func(health *runed.Health) {
		if health.GetStatus() == runedv1.HealthResponse_STATUS_LOADING {
			t.Error("the start of the default model was watched")
		}
	}))
	ranked := must(client.Rerank(t.Context(), "query", []string{"document"}, runed.RerankOptions{}))(t)
	if len(ranked) != 1 {
		t.Error(ranked)
	}
	must(client.Embed(t.Context(), "text", runed.WithModel("small")))(t)
	must(client.EmbedBatch(t.Context(), []string{"text"}, runed.WithModel("small")))(t)
	must(client.Rerank(t.Context(), "query", []string{"document"}, runed.RerankOptions{Model: "judge"}))(t)
}

func TestAFailedBootstrapEndsTheWait(t *testing.T) {
	fake := &fakeDaemon{degraded: "the disk is full; free 500 MB"}
	fake.loading.Store(2)
	_, err := fake.start(t).Embed(t.Context(), "text")
	if !errors.Is(err, runed.ErrBackendUnavailable) || !strings.Contains(err.Error(), "the disk is full; free 500 MB") {
		t.Error(err)
	}
}

func TestTheWaitForABootstrapEndsAtTheDeadline(t *testing.T) {
	fake := &fakeDaemon{}
	fake.loading.Store(99)
	_, err := fake.start(t, runed.WithTimeout(300*time.Millisecond)).Embed(t.Context(), "text")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not ready yet") {
		t.Error(err)
	}
}

func TestABusyDaemonIsTriedAgainWithinTheDeadline(t *testing.T) {
	fake := &fakeDaemon{wait: time.Millisecond}
	client := fake.start(t)
	fake.busy.Store(3)
	must(client.Embed(t.Context(), "text"))(t)
	if left := fake.busy.Load(); left != 0 {
		t.Errorf("%d refusals left", left)
	}
	fake.busy.Store(1000)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := client.Embed(ctx, "text")
	failure := failureOf(t, err)
	if failure.Reason != runed.ErrQueueFull || failure.Code != connectrpc.CodeResourceExhausted || failure.Metadata["limit_texts"] != "7" ||
		failure.RetryAfter != time.Millisecond || !strings.Contains(failure.Message, "tried") || ctx.Err() != nil {
		t.Errorf("%#v, %v", failure, ctx.Err())
	}
	fake.wait = time.Hour
	if _, err := client.Embed(t.Context(), "text"); !errors.Is(err, runed.ErrQueueFull) {
		t.Error(err)
	}
}

func TestBatchesAreCutByTheDaemonsLimits(t *testing.T) {
	fake := &fakeDaemon{limits: runedv1.InfoResponse{MaxBatchSize: 4, MaxRequestBytes: 100}}
	client := fake.start(t)
	texts := []string{"a", "bb", "ccc", "dddd", "eeeee", strings.Repeat("f", 90), "g", strings.Repeat("ä", 21), strings.Repeat("ö", 21)}
	for i, embedding := range must(client.EmbedBatch(t.Context(), texts))(t) {
		if int(embedding.Vector[0]) != len(texts[i]) {
			t.Errorf("text %d: %v", i, embedding.Vector)
		}
	}
	if !slices.Equal(fake.batches, []int{4, 1, 1, 2, 1}) {
		t.Error(fake.batches)
	}
	for _, bad := range []string{"fail", "deadly"} {
		_, err := client.EmbedBatch(t.Context(), []string{"a", "b", "c", "d", "e", bad})
		if failure := failureOf(t, err); failure.Metadata["index"] != "5" || !strings.Contains(failure.Message, "starts with text 4") {
			t.Errorf("%v, %v", err, failure.Metadata)
		}
	}
	_, err := client.EmbedBatch(t.Context(), []string{"a", strings.Repeat("x", 100)})
	if failure := failureOf(t, err); failure.Reason != runed.ErrRequestTooLarge || failure.Metadata["limit"] != "100" {
		t.Errorf("%v, %v", err, failure.Metadata)
	}
}

func TestVectorsOfTwoModelsAreNotMixed(t *testing.T) {
	fake := &fakeDaemon{limits: runedv1.InfoResponse{MaxBatchSize: 1}}
	fake.models.Store(1)
	client := fake.start(t)
	_, err := client.EmbedBatch(t.Context(), []string{"a", "b"})
	if failure := failureOf(t, err); failure.Metadata["before"] == failure.Metadata["now"] || !strings.Contains(failure.Message, "compared") {
		t.Error(err)
	}
	if _, err := client.EmbedItems(t.Context(), []string{"a", "b"}); err == nil {
		t.Error("no error")
	}
}

func TestAnOlderDaemonDoesWhatItCan(t *testing.T) {
	client := (&fakeDaemon{old: true}).start(t)
	must(client.Embed(t.Context(), "text"))(t)
	must(client.EmbedBatch(t.Context(), make([]string, 50)))(t) // it tells no limits
	_, embedErr := client.Embed(t.Context(), "text", runed.WithRole(runed.RoleQuery), runed.WithDimensions(1))
	_, itemsErr := client.EmbedItems(t.Context(), []string{"text"})
	_, countErr := client.CountTokens(t.Context(), []string{"text"})
	var streamErr error
	for _, err := range client.EmbedStream(t.Context(), func(yield func(string, string) bool) { yield("1", "text") }) {
		streamErr = err
	}
	for _, err := range []error{embedErr, itemsErr, countErr, streamErr} {
		if !errors.Is(err, runed.ErrUnimplemented) {
			t.Error(err)
		}
	}
	if !strings.Contains(embedErr.Error(), "role and dimensions") {
		t.Error(embedErr)
	}
}

func TestANewerClientsFieldsDoNotDisturbTheDaemon(t *testing.T) {
	client := connect(t)
	socket := must(client.WaitReady(t.Context()))(t).GetSocketPath()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	newer := runedv1connect.NewRunedServiceClient(&http.Client{Transport: transport}, "http://runed")
	request := &runedv1.EmbedRequest{Text: "green tea"}
	request.ProtoReflect().SetUnknown(newerField)
	response := must(newer.Embed(t.Context(), connectrpc.NewRequest(request)))(t)
	if !(cosine(response.Msg.GetVector(), must(client.Embed(t.Context(), "green tea"))(t).Vector) > 0.9999) {
		t.Error("another vector")
	}
}

func TestAnotherProgramOnTheSocketIsAClearError(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"404":  http.NotFound,
		"500":  func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oops", http.StatusInternalServerError) },
		"HTML": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"garbage": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			fmt.Fprint(w, "\xff\xff")
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := connect(t, runed.WithSocket(serve(t, handler))).Health(t.Context())
			if failureOf(t, err); !strings.Contains(err.Error(), "another program") {
				t.Error(err)
			}
		})
	}
	t.Run("no HTTP", func(t *testing.T) {
		_, err := connect(t, runed.WithSocket(serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			connection, _, _ := http.NewResponseController(w).Hijack()
			connection.Close()
		})))).Health(t.Context())
		if !errors.Is(err, runed.ErrDaemonUnavailable) {
			t.Error(err)
		}
	})
}
