package runed

import (
	"cmp"
	"context"
	"errors"
	"math"

	"google.golang.org/protobuf/proto"
	runedv1 "runed.dev/gen/go/runed/v1"
)

// limits are the limits of one request.
type limits struct {
	texts int
	bytes int
}

// askLimits asks the daemon for the limits of a request with some common fields.
func (c *Client) askLimits(ctx context.Context, common proto.Message) (*limits, error) {
	// Not Client.Info: the limits are known before the model is.
	ask := callWhenReady[runedv1.InfoRequest, runedv1.InfoResponse]
	model, known := modelOf(common)
	if !known {
		ask = call
	}
	info, err := ask(ctx, tries{client: c}, c.unary.Info, &runedv1.InfoRequest{Model: model})
	if err != nil {
		return nil, err
	}
	told := limits{texts: fallbackTexts, bytes: fallbackBytes}
	if info.GetMaxBatchSize() > 0 {
		told.texts = int(info.GetMaxBatchSize())
	}
	if info.GetMaxRequestBytes() > 0 {
		told.bytes = int(min(info.GetMaxRequestBytes(), math.MaxInt32))
	}
	c.limits.Store(&told)
	return &told, nil
}

// message is a request that names a model.
type message interface {
	proto.Message
	GetModel() string
}

// withinLimits calls a function with the limits of a request, less the fields that all requests of the call share. It asks the
// daemon for the limits once. If a request is too large although they were kept, it asks again: another daemon with smaller
// limits may have taken the place of the first.
func (c *Client) withinLimits(ctx context.Context, common message, do func(room limits) error) error {
	inside := func(all *limits) error { return do(limits{all.texts, all.bytes - proto.Size(common)}) }
	if kept := c.limits.Load(); kept != nil {
		err := inside(kept)
		if !errors.Is(err, ErrBatchTooLarge) && !errors.Is(err, ErrRequestTooLarge) {
			return err
		}
		if now, askErr := c.askLimits(ctx, common); askErr != nil || *now == *kept {
			return cmp.Or(askErr, err)
		}
	}
	now := c.limits.Load()
	if now == nil {
		var err error
		if now, err = c.askLimits(ctx, common); err != nil {
			return err
		}
	}
	return inside(now)
}

// inParts cuts texts into parts, and calls a function with each. A part fits into one request beside the fields that all
// requests share.
func inParts(texts []string, room limits, do func(start int, part []string) error) error {
	for index, text := range texts {
		if err := measure(text, index, room.bytes); err != nil {
			return err
		}
	}
	for start, end := range split(texts, room) {
		if err := do(start, texts[start:end]); err != nil {
			return err
		}
	}
	return nil
}
