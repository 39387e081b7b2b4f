package runed

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"
	runedv1 "runed.dev/gen/go/runed/v1"
)

const (
	// maxPatience is how long a call without a deadline is tried again in all.
	maxPatience = time.Minute
	// growth is by how much each pause is longer than the one before, on average.
	growth = 1.5
	// shortestPause and longestPause limit a pause before the jitter; a longer time that the daemon tells is kept to.
	shortestPause = 50 * time.Millisecond
	longestPause  = 10 * time.Second

	// lostPause is the time from a broken connection to the next try. A dying daemon closes its connections a moment before its
	// listening socket, so that it may seem to live on; this is why there are more tries than one.
	lostPause = 50 * time.Millisecond
	maxLost   = 3

	// drainPoll and maxDrain tell how often and how long to look whether a draining daemon made room for its successor.
	drainPoll = 200 * time.Millisecond
	maxDrain  = 30 * time.Second

	// firstPoll and mostPoll are the times between two looks at Health during a bootstrap, at first and later.
	firstPoll = 100 * time.Millisecond
	mostPoll  = 250 * time.Millisecond
)

// tries is what one call has tried so far.
type tries struct {
	client    *Client
	reconnect bool // whether to look for a daemon that broke a connection even if none may be started
	restarted bool
	lost      int
	drained   time.Duration
	refused   int
	firstTime time.Time // of a refusal
}

// reset begins again, after a try that brought the work forward.
func (t *tries) reset() { *t = tries{client: t.client, reconnect: t.reconnect} }

// recover does what is to be done before another try, or gives the reason why that would be of no use.
func (t *tries) recover(ctx context.Context, failure *Error) error {
	switch failure.Reason {
	case ErrBootstrapping:
		return t.client.waitOutBootstrap(ctx)
	case ErrQueueFull, ErrBackendUnavailable:
		return t.comeBack(ctx, failure)
	case ErrShuttingDown:
		if !t.mayReconnect() || t.drained >= maxDrain {
			return failure
		}
		t.drained += drainPoll
		return t.findDaemon(ctx, drainPoll)
	case ErrDaemonUnavailable:
		if !t.mayReconnect() || t.restarted || t.lost == maxLost {
			return failure
		}
		t.lost++
		return t.findDaemon(ctx, lostPause)
	}
	return failure
}

func (t *tries) mayReconnect() bool { return t.client.daemon.maySpawn || t.reconnect }

// findDaemon sees to it that a daemon listens.
func (t *tries) findDaemon(ctx context.Context, wait time.Duration) error {
	if err := pause(ctx, wait); err != nil {
		return err
	}
	t.client.limits.Store(nil) // the next one may have others
	var err error
	t.restarted, err = t.client.daemon.ensure(ctx)
	return err
}

// comeBack waits as long as the daemon asks for. Each caller waits half to one and a half times as long, so that those who were
// refused together do not come back together, and longer each time.
func (t *tries) comeBack(ctx context.Context, failure *Error) error {
	now := time.Now()
	if failure.RetryAfter == 0 {
		return t.givenUp(failure, now)
	}
	if t.refused == 0 {
		t.firstTime = now
	}
	told := max(failure.RetryAfter, shortestPause)
	grown := min(time.Duration(float64(told)*math.Pow(growth, float64(t.refused))), max(told, longestPause))
	wait := time.Duration(float64(grown) * (0.5 + rand.Float64()))
	t.refused++
	end, limited := ctx.Deadline()
	if !limited {
		end = t.firstTime.Add(maxPatience)
	}
	if now.Add(wait).After(end) {
		return t.givenUp(failure, now)
	}
	return pause(ctx, wait)
}

func (t *tries) givenUp(failure *Error, now time.Time) error {
	if t.refused <= 1 {
		return failure
	}
	told := *failure
	told.Message += fmt.Sprintf(" (tried %d times in %.1f s)", t.refused, now.Sub(t.firstTime).Seconds())
	return &told
}

// pause waits, but not longer than the context lasts.
func pause(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errorOfContext(ctx)
	}
}

// call sends a request until it is answered, refused for good, or its time is over.
//
// All requests that come here may be repeated: an embedding that is computed twice is the same embedding.
func call[Request, Response any](
	ctx context.Context,
	client *Client,
	method func(context.Context, *connect.Request[Request]) (*connect.Response[Response], error),
	request *Request,
) (*Response, error) {
	attempts := tries{client: client}
	for {
		response, err := send(ctx, client, method, request)
		if err == nil {
			return response, nil
		}
		if err := attempts.recover(ctx, err); err != nil {
			return nil, err
		}
	}
}

// send sends a request once.
func send[Request, Response any](
	ctx context.Context,
	client *Client,
	method func(context.Context, *connect.Request[Request]) (*connect.Response[Response], error),
	request *Request,
) (*Response, *Error) {
	if err := client.begin(); err != nil {
		return nil, err
	}
	defer client.end()
	response, err := method(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, errorOf(ctx, client.daemon.socket, err)
	}
	return response.Msg, nil
}

// waitOutBootstrap watches Health until the daemon no longer loads, and reports what changes.
func (c *Client) waitOutBootstrap(ctx context.Context) error {
	type news struct {
		status      runedv1.HealthResponse_Status
		phase       runedv1.HealthResponse_Phase
		done, total int64
		message     string
	}
	var told *news
	message := ""
	late := func(err error) error {
		var failure *Error
		if errors.As(err, &failure) && failure.Reason == ErrDeadlineExceeded {
			return newError(ErrDeadlineExceeded, nil, "%s: engine and model are not ready yet: %s", failure.Message, message)
		}
		return err
	}
	for wait := firstPoll; ; wait = min(wait*5/4, mostPoll) {
		health, err := c.Health(ctx)
		if err != nil {
			return late(err)
		}
		message = health.GetMessage()
		now := news{health.GetStatus(), health.GetPhase(), health.GetBytesDone(), health.GetBytesTotal(), message}
		if c.progress != nil && (told == nil || *told != now) {
			c.progress(health)
		}
		told = &now
		if now.status == runedv1.HealthResponse_STATUS_DEGRADED {
			if message == "" {
				message = "the daemon could not install or start its engine; see its log"
			}
			return newError(ErrBackendUnavailable, nil, "%s", message)
		}
		if err := pause(ctx, wait); err != nil {
			return late(err)
		}
		if now.status != runedv1.HealthResponse_STATUS_LOADING {
			return nil
		}
	}
}
