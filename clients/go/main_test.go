package runed_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runed "runed.dev/clients/go"
)

// The tests run against a real daemon with the engine of RUNED_LLAMA_SERVER and the model of RUNED_MODEL, all-MiniLM-L6-v2. All
// tests that name no home share the one that is made here. The first client starts the daemon.
func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	for _, name := range []string{"RUNED_LLAMA_SERVER", "RUNED_MODEL"} {
		if os.Getenv(name) == "" {
			fmt.Fprintf(os.Stderr, "%s is not set; the tests need an engine and a model, which `make test` gives them\n", name)
			return 1
		}
	}
	home, err := makeHome()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer removeHome(home)
	os.Setenv("RUNED_HOME", home)
	os.Unsetenv("RUNED_CONFIG")
	return m.Run()
}

// makeHome makes a home whose path is short enough for a socket. The path of t.TempDir may be too long.
func makeHome() (string, error) { return os.MkdirTemp("/tmp", "rg-") }

// removeHome stops the daemon of a home, if it ever had one, and removes everything.
func removeHome(home string) {
	if _, err := os.Stat(filepath.Join(home, "logs")); err == nil {
		command := exec.Command("runed", "stop")
		command.Env = append(os.Environ(), "RUNED_HOME="+home)
		if output, err := command.CombinedOutput(); err != nil && command.ProcessState.ExitCode() != notRunning {
			fmt.Fprintf(os.Stderr, "runed stop: %v\n%s", err, output)
		}
	}
	os.RemoveAll(home)
}

// notRunning is the exit code of `runed stop` where no daemon runs.
const notRunning = 3

// ownHome makes a home for one test.
func ownHome(t *testing.T) string {
	t.Helper()
	home, err := makeHome()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeHome(home) })
	return home
}

// connect connects for one test.
func connect(t testing.TB, options ...runed.Option) *runed.Client {
	t.Helper()
	client, err := runed.Connect(t.Context(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// must returns a value, or ends the test if making it failed.
func must[T any](value T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// waitUntil polls until a condition holds.
func waitUntil(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come within 30 s", what)
		}
	}
}

// processGone tells whether a process has ended; a zombie has.
func processGone(pid int64) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.HasPrefix(string(status[strings.LastIndexByte(string(status), ')')+1:]), " Z")
}

// killDaemon ends the daemon of a client as a crash does.
func killDaemon(t testing.TB, client *runed.Client) (pid int64) {
	t.Helper()
	pid = must(client.Health(context.Background()))(t).GetPid()
	if err := syscall.Kill(int(pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return pid
}

// golden are reference vectors of another implementation of the model.
type golden struct {
	Texts   []string
	Tokens  []int
	Vectors [][]float32
}

// loadGolden reads the reference vectors, and waits until the daemon is ready.
func loadGolden(t testing.TB, client *runed.Client) golden {
	t.Helper()
	info := must(client.WaitReady(t.Context()))(t)
	if info.GetVectorDim() != 384 {
		t.Fatalf("RUNED_MODEL is %s, but the reference vectors are those of all-MiniLM-L6-v2", info.GetModelName())
	}
	data := must(os.ReadFile(filepath.Join("..", "..", "tests", "fixtures", "minilm.golden.json")))(t)
	var document struct {
		Fixtures []struct {
			Text   string
			Tokens int
			Vector []float32
		}
	}
	if err := json.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	var result golden
	for _, fixture := range document.Fixtures {
		result.Texts = append(result.Texts, fixture.Text)
		result.Tokens = append(result.Tokens, fixture.Tokens)
		result.Vectors = append(result.Vectors, fixture.Vector)
	}
	return result
}

func dot(a, b []float32) float64 {
	if len(a) != len(b) {
		return math.NaN()
	}
	sum := 0.0
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

func cosine(a, b []float32) float64 { return dot(a, b) / math.Sqrt(dot(a, a)*dot(b, b)) }
