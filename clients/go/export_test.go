package runed

import (
	"context"
	"time"
)

// The parts of the inside that the tests of package runed_test need.
var (
	RetryPause = retryPause
	IsOlder    = isOlder
	Version    = version
)

// Constants are those of tests/conformance/policy.json, by their names there.
var Constants = map[string]float64{
	"retry_patience_seconds":         seconds(retryPatience),
	"retry_growth":                   retryGrowth,
	"retry_shortest_seconds":         seconds(retryShortest),
	"retry_longest_seconds":          seconds(retryLongest),
	"lost_tries":                     lostTries,
	"lost_pause_seconds":             seconds(lostPause),
	"drain_poll_seconds":             seconds(drainPoll),
	"drain_patience_seconds":         seconds(drainPatience),
	"bootstrap_first_poll_seconds":   seconds(bootstrapFirstPoll),
	"bootstrap_longest_poll_seconds": seconds(bootstrapLongestPoll),
	"dial_pause_seconds":             seconds(dialPause),
	"dial_patience_seconds":          seconds(dialPatience),
	"connections":                    connections,
	"start_patience_seconds":         seconds(startPatience),
	"socket_path_bytes":              maxSocketPath,
	"stream_texts":                   streamTexts,
	"stream_bytes":                   streamBytes,
	"message_texts":                  messageTexts,
	"message_bytes":                  messageBytes,
	"item_overhead_bytes":            itemOverhead,
	"text_overhead_bytes":            textOverhead,
	"large_text_bytes":               largeText,
	"fallback_batch_texts":           fallbackTexts,
	"fallback_request_bytes":         fallbackBytes,
	"centroid_message_bytes":         centroidBytes,
}

func seconds(duration time.Duration) float64 { return duration.Seconds() }

// Locate returns the socket that a client with these options would connect to.
func Locate(options ...Option) (socket string, err error) {
	var c config
	for _, option := range options {
		option(&c)
	}
	_, socket, err = locate(&c)
	return socket, err
}

// Ensure makes sure that a daemon listens, as a client does that has lost its daemon.
func (c *Client) Ensure(ctx context.Context) error {
	return c.daemon.ensure(ctx)
}
