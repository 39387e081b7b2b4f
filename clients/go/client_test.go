package runed_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	connectrpc "connectrpc.com/connect"
	runed "runed.dev/clients/go"
)

var protocols = []runed.Protocol{runed.ProtocolConnect, runed.ProtocolGRPC, runed.ProtocolGRPCWeb}

func TestVectorsAreThoseOfTheReference(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			client := connect(t, runed.WithProtocol(protocol))
			reference := loadGolden(t, client)
			batch := must(client.EmbedBatch(t.Context(), reference.Texts))(t)
			for i, text := range reference.Texts {
				single := must(client.Embed(t.Context(), text))(t)
				for _, embedding := range []runed.Embedding{*single, batch[i]} {
					if similar := cosine(embedding.Vector, reference.Vectors[i]); !(similar >= 0.9999) {
						t.Errorf("text %d: cosine %v", i, similar)
					}
					if length := dot(embedding.Vector, embedding.Vector); !(length > 0.99999 && length < 1.00001) {
						t.Errorf("text %d: squared length %v", i, length)
					}
					if embedding.TokenCount != reference.Tokens[i] || embedding.TotalTokenCount != reference.Tokens[i] {
						t.Errorf("text %d: %d of %d tokens, not %d", i, embedding.TokenCount, embedding.TotalTokenCount, reference.Tokens[i])
					}
					if embedding.Fingerprint == "" || embedding.Fingerprint != single.Fingerprint {
						t.Errorf("text %d: fingerprint %q", i, embedding.Fingerprint)
					}
				}
			}
		})
	}
}

func TestBatchesKeepTheirOrder(t *testing.T) {
	client := connect(t)
	texts := make([]string, 100)
	for i := range texts {
		texts[i] = fmt.Sprintf("text number %d", i*i%37)
	}
	batch := must(client.EmbedBatch(t.Context(), texts, runed.WithLane(runed.LaneInteractive)))(t)
	for i, text := range texts {
		single := must(client.Embed(t.Context(), text))(t)
		if similar := cosine(single.Vector, batch[i].Vector); !(similar >= 0.9999) {
			t.Errorf("text %d: cosine %v", i, similar)
		}
	}
	if empty := must(client.EmbedBatch(t.Context(), nil))(t); len(empty) != 0 {
		t.Errorf("no texts gave %d embeddings", len(empty))
	}
}

func TestItemsHaveErrorsOfTheirOwn(t *testing.T) {
	client := connect(t)
	limit := must(client.WaitReady(t.Context()))(t).GetMaxTextLength()
	texts := []string{"good", "", strings.Repeat("word ", int(limit)), "bad \xff", "good too"}
	items := must(client.EmbedItems(t.Context(), texts))(t)
	want := []runed.Reason{"", runed.ErrEmptyText, runed.ErrTextTooLong, runed.ErrInvalidText, ""}
	for i, item := range items {
		if want[i] == "" {
			if item.Err != nil || len(item.Vector) == 0 {
				t.Errorf("item %d: %v, %d values", i, item.Err, len(item.Vector))
			}
			continue
		}
		failure := failureOf(t, item.Err)
		if failure.Reason != want[i] || failure.Code != connectrpc.CodeInvalidArgument || failure.Metadata["index"] != strconv.Itoa(i) {
			t.Errorf("item %d: %v, code %v, metadata %v", i, failure, failure.Code, failure.Metadata)
		}
	}
}

func TestOptionsReachTheDaemon(t *testing.T) {
	client := connect(t)
	text := strings.Repeat("tea ", int(must(client.WaitReady(t.Context()))(t).GetMaxTextLength()))
	for _, truncate := range []runed.Truncate{runed.TruncateEnd, runed.TruncateStart} {
		cut := must(client.Embed(t.Context(), text, runed.WithTruncate(truncate), runed.WithRole(runed.RoleDocument)))(t)
		if !cut.Truncated || cut.TokenCount >= cut.TotalTokenCount {
			t.Errorf("%s: truncated %v, %d of %d tokens", truncate, cut.Truncated, cut.TokenCount, cut.TotalTokenCount)
		}
	}
}

func TestTokensAreCounted(t *testing.T) {
	client := connect(t)
	reference := loadGolden(t, client)
	if counts := must(client.CountTokens(t.Context(), reference.Texts))(t); !slices.Equal(counts, reference.Tokens) {
		t.Errorf("%v tokens, not %v", counts, reference.Tokens)
	}
}

func TestRefusalsTellTheirReason(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			client := connect(t, runed.WithProtocol(protocol))
			info := must(client.WaitReady(t.Context()))(t)
			limit := int(info.GetMaxTextLength())
			secret := strings.Repeat("secret ", limit)
			for _, test := range []struct {
				text    string
				options []runed.EmbedOption
				want    runed.Reason
				known   []string
			}{
				{text: " \n", want: runed.ErrEmptyText},
				{text: "secret\x00", want: runed.ErrInvalidText},
				{text: "secret\xff", want: runed.ErrInvalidText},
				{text: secret, want: runed.ErrTextTooLong, known: []string{"tokens", "limit"}},
				{"secret", []runed.EmbedOption{runed.WithDimensions(1_000_000)}, runed.ErrBadDimensions, []string{"dimensions", "min", "max"}},
				{"secret", []runed.EmbedOption{runed.WithDimensions(-1)}, runed.ErrBadDimensions, []string{"dimensions"}},
				{"secret", []runed.EmbedOption{runed.WithInstruction("find")}, runed.ErrBadInstruction, nil},
				{"secret", []runed.EmbedOption{runed.WithRole("poet")}, runed.ErrInvalidRequest, nil},
				{"secret", []runed.EmbedOption{runed.WithTruncate("middle")}, runed.ErrInvalidRequest, nil},
				{"secret", []runed.EmbedOption{runed.WithLane("fast")}, runed.ErrInvalidRequest, nil},
			} {
				_, err := client.Embed(t.Context(), test.text, test.options...)
				failure := failureOf(t, err)
				if !errors.Is(err, test.want) || failure.Reason != test.want || failure.Code != connectrpc.CodeInvalidArgument {
					t.Errorf("%v, code %v, instead of %s", err, failure.Code, string(test.want))
				}
				if errors.Is(err, runed.ErrQueueFull) || strings.Contains(err.Error(), "secret") || failure.Message == "" {
					t.Errorf("%v", err)
				}
				for _, name := range test.known {
					if failure.Metadata[name] == "" {
						t.Errorf("%v: no %s in %v", err, name, failure.Metadata)
					}
				}
			}
			_, err := client.EmbedBatch(t.Context(), []string{"fine", ""})
			if failure := failureOf(t, err); failure.Reason != runed.ErrEmptyText || failure.Metadata["index"] != "1" {
				t.Errorf("%v, %v", err, failure.Metadata)
			}
		})
	}
}

func TestATextLargerThanARequestIsRefusedUnsent(t *testing.T) {
	client := connect(t)
	limit := must(client.Info(t.Context()))(t).GetMaxRequestBytes()
	requests := must(client.Health(t.Context()))(t).GetTotalRequests()
	large := strings.Repeat("x", int(limit))
	_, err := client.Embed(t.Context(), large)
	_, batchErr := client.EmbedBatch(t.Context(), []string{"fine", large})
	if !errors.Is(err, runed.ErrRequestTooLarge) || failureOf(t, batchErr).Metadata["index"] != "1" {
		t.Errorf("%v; %v", err, batchErr)
	}
	if now := must(client.Health(t.Context()))(t).GetTotalRequests(); now != requests {
		t.Errorf("%d requests were sent", now-requests)
	}
}

func TestACancelledCallLeavesTheDaemonWell(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			client := connect(t, runed.WithProtocol(protocol))
			must(client.WaitReady(t.Context()))(t)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				_, err := client.EmbedBatch(ctx, manyTexts(2000, "cancelled over "+string(protocol)))
				done <- err
			}()
			waitUntil(t, "the call", func() bool { return must(client.Health(t.Context()))(t).GetInFlightRequests() == 1 })
			cancel()
			if err := <-done; !errors.Is(err, runed.ErrCanceled) || !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			waitUntil(t, "the end of the call", func() bool { return must(client.Health(t.Context()))(t).GetInFlightRequests() == 0 })
			must(client.Embed(t.Context(), "after it"))(t)
		})
	}
}

func TestADeadlineIsKept(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			client := connect(t, runed.WithProtocol(protocol))
			must(client.WaitReady(t.Context()))(t)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := client.EmbedBatch(ctx, manyTexts(2000, "late over "+string(protocol)))
			if !errors.Is(err, runed.ErrDeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			limited := connect(t, runed.WithProtocol(protocol), runed.WithTimeout(time.Minute))
			must(limited.Embed(t.Context(), "in time"))(t)
			expired, cancel := context.WithTimeout(t.Context(), -time.Second)
			defer cancel()
			if _, err := limited.Health(expired); !errors.Is(err, runed.ErrDeadlineExceeded) {
				t.Error(err)
			}
		})
	}
}

func TestManyCallsLeakNothing(t *testing.T) {
	const calls, workers = 10_000, 8
	client := connect(t)
	loadAll := func(calls int) {
		var group sync.WaitGroup
		for worker := range workers {
			group.Go(func() {
				for i := worker; i < calls; i += workers {
					if _, err := client.Embed(t.Context(), "the same text"); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
	}
	loadAll(100)
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	loadAll(calls)
	// A connection that the pool closes, as it has enough, takes a moment.
	waitUntil(t, "the end of the calls' goroutines", func() bool { return runtime.NumGoroutine() <= goroutines+2*workers })
	if now := openDescriptors(t); now > descriptors+workers {
		t.Errorf("%d descriptors, %d before", now, descriptors)
	}
	client.Close()
	waitUntil(t, "the end of the connections", func() bool { return openDescriptors(t) <= descriptors-1 })
	if _, err := client.Embed(t.Context(), "the same text"); !errors.Is(err, runed.ErrClosed) {
		t.Error(err)
	}
}

func TestRoutes(t *testing.T) {
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			client := connect(t, runed.WithProtocol(protocol))
			texts := []string{"green tea", "the stock market", "a dog in the park"}
			var centroids [][]float32
			for _, embedding := range must(client.EmbedBatch(t.Context(), texts))(t) {
				centroids = append(centroids, embedding.Vector)
			}
			version := must(client.SetCentroids(t.Context(), centroids, "test-"+string(protocol)))(t)
			routed := must(client.EmbedBatch(t.Context(), texts, runed.WithRoute()))(t)
			for i, embedding := range routed {
				if int(embedding.ClusterID) != i || embedding.CentroidSetVersion != version {
					t.Errorf("text %d: cluster %d of %s", i, embedding.ClusterID, embedding.CentroidSetVersion)
				}
			}
			if info := must(client.Info(t.Context()))(t); info.GetCentroidSetVersion() != version || len(version) != 7+64 {
				t.Errorf("%q is installed, not %q", info.GetCentroidSetVersion(), version)
			}
			for name, set := range map[string][][]float32{
				"none": {}, "of no values": {{}}, "ragged": {{1, 2}, {1}}, "of another dimension": {{1, 2}, {3, 4}},
			} {
				if _, err := client.SetCentroids(t.Context(), set, ""); !errors.Is(err, runed.ErrBadCentroids) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

func manyTexts(count int, about string) []string {
	texts := make([]string, count)
	for i := range texts {
		texts[i] = fmt.Sprintf("text %d, %s", i, about)
	}
	return texts
}

func failureOf(t testing.TB, err error) *runed.Error {
	t.Helper()
	var failure *runed.Error
	if !errors.As(err, &failure) {
		t.Fatalf("%v is no *runed.Error", err)
	}
	return failure
}

func openDescriptors(t testing.TB) int { return len(must(os.ReadDir("/proc/self/fd"))(t)) }
