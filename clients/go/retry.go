package runed

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	runedv1 "runed.dev/gen/go/runed/v1"
)

// tries is what one call has tried so far.
type tries struct {
	client         *Client
	model          string // the model that the call needs; "" means the default one
	reconnect      bool   // whether to look for the daemon again even if none may be started
	refuseDownload bool   // whether to fail during a download instead of waiting for its end
	lost           int
	drained        time.Duration
	refusals       int
	firstRefused   time.Time
	lastRefusal    *Error
}

// reset forgets what was tried, after a try that brought the work forward.
func (t *tries) reset() {
	*t = tries{client: t.client, model: t.model, reconnect: t.reconnect, refuseDownload: t.refuseDownload}
}

// recover prepares another try after a failure. It returns an error if another try is of no use.
func (t *tries) recover(ctx context.Context, failure *Error) error {
	switch failure.kind() {
	case ErrBootstrapping:
		return t.client.waitOutBootstrap(ctx, t.model, t.refuseDownload, true)
	case ErrQueueFull, ErrBackendUnavailable:
		return t.comeBack(ctx, failure)
	case ErrShuttingDown:
		if !t.mayReconnect() || t.drained >= drainPatience {
			return failure
		}
		t.drained += drainPoll
		return t.findDaemon(ctx, drainPoll)
	case ErrDaemonUnavailable:
		if !t.mayReconnect() || t.lost == lostTries {
			return failure
		}
		t.lost++
		return t.findDaemon(ctx, lostPause)
	case ErrDeadlineExceeded:
		if t.lastRefusal != nil { // which says more than that the time was over
			return t.givenUp(t.lastRefusal, t.refusals+1)
		}
	}
	return failure
}

func (t *tries) mayReconnect() bool { return t.client.daemon.maySpawn || t.reconnect }

// findDaemon waits a moment, and makes sure that a daemon listens.
func (t *tries) findDaemon(ctx context.Context, wait time.Duration) error {
	if err := pause(ctx, wait); err != nil {
		return err
	}
	t.client.limits.Store(nil) // the next daemon may have others
	t.client.watched.Clear()
	return t.client.daemon.ensure(ctx)
}

// comeBack waits until the daemon may have room. It returns the failure if that comes too late.
func (t *tries) comeBack(ctx context.Context, failure *Error) error {
	if t.refusals == 0 {
		t.firstRefused = time.Now()
	}
	t.refusals++
	t.lastRefusal = failure
	if failure.RetryAfter == 0 {
		return t.givenUp(failure, t.refusals)
	}
	wait := retryPause(failure.RetryAfter, t.refusals-1)
	end, limited := ctx.Deadline()
	if !limited {
		end = t.firstRefused.Add(retryPatience)
	}
	if time.Now().Add(wait).After(end) {
		return t.givenUp(failure, t.refusals)
	}
	return pause(ctx, wait)
}

// retryPause returns the pause after a refusal that tells a time, where so many other refusals came before it. Each caller waits
// half to one and a half times as long, so that callers that were refused together do not come back together.
func retryPause(told time.Duration, refusals int) time.Duration {
	told = max(told, retryShortest)
	grown := math.Min(float64(told)*math.Pow(retryGrowth, float64(refusals)), float64(max(told, retryLongest)))
	return time.Duration(grown * (0.5 + rand.Float64()))
}

func (t *tries) givenUp(failure *Error, count int) error {
	if count == 1 {
		return failure
	}
	told := *failure
	told.Message += fmt.Sprintf(" (tried %d times in %.1f s)", count, time.Since(t.firstRefused).Seconds())
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

// modelOf tells which model a request needs; "" means the default one. Only the daemon knows it for a request to rerank that names
// none.
func modelOf(request any) (model string, known bool) {
	if named, ok := request.(interface{ GetModel() string }); ok {
		model = named.GetModel()
	}
	_, ranks := request.(*runedv1.RerankRequest)
	return model, model != "" || !ranks
}

// callWhenReady watches the start of the model that a request needs, and then sends the request as call does.
func callWhenReady[Request, Response any](
	ctx context.Context,
	attempts tries,
	method func(context.Context, *connect.Request[Request]) (*connect.Response[Response], error),
	request *Request,
) (*Response, error) {
	model, known := modelOf(request)
	attempts.model = model
	if known {
		if err := attempts.client.watchStart(ctx, model, attempts.refuseDownload); err != nil {
			return nil, err
		}
	}
	return call(ctx, attempts, method, request)
}

// call sends a request until the daemon answers it or refuses it for good, or until the context ends.
//
// All requests that come here may be sent twice: the same text has the same embedding.
func call[Request, Response any](
	ctx context.Context,
	attempts tries,
	method func(context.Context, *connect.Request[Request]) (*connect.Response[Response], error),
	request *Request,
) (*Response, error) {
	for {
		response, err := send(ctx, attempts.client, method, request)
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

// watchStart reports the progress of a model that starts. The daemon would let the first call for it wait without telling any.
func (c *Client) watchStart(ctx context.Context, model string, refuseDownload bool) error {
	if c.progress == nil {
		return nil
	}
	if _, watched := c.watched.LoadOrStore(model, true); watched {
		return nil
	}
	return c.waitOutBootstrap(ctx, model, refuseDownload, false)
}

// waitOutBootstrap watches Health until the daemon no longer loads a model, and reports changes to the caller's WithProgress. With
// refuseDownload it fails as soon as something is being downloaded. Unless a bootstrap has refused a call, it leaves a daemon that
// does not load at once.
func (c *Client) waitOutBootstrap(ctx context.Context, model string, refuseDownload, refused bool) error {
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
		if (refused || told != nil) && errors.As(err, &failure) && failure.Reason == ErrDeadlineExceeded {
			return newError(ErrDeadlineExceeded, nil, "%s: engine and model are not ready yet: %s", failure.Message, message)
		}
		return err
	}
	for wait := bootstrapFirstPoll; ; wait = min(wait*5/4, bootstrapLongestPoll) {
		health, err := c.health(ctx, model)
		if err != nil {
			return late(err)
		}
		message = health.GetMessage()
		if !refused && told == nil && health.GetStatus() != runedv1.HealthResponse_STATUS_LOADING {
			return nil
		}
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
		if refuseDownload && isDownload(health) {
			return downloading(health)
		}
		if err := pause(ctx, wait); err != nil {
			return late(err)
		}
		if now.status != runedv1.HealthResponse_STATUS_LOADING {
			return nil
		}
	}
}

// isDownload tells whether the daemon downloads its engine or its model. Other work of these phases, such as computing a hash,
// has no bytes to count.
func isDownload(health *Health) bool {
	fetching := health.GetPhase() == runedv1.HealthResponse_PHASE_FETCHING_LLAMA_SERVER ||
		health.GetPhase() == runedv1.HealthResponse_PHASE_FETCHING_MODEL
	return health.GetStatus() == runedv1.HealthResponse_STATUS_LOADING && fetching && health.GetBytesTotal() > 0
}

func downloading(health *Health) error {
	done, total := strconv.FormatInt(health.GetBytesDone(), 10), strconv.FormatInt(health.GetBytesTotal(), 10)
	what := strings.TrimSpace("engine and model are not there yet: " + health.GetMessage())
	return newError(ErrBootstrapping, map[string]string{"bytes_done": done, "bytes_total": total},
		"%s: %s of %s bytes are done; wait with WaitReady, or ask again later", what, done, total)
}
