package runed_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	runed "runed.dev/clients/go"
)

// numbered yields texts with their numbers as ids, and counts how many were taken. Many of the texts are alike.
func numbered(count int, taken *atomic.Int64) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := range count {
			taken.Add(1)
			if !yield(fmt.Sprint(i), streamedText(i)) {
				return
			}
		}
	}
}

func streamedText(i int) string {
	if i%100 == 50 {
		return " " // cannot be embedded
	}
	return fmt.Sprintf("streamed text %d", i%61)
}

func TestAStreamAnswersEachTextOnceInBoundedMemory(t *testing.T) {
	const count = 4000
	for _, protocol := range protocols {
		t.Run(string(protocol), func(t *testing.T) {
			client := connect(t, runed.WithProtocol(protocol))
			vectors := map[string][]float32{}
			seen := map[string]int{}
			var taken, given atomic.Int64
			for item, err := range client.EmbedStream(t.Context(), numbered(count, &taken)) {
				if err != nil {
					t.Fatal(err)
				}
				given.Add(1)
				if ahead := taken.Load() - given.Load(); ahead > 513 {
					t.Fatalf("%d texts were taken ahead", ahead)
				}
				seen[item.ID]++
				var number int
				fmt.Sscan(item.ID, &number)
				switch text := streamedText(number); {
				case text == " ":
					if !errors.Is(item.Err, runed.ErrEmptyText) {
						t.Errorf("text %s: %v", item.ID, item.Err)
					}
				case item.Err != nil:
					t.Errorf("text %s: %v", item.ID, item.Err)
				case vectors[text] == nil:
					vectors[text] = item.Vector
				case !(cosine(vectors[text], item.Vector) > 0.9999):
					t.Errorf("text %s has another vector", item.ID)
				}
				if given.Load()%500 == 0 {
					time.Sleep(50 * time.Millisecond) // a slow reader
				}
			}
			if len(seen) != count || given.Load() != count {
				t.Errorf("%d outcomes for %d of %d texts", given.Load(), len(seen), count)
			}
			for text, vector := range vectors {
				if !(cosine(must(client.Embed(t.Context(), text))(t).Vector, vector) > 0.9999) {
					t.Errorf("%q has another vector alone", text)
				}
			}
		})
	}
}

func TestAStreamOfNothingNeedsNoConnection(t *testing.T) {
	var taken atomic.Int64
	for item, err := range connect(t).EmbedStream(t.Context(), numbered(0, &taken)) {
		t.Errorf("%v, %v", item, err)
	}
}

func TestAStreamThatIsLeftEarlyEndsAll(t *testing.T) {
	client := connect(t)
	must(client.Embed(t.Context(), "warm"))(t)
	goroutines := runtime.NumGoroutine()
	var taken atomic.Int64
	for _, err := range client.EmbedStream(t.Context(), numbered(1_000_000, &taken)) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if taken.Load() > 2*512 {
		t.Errorf("%d texts were taken", taken.Load())
	}
	client.Close()
	waitUntil(t, "the end of the goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
	watcher := connect(t)
	waitUntil(t, "the end of the stream", func() bool { return must(watcher.Health(t.Context()))(t).GetInFlightRequests() == 0 })
}

func TestAStreamEndsWithItsContext(t *testing.T) {
	client := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	endless := func(yield func(string, string) bool) {
		for i := 0; yield("", streamedText(i)); i++ {
		}
	}
	count := 0
	var last error
	for _, err := range client.EmbedStream(ctx, endless) {
		if last = err; last != nil {
			continue
		}
		if count++; count == 100 {
			cancel()
		}
	}
	if !errors.Is(last, runed.ErrCanceled) {
		t.Error(last)
	}
	late, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	last = nil
	for _, err := range client.EmbedStream(late, endless) {
		last = err
	}
	if !errors.Is(last, runed.ErrDeadlineExceeded) {
		t.Error(last)
	}
}

func TestAStreamRefusesBadOptions(t *testing.T) {
	client := connect(t)
	var taken atomic.Int64
	for name, option := range map[string]runed.EmbedOption{
		"client": runed.WithLane("fast"), "route": runed.WithRoute(), "daemon": runed.WithDimensions(1_000_000),
	} {
		var last error
		for item, err := range client.EmbedStream(t.Context(), numbered(3, &taken), option) {
			if last = err; err == nil {
				t.Errorf("%s: %v", name, item)
			}
		}
		if code := failureOf(t, last).Code.String(); code != "invalid_argument" {
			t.Errorf("%s: %v", name, last)
		}
	}
}
