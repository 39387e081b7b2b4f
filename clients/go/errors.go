package runed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
)

// Reason is the stable name of a kind of error. Each reason is an error to compare with:
//
//	if errors.Is(err, runed.ErrTextTooLong) {
type Reason string

// The reasons of the daemon, by the words of its protocol, and those that the client finds by itself. A newer daemon may have
// more of them.
const (
	// ErrEmptyText: a text is empty or only white space.
	ErrEmptyText Reason = "EMPTY_TEXT"
	// ErrInvalidText: a text holds a NUL or is not UTF-8.
	ErrInvalidText Reason = "INVALID_TEXT"
	// ErrTextTooLong: a text has more tokens than the model reads; metadata has "tokens" and "limit".
	ErrTextTooLong Reason = "TEXT_TOO_LONG"
	// ErrEmptyBatch: a batch holds no text.
	ErrEmptyBatch Reason = "EMPTY_BATCH"
	// ErrBatchTooLarge: a batch holds too many texts. The client cuts batches itself.
	ErrBatchTooLarge Reason = "BATCH_TOO_LARGE"
	// ErrBadDimensions: the model has no vectors of so many values; metadata has "dimensions" and, from the daemon, "min" and "max".
	ErrBadDimensions Reason = "BAD_DIMENSIONS"
	// ErrBadInstruction: an instruction without RoleQuery, or for a model that takes none.
	ErrBadInstruction Reason = "BAD_INSTRUCTION"
	// ErrUnknownModel: no model has this name; metadata has "models".
	ErrUnknownModel Reason = "UNKNOWN_MODEL"
	// ErrWrongModelKind: the model does not embed.
	ErrWrongModelKind Reason = "WRONG_MODEL_KIND"
	// ErrModelNotInstalled: the model has to be fetched first, by "runed pull".
	ErrModelNotInstalled Reason = "MODEL_NOT_INSTALLED"
	// ErrModelTooLarge: the memory that engines may take cannot hold the model.
	ErrModelTooLarge Reason = "MODEL_TOO_LARGE"
	// ErrModelBusy: the engine of the model works, so it is not stopped.
	ErrModelBusy Reason = "MODEL_BUSY"
	// ErrSpaceChanged: an engine on another machine gives vectors of another space than before.
	ErrSpaceChanged Reason = "SPACE_CHANGED"
	// ErrInvalidRequest: an option has an unknown value.
	ErrInvalidRequest Reason = "INVALID_REQUEST"
	// ErrRequestTooLarge: a text is larger than a whole request may be; metadata has "limit", in bytes.
	ErrRequestTooLarge Reason = "REQUEST_TOO_LARGE"
	// ErrBadCentroids: a set of centroids is malformed, or does not fit the model.
	ErrBadCentroids Reason = "BAD_CENTROIDS"
	// ErrCentroidsNotStored: the daemon cannot write a set of centroids to its disk.
	ErrCentroidsNotStored Reason = "CENTROIDS_NOT_STORED"
	// ErrNoCentroidSet: WithRoute, but no set of centroids is installed.
	ErrNoCentroidSet Reason = "NO_CENTROID_SET"
	// ErrQueueFull: the daemon had too much to do, for as long as the call was tried.
	ErrQueueFull Reason = "QUEUE_FULL"
	// ErrUnimplemented: the daemon is too old for the call or an option.
	ErrUnimplemented Reason = "UNIMPLEMENTED"
	// ErrBootstrapping: the engine or the model is still being fetched; from Info during a download, metadata has "bytes_done" and
	// "bytes_total". Embeddings wait instead.
	ErrBootstrapping Reason = "BOOTSTRAPPING"
	// ErrBackendUnavailable: the engine died and is being restarted, or could not be installed.
	ErrBackendUnavailable Reason = "BACKEND_UNAVAILABLE"
	// ErrBackendFault: the engine answered something that is not an embedding.
	ErrBackendFault Reason = "BACKEND_FAULT"
	// ErrShuttingDown: the daemon is about to exit.
	ErrShuttingDown Reason = "SHUTTING_DOWN"
	// ErrDeadlineExceeded: the time of the call was over. errors.Is finds context.DeadlineExceeded, too.
	ErrDeadlineExceeded Reason = "DEADLINE_EXCEEDED"
	// ErrCanceled: the caller gave up. errors.Is finds context.Canceled, too.
	ErrCanceled Reason = "CANCELED"
	// ErrInternal: a bug of the daemon, whose log says where, or an answer that is not one of runed.
	ErrInternal Reason = "INTERNAL"

	// ErrDaemonUnavailable: no daemon answers, and the client may not start one, or the daemon went away again.
	ErrDaemonUnavailable Reason = "DAEMON_UNAVAILABLE"
	// ErrDaemonStartFailed: the daemon could not be started; the message says why.
	ErrDaemonStartFailed Reason = "DAEMON_START_FAILED"
	// ErrKeptStopped: "runed stop --for" keeps the daemon stopped; the message says until when, and how to start it.
	ErrKeptStopped Reason = "KEPT_STOPPED"
	// ErrForeignPath: something stands in the place of the socket that cannot be trusted, or not be connected to.
	ErrForeignPath Reason = "FOREIGN_PATH"
	// ErrBadSetting: a setting or an option of Connect cannot be used.
	ErrBadSetting Reason = "BAD_SETTING"
	// ErrClosed: the client was closed.
	ErrClosed Reason = "CLOSED"
)

// Error returns the name itself.
func (r Reason) Error() string { return "runed: " + string(r) }

// Error is the error of every method of this package. It never holds a text that was to be embedded.
type Error struct {
	// Code is the code of the Connect protocol, the same as in gRPC.
	Code connect.Code
	// Reason names the kind of error.
	Reason Reason
	// Message is for people: what was wrong, which limit applies, what to do.
	Message string
	// Metadata has facts for programs, such as "limit" and "index"; may be nil.
	Metadata map[string]string
	// RetryAfter is the time after which another try can help; 0 if it cannot.
	RetryAfter time.Duration
}

// Error returns the message with the reason.
func (e *Error) Error() string { return fmt.Sprintf("runed: %s (%s)", e.Message, string(e.Reason)) }

// Is tells whether the error has a [Reason], or is that of an ended context. A reason that only a newer daemon knows counts as
// that of its code, too.
func (e *Error) Is(target error) bool {
	switch target {
	case context.DeadlineExceeded:
		return e.Code == connect.CodeDeadlineExceeded
	case context.Canceled:
		return e.Code == connect.CodeCanceled
	}
	reason, ok := target.(Reason)
	return ok && (reason == e.Reason || reason == e.kind())
}

// kind returns the reason that says what is done about the error: its own if this client knows it, otherwise that of its code.
func (e *Error) kind() Reason {
	if _, known := codeOfReason[e.Reason]; known {
		return e.Reason
	}
	if e.Code == connect.CodeResourceExhausted && e.RetryAfter > 0 {
		return ErrQueueFull
	}
	if reason, ok := reasonOfCode[e.Code]; ok {
		return reason
	}
	return ErrInternal
}

// domain is that of every google.rpc.ErrorInfo of the daemon.
const domain = "runed.v1"

// reasonOfCode has the reasons of errors that carry none. The other codes are ErrInternal.
var reasonOfCode = map[connect.Code]Reason{
	connect.CodeInvalidArgument:   ErrInvalidRequest,
	connect.CodeResourceExhausted: ErrRequestTooLarge,
	connect.CodeUnavailable:       ErrBackendUnavailable,
	connect.CodeUnimplemented:     ErrUnimplemented,
	connect.CodeDeadlineExceeded:  ErrDeadlineExceeded,
	connect.CodeCanceled:          ErrCanceled,
}

// codeOfReason has the reasons that this client knows, with the codes of those errors that come without one: the errors of single
// texts, of "runed ensure" and of the client itself.
var codeOfReason = map[Reason]connect.Code{
	ErrEmptyText:          connect.CodeInvalidArgument,
	ErrInvalidText:        connect.CodeInvalidArgument,
	ErrTextTooLong:        connect.CodeInvalidArgument,
	ErrEmptyBatch:         connect.CodeInvalidArgument,
	ErrBatchTooLarge:      connect.CodeInvalidArgument,
	ErrBadDimensions:      connect.CodeInvalidArgument,
	ErrBadInstruction:     connect.CodeInvalidArgument,
	ErrUnknownModel:       connect.CodeNotFound,
	ErrWrongModelKind:     connect.CodeInvalidArgument,
	ErrModelNotInstalled:  connect.CodeFailedPrecondition,
	ErrModelTooLarge:      connect.CodeFailedPrecondition,
	ErrModelBusy:          connect.CodeFailedPrecondition,
	ErrSpaceChanged:       connect.CodeFailedPrecondition,
	ErrInvalidRequest:     connect.CodeInvalidArgument,
	ErrBadCentroids:       connect.CodeInvalidArgument,
	ErrBadSetting:         connect.CodeInvalidArgument,
	ErrRequestTooLarge:    connect.CodeResourceExhausted,
	ErrQueueFull:          connect.CodeResourceExhausted,
	ErrBootstrapping:      connect.CodeFailedPrecondition,
	ErrNoCentroidSet:      connect.CodeFailedPrecondition,
	ErrForeignPath:        connect.CodeFailedPrecondition,
	ErrClosed:             connect.CodeFailedPrecondition,
	ErrUnimplemented:      connect.CodeUnimplemented,
	ErrBackendUnavailable: connect.CodeUnavailable,
	ErrShuttingDown:       connect.CodeUnavailable,
	ErrDaemonUnavailable:  connect.CodeUnavailable,
	ErrDaemonStartFailed:  connect.CodeUnavailable,
	ErrKeptStopped:        connect.CodeUnavailable,
	ErrDeadlineExceeded:   connect.CodeDeadlineExceeded,
	ErrCanceled:           connect.CodeCanceled,
	ErrBackendFault:       connect.CodeInternal,
	ErrCentroidsNotStored: connect.CodeInternal,
	ErrInternal:           connect.CodeInternal,
}

// newError makes an error of the client's own, or of a single text.
func newError(reason Reason, metadata map[string]string, format string, args ...any) *Error {
	code, ok := codeOfReason[reason]
	if !ok {
		code = connect.CodeInternal
	}
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...), Metadata: metadata}
}

// errorOf turns the error of a failed call into an [Error].
func errorOf(ctx context.Context, socket string, err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		return own // of the dialer, or of this function
	}
	var failure *connect.Error
	if errors.As(err, &failure) && connect.IsWireError(failure) {
		return errorOfDaemon(failure)
	}
	if ctx.Err() != nil {
		return errorOfContext(ctx)
	}
	if errors.Is(err, errLost) {
		return newError(ErrDaemonUnavailable, nil,
			"the connection to %s broke before the answer; the daemon ended or is overloaded", socket)
	}
	return newError(ErrInternal, nil, "what listens on %s does not answer as runed: %v; is it another program's socket?", socket, err)
}

// errorOfContext describes a call whose context has ended.
func errorOfContext(ctx context.Context) *Error {
	var own *Error
	if errors.As(context.Cause(ctx), &own) {
		return own // of a stream that ended its own context
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return newError(ErrCanceled, nil, "the caller gave up")
	}
	return newError(ErrDeadlineExceeded, nil, "the time for the call was over; give it more, or send less at once")
}

// errorOfDaemon reads an error that the daemon sent.
func errorOfDaemon(failure *connect.Error) *Error {
	result := &Error{Code: failure.Code(), Message: failure.Message()}
	for _, detail := range failure.Details() {
		value, err := detail.Value()
		if err != nil {
			continue // of a type that only a newer daemon knows
		}
		switch value := value.(type) {
		case *errdetails.ErrorInfo:
			if value.GetDomain() == domain {
				result.Reason, result.Metadata = Reason(value.GetReason()), value.GetMetadata()
			}
		case *errdetails.RetryInfo:
			// A daemon that says "at once" does not say "never", which is 0.
			result.RetryAfter = max(value.GetRetryDelay().AsDuration(), time.Nanosecond)
		}
	}
	if result.Reason == "" {
		result.Reason = result.kind()
	}
	if result.Message == "" {
		result.Message = "the daemon answered " + result.Code.String()
	}
	return result
}
