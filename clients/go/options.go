package runed

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	runedv1 "runed.dev/gen/go/runed/v1"
)

// Option changes how [Connect] finds the daemon and how the [Client] talks to it.
type Option func(*config)

type config struct {
	home         string
	socket       string
	noSpawn      bool
	timeout      time.Duration
	protocol     Protocol
	progress     func(*Health)
	interceptors []connect.Interceptor
}

// WithHome names the directory of the daemon. By default it is RUNED_HOME, or else ~/.runed.
func WithHome(path string) Option { return func(c *config) { c.home = path } }

// WithSocket names the socket of a daemon that others look after. The client never starts or replaces that daemon.
func WithSocket(path string) Option { return func(c *config) { c.socket = path } }

// WithoutSpawn keeps the client from starting or replacing a daemon, now and later.
func WithoutSpawn() Option { return func(c *config) { c.noSpawn = true } }

// WithTimeout limits the time of each call, waiting included. An earlier deadline of the call's context counts. For EmbedStream
// it limits the time without a result while texts wait for one.
func WithTimeout(limit time.Duration) Option { return func(c *config) { c.timeout = limit } }

// WithProgress names a function that is called with each change of Health while a call waits for engine and model. It runs in the
// goroutine of that call.
func WithProgress(report func(*Health)) Option { return func(c *config) { c.progress = report } }

// WithProtocol chooses the protocol on the socket. The default is [ProtocolConnect].
func WithProtocol(protocol Protocol) Option { return func(c *config) { c.protocol = protocol } }

// WithInterceptors adds interceptors of connect to all calls, the first one outermost. That of the package otelconnect makes the
// daemon's spans a part of the application's traces.
func WithInterceptors(interceptors ...connect.Interceptor) Option {
	return func(c *config) { c.interceptors = append(c.interceptors, interceptors...) }
}

// Protocol is one of the protocols that the daemon answers. All can do the same.
type Protocol string

// The protocols of the daemon.
const (
	ProtocolConnect Protocol = "connect"
	ProtocolGRPC    Protocol = "grpc"
	ProtocolGRPCWeb Protocol = "grpcweb"
)

// EmbedOption changes how a text is embedded.
type EmbedOption func(*embedOptions)

type embedOptions struct {
	role        Role
	instruction string
	dimensions  *int
	truncate    Truncate
	lane        Lane
	route       bool
	model       string
}

// Role is the purpose of a text.
type Role string

// The roles. For a model that was trained with prompts, the daemon puts the prompt of the role in front of the text. Never write
// one yourself.
const (
	// RoleQuery is for a question or a search phrase, to be compared with documents.
	RoleQuery Role = "query"
	// RoleDocument is for a passage to be found.
	RoleDocument Role = "document"
)

// Truncate is the way to deal with a text that is longer than the model reads.
type Truncate string

// The ways to deal with a text that is longer than the model reads.
const (
	// TruncateNone refuses the text with ErrTextTooLong; the default.
	TruncateNone Truncate = "none"
	// TruncateEnd cuts the end of the text off.
	TruncateEnd Truncate = "end"
	// TruncateStart cuts the start of the text off.
	TruncateStart Truncate = "start"
)

// Lane is the queue that a call waits in.
type Lane string

// The lanes. Without one, the daemon chooses by the size of the request; a stream is bulk.
const (
	// LaneInteractive is served first.
	LaneInteractive Lane = "interactive"
	// LaneBulk is for jobs that take their time.
	LaneBulk Lane = "bulk"
)

// WithRole tells the purpose of the texts. Without it, they are embedded as they are.
func WithRole(role Role) EmbedOption { return func(o *embedOptions) { o.role = role } }

// WithInstruction tells the purpose of a query in one English sentence. It replaces the model's default, and needs RoleQuery.
func WithInstruction(instruction string) EmbedOption {
	return func(o *embedOptions) { o.instruction = instruction }
}

// WithDimensions asks for vectors of fewer values, from Info's min_dimensions to its vector_dim. Their L2 norm is 1 again.
func WithDimensions(dimensions int) EmbedOption {
	return func(o *embedOptions) { o.dimensions = &dimensions }
}

// WithTruncate chooses how to deal with a text that is longer than the model reads.
func WithTruncate(truncate Truncate) EmbedOption {
	return func(o *embedOptions) { o.truncate = truncate }
}

// WithLane chooses the queue that the call waits in.
func WithLane(lane Lane) EmbedOption { return func(o *embedOptions) { o.lane = lane } }

// WithModel names the model, by its name or an alias in letters of any case. Without it, or with "", the daemon's default model is
// meant. A name that the daemon does not know fails with ErrUnknownModel.
func WithModel(name string) EmbedOption { return func(o *embedOptions) { o.model = name } }

// WithRoute asks for the nearest centroid of the installed set, too. Streams have no routes.
func WithRoute() EmbedOption { return func(o *embedOptions) { o.route = true } }

var (
	roles     = map[Role]runedv1.Role{"": 0, RoleQuery: runedv1.Role_ROLE_QUERY, RoleDocument: runedv1.Role_ROLE_DOCUMENT}
	truncates = map[Truncate]runedv1.Truncate{
		"": 0, TruncateNone: 0, TruncateEnd: runedv1.Truncate_TRUNCATE_END, TruncateStart: runedv1.Truncate_TRUNCATE_START,
	}
	lanes = map[Lane]runedv1.Lane{"": 0, LaneInteractive: runedv1.Lane_LANE_INTERACTIVE, LaneBulk: runedv1.Lane_LANE_BULK}
)

// wireOptions are options that were checked, in the form of a request.
type wireOptions struct {
	role        runedv1.Role
	instruction string
	dimensions  uint32
	truncate    runedv1.Truncate
	lane        runedv1.Lane
	route       bool
	model       string
}

// resolve checks the options, so that a wrong one is refused before anything is sent.
func resolve(options []EmbedOption) (*wireOptions, error) {
	var o embedOptions
	for _, option := range options {
		option(&o)
	}
	result := &wireOptions{instruction: o.instruction, route: o.route, model: o.model}
	var ok bool
	if result.role, ok = roles[o.role]; !ok {
		return nil, unknownChoice("role", string(o.role), `"query", "document"`)
	}
	if result.truncate, ok = truncates[o.truncate]; !ok {
		return nil, unknownChoice("truncate", string(o.truncate), `"none", "end", "start"`)
	}
	if result.lane, ok = lanes[o.lane]; !ok {
		return nil, unknownChoice("lane", string(o.lane), `"interactive", "bulk"`)
	}
	if o.dimensions != nil {
		if n := *o.dimensions; n < 1 || n > math.MaxUint32 {
			return nil, newError(ErrBadDimensions, map[string]string{"dimensions": strconv.Itoa(n)},
				"dimensions is %d; give a number from Info's min_dimensions to its vector_dim, or leave the option out for all", n)
		}
		result.dimensions = uint32(*o.dimensions)
	}
	if o.instruction != "" && o.role != RoleQuery {
		return nil, newError(ErrBadInstruction, nil, "an instruction is for queries; give WithRole(RoleQuery) too, or no instruction")
	}
	if !utf8.ValidString(o.model) {
		return nil, newError(ErrUnknownModel, nil, "the name of the model is not valid UTF-8")
	}
	if !utf8.ValidString(o.instruction) {
		return nil, newError(ErrBadInstruction, nil, "instruction is not valid UTF-8")
	}
	return result, nil
}

func unknownChoice(name, value, accepted string) error {
	return newError(ErrInvalidRequest, nil, "%s is %q, but must be one of %s", name, value, accepted)
}

// checkKnown makes sure that the daemon knew the options of a call that it has answered.
//
// A daemon from before there were options ignores them, and answers another vector than was asked for. Its answers have no
// fingerprint. Those of a version with one model name no model.
func (o *wireOptions) checkKnown(answer answer) error {
	if answer.GetFingerprint() != "" {
		return checkNamed(o.model, answer)
	}
	var asked []string
	for _, option := range []struct {
		name  string
		isSet bool
	}{
		{"role", o.role != 0},
		{"instruction", o.instruction != ""},
		{"dimensions", o.dimensions != 0},
		{"truncate", o.truncate != 0},
	} {
		if option.isSet {
			asked = append(asked, option.name)
		}
	}
	if len(asked) > 0 {
		return tooOld(fmt.Sprintf("does not know %s", strings.Join(asked, " and ")))
	}
	return checkNamed(o.model, answer)
}

// checkNamed makes sure that the daemon knew the name of the model. One of a version with one model ignores it.
func checkNamed(model string, response interface{ GetModel() string }) error {
	if model != "" && response.GetModel() == "" {
		return tooOld("has one model and knows no names")
	}
	return nil
}

func tooOld(lack string) error {
	return newError(ErrUnimplemented, nil,
		"the daemon is too old: it %s; stop it with `runed stop`, so that a newer one is started", lack)
}
