package runed_test

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	runed "runed.dev/clients/go"
)

// BenchmarkEmbed measures how much time a warm call takes besides the time that the daemon logs for it: p50-added-ms.
//
//	go test -run '^$' -bench Embed -benchtime 2000x
func BenchmarkEmbed(b *testing.B) {
	for _, protocol := range protocols {
		b.Run(string(protocol), func(b *testing.B) {
			client := connect(b, runed.WithProtocol(protocol))
			must(client.Embed(b.Context(), "green tea"))(b)
			log := must(os.Open(filepath.Join(os.Getenv("RUNED_HOME"), "logs", "daemon.log")))(b)
			defer log.Close()
			must(log.Seek(0, 2))(b)
			var taken []float64
			for b.Loop() {
				began := time.Now()
				must(client.Embed(b.Context(), "green tea"))(b)
				taken = append(taken, float64(time.Since(began).Microseconds())/1000)
			}
			all, own := median(taken), median(loggedDurations(b, log))
			b.ReportMetric(all, "p50-ms")
			b.ReportMetric(own, "p50-daemon-ms")
			b.ReportMetric(all-own, "p50-added-ms")
		})
	}
}

// loggedDurations returns the milliseconds that the daemon logged for each call, from the file's position on.
func loggedDurations(b *testing.B, log *os.File) []float64 {
	var result []float64
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var line struct {
			Method   string
			Duration float64 `json:"duration_ms"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Method == "Embed" {
			result = append(result, line.Duration)
		}
	}
	if len(result) == 0 {
		b.Fatal("the daemon's log tells of no calls")
	}
	return result
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}
