package interop

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	pb "runed.dev/interop/runedv1"
)

func TestEmbedding(t *testing.T) {
	client := dial(t, shared)
	waitReady(t, client)
	info := must(client.Info(t.Context(), &pb.InfoRequest{}))(t)
	fixtures := references(t, info.GetVectorDim())
	var texts []string
	for _, fixture := range fixtures {
		texts = append(texts, fixture.Text)
	}
	batch := must(client.EmbedBatch(t.Context(), &pb.EmbedBatchRequest{Texts: texts}))(t)
	for i, fixture := range fixtures {
		single := must(client.Embed(t.Context(), &pb.EmbedRequest{Text: fixture.Text}))(t)
		for _, vector := range [][]float32{single.GetVector(), batch.GetEmbeddings()[i].GetVector()} {
			if similar := cosine(vector, fixture.Vector); !(similar >= 0.9999) {
				t.Errorf("text %d: cosine %v", i, similar)
			}
		}
		if single.GetClusterId() != 0 || single.GetCentroidSetVersion() != "" {
			t.Errorf("text %d has a route that was not asked for: %v", i, single)
		}
		if len(single.ProtoReflect().GetUnknown()) == 0 {
			t.Error("the daemon sent no field that this program does not know, so this shows nothing about them")
		}
	}
}

func TestCallsByName(t *testing.T) {
	client := dial(t, shared)
	waitReady(t, client)
	var response pb.EmbedResponse
	if err := client.Invoke(t.Context(), "/runed.v1.RunedService/Embed", &pb.EmbedRequest{Text: "green tea"}, &response); err != nil {
		t.Fatal(err)
	}
	typed := must(client.Embed(t.Context(), &pb.EmbedRequest{Text: "green tea"}))(t)
	if !(cosine(response.GetVector(), typed.GetVector()) > 0.9999) {
		t.Error("another vector")
	}
}

func TestInfo(t *testing.T) {
	client := dial(t, shared)
	waitReady(t, client)
	info := must(client.Info(t.Context(), &pb.InfoRequest{}))(t)
	if info.GetDaemonVersion() == "" || info.GetVectorDim() < 1 || info.GetMaxTextLength() < 1 || info.GetMaxBatchSize() < 1 ||
		!regexp.MustCompile(`^sha256:[0-9a-f]{16}$`).MatchString(info.GetModelIdentity()) {
		t.Error(info)
	}
}

func TestHealth(t *testing.T) {
	client := dial(t, shared)
	waitReady(t, client)
	before := must(client.Health(t.Context(), &pb.HealthRequest{}))(t)
	must(client.Embed(t.Context(), &pb.EmbedRequest{Text: "counted"}))(t)
	after := must(client.Health(t.Context(), &pb.HealthRequest{}))(t)
	if after.GetStatus() != pb.HealthResponse_STATUS_OK || after.GetPhase() != pb.HealthResponse_PHASE_UNSPECIFIED ||
		after.GetUptimeSeconds() < before.GetUptimeSeconds() || after.GetTotalRequests() <= before.GetTotalRequests() {
		t.Errorf("%v, then %v", before, after)
	}
}

func TestRefusals(t *testing.T) {
	client := dial(t, shared)
	waitReady(t, client)
	limit := must(client.Info(t.Context(), &pb.InfoRequest{}))(t).GetMaxTextLength()
	for reason, text := range map[string]string{
		"EMPTY_TEXT": "", "INVALID_TEXT": "a\x00", "TEXT_TOO_LONG": strings.Repeat("word ", int(limit)),
	} {
		_, err := client.Embed(t.Context(), &pb.EmbedRequest{Text: text})
		wantRefusal(t, err, codes.InvalidArgument, reason)
	}
	_, err := client.EmbedBatch(t.Context(), &pb.EmbedBatchRequest{})
	wantRefusal(t, err, codes.InvalidArgument, "EMPTY_BATCH")
	_, err = client.EmbedBatch(t.Context(), &pb.EmbedBatchRequest{Texts: make([]string, 5000)})
	wantRefusal(t, err, codes.InvalidArgument, "BATCH_TOO_LARGE")
	err = client.Invoke(t.Context(), "/runed.v1.RunedService/Dream", &pb.EmbedRequest{}, &pb.EmbedResponse{})
	wantRefusal(t, err, codes.Unimplemented, "UNIMPLEMENTED")
}

func TestDeadlinesAndCancels(t *testing.T) {
	client := dial(t, shared)
	waitReady(t, client)
	texts := make([]string, 2000)
	for i := range texts {
		texts[i] = strings.Repeat("late ", i%50+1) + time.Now().String()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := client.EmbedBatch(ctx, &pb.EmbedBatchRequest{Texts: texts}); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := client.EmbedBatch(ctx, &pb.EmbedBatchRequest{Texts: texts})
		done <- err
	}()
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	must(client.Embed(t.Context(), &pb.EmbedRequest{Text: "after it"}))(t)
}

func TestSilenceWithPings(t *testing.T) {
	t.Parallel()
	client := dial(t, shared, withPings)
	waitReady(t, client)
	ctx, cancel := context.WithTimeout(t.Context(), *silence)
	defer cancel()
	if client.WaitForStateChange(ctx, connectivity.Ready) {
		t.Errorf("the connection became %v", client.GetState())
	}
	must(client.Embed(t.Context(), &pb.EmbedRequest{Text: "after the silence"}))(t)
	if dials := client.dials.Load(); dials != 1 {
		t.Errorf("it took %d connections", dials)
	}
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	h := must(makeHome())(t)
	t.Cleanup(h.remove)
	if err := h.ensure(); err != nil {
		t.Fatal(err)
	}
	client := dial(t, h)
	waitReady(t, client)
	response := must(client.Shutdown(t.Context(), &pb.ShutdownRequest{GraceSeconds: 5}))(t)
	if !response.GetAccepted() {
		t.Error(response)
	}
	for deadline := time.Now().Add(30 * time.Second); status.Code(healthError(client)) != codes.Unavailable; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the daemon goes on")
		}
	}
	// The program's connection finds the next daemon by itself.
	if err := h.ensure(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, client)
	must(client.Embed(t.Context(), &pb.EmbedRequest{Text: "again"}))(t)
}

func healthError(client pb.RunedServiceClient) error {
	_, err := client.Health(context.Background(), &pb.HealthRequest{})
	return err
}
