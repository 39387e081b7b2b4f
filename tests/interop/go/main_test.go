package interop

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "runed.dev/interop/runedv1"
)

// silence is 10 minutes in the requirement. In the usual run it is long enough for one ping: grpc-go sends at most one every
// 10 seconds.
var silence = flag.Duration("silence", 11*time.Second, "how long a connection with keepalive pings is silent")

var shared home // the home of the daemon that most tests share

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	for _, name := range []string{"RUNED_LLAMA_SERVER", "RUNED_MODEL"} {
		if os.Getenv(name) == "" {
			fmt.Fprintf(os.Stderr, "%s is not set; the tests need an engine and a model, which `make test` gives them\n", name)
			return 1
		}
	}
	var err error
	if shared, err = makeHome(); err == nil {
		defer shared.remove()
		err = shared.ensure()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// home is a RUNED_HOME, with the settings of its daemon.
type home struct {
	path string
	env  []string
}

func makeHome(settings ...string) (home, error) {
	path, err := os.MkdirTemp("/tmp", "ri-") // short enough for a socket
	return home{path, append(append(os.Environ(), "RUNED_HOME="+path), settings...)}, err
}

func (h home) socket() string { return filepath.Join(h.path, "embedding.sock") }

// ensure starts the daemon, as the deployment of a program does.
func (h home) ensure() error { return h.command("ensure") }

// remove stops the daemon and removes the home.
func (h home) remove() {
	if err := h.command("stop"); err != nil && !strings.Contains(err.Error(), "exit status 3") { // none runs
		fmt.Fprintln(os.Stderr, err)
	}
	os.RemoveAll(h.path)
}

func (h home) command(name string) error {
	command := exec.Command("runed", name)
	command.Env = h.env
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("runed %s: %w: %s", name, err, output)
	}
	return nil
}

// connection is a program's connection, and the number of times that it was made.
type connection struct {
	*grpc.ClientConn
	pb.RunedServiceClient
	dials atomic.Int32
}

// dial connects as a program does.
func dial(t *testing.T, h home, options ...grpc.DialOption) *connection {
	t.Helper()
	result := &connection{}
	counting := grpc.WithContextDialer(func(ctx context.Context, target string) (net.Conn, error) {
		result.dials.Add(1)
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(target, "unix://"))
	})
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if len(options) > 1 {
		options = append(options, counting)
	}
	conn, err := grpc.NewClient("unix://"+h.socket(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	result.ClientConn, result.RunedServiceClient = conn, pb.NewRunedServiceClient(conn)
	return result
}

// withPings is the option with which long-lived programs notice a dead daemon.
var withPings = grpc.WithKeepaliveParams(keepalive.ClientParameters{
	Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true,
})

// waitReady waits until embeddings are answered, as programs of the original do.
func waitReady(t *testing.T, client pb.RunedServiceClient) {
	t.Helper()
	waitFor(t, client, func(health *pb.HealthResponse) bool { return health.GetStatus() == pb.HealthResponse_STATUS_OK })
}

// waitFor polls Health until a condition holds.
func waitFor(t *testing.T, client pb.RunedServiceClient, told func(*pb.HealthResponse) bool) *pb.HealthResponse {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		health, err := client.Health(t.Context(), &pb.HealthRequest{})
		if err == nil && told(health) {
			return health
		}
		if time.Now().After(deadline) {
			t.Fatalf("Health does not come to tell it within 60 s: %v, %v", health, err)
		}
	}
}

// must returns a value, and fails the test if making it failed.
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// wantRefusal checks the code of an error and the reason in its details.
func wantRefusal(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	refusal, ok := status.FromError(err)
	if !ok || refusal.Code() != code {
		t.Fatalf("%v, instead of %v", err, code)
	}
	for _, detail := range refusal.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			if info.GetDomain() != "runed.v1" || info.GetReason() != reason {
				t.Errorf("%s of %s, instead of %s", info.GetReason(), info.GetDomain(), reason)
			}
			return
		}
	}
	t.Errorf("%v has no reason", err)
}

type fixture struct {
	Text   string
	Vector []float32
}

// references reads the reference vectors of the served model.
func references(t *testing.T, dim int32) []fixture {
	t.Helper()
	name := map[int32]string{384: "minilm.golden.json", 64: "tiny-qwen3.golden.json"}[dim]
	data := must(os.ReadFile(filepath.Join("..", "..", "fixtures", name)))(t)
	var document struct{ Fixtures []fixture }
	if err := json.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	return document.Fixtures
}

func cosine(a, b []float32) float64 {
	if len(a) != len(b) {
		return math.NaN()
	}
	var product, left, right float64
	for i := range a {
		product += float64(a[i]) * float64(b[i])
		left += float64(a[i]) * float64(a[i])
		right += float64(b[i]) * float64(b[i])
	}
	return product / math.Sqrt(left*right)
}
