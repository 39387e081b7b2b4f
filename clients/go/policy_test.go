package runed_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	connectrpc "connectrpc.com/connect"
	runed "runed.dev/clients/go"
	runedv1 "runed.dev/gen/go/runed/v1"
	"runed.dev/gen/go/runed/v1/runedv1connect"
)

// policy is tests/conformance/policy.json, which says what the clients of all languages do alike.
type policy struct {
	Constants []struct {
		Name  string
		Value float64
	}
	Pauses table[struct {
		Told, Least, Most float64
		Refusals          int
	}]
	Reasons table[struct {
		Reason runed.Reason
		Code   code
		Then   string
	}]
	Codes table[struct {
		Code      code
		RetryInfo bool `json:"retry_info"`
		Reason    runed.Reason
	}]
	Bootstrap table[struct {
		Name    string
		Infos   []any
		Healths []health
		Info    struct {
			VectorDim int32 `json:"vector_dim"`
			Reason    runed.Reason
			Metadata  map[string]string
		}
		Embedding struct{ Reason runed.Reason }
	}]
	Room table[struct {
		Call    string
		Options struct {
			Role        runed.Role
			Instruction string
			Dimensions  int
			Truncate    runed.Truncate
			Lane        runed.Lane
		}
		Room int
	}]
	Places table[struct {
		Environment map[string]string
		Home        string
		SocketPath  string `json:"socket_path"`
		Socket      string
		Reason      runed.Reason
	}]
	Homes table[struct {
		Lay    []string
		Home   string
		Reason runed.Reason
		Unsaid string
	}]
	Dial table[struct {
		Found  string
		Reason runed.Reason
	}]
	Ensure table[struct {
		Output string
		Exit   int
		Reason runed.Reason
		Says   string
	}]
	Versions table[struct {
		Daemon, Client string
		Older          bool
	}]
	Rules table[struct {
		Name      string
		Languages []string
	}]
}

type table[Row any] struct{ Rows []Row }

// code is a code by its name in capitals.
type code struct{ connectrpc.Code }

func (c *code) UnmarshalText(name []byte) error {
	return c.Code.UnmarshalText([]byte(strings.ToLower(string(name))))
}

type health struct {
	Status, Phase, Message string
	BytesDone              int64 `json:"bytes_done"`
	BytesTotal             int64 `json:"bytes_total"`
}

func (h health) message() *runedv1.HealthResponse {
	return &runedv1.HealthResponse{
		Status:    runedv1.HealthResponse_Status(runedv1.HealthResponse_Status_value["STATUS_"+h.Status]),
		Phase:     runedv1.HealthResponse_Phase(runedv1.HealthResponse_Phase_value["PHASE_"+h.Phase]),
		BytesDone: h.BytesDone, BytesTotal: h.BytesTotal, Message: h.Message,
	}
}

func readPolicy(t *testing.T) (result policy) {
	t.Helper()
	data := must(os.ReadFile(filepath.Join("..", "..", "tests", "conformance", "policy.json")))(t)
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatal(err)
	}
	return result
}

// script is a daemon whose methods are functions. One that is missing answers well: the vector of any text is (1, 0).
type script struct {
	runedv1connect.UnimplementedRunedServiceHandler
	info   func() (*runedv1.InfoResponse, error)
	health func() *runedv1.HealthResponse
	embed  func() (*runedv1.EmbedResponse, error)
	batch  func(texts int) (*runedv1.EmbedBatchResponse, error)
	stream func(ids []string) (*runedv1.EmbedStreamResponse, error)
}

var goodVector = []float32{1, 0}

func (s *script) Info(context.Context, *connectrpc.Request[runedv1.InfoRequest]) (*connectrpc.Response[runedv1.InfoResponse], error) {
	if s.info == nil {
		return connectrpc.NewResponse(&runedv1.InfoResponse{VectorDim: 2}), nil
	}
	return answered(s.info())
}

func (s *script) Health(context.Context, *connectrpc.Request[runedv1.HealthRequest]) (*connectrpc.Response[runedv1.HealthResponse], error) {
	if s.health == nil {
		return connectrpc.NewResponse(&runedv1.HealthResponse{Status: runedv1.HealthResponse_STATUS_OK}), nil
	}
	return connectrpc.NewResponse(s.health()), nil
}

func (s *script) Embed(context.Context, *connectrpc.Request[runedv1.EmbedRequest]) (*connectrpc.Response[runedv1.EmbedResponse], error) {
	if s.embed == nil {
		return connectrpc.NewResponse(&runedv1.EmbedResponse{Vector: goodVector, Fingerprint: "fp"}), nil
	}
	return answered(s.embed())
}

func (s *script) EmbedBatch(_ context.Context, request *connectrpc.Request[runedv1.EmbedBatchRequest]) (*connectrpc.Response[runedv1.EmbedBatchResponse], error) {
	return answered(s.batch(len(request.Msg.GetTexts())))
}

func (s *script) EmbedStream(_ context.Context, stream *connectrpc.BidiStream[runedv1.EmbedStreamRequest, runedv1.EmbedStreamResponse]) error {
	for {
		request, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var ids []string
		for _, item := range request.GetItems() {
			ids = append(ids, item.GetId())
		}
		if len(ids) == 0 {
			continue
		}
		response, err := wellStreamed(ids), error(nil)
		if s.stream != nil {
			response, err = s.stream(ids)
		}
		if response != nil {
			if err := stream.Send(response); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

func wellStreamed(ids []string) *runedv1.EmbedStreamResponse {
	response := &runedv1.EmbedStreamResponse{Fingerprint: "fp"}
	for _, id := range ids {
		response.Results = append(response.Results, &runedv1.EmbedStreamResult{Id: id, Embedding: &runedv1.EmbedResponse{Vector: goodVector}})
	}
	return response
}

func answered[Message any](message *Message, err error) (*connectrpc.Response[Message], error) {
	if err != nil {
		return nil, err
	}
	return connectrpc.NewResponse(message), nil
}

// start starts the daemon of a script, and connects to it.
func (s *script) start(t *testing.T, options ...runed.Option) *runed.Client {
	t.Helper()
	_, handler := runedv1connect.NewRunedServiceHandler(s)
	return connect(t, append(options, runed.WithSocket(serve(t, handler)))...)
}

// once returns a method that fails the first time.
func once[Message any](failure error, then *Message) func() (*Message, error) {
	var calls atomic.Int32
	return func() (*Message, error) {
		if calls.Add(1) == 1 {
			return nil, failure
		}
		return then, nil
	}
}

// embedOnStream streams one text and returns its vector.
func embedOnStream(t *testing.T, client *runed.Client) (vector []float32, failure error) {
	for item, err := range client.EmbedStream(t.Context(), pairs("text")) {
		vector, failure = item.Vector, errors.Join(err, item.Err)
	}
	return vector, failure
}

func pairs(texts ...string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i, text := range texts {
			if !yield(strconv.Itoa(i), text) {
				return
			}
		}
	}
}

func TestPolicyConstants(t *testing.T) {
	told := map[string]float64{}
	for _, constant := range readPolicy(t).Constants {
		told[constant.Name] = constant.Value
		if own, ok := runed.Constants[constant.Name]; !ok || own != constant.Value {
			t.Errorf("%s is %v, not %v", constant.Name, own, constant.Value)
		}
	}
	for name := range runed.Constants {
		if _, ok := told[name]; !ok {
			t.Errorf("the policy has no %s", name)
		}
	}
}

func TestPolicyPauses(t *testing.T) {
	for _, row := range readPolicy(t).Pauses.Rows {
		var drawn []float64
		for range 2000 {
			drawn = append(drawn, runed.RetryPause(time.Duration(row.Told*float64(time.Second)), row.Refusals).Seconds())
		}
		const rounding = 1e-6
		least, most := slices.Min(drawn), slices.Max(drawn)
		if least < row.Least-rounding || most > row.Most+rounding || most-least < 0.9*(row.Most-row.Least) {
			t.Errorf("%+v: from %v to %v", row, least, most)
		}
	}
}

func TestPolicyReasons(t *testing.T) {
	for _, row := range readPolicy(t).Reasons.Rows {
		t.Run(string(row.Reason), func(t *testing.T) {
			failure := refusal(row.Code.Code, string(row.Reason), map[string]string{"a": "b"}, time.Millisecond)
			check := func(name string, repeated bool, vector []float32, err error) {
				t.Helper()
				if repeated {
					if err != nil || !slices.Equal(vector, goodVector) {
						t.Errorf("%s: %v", name, err)
					}
				} else if own := failureOf(t, err); own.Reason != row.Reason || own.Code != row.Code.Code || own.Metadata["a"] != "b" {
					t.Errorf("%s: %#v", name, own)
				}
			}
			one := (&script{embed: once(failure, &runedv1.EmbedResponse{Vector: goodVector})}).start(t)
			embedding, err := one.Embed(t.Context(), "text")
			if embedding == nil {
				embedding = &runed.Embedding{}
			}
			repeated := row.Then == "retry" || row.Then == "wait"
			check("a single text", repeated, embedding.Vector, err)

			var broken atomic.Bool
			many := (&script{stream: func(ids []string) (*runedv1.EmbedStreamResponse, error) {
				if broken.CompareAndSwap(false, true) {
					return nil, failure
				}
				return wellStreamed(ids), nil
			}}).start(t)
			vector, err := embedOnStream(t, many)
			check("a stream", repeated || row.Then == "follow", vector, err)

			if row.Then == "retry" {
				final := refusal(row.Code.Code, string(row.Reason), nil, 0)
				_, err := (&script{embed: once(final, &runedv1.EmbedResponse{Vector: goodVector})}).start(t).Embed(t.Context(), "text")
				if !errors.Is(err, row.Reason) {
					t.Errorf("without RetryInfo: %v", err)
				}
			}
		})
	}
}

func TestPolicyCodes(t *testing.T) {
	for _, protocol := range protocols {
		for _, row := range readPolicy(t).Codes.Rows {
			t.Run(fmt.Sprintf("%s/%v/%v", protocol, row.Code, row.RetryInfo), func(t *testing.T) {
				for _, reason := range []runed.Reason{"", "OF_TOMORROW"} {
					wait := time.Duration(0)
					if row.RetryInfo {
						wait = time.Hour // later than any call would wait
						brief := refusal(row.Code.Code, string(reason), nil, time.Millisecond)
						client := (&script{embed: once(brief, &runedv1.EmbedResponse{Vector: goodVector})}).start(t, runed.WithProtocol(protocol))
						must(client.Embed(t.Context(), "text"))(t)
					}
					failure := refusal(row.Code.Code, string(reason), nil, wait)
					client := (&script{embed: once(failure, &runedv1.EmbedResponse{Vector: goodVector})}).start(t, runed.WithProtocol(protocol))
					_, err := client.Embed(t.Context(), "text")
					want := reason
					if want == "" {
						want = row.Reason
					}
					if own := failureOf(t, err); own.Reason != want || own.Code != row.Code.Code || !errors.Is(err, row.Reason) {
						t.Errorf("%q: %#v", string(reason), own)
					}
				}
			})
		}
	}
}

func TestPolicyBootstrap(t *testing.T) {
	for _, row := range readPolicy(t).Bootstrap.Rows {
		// Until the healths are used up, the daemon is not ready.
		start := func(t *testing.T) *runed.Client {
			var asked, looked atomic.Int32
			return (&script{
				info: func() (*runedv1.InfoResponse, error) {
					switch answer := row.Infos[min(int(asked.Add(1)), len(row.Infos))-1].(type) {
					case string:
						return nil, refusal(connectrpc.CodeFailedPrecondition, answer, nil, 0)
					default:
						return &runedv1.InfoResponse{VectorDim: int32(answer.(float64))}, nil
					}
				},
				health: func() *runedv1.HealthResponse {
					if next := int(looked.Add(1)); next <= len(row.Healths) {
						return row.Healths[next-1].message()
					}
					return &runedv1.HealthResponse{Status: runedv1.HealthResponse_STATUS_OK}
				},
				embed: func() (*runedv1.EmbedResponse, error) {
					if int(looked.Load()) < len(row.Healths) {
						return nil, refusal(connectrpc.CodeFailedPrecondition, "BOOTSTRAPPING", nil, 0)
					}
					return &runedv1.EmbedResponse{Vector: goodVector}, nil
				},
			}).start(t)
		}
		t.Run(row.Name, func(t *testing.T) {
			info, err := start(t).Info(t.Context())
			if row.Info.Reason == "" {
				if err != nil || info.GetVectorDim() != row.Info.VectorDim {
					t.Errorf("Info: %v, %v", info, err)
				}
			} else {
				failure := failureOf(t, err)
				if failure.Reason != row.Info.Reason {
					t.Error(err)
				}
				for name, value := range row.Info.Metadata {
					if failure.Metadata[name] != value || !strings.Contains(failure.Message, value) {
						t.Errorf("%v, %v", err, failure.Metadata)
					}
				}
			}
			if _, err := start(t).Embed(t.Context(), "text"); row.Embedding.Reason == "" && err != nil ||
				row.Embedding.Reason != "" && !errors.Is(err, row.Embedding.Reason) {
				t.Errorf("Embed: %v", err)
			}
			if row.Info.Reason == runed.ErrBootstrapping {
				if info := must(start(t).WaitReady(t.Context()))(t); info.GetVectorDim() != 2 {
					t.Errorf("WaitReady: %v", info)
				}
			}
		})
	}
}

func TestPolicyRoom(t *testing.T) {
	for i, row := range readPolicy(t).Room.Rows {
		client := (&script{info: func() (*runedv1.InfoResponse, error) {
			return &runedv1.InfoResponse{MaxRequestBytes: 1000}, nil
		}}).start(t)
		o := row.Options
		options := []runed.EmbedOption{runed.WithRole(o.Role), runed.WithInstruction(o.Instruction), runed.WithTruncate(o.Truncate), runed.WithLane(o.Lane)}
		if o.Dimensions != 0 {
			options = append(options, runed.WithDimensions(o.Dimensions))
		}
		large := strings.Repeat("x", 2000)
		var err error
		switch row.Call {
		case "embed_batch":
			_, err = client.EmbedBatch(t.Context(), []string{large}, options...)
		case "embed_items":
			err = must(client.EmbedItems(t.Context(), []string{large}, options...))(t)[0].Err
		case "count_tokens":
			_, err = client.CountTokens(t.Context(), []string{large}, options...)
		case "embed_stream":
			for item, failure := range client.EmbedStream(t.Context(), pairs(large), options...) {
				err = errors.Join(item.Err, failure)
			}
		default:
			t.Errorf("there is no call %s", row.Call)
			continue
		}
		if failure := failureOf(t, err); failure.Reason != runed.ErrRequestTooLarge || failure.Metadata["limit"] != strconv.Itoa(row.Room) {
			t.Errorf("row %d: %v, %v", i, failure, failure.Metadata)
		}
	}
}

func TestPolicyPlaces(t *testing.T) {
	own := must(user.LookupId(strconv.Itoa(os.Getuid())))(t)
	filled := strings.NewReplacer("$own", own.HomeDir, "$user", own.Username, "$uid", own.Uid, "$here", must(os.Getwd())(t)).Replace
	for i, row := range readPolicy(t).Places.Rows {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			for _, name := range []string{"HOME", "RUNED_HOME"} {
				t.Setenv(name, filled(row.Environment[name])) // which also puts it back in the end
				if _, ok := row.Environment[name]; !ok {
					os.Unsetenv(name)
				}
			}
			socket, err := runed.Locate(runed.WithHome(row.Home), runed.WithSocket(row.SocketPath))
			if row.Reason != "" {
				if !errors.Is(err, row.Reason) {
					t.Errorf("%+v: %q, %v", row, socket, err)
				}
			} else if err != nil || socket != filled(row.Socket) {
				t.Errorf("%+v: %q, %v", row, socket, err)
			}
		})
	}
}

func TestPolicyHomes(t *testing.T) {
	for _, row := range readPolicy(t).Homes.Rows {
		t.Run(strings.Join(append(row.Lay, row.Home), ", "), func(t *testing.T) {
			if strings.Contains(strings.Join(row.Lay, " "), "12345") && os.Geteuid() != 0 {
				t.Skip("only root can give a file to another user")
			}
			place := ownHome(t)
			for _, step := range row.Lay {
				words := strings.Fields(step)
				path := filepath.Join(place, words[1])
				base := map[string]int{"directory": 8, "file": 8}[words[0]]
				number, _ := strconv.ParseUint(words[len(words)-1], cmp.Or(base, 10), 32)
				err := map[string]func() error{
					// Of the mode of os.Chmod, the sticky bit stands elsewhere.
					"directory": func() error { return errors.Join(os.Mkdir(path, 0o700), syscall.Chmod(path, uint32(number))) },
					"file": func() error {
						return errors.Join(os.WriteFile(path, nil, 0o600), syscall.Chmod(path, cmp.Or(uint32(number), 0o600)))
					},
					"link":  func() error { return os.Symlink(words[2], path) },
					"owner": func() error { return os.Lchown(path, int(number), -1) },
					"group": func() error { return os.Lchown(path, -1, int(number)) },
					"trust": func() error { t.Setenv("RUNED_TRUST_PARENTS", "1"); return nil },
					"switch": func() error {
						own := os.Getegid()
						t.Cleanup(func() { syscall.Setegid(own) })
						return syscall.Setegid(int(number))
					},
				}[words[0]]()
				if err != nil {
					t.Fatal(err)
				}
			}
			home, ran := filepath.Join(place, cmp.Or(row.Home, "home")), filepath.Join(place, "ran")
			options := []runed.Option{runed.WithHome(home)}
			config := filepath.Join(home, "config.json")
			if row.Reason != runed.ErrForeignPath {
				options = append(options, runed.WithoutSpawn())
			} else if _, err := os.Lstat(config); errors.Is(err, fs.ErrNotExist) {
				program := filepath.Join(place, "program")
				document := fmt.Sprintf(`{"version": 1, "runed_binary": %q}`, program)
				if err := os.WriteFile(program, []byte("#!/bin/sh\ntouch "+ran+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
				os.WriteFile(config, []byte(document), 0o644) // the home itself may be missing
			}
			if _, err := runed.Connect(t.Context(), options...); !errors.Is(err, row.Reason) ||
				row.Unsaid != "" && strings.Contains(err.Error(), row.Unsaid) {
				t.Error(err)
			}
			if _, err := os.Stat(ran); err == nil {
				t.Error("the program of the home was run")
			}
		})
	}
}

func TestPolicyDial(t *testing.T) {
	lay := map[string]func(t *testing.T, directory string){
		"nothing": func(*testing.T, string) {},
		"a socket that nobody listens on": func(t *testing.T, directory string) {
			listener := must(net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(directory, "s")}))(t)
			listener.SetUnlinkOnClose(false)
			listener.Close()
		},
		"a file in place of the directory": func(t *testing.T, directory string) {
			if err := errors.Join(os.Remove(directory), os.WriteFile(directory, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		"a datagram socket": func(t *testing.T, directory string) {
			socket := must(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(directory, "s")}))(t)
			t.Cleanup(func() { socket.Close() })
		},
	}
	for _, row := range readPolicy(t).Dial.Rows {
		t.Run(row.Found, func(t *testing.T) {
			directory := filepath.Join(ownHome(t), "d")
			if err := os.Mkdir(directory, 0o700); err != nil {
				t.Fatal(err)
			}
			lay[row.Found](t, directory)
			if _, err := runed.Connect(t.Context(), runed.WithSocket(filepath.Join(directory, "s"))); !errors.Is(err, row.Reason) {
				t.Error(err)
			}
		})
	}
}

func TestPolicyEnsure(t *testing.T) {
	for i, row := range readPolicy(t).Ensure.Rows {
		home := asRuned(t, fmt.Sprintf("cat <<'END'\n%s\nEND\nexit %d\n", row.Output, row.Exit))
		_, err := runed.Connect(t.Context(), runed.WithHome(home))
		if !errors.Is(err, row.Reason) || !strings.Contains(err.Error(), row.Says) {
			t.Errorf("row %d: %v", i, err)
		}
	}
}

func TestPolicyVersions(t *testing.T) {
	for _, row := range readPolicy(t).Versions.Rows {
		if older := runed.IsOlder(row.Daemon, row.Client); older != row.Older {
			t.Errorf("%+v: %v", row, older)
		}
	}
	source := string(must(os.ReadFile(filepath.Join("..", "..", "runed", "version.py")))(t))
	if !strings.Contains(source, fmt.Sprintf("__version__ = %q", runed.Version)) {
		t.Errorf("the version of this client is %s, and the daemon's another one", runed.Version)
	}
}

func TestPolicyRules(t *testing.T) {
	tests := map[string]func(*testing.T){
		"a full backlog":                  testFullBacklog,
		"one time limit":                  testOneTimeLimit,
		"another user listens":            testAnotherUserListens,
		"a home in other bytes":           testHomeInOtherBytes,
		"an older daemon":                 testOlderDaemon,
		"one look at a time":              testOneLookAtATime,
		"a draining daemon":               testDrainingDaemon,
		"a lost answer":                   testLostAnswer,
		"a daemon that is lost again":     testDaemonLostAgain,
		"another program":                 testAnotherProgram,
		"an answer without a vector":      testNoVector,
		"an error of one text":            testErrorOfOneText,
		"a successor with smaller limits": testSmallerLimits,
		"a successor with larger limits":  testLargerLimits,
		"the progress of a start":         testProgressOfAStart,
		"the model of a call":             testModelOfACall,
		"a daemon with one model":         testOneModel,
		"a refusal to the end":            testRefusalToTheEnd,
		"an idle stream":                  testIdleStream,
		"a silent stream":                 testSilentStream,
		"many calls at once":              testManyCallsAtOnce,
		"a closed client":                 testClosedClient,
	}
	for _, row := range readPolicy(t).Rules.Rows {
		if row.Languages != nil && !slices.Contains(row.Languages, "go") {
			continue
		}
		test, ok := tests[row.Name]
		if !ok {
			t.Errorf("%q has no test", row.Name)
			continue
		}
		t.Run(row.Name, test)
	}
}

// fullBacklog makes a socket whose queue of connections is full, and returns the descriptor that listens.
func fullBacklog(t *testing.T, path string) (listener int) {
	listener = must(syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0))(t)
	if err := errors.Join(syscall.Bind(listener, &syscall.SockaddrUnix{Name: path}), syscall.Listen(listener, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		waiting, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			return listener
		}
		t.Cleanup(func() { waiting.Close() })
	}
}

func testFullBacklog(t *testing.T) {
	home := asRuned(t, `echo asked >> "$RUNED_HOME/asked"; exit 1`)
	number := fullBacklog(t, filepath.Join(home, "embedding.sock"))
	client := connect(t, runed.WithHome(home))
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := client.Embed(short, "text"); !errors.Is(err, runed.ErrDeadlineExceeded) {
		t.Error(err)
	}
	done := make(chan error)
	go func() {
		_, err := client.Embed(t.Context(), "text")
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
		file := os.NewFile(uintptr(number), "listener")
		listener := must(net.FileListener(file))(t)
		file.Close()
		_, handler := runedv1connect.NewRunedServiceHandler(&script{})
		server := &http.Server{Handler: handler}
		go server.Serve(listener)
		t.Cleanup(func() { server.Close() })
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(home, "asked")); err == nil {
		t.Error("a daemon was started")
	}
}

func testOneTimeLimit(t *testing.T) {
	path := filepath.Join(ownHome(t), "s")
	listener := fullBacklog(t, path)
	t.Cleanup(func() { syscall.Close(listener) })
	client := connect(t, runed.WithSocket(path))
	time.AfterFunc(500*time.Millisecond, func() {
		if accepted, _, err := syscall.Accept(listener); err == nil {
			syscall.Close(accepted)
		}
	})
	began := time.Now()
	limited, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	if _, err := client.Embed(limited, "text"); !errors.Is(err, runed.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if took := time.Since(began); took < 700*time.Millisecond || took > 1150*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

func testAnotherUserListens(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	path := filepath.Join(ownHome(t), "s")
	program := filepath.Join("..", "..", "tests", "fakes", "other_user.py")
	other := exec.Command("python3", program, "64321", "listen", path)
	output := must(other.StdoutPipe())(t)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Process.Kill(); other.Wait() })
	lines := bufio.NewScanner(output)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatal(lines.Text())
	}
	_, err := runed.Connect(t.Context(), runed.WithSocket(path))
	if !errors.Is(err, runed.ErrForeignPath) || !strings.Contains(err.Error(), "belongs to user id 64321") {
		t.Error(err)
	}
	if !lines.Scan() || lines.Text() != "0" {
		t.Errorf("the other user got %s bytes", lines.Text())
	}
}

// servedHome makes a home with a daemon, its daemon.json, and a `runed` that notes each run and then runs the given commands.
func servedHome(t *testing.T, daemon *script, record, program string) (home string, asked func() int) {
	home = asRuned(t, `echo asked >> "$RUNED_HOME/asked"`+"\n"+program)
	_, handler := runedv1connect.NewRunedServiceHandler(daemon)
	socket := filepath.Join(home, "embedding.sock")
	if err := os.Rename(serve(t, handler), socket); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "daemon.json"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	return home, func() int {
		data, _ := os.ReadFile(filepath.Join(home, "asked"))
		return strings.Count(string(data), "\n")
	}
}

const wellEnsured = `echo '{"socket": "'"$RUNED_HOME"'/embedding.sock", "started": true}'`

func TestBadRecord(t *testing.T) {
	lay := map[string]func(path string) error{
		"nothing in it": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"no UTF-8":      func(path string) error { return os.WriteFile(path, []byte("{\"version\": \"\xff\"}"), 0o600) },
		"nested":        func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("["), 100_000), 0o600) },
		"other types":   func(path string) error { return os.WriteFile(path, []byte(`{"draining": "yes", "pid": []}`), 0o600) },
		"huge": func(path string) error {
			if err := os.WriteFile(path, []byte(`{"draining": true}`), 0o600); err != nil {
				return err
			}
			return os.Truncate(path, 1<<40)
		},
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"a pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a device":    func(path string) error { return os.Symlink("/dev/zero", path) },
	}
	for name, put := range lay {
		t.Run(name, func(t *testing.T) {
			home, asked := servedHome(t, &script{}, "{}", wellEnsured)
			path := filepath.Join(home, "daemon.json")
			if err := errors.Join(os.Remove(path), put(path)); err != nil {
				t.Fatal(err)
			}
			limited, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			client, err := runed.Connect(limited, runed.WithHome(home))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if count := asked(); count != 0 {
				t.Errorf("`runed ensure` was run %d times", count)
			}
		})
	}
}

func testOlderDaemon(t *testing.T) {
	recordOf := func(version string) string {
		return fmt.Sprintf(`{"pid": 1, "start_time": 2.5, "version": %q, "socket": "/s"}`, version)
	}
	for name, test := range map[string]struct {
		record, script string
		options        []runed.Option
		asked          int
	}{
		"older":            {recordOf("0.0.9"), wellEnsured, nil, 1},
		"as old":           {recordOf(runed.Version), wellEnsured, nil, 0},
		"newer":            {recordOf("99.0.0"), wellEnsured, nil, 0},
		"no record":        {"", wellEnsured, nil, 0},
		"may not start":    {recordOf("0.0.9"), wellEnsured, []runed.Option{runed.WithoutSpawn()}, 0},
		"cannot be helped": {recordOf("0.0.9"), "exit 1", nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			home, asked := servedHome(t, &script{}, test.record, test.script)
			client := connect(t, append(test.options, runed.WithHome(home))...)
			for range 2 {
				if err := client.Ensure(t.Context()); err != nil {
					t.Error(err)
				}
			}
			must(client.Embed(t.Context(), "text"))(t)
			if asked() != test.asked {
				t.Errorf("`runed ensure` was run %d times", asked())
			}
		})
	}
	t.Run("no program", func(t *testing.T) {
		home, _ := servedHome(t, &script{}, recordOf("0.0.9"), "")
		if err := os.Remove(filepath.Join(home, "config.json")); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", home)
		must(connect(t, runed.WithHome(home)).Embed(t.Context(), "text"))(t)
	})
}

func testOneLookAtATime(t *testing.T) {
	home := asRuned(t, `mkdir "$RUNED_HOME/looking" || exit 1; sleep 0.4; rmdir "$RUNED_HOME/looking"`+"\n"+wellEnsured)
	client := connect(t, runed.WithHome(home))
	var callers sync.WaitGroup
	for range 3 {
		callers.Go(func() {
			if err := client.Ensure(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	waitUntil(t, "a look", func() bool { _, err := os.Stat(filepath.Join(home, "looking")); return err == nil })
	for range 3 {
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if err := client.Ensure(ctx); !errors.Is(err, runed.ErrDeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	callers.Wait()
}

func testDrainingDaemon(t *testing.T) {
	record := fmt.Sprintf(`{"pid": 1, "start_time": 2.5, "version": %q, "socket": "/s", "draining": true}`, runed.Version)
	home, asked := servedHome(t, &script{}, record, wellEnsured)
	connect(t, runed.WithHome(home))
	if asked() != 1 {
		t.Errorf("`runed ensure` was run %d times", asked())
	}
}

func testDaemonLostAgain(t *testing.T) {
	for deaths, want := range []error{nil, nil, nil, nil, runed.ErrDaemonUnavailable} {
		left := deaths
		record := fmt.Sprintf(`{"pid": 1, "start_time": 2.5, "version": %q, "socket": "/s", "draining": true}`, runed.Version)
		home, asked := servedHome(t, &script{embed: func() (*runedv1.EmbedResponse, error) {
			if left--; left >= 0 {
				panic(http.ErrAbortHandler) // breaks the connection
			}
			return &runedv1.EmbedResponse{Vector: goodVector}, nil
		}}, record, wellEnsured)
		if _, err := connect(t, runed.WithHome(home)).Embed(t.Context(), "text"); !errors.Is(err, want) {
			t.Errorf("after %d deaths: %v", deaths, err)
		}
		if starts := asked() - 1; starts != min(deaths, 3) {
			t.Errorf("%d starts after %d deaths", starts, deaths)
		}
	}
}

func testLostAnswer(t *testing.T) {
	for name, answer := range map[string]string{
		"none": "", "half": "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 100\r\n\r\nhalf",
	} {
		socket := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			connection, _, _ := http.NewResponseController(w).Hijack()
			io.WriteString(connection, answer)
			connection.Close()
		}))
		if _, err := connect(t, runed.WithSocket(socket)).Health(t.Context()); !errors.Is(err, runed.ErrDaemonUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testAnotherProgram(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"404":  http.NotFound,
		"503":  func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "later", http.StatusServiceUnavailable) },
		"HTML": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
		"garbage": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			io.WriteString(w, "\xff\xff")
		},
	} {
		_, err := connect(t, runed.WithSocket(serve(t, handler))).Health(t.Context())
		if !errors.Is(err, runed.ErrInternal) || !strings.Contains(err.Error(), "another program") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testNoVector(t *testing.T) {
	client := (&script{
		embed: func() (*runedv1.EmbedResponse, error) { return &runedv1.EmbedResponse{Fingerprint: "fp"}, nil },
		batch: func(texts int) (*runedv1.EmbedBatchResponse, error) {
			return &runedv1.EmbedBatchResponse{Fingerprint: "fp", Embeddings: []*runedv1.EmbedResponse{
				{Vector: goodVector}, {Vector: make([]float32, texts-2)},
			}}, nil
		},
	}).start(t)
	_, one := client.Embed(t.Context(), "text")
	_, empty := client.EmbedBatch(t.Context(), []string{"a", "b"})
	_, fewer := client.EmbedBatch(t.Context(), []string{"a", "b", "c"})
	for name, err := range map[string]error{"one": one, "empty": empty, "fewer": fewer} {
		if !errors.Is(err, runed.ErrBackendFault) {
			t.Errorf("%s: %v", name, err)
		}
	}
	client = (&script{batch: func(int) (*runedv1.EmbedBatchResponse, error) {
		return &runedv1.EmbedBatchResponse{Fingerprint: "fp", Embeddings: []*runedv1.EmbedResponse{{Vector: goodVector}, {Vector: []float32{1}}}}, nil
	}}).start(t)
	if _, err := client.EmbedBatch(t.Context(), []string{"a", "b"}); !errors.Is(err, runed.ErrBackendFault) {
		t.Errorf("different lengths: %v", err)
	}
}

func testErrorOfOneText(t *testing.T) {
	for _, reason := range []runed.Reason{runed.ErrEmptyText, runed.ErrBackendUnavailable, runed.ErrQueueFull, runed.ErrShuttingDown, runed.ErrBootstrapping} {
		failed := &runedv1.EmbedResponse{Error: &runedv1.ItemError{Reason: string(reason), Message: "it is so"}}
		var requests atomic.Int32
		client := (&script{
			batch: func(int) (*runedv1.EmbedBatchResponse, error) {
				requests.Add(1)
				return &runedv1.EmbedBatchResponse{Fingerprint: "fp", Embeddings: []*runedv1.EmbedResponse{failed}}, nil
			},
			stream: func(ids []string) (*runedv1.EmbedStreamResponse, error) {
				requests.Add(1)
				return &runedv1.EmbedStreamResponse{Fingerprint: "fp", Results: []*runedv1.EmbedStreamResult{{Id: ids[0], Embedding: failed}}}, nil
			},
		}).start(t)
		items := must(client.EmbedItems(t.Context(), []string{"text"}))(t)
		_, err := embedOnStream(t, client)
		if !errors.Is(items[0].Err, reason) || !errors.Is(err, reason) || requests.Load() != 2 {
			t.Errorf("%s: %v, %v after %d requests", string(reason), items[0].Err, err, requests.Load())
		}
	}
}

func testSmallerLimits(t *testing.T) {
	maxTexts := atomic.Int32{}
	maxTexts.Store(9)
	var asked atomic.Int32
	var sizes []int
	client := (&script{
		info: func() (*runedv1.InfoResponse, error) {
			asked.Add(1)
			return &runedv1.InfoResponse{MaxBatchSize: maxTexts.Load(), MaxRequestBytes: 1000}, nil
		},
		batch: func(texts int) (*runedv1.EmbedBatchResponse, error) {
			if texts > int(maxTexts.Load()) {
				return nil, refusal(connectrpc.CodeInvalidArgument, "BATCH_TOO_LARGE", nil, 0)
			}
			sizes = append(sizes, texts)
			response := &runedv1.EmbedBatchResponse{Fingerprint: "fp"}
			for range texts {
				response.Embeddings = append(response.Embeddings, &runedv1.EmbedResponse{Vector: goodVector})
			}
			return response, nil
		},
	}).start(t)
	texts := make([]string, 9)
	must(client.EmbedBatch(t.Context(), texts))(t)
	maxTexts.Store(4)
	if count := len(must(client.EmbedBatch(t.Context(), texts))(t)); count != 9 {
		t.Error(count)
	}
	must(client.EmbedItems(t.Context(), texts))(t)
	if want := []int{9, 4, 4, 1, 4, 4, 1}; !slices.Equal(sizes, want) || asked.Load() != 2 {
		t.Errorf("%v after %d questions", sizes, asked.Load())
	}
	// The same limits as before are no reason for another try.
	if _, err := client.EmbedBatch(t.Context(), []string{strings.Repeat("x", 2000)}); !errors.Is(err, runed.ErrRequestTooLarge) || asked.Load() != 3 {
		t.Errorf("%v after %d questions", err, asked.Load())
	}
}

func testLargerLimits(t *testing.T) {
	maxTexts := atomic.Int32{}
	maxTexts.Store(2)
	var sizes []int
	home, _ := servedHome(t, &script{
		info: func() (*runedv1.InfoResponse, error) {
			return &runedv1.InfoResponse{MaxBatchSize: maxTexts.Load()}, nil
		},
		batch: func(texts int) (*runedv1.EmbedBatchResponse, error) {
			sizes = append(sizes, texts)
			response := &runedv1.EmbedBatchResponse{Fingerprint: "fp"}
			for range texts {
				response.Embeddings = append(response.Embeddings, &runedv1.EmbedResponse{Vector: goodVector})
			}
			return response, nil
		},
		embed: once(refusal(connectrpc.CodeUnavailable, "SHUTTING_DOWN", nil, 0), &runedv1.EmbedResponse{Vector: goodVector}),
	}, "", wellEnsured)
	client := connect(t, runed.WithHome(home))
	texts := make([]string, 5)
	must(client.EmbedBatch(t.Context(), texts))(t)
	maxTexts.Store(9)
	must(client.Embed(t.Context(), "text"))(t) // looks for the daemon again
	must(client.EmbedBatch(t.Context(), texts))(t)
	if want := []int{2, 2, 1, 5}; !slices.Equal(sizes, want) {
		t.Error(sizes)
	}
}

func testProgressOfAStart(t *testing.T) {
	for name, call := range map[string]func(*runed.Client) error{
		"Embed":       func(c *runed.Client) error { _, err := c.Embed(t.Context(), "text"); return err },
		"EmbedBatch":  func(c *runed.Client) error { _, err := c.EmbedBatch(t.Context(), []string{"text"}); return err },
		"EmbedStream": func(c *runed.Client) error { _, err := embedOnStream(t, c); return err },
		"Info":        func(c *runed.Client) error { _, err := c.Info(t.Context()); return err },
		"WaitReady":   func(c *runed.Client) error { _, err := c.WaitReady(t.Context()); return err },
		"WarmUp": func(c *runed.Client) error {
			if err := c.WarmUp(t.Context()); !errors.Is(err, runed.ErrUnimplemented) { // by the script
				return err
			}
			return nil
		},
		"SetCentroids": func(c *runed.Client) error {
			_, err := c.SetCentroids(t.Context(), [][]float32{goodVector}, "")
			if errors.Is(err, runed.ErrUnimplemented) { // by the script
				return nil
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, test := range []struct{ loading, looks int32 }{{loading: 2, looks: 3}, {loading: 0, looks: 1}} {
				var looks atomic.Int32
				daemon := &script{
					health: func() *runedv1.HealthResponse {
						if looks.Add(1) <= test.loading {
							return health{Status: "LOADING", Message: "looking for engine and model"}.message()
						}
						return health{Status: "OK"}.message()
					},
					batch: func(int) (*runedv1.EmbedBatchResponse, error) {
						return &runedv1.EmbedBatchResponse{Fingerprint: "fp", Embeddings: []*runedv1.EmbedResponse{{Vector: goodVector}}}, nil
					},
				}
				var told []string
				client := daemon.start(t, runed.WithProgress(func(health *runed.Health) {
					told = append(told, strings.TrimSpace(health.GetStatus().String()+" "+health.GetMessage()))
				}))
				if err := errors.Join(call(client), call(client)); err != nil {
					t.Error(err)
				}
				want := []string{"STATUS_LOADING looking for engine and model", "STATUS_OK"}
				if test.loading == 0 {
					want = nil
				}
				if !slices.Equal(told, want) || looks.Load() != test.looks {
					t.Errorf("%+v: %q after %d looks", test, told, looks.Load())
				}
				looks.Store(0)
				if err := call(daemon.start(t)); err != nil || looks.Load() != 0 {
					t.Errorf("without a callback: %v after %d looks", err, looks.Load())
				}
			}
		})
	}

	var looks atomic.Int32
	home, _ := servedHome(t, &script{
		health: func() *runedv1.HealthResponse {
			looks.Add(1)
			return health{Status: "OK"}.message()
		},
		embed: once(refusal(connectrpc.CodeUnavailable, "SHUTTING_DOWN", nil, 0), &runedv1.EmbedResponse{Vector: goodVector}),
	}, "", wellEnsured)
	client := connect(t, runed.WithHome(home), runed.WithProgress(func(*runed.Health) {}))
	for range 3 {
		must(client.Embed(t.Context(), "text"))(t) // the first one looks for the daemon again
	}
	if looks.Load() != 2 {
		t.Errorf("%d looks for two daemons", looks.Load())
	}

	silent := &script{health: func() *runedv1.HealthResponse { time.Sleep(300 * time.Millisecond); return &runedv1.HealthResponse{} }}
	client = silent.start(t, runed.WithTimeout(100*time.Millisecond), runed.WithProgress(func(*runed.Health) {}))
	if _, err := client.Embed(t.Context(), "text"); !errors.Is(err, runed.ErrDeadlineExceeded) || strings.Contains(err.Error(), "not ready yet") {
		t.Errorf("of a daemon that it knows nothing of: %v", err)
	}
}

// namedCalls are calls of every kind that name a model.
var namedCalls = map[string]func(context.Context, *runed.Client) error{
	"Info":      func(ctx context.Context, c *runed.Client) error { _, err := c.Info(ctx, named); return err },
	"WaitReady": func(ctx context.Context, c *runed.Client) error { _, err := c.WaitReady(ctx, named); return err },
	"Health":    func(ctx context.Context, c *runed.Client) error { _, err := c.Health(ctx, named); return err },
	"WarmUp":    func(ctx context.Context, c *runed.Client) error { return c.WarmUp(ctx, named) },
	"Embed":     func(ctx context.Context, c *runed.Client) error { _, err := c.Embed(ctx, "text", named); return err },
	"EmbedBatch": func(ctx context.Context, c *runed.Client) error {
		_, err := c.EmbedBatch(ctx, []string{"text"}, named)
		return err
	},
	"EmbedItems": func(ctx context.Context, c *runed.Client) error {
		_, err := c.EmbedItems(ctx, []string{"text"}, named)
		return err
	},
	"CountTokens": func(ctx context.Context, c *runed.Client) error {
		_, err := c.CountTokens(ctx, []string{"text"}, named)
		return err
	},
	"EmbedStream": func(ctx context.Context, c *runed.Client) (failure error) {
		for item, err := range c.EmbedStream(ctx, pairs("text"), named) {
			failure = errors.Join(err, item.Err)
		}
		return failure
	},
	"Rerank": func(ctx context.Context, c *runed.Client) error {
		_, err := c.Rerank(ctx, "query", []string{"text"}, runed.RerankOptions{Model: "m"})
		return err
	},
	"SetCentroids": func(ctx context.Context, c *runed.Client) error {
		_, err := c.SetCentroids(ctx, [][]float32{goodVector}, "", named)
		return err
	},
}

var named = runed.WithModel("m")

// namingDaemon is a daemon that knows names, and notes those in Info and Health. It refuses one call, as a bootstrap does.
type namingDaemon struct {
	runedv1connect.UnimplementedRunedServiceHandler
	hasOneModel bool // so that it ignores names, knows less methods, and refuses nothing
	refused     atomic.Bool
	mutex       sync.Mutex
	looks       []string
}

func (d *namingDaemon) refuse() error {
	if !d.hasOneModel && d.refused.CompareAndSwap(false, true) {
		return refusal(connectrpc.CodeFailedPrecondition, "BOOTSTRAPPING", nil, 0)
	}
	return nil
}

func (d *namingDaemon) refuseMethod() error {
	if d.hasOneModel {
		return connectrpc.NewError(connectrpc.CodeUnimplemented, errors.New("there is no such method"))
	}
	return d.refuse()
}

// told returns the name that an answer tells.
func (d *namingDaemon) told(model string) string {
	if d.hasOneModel {
		return ""
	}
	return model
}

func (d *namingDaemon) look(model string) string {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.looks = append(d.looks, model)
	return d.told(model)
}

func (d *namingDaemon) Info(_ context.Context, request *connectrpc.Request[runedv1.InfoRequest]) (*connectrpc.Response[runedv1.InfoResponse], error) {
	return answered(&runedv1.InfoResponse{VectorDim: 2, Model: d.look(request.Msg.GetModel())}, nil)
}

func (d *namingDaemon) Health(_ context.Context, request *connectrpc.Request[runedv1.HealthRequest]) (*connectrpc.Response[runedv1.HealthResponse], error) {
	return answered(&runedv1.HealthResponse{Status: runedv1.HealthResponse_STATUS_OK, Model: d.look(request.Msg.GetModel())}, nil)
}

func (d *namingDaemon) WarmUp(context.Context, *connectrpc.Request[runedv1.WarmUpRequest]) (*connectrpc.Response[runedv1.WarmUpResponse], error) {
	return answered(&runedv1.WarmUpResponse{}, nil)
}

func (d *namingDaemon) LoadModel(context.Context, *connectrpc.Request[runedv1.LoadModelRequest]) (*connectrpc.Response[runedv1.LoadModelResponse], error) {
	return answered(&runedv1.LoadModelResponse{}, d.refuseMethod())
}

func (d *namingDaemon) Embed(_ context.Context, request *connectrpc.Request[runedv1.EmbedRequest]) (*connectrpc.Response[runedv1.EmbedResponse], error) {
	return answered(&runedv1.EmbedResponse{Vector: goodVector, Fingerprint: "fp", Model: d.told(request.Msg.GetModel())}, d.refuse())
}

func (d *namingDaemon) EmbedBatch(_ context.Context, request *connectrpc.Request[runedv1.EmbedBatchRequest]) (*connectrpc.Response[runedv1.EmbedBatchResponse], error) {
	embeddings := []*runedv1.EmbedResponse{{Vector: goodVector}}
	return answered(&runedv1.EmbedBatchResponse{Embeddings: embeddings, Fingerprint: "fp", Model: d.told(request.Msg.GetModel())}, d.refuse())
}

func (d *namingDaemon) CountTokens(_ context.Context, request *connectrpc.Request[runedv1.CountTokensRequest]) (*connectrpc.Response[runedv1.CountTokensResponse], error) {
	return answered(&runedv1.CountTokensResponse{TokenCounts: []uint32{1}, Model: d.told(request.Msg.GetModel())}, d.refuse())
}

func (d *namingDaemon) Rerank(context.Context, *connectrpc.Request[runedv1.RerankRequest]) (*connectrpc.Response[runedv1.RerankResponse], error) {
	return answered(&runedv1.RerankResponse{Results: []*runedv1.RerankResult{{}}}, d.refuseMethod())
}

func (d *namingDaemon) EmbedStream(_ context.Context, stream *connectrpc.BidiStream[runedv1.EmbedStreamRequest, runedv1.EmbedStreamResponse]) error {
	request, err := stream.Receive()
	if err = errors.Join(err, d.refuse()); err != nil {
		return err
	}
	response := wellStreamed([]string{request.GetItems()[0].GetId()})
	response.Model = d.told(request.GetModel())
	return stream.Send(response)
}

func (d *namingDaemon) SetCentroids(_ context.Context, stream *connectrpc.ClientStream[runedv1.SetCentroidsRequest]) (*connectrpc.Response[runedv1.SetCentroidsResponse], error) {
	model := ""
	for stream.Receive() {
		model += stream.Msg().GetHeader().GetModel()
	}
	return answered(&runedv1.SetCentroidsResponse{Nlist: 1, Model: d.told(model)}, d.refuse())
}

func testModelOfACall(t *testing.T) {
	for name, call := range namedCalls {
		daemon := &namingDaemon{}
		_, handler := runedv1connect.NewRunedServiceHandler(daemon)
		client := connect(t, runed.WithSocket(serve(t, handler)), runed.WithProgress(func(*runed.Health) {}))
		err := call(t.Context(), client)
		if isOther := func(model string) bool { return model != "m" }; err != nil || slices.ContainsFunc(daemon.looks, isOther) {
			t.Errorf("%s: %v, %q", name, err, daemon.looks)
		}
		if len(daemon.looks) == 0 {
			t.Errorf("%s asks for nothing", name)
		}
	}
}

func testOneModel(t *testing.T) {
	_, handler := runedv1connect.NewRunedServiceHandler(&namingDaemon{hasOneModel: true})
	client := connect(t, runed.WithSocket(serve(t, handler)))
	for name, call := range namedCalls {
		if err := call(t.Context(), client); !errors.Is(err, runed.ErrUnimplemented) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(client.Info(t.Context()))(t)
	must(client.Health(t.Context(), runed.WithModel("")))(t)
	if err := client.WarmUp(t.Context()); err != nil {
		t.Error(err)
	}
}

func testRefusalToTheEnd(t *testing.T) {
	busy := refusal(connectrpc.CodeResourceExhausted, "QUEUE_FULL", map[string]string{"limit_texts": "7"}, time.Millisecond)
	var calls, streams atomic.Int32
	client := (&script{
		embed: func() (*runedv1.EmbedResponse, error) {
			if calls.Add(1) > 1 {
				time.Sleep(time.Second)
			}
			return nil, busy
		},
		stream: func([]string) (*runedv1.EmbedStreamResponse, error) {
			if streams.Add(1) > 1 {
				time.Sleep(time.Second)
			}
			return nil, busy
		},
	}).start(t, runed.WithTimeout(400*time.Millisecond))
	_, one := client.Embed(t.Context(), "text")
	_, many := embedOnStream(t, client)
	tried := regexp.MustCompile(`\(tried 2 times in 0\.[3-9] s\)$`)
	for name, err := range map[string]error{"a single text": one, "a stream": many} {
		failure := failureOf(t, err)
		if failure.Reason != runed.ErrQueueFull || failure.Metadata["limit_texts"] != "7" || !tried.MatchString(failure.Message) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testIdleStream(t *testing.T) {
	ending := refusal(connectrpc.CodeUnavailable, "SHUTTING_DOWN", nil, 0)
	var streams atomic.Int32
	client := (&script{stream: func(ids []string) (*runedv1.EmbedStreamResponse, error) {
		streams.Add(1)
		return wellStreamed(ids), ending
	}}).start(t)
	answered := make(chan struct{})
	texts := func(yield func(string, string) bool) {
		for _, id := range []string{"a", "b"} {
			if !yield(id, "text") {
				return
			}
			<-answered
			time.Sleep(100 * time.Millisecond) // the end of the stream arrives
		}
	}
	var ids []string
	for item, err := range client.EmbedStream(t.Context(), texts) {
		if err != nil || item.Err != nil {
			t.Fatal(err, item.Err)
		}
		ids = append(ids, item.ID)
		answered <- struct{}{}
	}
	if !slices.Equal(ids, []string{"a", "b"}) || streams.Load() != 2 {
		t.Errorf("%v by %d streams", ids, streams.Load())
	}
}

func testSilentStream(t *testing.T) {
	const limit = 300 * time.Millisecond
	client := (&script{stream: func(ids []string) (*runedv1.EmbedStreamResponse, error) { return nil, nil }}).start(t, runed.WithTimeout(limit))
	began := time.Now()
	_, err := embedOnStream(t, client)
	if !errors.Is(err, runed.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "no embedding of the stream came within 300ms") || time.Since(began) < limit {
		t.Error(err, time.Since(began))
	}
	// The time in which the caller has no text does not count.
	client = (&script{}).start(t, runed.WithTimeout(limit))
	count := 0
	for item, err := range client.EmbedStream(t.Context(), func(yield func(string, string) bool) {
		for range 2 {
			if !yield("", "text") {
				return
			}
			time.Sleep(2 * limit)
		}
	}) {
		if err != nil || item.Err != nil {
			t.Fatal(err, item.Err)
		}
		count++
	}
	if count != 2 {
		t.Error(count)
	}
}

func testHomeInOtherBytes(t *testing.T) {
	t.Setenv("RUNED_HOME", "/h\xff")
	if _, err := runed.Locate(); !errors.Is(err, runed.ErrBadSetting) || !strings.Contains(err.Error(), `"/h\xff" is not UTF-8`) {
		t.Error(err)
	}
}

func testManyCallsAtOnce(t *testing.T) {
	const most = 64
	var now, peak atomic.Int32
	blocked := make(chan struct{})
	client := (&script{embed: func() (*runedv1.EmbedResponse, error) {
		peak.Store(max(peak.Load(), now.Add(1)))
		defer now.Add(-1)
		<-blocked
		return &runedv1.EmbedResponse{Vector: goodVector, Fingerprint: "fp"}, nil
	}}).start(t)
	failures := make(chan error)
	for range 700 {
		go func() {
			_, err := client.Embed(t.Context(), "text")
			failures <- err
		}()
	}
	for now.Load() < most {
		time.Sleep(time.Millisecond)
	}
	late, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := client.Embed(late, "late"); !errors.Is(err, runed.ErrDeadlineExceeded) {
		t.Error("the wait does not count:", err)
	}
	close(blocked)
	for range 700 {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	if peak.Load() > most {
		t.Error(peak.Load(), "calls went on at a time")
	}
}

func testClosedClient(t *testing.T) {
	client := (&script{}).start(t)
	must(client.Embed(t.Context(), "text"))(t)
	client.Close()
	_, err := client.Embed(t.Context(), "text")
	_, streamErr := embedOnStream(t, client)
	if !errors.Is(err, runed.ErrClosed) || !errors.Is(streamErr, runed.ErrClosed) {
		t.Error(err, streamErr)
	}
}
